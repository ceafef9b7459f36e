"""What the backend says of itself, the structs that it hands over, threads, the self-test, the builds."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import lionbits
import lionbits_cpp as backend
import lionbits_reference as reference
from lionbits import select
from lionbits_conformance import serving
from lionbits_cpp import build, launch, library, self_test
from lionbits_reference.spec import Format, Plan
from lionbits_table import Record

CPU = torch.device("cpu")
PLAN = Plan(torch.float32, torch.float32, Format.of(8))
FOLDER = Path(backend.__path__[0], "cpp")


def test_auto_takes_it_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by its name, and nobody has to ask for it."""
    monkeypatch.delenv("LIONBITS_BACKEND", raising=False)
    assert select.load("cpp") is backend
    assert select.serving(None, PLAN, CPU) is backend


def test_every_plan_is_served() -> None:
    """The conformance suite skips what is refused, so nothing may be."""
    assert [plan for plan in serving.every_plan() if backend.supports(plan, CPU)] == []


def test_reasons_say_what_would_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another device; no library, or one that cannot be loaded: then `auto` goes on to the reference."""
    assert "not on cuda" in backend.supports(PLAN, torch.device("cuda", 0))
    for content in (None, b"no library"):
        monkeypatch.setattr(library, "FOLDER", tmp_path)
        for name in library.names() if content else ():
            (tmp_path / f"{name}.so").write_bytes(content or b"")
        library.load.cache_clear()
        library.obstacle.cache_clear()
        select._automatic.cache_clear()
        assert "python -m lionbits_cpp.build" in backend.supports(PLAN, CPU)
        assert select.serving(None, PLAN, CPU).name == "reference"
        with pytest.raises(ValueError, match="backend='cpp' cannot serve"):
            lionbits.Lion8bit([torch.nn.Parameter(torch.ones(64, 64))], backend="cpp")
    monkeypatch.undo()
    for function in (library.load, library.obstacle, select._automatic):
        function.cache_clear()


@pytest.mark.parametrize("plan", self_test.KNOWN, ids=str)
def test_the_self_tests_numbers_are_the_references(plan: Plan) -> None:
    """What the self-test holds a library to, and what this library gives."""
    assert self_test.checksum(reference.prepare, reference.step, plan) == self_test.KNOWN[plan]
    assert self_test.checksum(backend.prepare, backend.step, plan) == self_test.KNOWN[plan]


@pytest.mark.parametrize("option", ["-ffast-math", "-ffp-contract=fast"])
def test_a_library_that_computes_otherwise_is_refused(tmp_path: Path, option: str) -> None:
    """Options that change results: no NaN, and fused operations."""
    if "x86-64-v3" not in library.names() or not build.compiler():
        pytest.skip("it takes a compiler and a CPU with fused operations")
    wrong = {**build.X86, "x86-64-v3": (*build.X86["x86-64-v3"], option)}
    line = [
        *build.compiler(),
        *build.OPTIONS,
        *wrong["x86-64-v3"],
        str(build.SOURCE),
        "-o",
        str(tmp_path / "x86-64-v3.so"),
    ]
    done = subprocess.run([*line, "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    script = (
        f"from pathlib import Path; from lionbits_cpp import library; library.FOLDER = Path({str(tmp_path)!r})\n"
        "import torch, lionbits_cpp\nfrom lionbits_reference.spec import Format, Plan\n"
        "print(lionbits_cpp.supports(Plan(torch.float32, torch.float32, Format.of(8)), torch.device('cpu')))"
    )
    environment = {**os.environ, library.ENVIRONMENT: "x86-64-v3"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "gives other bits than the reference" in said.stdout


def _fields(file: str, struct: str) -> list[str]:
    """Names of a struct's members, in order; of an array, one for each element."""
    text = (FOLDER / file).read_text()
    body = text[text.index(f"struct {struct} {{") :].split("};")[0]
    lines = [re.sub(r"//.*", "", line) for line in body.splitlines()[1:]]
    found = [match for line in lines for match in re.findall(r"(\w+)(?:\[(\d+)\])?(?=[,;])", line)]
    return [name for name, size in found for _ in range(int(size or 1))]


def test_structs_are_what_the_host_writes() -> None:
    """The fields of C++ and of ctypes, in one order."""
    assert len(_fields("table.hpp", "Slot")) == len(Record._fields)
    assert _fields("table.hpp", "Slot")[:10] == list(Record._fields[:10])
    plan = _fields("table.hpp", "Plan")
    at = plan.index("format")
    plan[at : at + 1] = _fields("lion.hpp", "Format")
    assert plan == [name for name, _ in launch.PlanNumbers._fields_]
    for struct, kind in (
        ("Table", launch.TableAddresses),
        ("Hyper", launch.HyperNumbers),
        ("Scalars", launch.ScalarAddresses),
    ):
        assert _fields("kernels.cpp", struct) == [name for name, *_ in kind._fields_]
    assert f"CHUNK = {launch.PLAIN_BLOCK};" in (FOLDER / "table.hpp").read_text()


