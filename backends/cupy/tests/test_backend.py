"""What the backend says of itself, how a plan reaches its kernels, and what a launch is."""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lionbits
import lionbits_cupy as backend
from lionbits import select
from lionbits_conformance import serving
from lionbits_cupy import build, emulate, launch, source
from lionbits_reference.spec import FLOAT32, Format, Plan, Slot
from lionbits_table import EVEN, Record

PLAN = Plan(torch.float32, torch.float32, Format.of(8))


def test_it_is_a_backend() -> None:
    """Found by its name, with all that the protocol asks for."""
    assert select.load("cupy") is backend


def test_every_plan_is_served() -> None:
    """The conformance suite skips what is refused, so nothing may be."""
    assert [plan for plan in serving.every_plan() if backend.supports(plan, torch.device("cpu"))] == []


def test_reasons_say_what_would_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device, the variable that asks for emulation, what is missing, a GPU that is too old or too new."""
    where = torch.device("cuda", 0)
    assert backend.supports(PLAN, torch.device("cpu")) == ""
    assert "CUDA devices, not on mps" in backend.supports(PLAN, torch.device("mps"))
    monkeypatch.setattr(torch.version, "cuda", None)
    for hip, built in ((None, "without CUDA"), ("6.4", "for ROCm")):
        monkeypatch.setattr(torch.version, "hip", hip)
        assert built in backend.supports(PLAN, where)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no driver" in backend.supports(PLAN, where)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("lionbits_cupy.backend.architecture", lambda index: 70)
    assert "7.5" in backend.supports(PLAN, where)
    monkeypatch.setattr("lionbits_cupy.backend.architecture", lambda index: 990)
    nvrtc = SimpleNamespace(getVersion=lambda: (13, 0), getSupportedArchs=lambda: [80, 90])
    monkeypatch.setattr(build, "_nvrtc", lambda: nvrtc)
    assert "NVRTC 13.0 does not know sm_990; it knows sm_80, sm_90" in backend.supports(PLAN, where)
    monkeypatch.setattr("lionbits_cupy.backend.architecture", lambda index: 90)
    assert backend.supports(PLAN, where) == ""
    with monkeypatch.context() as bare:
        bare.setattr(build, "_nvrtc", _missing)
        assert backend.supports(PLAN, where) == "CuPy finds no NVRTC"
        bare.setattr("importlib.util.find_spec", lambda name: None)
        assert "pip install cupy-cuda13x" in backend.supports(PLAN, where)
        assert "pip install ./packages/cuda-on-cpu" in backend.supports(PLAN, torch.device("cpu"))
    monkeypatch.delenv(emulate.ENVIRONMENT)
    assert "LIONBITS_CUPY_EMULATE=1" in backend.supports(PLAN, torch.device("cpu"))
    with pytest.raises(ValueError, match="LIONBITS_CUPY_EMULATE=1"):
        lionbits.Lion8bit([torch.nn.Parameter(torch.ones(64, 64))], backend="cupy")


def _missing() -> None:
    raise ImportError("CuPy finds no NVRTC")


def _fields(file: str, struct: str) -> list[str]:
    """Names of a struct's members, in order."""
    text = (source.FOLDER / file).read_text()
    body = text[text.index(f"struct {struct} {{") :].split("};")[0]
    lines = [re.sub(r"//.*", "", line) for line in body.splitlines()[1:]]
    return [name for line in lines for name in re.findall(r"(\w+)(?=[,;])", line)]


def test_structs_are_what_the_host_writes() -> None:
    """A row of the device table and a plan have the fields, in the order, that Python has."""
    assert _fields("tiles.cuh", "Slot") == list(Record._fields)
    assert len(_fields("lion.cuh", "Plan")) == len(source.numbers(PLAN))
    text = (source.FOLDER / "tiles.cuh").read_text()
    assert f"SPAN = {source.SPAN};" in text
    assert f"WARP = {source.WARP};" in text
    assert source.SPAN == EVEN


def test_a_plan_is_written_as_constants() -> None:
    """Every plan is another text; hexadecimal floats lose nothing; without codes, shifts still make sense."""
    plans = [
        Plan(dtype, grad, format, caution, nonfinite=nonfinite)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for grad in (torch.float32, torch.bfloat16, torch.float16)
        for format in (FLOAT32, Format.of(8), Format.of(4), Format.of(8, block_size=32), Format.of(8, block_wise=False))
        for caution in ("none", "mask", "gradient")
        for nonfinite in ("skip", "propagate")
    ]
    assert len({source.source(plan).text for plan in plans}) == len(plans)
    assert f"{PLAN.format.top.hex()}f" in source.source(PLAN).text
    assert source.numbers(plans[0])[3:5] == (8, 19)


