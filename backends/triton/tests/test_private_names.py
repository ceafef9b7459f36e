"""Without what is taken of Triton beyond its public interface kernels have the same bits, or a sentence says why."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor, nn

from lionbits_triton import triton_private
from lionbits_triton.optim import Lion8bit

INTERPRETER = "triton.runtime.interpreter"
COMPILER = "triton.backends.compiler"
DRIVER = "triton.runtime"


def trained() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((70, 64), (33,))]
    optimizer = Lion8bit(params, lr=0.01, weight_decay=0.1, cautious="mask")
    for _ in range(2):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return [*params, *(value for state in optimizer.state.values() for value in state.values())]


#: What may stand in the place of the interpreter's module, or builder.
OTHERS: dict[str, Any] = {
    "no module": None,
    "no builder": SimpleNamespace(),
    "no options": SimpleNamespace(interpreter_builder=SimpleNamespace()),
    "no debug": SimpleNamespace(interpreter_builder=SimpleNamespace(options=SimpleNamespace())),
    "options are no dataclass": SimpleNamespace(
        interpreter_builder=SimpleNamespace(options=SimpleNamespace(debug=False))
    ),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_overflow_checks_stay_where_there_is_no_way_to_skip_them(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That costs time alone."""
    fast = trained()
    builder = importlib.import_module(INTERPRETER).interpreter_builder
    monkeypatch.setattr(builder, "options", type(builder.options)())  # as Triton makes it
    with monkeypatch.context() as context:
        context.setitem(sys.modules, INTERPRETER, other)
        triton_private.skip_overflow_checks()
    assert builder.options.sanitize_overflow
    for one, other_ in zip(trained(), fast, strict=True):
        assert torch.equal(one, other_) if isinstance(one, Tensor) else one == other_


def test_overflow_checks_are_skipped_here() -> None:
    assert not importlib.import_module(INTERPRETER).interpreter_builder.options.sanitize_overflow


def no_arguments() -> None:
    """In the place of what takes some."""


#: What may stand in the place of a module by which Triton compiles for a chosen GPU.
DRIVERS: dict[str, tuple[str, Any]] = {
    "no module of GPUTarget": (COMPILER, None),
    "no GPUTarget": (COMPILER, SimpleNamespace()),
    "GPUTarget, other arguments": (COMPILER, SimpleNamespace(GPUTarget=no_arguments)),
    "no module of the driver": (DRIVER, None),
    "no driver": (DRIVER, SimpleNamespace()),
    "no set_active": (DRIVER, SimpleNamespace(driver=SimpleNamespace())),
    "set_active, other arguments": (DRIVER, SimpleNamespace(driver=SimpleNamespace(set_active=no_arguments))),
}


@pytest.mark.parametrize(("module", "other"), DRIVERS.values(), ids=DRIVERS)
def test_a_listing_says_what_it_misses(module: str, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, other)
    with pytest.raises(RuntimeError, match=rf"triton {triton.__version__} cannot compile for.*Use triton 3\.5 to 3\.9"):
        triton_private.compile_for(90)


@pytest.mark.parametrize("first", ["0", "1"])
def test_a_change_of_interpreter_after_triton_is_imported_is_refused(first: str) -> None:
    """What runs kernels is read off Triton's own functions."""
    now = {"0": "1", "1": "0"}[first]
    code = f"import os, triton; os.environ['TRITON_INTERPRET'] = '{now}'; import lionbits_triton"
    environment = {**os.environ, "TRITON_INTERPRET": first}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ImportError: TRITON_INTERPRET has changed since Triton was imported" in done.stderr