def _steps(backend: str, seed: int, threads: int = 2) -> torch.Tensor:
    """A parameter after three steps, of more elements than are worth a thread."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    param = torch.nn.Parameter(torch.randn(300, 1031, generator=generator))
    optimizer = lionbits.Lion8bit([param], lr=0.01, weight_decay=0.1, backend=backend)
    for _ in range(3):
        param.grad = torch.randn(300, 1031, generator=generator)
        optimizer.step()
    return param.detach()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_change_no_bit(threads: int) -> None:
    before = torch.get_num_threads()
    assert torch.equal(_steps("cpp", 1, threads), _steps("reference", 1, 1))
    torch.set_num_threads(before)


def test_a_forked_process_steps() -> None:
    """Its parent has had threads, which it has not: they must not be waited for. (Operations of torch would wait.)"""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    param = torch.nn.Parameter(torch.ones(300, 1031))
    param.grad = torch.linspace(-1, 1, 300 * 1031).reshape(300, 1031)
    optimizer = lionbits.Lion8bit([param], lr=0.01, backend="cpp")
    optimizer.step()
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=_step_of, args=(optimizer, param, queue))
    child.start()
    child.join(30)
    child.kill()
    assert child.exitcode == 0
    optimizer.step()
    assert queue.get() == zlib.crc32(param.detach().numpy().tobytes())
    torch.set_num_threads(before)


def _step_of(optimizer: lionbits.Lion8bit, param: torch.Tensor, queue: Any) -> None:
    optimizer.step()
    queue.put(zlib.crc32(param.detach().numpy().tobytes()))


@pytest.mark.parametrize("flush", [False, True])
def test_a_users_flags_change_no_bit(flush: bool) -> None:
    """torch.set_flush_denormal would lose small momentum; a step keeps it, and leaves the flag as it was."""
    param = torch.nn.Parameter(torch.ones(4, 256))
    param.grad = torch.full((4, 256), 2.0**-130)
    optimizer = lionbits.Lion32bit([param], backend="cpp")
    torch.set_flush_denormal(flush)
    try:
        optimizer.step()
        flushed = bool(torch.tensor([2.0**-140]).mul(1.0).eq(0).all())
    finally:
        torch.set_flush_denormal(False)
    assert flushed == flush
    assert bool(optimizer.momentum(param).gt(0).all())


def test_a_null_table_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots without elements: the library is not even looked for."""
    monkeypatch.setattr(library, "load", lambda: pytest.fail("called"))
    param = torch.nn.Parameter(torch.empty(0, 5))
    param.grad = torch.empty(0, 5)
    lionbits.Lion32bit([param], backend="cpp").step()


def test_builds_are_named_by_instruction_set() -> None:
    """Every build that this CPU could run is one that the builder makes for this machine."""
    made = build.builds(os.uname().machine)
    assert set(library.names()) <= set(made)
    assert isinstance(library.load(), ctypes.CDLL)


def test_threads_do_not_race(tmp_path: Path) -> None:
    """Under ThreadSanitizer, with threads of the library's own."""
    if not build.compiler():
        pytest.skip("it takes a compiler")
    source, program = Path(__file__).with_name("race.cpp"), tmp_path / "race"
    line = [*build.compiler(), "-std=c++17", "-O1", "-g", "-fsanitize=thread", *build.EXACT, f"-I{FOLDER}", str(source)]
    made = subprocess.run([*line, "-o", str(program), "-pthread", "-ldl"], capture_output=True, text=True, check=False)
    if made.returncode and "tsan" in made.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert made.returncode == 0, made.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_self_test_needs_no_default_of_torch() -> None:
    """Neither of dtype nor of device."""
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            assert self_test.failure.__wrapped__(backend.prepare, backend.step) == ""
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_momentum_that_is_not_finite_is_skipped(bits: int) -> None:
    """As an optimizer with "propagate" leaves it: elements stay, and count as skipped, whatever their gradient is."""
    params = [torch.nn.Parameter(torch.ones(4, 256)) for _ in range(2)]
    for param, name in zip(params, ("cpp", "reference"), strict=True):
        optimizer = lionbits.Lion([param], optim_bits=bits, min_8bit_size=1, nonfinite="propagate", backend=name)
        for value in (torch.inf, 1.0):
            param.grad = torch.ones(4, 256)
            param.grad[1, 3] = value
            optimizer.step()
            optimizer.param_groups[0]["nonfinite"] = "skip"
        assert optimizer.skipped_elements() > 0
    assert torch.equal(*params)
