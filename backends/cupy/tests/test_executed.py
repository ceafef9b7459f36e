"""NVRTC's program of the kernels, executed on the CPU: equal to the reference, and what it sees that g++'s does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import lionbits_cupy
import lionbits_reference as reference
from lionbits_conformance.fault_injection import with_fault
from lionbits_conformance.patched_import import Edit
from lionbits_cupy import build, emulate, execute
from lionbits_reference.spec import Format, Hyper, Plan, Scalars, Slot

pytest.importorskip("cupy", reason="it compiles the kernels")
ptx_on_cpu = pytest.importorskip("ptx_on_cpu", reason="it executes the kernels")

HYPER = Hyper.of((0.9, 0.99), seed=2**63 + 11)
_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16

#: One warp for a block and several, every width of codes and parameters, a loss of precision, one scale for a tensor.
PLANS = [
    Plan(_F32, _F32, Format.of(8)),
    Plan(_BF16, _BF16, Format.of(4), param_rounding="dithered"),
    Plan(_F16, _F32, Format.of(8, block_size=2048)),
    Plan(_BF16, _BF16, Format.of(32), caution="mask"),
    Plan(_F32, _F32, Format.of(8, block_wise=False)),
]


@pytest.fixture(autouse=True)
def executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulate.ENVIRONMENT, "ptx")


def slots(plan: Plan) -> tuple[list[Slot], list[Tensor]]:
    """Rows of whole tiles, rows with tails, and a gradient with strides of its own."""
    made, grads = [], []
    for seed, shape in enumerate([(3, 512), (9, 100), (1, 2048), (5, 64)]):
        generator = torch.Generator().manual_seed(seed)
        param, grad, momentum = (torch.randn(shape, generator=generator) for _ in range(3))
        state = reference.encode(plan.format, momentum)
        for key, spec in plan.state_spec(shape).items():
            state.setdefault(key, torch.ones(spec.shape, dtype=spec.dtype))
        made.append(Slot(param.to(plan.param_dtype), state, index=seed))
        grad = grad.to(plan.grad_dtype)
        grads.append(grad.t().contiguous().t() if seed == 3 else grad)
    return made, grads


def step(
    backend: ModuleType, plan: Plan, make: Callable[[Plan], tuple[list[Slot], list[Tensor]]] = slots
) -> list[Tensor]:
    """Return all that an update writes, as bytes."""
    made, grads = make(plan)
    rates = torch.arange(1, len(made) + 1).to(_F32) / 1024
    steps, skipped = torch.arange(1, len(made) + 1), torch.zeros(1, dtype=torch.int64)
    numbers = Scalars(rates, 1 - rates, 1 + rates, steps, skipped)
    prepared = backend.prepare(plan, made, grads)
    if plan.format.tensor_wise:
        numbers = Scalars(**{**vars(numbers), "absmax": backend.absmax(prepared, grads, HYPER, numbers)})
    backend.step(prepared, grads, HYPER, numbers)
    tensors = [skipped, *(t for slot in made for t in (slot.param, *slot.state.values()))]
    return [t.contiguous().reshape(-1).view(torch.uint8) for t in tensors]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.format.name}-{plan.param_dtype}")
def test_both_programs_of_the_kernels_equal_the_reference(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = step(reference, plan)
    assert equal(step(lionbits_cupy, plan), wanted)
    monkeypatch.setenv(emulate.ENVIRONMENT, "1")
    assert equal(step(lionbits_cupy, plan), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 80, 100])
def test_other_architectures(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulate.ENVIRONMENT, f"ptx:{arch}")
    assert equal(step(lionbits_cupy, PLANS[1]), step(reference, PLANS[1]))
    assert execute.module(PLANS[1], arch).target == f"sm_{arch}"


def test_the_variable_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [execute.architecture(value) for value in ("", "0", "1", "ptx", "ptx:100")] == [0, 0, 0, 90, 100]
    monkeypatch.setenv(emulate.ENVIRONMENT, "ptx:new")
    with pytest.raises(ValueError, match=r"ptx:new.*as in ptx:80"):
        lionbits_cupy.supports(PLANS[0], torch.device("cpu"))


TILES, ACCESS, KERNELS, LION = "cuda/tiles.cuh", "cuda/access.cuh", "cuda/kernels.cu", "cuda/lion.cuh"

#: A fault in the sources, the plan that shows it, and the error of the executed program; None for wrong results.
FAULTS: dict[str, tuple[Edit, Plan, Any]] = {
    "no barrier before the warps' largest are read": (
        Edit(TILES, "        __syncthreads();\n        for", "        for"),
        PLANS[2],
        (ptx_on_cpu.RaceFault, ptx_on_cpu.UndefinedFault),
    ),
    "no barrier before the next tile's are written": (
        Edit(TILES, "        __syncthreads();  // before", "        // before"),
        PLANS[2],
        ptx_on_cpu.RaceFault,
    ),
    "tails are taken for whole tiles": (
        Edit(TILES, "left < SPAN ? int(left) : SPAN", "SPAN"),
        PLANS[0],
        ptx_on_cpu.MemoryFault,
    ),
    "every thread of a block writes the scale": (
        Edit(ACCESS, "tile.count > 0 && tile.column % PLAN.block == 0", "true"),
        PLANS[0],
        (ptx_on_cpu.RaceFault, ptx_on_cpu.MemoryFault),
    ),
    "the loop of shuffles is cut short": (
        Edit(TILES, "offset < WARP && offset < threads", "offset < WARP / 2 && offset < threads"),
        Plan(_F32, _F32, Format.of(8, block_size=512)),
        None,
    ),
    "a zero moves as a negative number does": (
        Edit(LION, "__fsub_rn(positive(x), positive(-x))", "(x > 1e-1f ? 1.0f : -1.0f)"),
        PLANS[0],
        None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults(fault: str, tmp_path: Path) -> None:
    edit, plan, found = FAULTS[fault]
    with with_fault(lionbits_cupy, [edit], tmp_path) as wrong:
        if found is None:
            assert not equal(step(wrong, plan), step(reference, plan))
            return
        with pytest.raises(found) as caught:
            step(wrong, plan)
        assert caught.value.place.source.split(":")[0] in ("tiles.cuh", "access.cuh", "kernels.cu", "lion.cuh")


def test_a_misaligned_vector_is_found_with_its_line(tmp_path: Path) -> None:
    """g++'s program loads it as if nothing were wrong."""
    edit = Edit(KERNELS, "return call.even && item.last", "return item.last")

    def misaligned(plan: Plan) -> tuple[list[Slot], list[Tensor]]:
        made, grads = slots(plan)
        return made[:1], [torch.cat((torch.zeros(1), grads[0].flatten()))[1:].view_as(grads[0])]

    assert equal(step(lionbits_cupy, PLANS[0], misaligned), step(reference, PLANS[0], misaligned))
    with with_fault(lionbits_cupy, [edit], tmp_path) as wrong:
        with pytest.raises(ptx_on_cpu.MemoryFault, match=r"not aligned to 16.*gradient of slot 0") as caught:
            step(wrong, PLANS[0], misaligned)
        assert caught.value.place.source.startswith("access.cuh:")


def test_a_product_that_the_compiler_fuses_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source rounds twice, and so does g++'s program; only the compiled one does not."""
    edit = Edit(LION, "__fadd_rn(__fmul_rn(m, b), __fmul_rn(g, one_minus_b))", "m * b + g * one_minus_b")
    with with_fault(lionbits_cupy, [edit], tmp_path) as wrong:
        assert equal(step(wrong, PLANS[0]), step(reference, PLANS[0]))
        wrong.execute.module.cache_clear()
        options = tuple(each.replace("fmad=false", "fmad=true") for each in build.OPTIONS)
        monkeypatch.setattr(wrong.build, "OPTIONS", options)
        assert not equal(step(wrong, PLANS[3]), step(reference, PLANS[3]))
        monkeypatch.setenv(emulate.ENVIRONMENT, "1")
        assert equal(step(wrong, PLANS[3]), step(reference, PLANS[3]))
