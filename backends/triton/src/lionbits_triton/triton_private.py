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


def compile_for(architecture: int) -> None:
    """Make Triton compile for a CUDA GPU of this architecture from now on, with or without such a GPU.

    Raises:
        RuntimeError: this version of Triton cannot.
    """
    try:
        target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", architecture, 32)
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
