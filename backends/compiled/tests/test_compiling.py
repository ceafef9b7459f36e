"""Compiled functions as their callers see them, and the flags of the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits_compiled import compiling


@pytest.mark.parametrize("width", [0, 256])
def test_what_is_compiled_for_some_sizes_only_is_refused(width: int) -> None:
    """As no call looks at them: a sum that torch may compile otherwise for many columns, say, would be wrong there."""

    def halve_few(x: torch.Tensor) -> None:
        if x.shape[1] < 1000:
            x.mul_(0.5)

    few = torch.ones(4, 256)
    if width:
        compiling.Compiled(halve_few, "a test with a width", width)(few)
        assert (few == 0.5).all()
    else:
        with pytest.raises(RuntimeError, match=r"< 1000.*backend='reference'"):
            compiling.Compiled(halve_few, "a test with any width")(few)
        assert (few == 1).all()


def test_the_sign_is_torchs() -> None:
    """In bits, of zeros, subnormal, infinite and undefined numbers of both signs too."""
    ends = [0.0, 1e-45, 2.0**-126, 1.0, 3e38, torch.inf, torch.nan]
    x = torch.tensor([[sign * end for end in ends] for sign in (1, -1)]).repeat(8, 5)
    found = torch.full_like(x, 7.0)
    compiling.Compiled(lambda x, found: found.copy_(x.sign()), "a test of signs")(x, found)
    assert torch.equal(found.view(torch.int32), x.sign().view(torch.int32))


ON_ANY_MACHINE = """
import torch
from lionbits_compiled.compiling import Compiled

x, y = torch.arange(4096.0).view(64, 64), torch.zeros(64, 64)
Compiled(lambda x, y: y.copy_(x + x), "a test")(x, y)
print(torch.equal(x + x, y))
"""


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="a machine with one length of vectors"
)
def test_what_a_machine_with_longer_vectors_compiled_is_not_run(tmp_path: Path) -> None:
    """In a cache that machines share, torch's own keys do not tell these apart: half of all elements stayed as is."""
    for capability in ({}, {"ATEN_CPU_CAPABILITY": "avx2"}, {"ATEN_CPU_CAPABILITY": "default"}):
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)} | capability
        command = [sys.executable, "-c", ON_ANY_MACHINE]
        ran = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert ran.stdout == "True\n", ran.stderr


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="only on x86 do compilers prefer halves"
)
def test_vectors_are_moved_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """While compiling, and only then: what others compile is not ours to change."""
    from torch import _inductor
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa, plain, used, compile_ = pick_vec_isa(), pick_vec_isa().build_arch_flags(), [], _inductor.compile

    def spying(*arguments: Any, **options: Any) -> Any:
        used.append(isa.build_arch_flags())
        return compile_(*arguments, **options)

    monkeypatch.setattr(_inductor, "compile", spying)
    compiling.Compiled(lambda x: x.add_(1), "a test of vectors")(torch.zeros(64, 64))
    assert f"-mprefer-vector-width={isa.bit_width()}" in used[0].split()
    assert isa.build_arch_flags() == plain


def test_numbers_may_be_any() -> None:
    """Zeros of both signs, equal ones and those of sizes, though it was compiled for others."""
    shift = compiling.Compiled(lambda x, y, by, b: y.copy_((x << by) * b), "a test of numbers")
    x, y = torch.arange(64 * 32, dtype=torch.int32).view(64, 32), torch.empty(64, 32)
    for by, b in ((5, 0.1), (0, -0.0), (1, 0.0), (3, torch.inf), (64 - 32, 64.0), (1, -1.5), (2, 1e-45)):
        shift(x, y, by, b)
        want = (x << by) * torch.tensor(b, dtype=torch.float32)
        assert torch.equal(y.view(torch.int32), want.view(torch.int32)), (by, b)


def test_without_the_headers_of_python_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: "/nowhere")
    assert "/nowhere/Python.h" in compiling.obstacle()


def test_the_first_call_says_what_takes_so_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal, and only the first."""

    def double(x: torch.Tensor) -> None:
        x.mul_(2.0)

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    function = compiling.Compiled(double, "something")
    doubled = torch.ones(4, 8)
    function(doubled)
    assert "compiling something" in capsys.readouterr().err
    function(torch.ones(6, 32))
    assert capsys.readouterr().err == ""
    assert (doubled == 2).all()