@pytest.mark.parametrize("size", [32, 256, 512, 1024, 4096])
def test_a_tile_is_whole_blocks(size: int) -> None:
    """A warp takes blocks of up to 512 elements, several at a time; a thread block one larger one."""
    plan = Plan(torch.bfloat16, torch.bfloat16, Format.of(8, block_size=size))
    assert source.thread_group(plan) * source.SPAN % size == 0
    assert source.thread_group(plan) == (32 if size <= 512 else size // 16)


class Launches:
    """What a module on a GPU would be asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, int, list[Any]]] = []
        monkeypatch.setattr(
            emulate,
            "launch",
            lambda kernel, plan, table, extents, wanted, threads, call: self.calls.append(
                (kernel, wanted, threads, call)
            ),
        )


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("wise", [True, False], ids=["block-wise", "tensor-wise"])
def test_launches_do_not_grow_with_tensors(monkeypatch: pytest.MonkeyPatch, count: int, wise: bool) -> None:
    """One launch updates any number of tensors; one more finds the largest momentum of tensor-wise scales."""
    launches = Launches(monkeypatch)
    params = [torch.nn.Parameter(torch.ones(2, 32)) for _ in range(count)]
    optimizer = lionbits.Lion8bit(params, backend="cupy", min_8bit_size=1, block_wise=wise)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert [call[0] for call in launches.calls] == ["step_kernel"] if wise else ["count_kernel", "step_kernel"]


def test_a_launch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On PyTorch's current stream of the slots' device, with no more blocks than it can use."""
    calls: list[tuple[Any, ...]] = []
    device = nullcontext()
    cuda = SimpleNamespace(Device=lambda index: device, ExternalStream=lambda pointer: f"stream {pointer}")
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(launch, "_multiprocessors", lambda index: 2)
    function = lambda *given, **more: calls.append((*given, more))  # noqa: E731
    monkeypatch.setattr(launch, "_functions", lambda plan, index: {"step_kernel": function})

    class Array:
        device = torch.device("cuda", 1)

        def __len__(self) -> int:
            return 1000

        def data_ptr(self) -> int:
            return 4096

    array = Array()
    table = SimpleNamespace(slots=array, calls=array, items=array)
    launch.launch("step_kernel", launch.Prepared(PLAN, table), torch.ones(1), np.float32(0.5))  # type: ignore[arg-type]
    [(grid, block, arguments, more)] = calls
    assert (grid, block) == ((2 * launch.BLOCKS_PER_MULTIPROCESSOR,), (128,))
    assert arguments[:4] == (4096, 4096, 4096, 1000)
    assert arguments[5] == np.float32(0.5)
    assert more == {"stream": "stream 77"}


def test_no_elements_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots without elements: nothing is launched."""
    launches = Launches(monkeypatch)
    empty = torch.empty(0, 5)
    slots = [Slot(empty, {"exp_avg": empty}, 0)]
    plan = Plan(torch.float32, torch.float32, FLOAT32)
    launch.launch("step_kernel", launch.Prepared(plan, launch.table(plan, slots, [empty])))
    assert launches.calls == []


def test_a_crew_is_a_whole_thread_block_where_it_needs_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a barrier would wait for threads that have other work."""
    launches = Launches(monkeypatch)
    for size in (256, 512, 1024, 4096):
        param = torch.nn.Parameter(torch.ones(2, 4096))
        param.grad = torch.ones_like(param)
        lionbits.Lion8bit([param], backend="cupy", block_size=size).step()
    assert [threads for _, _, threads, _ in launches.calls] == [128, 128, 64, 256]


def test_emulation_reads_the_plan_it_was_given() -> None:
    """Two plans, one after the other and back: the library is one, the variable is written each time."""
    from cuda_on_cpu import Module

    results = []
    for bits in (8, 4, 8):
        param = torch.nn.Parameter(torch.ones(4, 256))
        param.grad = torch.linspace(-1, 1, 1024).reshape(4, 256)
        optimizer = lionbits.Lion([param], backend="cupy", optim_bits=bits, min_8bit_size=1)
        optimizer.step()
        results.append(optimizer.momentum(param))
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])
    module = emulate.module()
    assert isinstance(module, Module)
    assert ctypes.c_int.from_address(module.get_global("PLAN") + 12).value == 8
