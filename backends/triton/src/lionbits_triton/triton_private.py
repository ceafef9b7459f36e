"""What is taken of Triton beyond its public interface: all of it is here.

Triton 3.5 to 3.9 have it. What only saves time is left where there is none; what nothing else can do raises.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import triton


def skip_overflow_checks() -> None:
    """Let the interpreter not form each sum and product of integers again in 64 bits, for an assertion.

    It makes that assertion only where it is asked to debug; then, and where it has no such option, all stays as it is.
    """
    try:
        builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
        if not builder.options.debug:
            builder.options = replace(builder.options, sanitize_overflow=False)
    except (ImportError, AttributeError, TypeError):
        return


def compile_for(architecture: int) -> None:
    """Let Triton compile for a CUDA GPU of this architecture from now on, whether there is one or not.

    Raises:
        RuntimeError: this Triton cannot be told.
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
            f"triton {triton.__version__} cannot be told for which GPU to compile, as lionbits knows it ({error}). "
            f"Use triton 3.5 to 3.9 to list what it makes of the kernels; training needs none of this."
        ) from error
