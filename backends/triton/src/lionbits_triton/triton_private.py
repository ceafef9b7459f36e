"""Private names of Triton, all in this module.

Triton 3.5 to 3.9 have them. A missing name that only saves time is skipped; one that cannot be replaced raises.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import triton


def skip_overflow_checks() -> None:
    """Stop the interpreter from computing each integer sum and product again in 64 bits for an assertion.

    The assertion is only made in debug mode. In debug mode, or without such an option, nothing is changed.
    """
    try:
        builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
        if not builder.options.debug:
            builder.options = replace(builder.options, sanitize_overflow=False)
    except (ImportError, AttributeError, TypeError):
        return


def obstacle() -> str:
    """Return the reason why Triton cannot launch on this machine's GPUs, or an empty string.

    Triton builds a part of its driver in C, and keeps it in its cache. That needs a C compiler, the headers of Python
    and the library of the GPU's driver.
    """
    runtime = importlib.import_module("triton.runtime")
    if not hasattr(getattr(runtime, "driver", None), "active"):
        return ""
    try:
        runtime.driver.active.get_current_target()
    except Exception as error:  # noqa: BLE001 - of any type: no compiler, no header, no library
        reason = " ".join(str(error).split())[:500]
        return (
            f"Triton finds no way to launch kernels ({type(error).__name__}: {reason}). It needs the GPU's driver, a C "
            "compiler (apt install gcc, or CC) and the headers of Python (apt install python3-dev)"
        )
    return ""


def compile_for(architecture: int | str) -> None:
    """Make Triton compile for a GPU of this architecture from now on, with or without such a GPU.

    Args:
        architecture: a compute capability of NVIDIA's, as 90, or a name of AMD's, as "gfx942".

    Raises:
        RuntimeError: this version of Triton cannot.
    """
    kind = "cuda" if isinstance(architecture, int) else "hip"
    threads = 64 if str(architecture).startswith("gfx9") else 32  # of a warp
    try:
        target = importlib.import_module("triton.backends.compiler").GPUTarget(kind, architecture, threads)
        importlib.import_module("triton.runtime").driver.set_active(
            SimpleNamespace(
                get_current_device=lambda: architecture,
                get_current_stream=lambda device: 0,
                get_current_target=lambda: target,
            )
        )
    except (ImportError, AttributeError, TypeError) as error:
        raise RuntimeError(
            f"triton {triton.__version__} cannot compile for a chosen GPU in the way that lionbits knows ({error}). "
            f"Use triton 3.5 to 3.9 to list what it makes of the kernels; training needs none of this."
        ) from error
