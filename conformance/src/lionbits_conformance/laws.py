"""What any backend must hold: a law is a sentence and a function. None has a tolerance.

Laws of calls take a :class:`~lionbits_conformance.cases.Case`; laws of runs (in ``runs.py``) go through the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

import lionbits_reference as reference
from lionbits_reference.spec import Backend, Format, Plan, Scalars, Slot, matrix_shape

from . import bits, cases
from .cases import Case

CPU = torch.device("cpu")
Law = Callable[[Backend, Case, torch.device], None]


def step_equals_reference(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A step writes the reference's bits into parameters, codes, scales and rests, and nothing beside them."""
    got, want = cases.run(backend, case, device), cases.run(reference, case)
    bits.require_equal(got.results(), want.results(), told(backend, "step_equals_reference", case))


def step_keeps_to_itself(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A step changes no gradient, and no element before, between or behind the tensors it was given."""
    before, after = cases.build(case, device), cases.run(backend, case, device)
    for call in (before, after):
        for slot in call.slots:
            for tensor in (slot.param, *slot.state.values()):
                tensor.zero_()
    bits.require_equal(after.buffers, before.buffers, told(backend, "step_keeps_to_itself", case))


def counts_equal_reference(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """``aligned`` and ``absmax`` give the reference's numbers and write nothing."""
    call, twin = cases.build(case, device), cases.build(case)
    got, want = (
        {
            "aligned": judge.aligned(case.plan, it.slots, case.hyper, it.scalars),
            "absmax": judge.absmax(case.plan, it.slots, case.hyper, it.scalars),
            **it.results(),
        }
        for judge, it in ((backend, call), (reference, twin))
    )
    bits.require_equal(got, want, told(backend, "counts_equal_reference", case))


def many_equal_one_by_one(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """k tensors in one call get what k calls of one tensor give them."""
    one_by_one = [slice(j, j + 1) for j in range(len(case.tensors))]
    together, apart = cases.run(backend, case, device), cases.run(backend, case, device, one_by_one)
    bits.require_equal(together.results(), apart.results(), told(backend, "many_equal_one_by_one", case))


def shards_equal_whole(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A parameter cut into rows anywhere, empty pieces included, gets what the whole gets."""
    whole, cut = cases.run(backend, case, device), cases.build(case, device)
    for _ in range(case.updates):
        numbers = cut.scalars
        pieces = [(j, shard) for j, slot in enumerate(cut.slots) for shard in _shards(slot, case, j)]
        if case.plan.format.tensor_wise:
            absmax = torch.zeros(len(cut.slots), device=device)
            for j, shard in pieces:
                at = slice(j, j + 1)
                part = backend.absmax(case.plan, [shard], case.hyper, numbers.part(at))
                absmax[at] = torch.maximum(absmax[at], part)
            numbers = Scalars(**{**vars(numbers), "absmax": absmax})
        for j, shard in pieces:
            backend.step(case.plan, [shard], case.hyper, numbers.part(slice(j, j + 1)))
        cases.store_scales(case.plan, cut.slots, numbers)
        cut.scalars.step.add_(1)
    bits.require_equal(cut.results(), whole.results(), told(backend, "shards_equal_whole", case))


def zero_stays_zero(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """An element whose momentum and gradient are zero does not move (without decay), and its momentum stays zero."""
    tensors = tuple(replace(t, momentum_kind="zeros") for t in case.tensors)
    still = replace(case, plan=replace(case.plan, nonfinite="skip"), weight_decay=0.0, tensors=tensors)
    call, untouched = cases.build(still, device), cases.build(still, device)
    masks = []
    for slot in call.slots:
        slot.grad.mul_(torch.arange(slot.grad.numel(), device=device).reshape(slot.grad.shape) % 2)
        slot.grad.copy_(torch.where(slot.grad.isfinite(), slot.grad, 0.0))
        masks.append(slot.grad == 0)
    _steps(backend, still, call.slots, call.scalars)
    for mask, slot, twin in zip(masks, call.slots, untouched.slots, strict=True):
        momentum = backend.decode(still.plan.format, slot.state, slot.param.shape)
        got = {"param": slot.param[mask], "momentum": momentum[mask].abs()}
        want = {"param": twin.param[mask], "momentum": torch.zeros_like(momentum[mask])}
        bits.require_equal(got, want, told(backend, "zero_stays_zero", still))


def skipped_harm_nobody(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """NaN and infinity in elements without momentum leave these alone, are counted, and no neighbour notices."""
    tensors = tuple(replace(t, kind="normal", momentum_kind="sparse") for t in case.tensors)
    plan = replace(case.plan, nonfinite="skip", caution="none")
    calm = replace(case, plan=plan, tensors=tensors, grad_scale=1.0, updates=1)
    bad, good = cases.build(calm, device), cases.build(calm, device)
    count, masks = 0, []
    poison = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    for slot, twin in zip(bad.slots, good.slots, strict=True):
        place = torch.arange(slot.grad.numel(), device=device).reshape(slot.grad.shape)
        mask = (place % 3 == 1) & (reference.decode(plan.format, _near(twin.state), slot.param.shape).to(device) == 0)
        slot.grad.copy_(torch.where(mask, poison[place % 3].to(slot.grad.dtype), slot.grad))
        twin.grad.copy_(torch.where(mask, 0.0, twin.grad))
        count += int((~slot.grad.isfinite()).sum())
        masks.append((mask, slot.param[mask].clone()))
    for call in (bad, good):
        _steps(backend, calm, call.slots, call.scalars)
    told_here = told(backend, "skipped_harm_nobody", calm)
    for (mask, before), slot, twin in zip(masks, bad.slots, good.slots, strict=True):
        got = {"param": slot.param[~mask], "skipped": slot.param[mask], **slot.state}
        want = {"param": twin.param[~mask], "skipped": before, **twin.state}
        if "param_rest" in slot.state:
            for side, owner in ((got, slot), (want, twin)):
                side["param_rest"] = owner.state["param_rest"][~mask]
        bits.require_equal(got, want, told_here)
    if int(bad.scalars.skipped) != count:
        raise bits.Disagreement(f"{told_here}\n  skipped counts {int(bad.scalars.skipped)} elements, {count} were bad")


def codec_equals_reference(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """``encode`` and ``decode`` give the reference's codes, scales and momentum, and decoding undoes encoding twice."""
    format = case.plan.format
    for j, tensor in enumerate(case.tensors):
        momentum = cases.build(case).slots[j]
        exact = reference.decode(format, momentum.state, tensor.shape)
        got, want = backend.encode(format, exact.to(device)), reference.encode(format, exact)
        if not isinstance(got, dict):
            message = f"encode returned {got!r}; it must be a dict of the state tensors {', '.join(want)}"
            raise bits.Disagreement(f"{told(backend, 'codec_equals_reference', case)}\n  {message}")
        got["momentum"] = backend.decode(format, got, tensor.shape)
        want["momentum"] = reference.decode(format, want, tensor.shape)
        bits.require_equal(got, want, told(backend, "codec_equals_reference", case))


def every_code_decodes(backend: Backend, format: Format, device: torch.device = CPU) -> None:
    """Each byte of codes decodes to the reference's value under scales of every size."""
    plan = Plan(torch.float32, torch.float32, format)
    scales = torch.tensor([1.0, 0.0, 0.1, 2.0**-126, 2.0**-140, 2.0**100, 3e37])
    columns = 256 * 8 // format.bits
    for scale in scales:
        spec = plan.format.momentum_spec((1, columns))
        state = {
            "exp_avg_codes": torch.arange(256, dtype=torch.uint8).reshape(spec["exp_avg_codes"].shape),
            "exp_avg_scale": torch.full(spec["exp_avg_scale"].shape, float(scale)),
        }
        near = {key: value.to(device) for key, value in state.items()}
        got = {"momentum": backend.decode(format, near, (1, columns))}
        want = {"momentum": reference.decode(format, state, (1, columns))}
        bits.require_equal(got, want, f"every_code_decodes: {format}, scale {float(scale)!r}")


def supports_answers(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """``supports`` answers a string for every plan, and the same one when asked again."""
    answers = [backend.supports(case.plan, device) for _ in range(2)]
    if not all(isinstance(answer, str) for answer in answers) or answers[0] != answers[1]:
        raise bits.Disagreement(f"{told(backend, 'supports_answers', case)}\n  supports answered {answers}")


#: Laws over cases, by name; each is drawn over all plans that the backend supports.
CALLS: dict[str, Law] = {
    law.__name__: law
    for law in (
        step_equals_reference,
        step_keeps_to_itself,
        counts_equal_reference,
        many_equal_one_by_one,
        shards_equal_whole,
        zero_stays_zero,
        skipped_harm_nobody,
        codec_equals_reference,
    )
}


def told(backend: Backend, law: str, case: Case) -> str:
    """What failed, and the code that runs it again."""
    return (
        f"law {law} is broken for {case.plan}\n"
        f"  to run it again:\n"
        f"    import torch; from lionbits import select; from lionbits_conformance import laws\n"
        f"    from lionbits_conformance.cases import Case, TensorCase\n"
        f"    from lionbits_reference.spec import Format, Plan\n"
        f"    laws.{law}(select.load({backend.name!r}), {case!r})\n"
        f"  tensors lie in larger buffers, their first element at {cases.MARGIN}, or one later where layout='offset'"
    )


def _near(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.cpu() for key, value in state.items()}


def _steps(backend: Backend, case: Case, slots: list[Slot], numbers: Scalars) -> None:
    for _ in range(case.updates):
        if case.plan.format.tensor_wise:
            numbers = Scalars(**{**vars(numbers), "absmax": backend.absmax(case.plan, slots, case.hyper, numbers)})
        backend.step(case.plan, slots, case.hyper, numbers)
        cases.store_scales(case.plan, slots, numbers)
        numbers.step.add_(1)


def _shards(slot: Slot, case: Case, j: int) -> list[Slot]:
    """The rows of a slot in up to four pieces, cut where the tensor's seed says."""
    rows, columns = matrix_shape(slot.param.shape)
    if slot.param.dim() < 2 or columns == 0:
        return [slot]
    generator = torch.Generator().manual_seed(case.tensors[j].seed)
    inner = torch.randint(0, rows + 1, (3,), generator=generator).sort().values.tolist()
    return [_rows(slot, case.plan, first, last) for first, last in pairwise([0, *inner, rows])]


def _rows(slot: Slot, plan: Plan, first: int, last: int) -> Slot:
    def part(key: str, tensor: Tensor) -> Tensor:
        return tensor if key == "exp_avg_scale" and plan.format.tensor_wise else tensor[first:last]

    state = {key: part(key, value) for key, value in slot.state.items()}
    start = slot.start + first * slot.row_pitch
    return Slot(slot.param[first:last], slot.grad[first:last], state, slot.index, start, slot.row_pitch)
