"""What the backend says of itself, and that one variant of a kernel serves every step of a schedule."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

import lionbits
import lionbits_triton as backend
from lionbits import select
from lionbits_conformance import properties, serving
from lionbits_conformance.cases import Case, TensorCase

from .cases import PLAN

#: A fresh process in which kernels compile, for a GPU that need not be there.
COMPILING = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}


def test_it_is_a_backend() -> None:
    """Found by its name, with all that the protocol asks for."""
    assert select.load("triton") is backend


@pytest.mark.parametrize("device", ["cuda", "xpu", "mps", "meta"])
def test_the_interpreter_serves_the_cpu_only(device: str) -> None:
    """And says so of every other device."""
    assert backend.supports(PLAN, torch.device("cpu")) == ""
    assert "TRITON_INTERPRET" in backend.supports(PLAN, torch.device(device))


def _output(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=COMPILING, capture_output=True, text=True, check=True).stdout


def test_without_the_interpreter_the_cpu_is_refused() -> None:
    """The reason says what would serve."""
    code = (
        "import torch, lionbits, lionbits_triton as backend; from lionbits_reference.spec import *\n"
        "plan = Plan(torch.float32, torch.float32, Format.of(8))\n"
        "print(backend.supports(plan, torch.device('cpu')))\n"
        "try: lionbits.Lion8bit([torch.nn.Parameter(torch.ones(64, 64))], backend='triton')\n"
        "except ValueError as error: print(error)\n"
    )
    reason, refusal = _output(code).strip().splitlines()
    assert "TRITON_INTERPRET=1" in reason
    assert "CUDA" in reason
    assert reason in refusal


#: What a machine is like, and what the backend says of it.
MACHINES = {
    "a GPU": ("", ""),
    "no driver": ("torch.cuda.is_available = lambda: False", "finds no GPU"),
    "Pascal": ("capability = (6, 0)", "compute capability 7.0 and up; cuda:0 has 6.0"),
    "an old GPU of AMD's, whose numbers are others": ("capability, torch.version.hip = (6, 0), '6.4'", ""),
    "no compiler": ("active = failing(RuntimeError('Failed to find C compiler'))", "C compiler.*apt install gcc"),
    "no library": ("active = failing(AssertionError('libcuda.so cannot found!'))", "libcuda.so.*the GPU's driver"),
    "another Triton": ("del runtime.driver", ""),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_missing_is_said_before_a_step(machine: str) -> None:
    """Too old a GPU, no driver, and what Triton needs to build its part of the driver."""
    code, expected = MACHINES[machine]
    setting = (
        "import torch, triton.runtime as runtime, lionbits_triton as backend; from lionbits_reference.spec import *\n"
        "from types import SimpleNamespace\n"
        "def failing(error):\n"
        "    def get_current_target(): raise error\n"
        "    return SimpleNamespace(get_current_target=get_current_target)\n"
        "capability, active = (9, 0), SimpleNamespace(get_current_target=lambda: None)\n"
        "torch.cuda.is_available = lambda: True\n"
        f"{code}\n"
        "torch.cuda.get_device_capability = lambda index: capability\n"
        "if hasattr(runtime, 'driver'): runtime.driver = SimpleNamespace(active=active)\n"
        "plan = Plan(torch.float32, torch.float32, Format.of(8))\n"
        "print(backend.supports(plan, torch.device('cuda', 0)))\n"
    )
    said = _output(setting).strip()
    assert re.search(expected, said) if expected else said == ""


def test_numbers_and_addresses_make_no_variant() -> None:
    """Betas, seeds and roundings of any value, and tensors at any address, are served by one compiled kernel."""
    code = (
        "import torch; from lionbits_triton import compiled, kernels, launch; from lionbits_reference.spec import *\n"
        "cut = launch.cut(Plan(torch.bfloat16, torch.bfloat16, Format.of(8)), [])\n"
        "words, numbers = torch.zeros(64, dtype=torch.int64), torch.zeros(64)\n"
        "found = set()\n"
        "for at, beta, seed, flag in [(0, 0.9, 0, 0), (1, 1.0, 1, 1), (3, 0.0, 2**32 - 1, 0), (2, 0.5, 16, 1)]:\n"
        "    w, n = words[at:], numbers[at:]\n"
        "    call = (w, w, w, n, n, n, w, n, w, beta, beta, beta, beta, seed, seed, flag, 1 - flag)\n"
        "    found.add(id(compiled.compile(kernels.step_kernel, call, cut, 90, EVEN=cut.even, UNEVEN=cut.uneven)))\n"
        "print(len(found))\n"
    )
    assert _output(code).strip() == "1"


def test_a_kernel_of_another_release_does_not_serve() -> None:
    """Where what follows from a path has changed, Triton finds nothing on its disk: it goes by the path's text."""
    code = (
        "import torch; from lionbits_triton import compiled, kernels, launch, variant\n"
        "from lionbits_reference.spec import *\n"
        "%s\n"
        "cut = launch.cut(Plan(torch.float32, torch.float32, Format.of(8)), [])\n"
        "w, n = torch.zeros(8, dtype=torch.int64), torch.zeros(8)\n"
        "call = (w, w, w, n)\n"
        "print(compiled.compile(kernels.encode_kernel, call, cut, 90, UNEVEN=cut.uneven).hash)\n"
    )
    as_it_is = "pass"
    otherwise = "variant.KernelVariant.top_is_power_of_two = property(lambda self: True)"
    first, again, other = (_output(code % change) for change in (as_it_is, as_it_is, otherwise))
    assert first == again != other


def test_every_plan_is_served() -> None:
    """The conformance suite skips what is refused, so nothing may be."""
    assert [plan for plan in serving.every_plan() if backend.supports(plan, torch.device("cpu"))] == []


def test_a_plan_that_is_served_trains() -> None:
    """Through the optimizer, by the backend's name."""
    optimizer = lionbits.Lion8bit([torch.nn.Parameter(torch.ones(64, 64))], backend="triton")
    assert optimizer.momentum(optimizer.param_groups[0]["params"][0]).shape == (64, 64)


def test_two_threads_may_step_at_once() -> None:
    """In the interpreter too, which by itself serves one thread."""
    case = Case(PLAN, (TensorCase((6, 300)),))
    for _ in range(3):
        properties.threads_do_not_meet(backend, case)
