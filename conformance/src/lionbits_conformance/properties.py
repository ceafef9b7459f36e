"""What any backend must hold: a property is a sentence and a function. None has a tolerance.

Properties of calls take a :class:`~lionbits_conformance.cases.Case`; those of runs (in ``runs.py``) use the optimizer.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import lionbits_reference as reference
from lionbits_reference.spec import Backend, Format, Plan, Slot

from . import bits, cases
from .cases import Case, TensorCase
from .cut_rows import cut_rows_equal_whole
from .placing import like
from .repro import CPU, Property, repro_message
from .world import codec_shares_no_memory, keeps_no_gradient, leaves_the_world_alone, threads_do_not_meet

__all__ = ["CALLS", "CPU", "Property", "every_code_decodes", "supports_answers"]


def step_equals_reference(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A step writes the reference's bits into parameters, codes, scales and residuals, and nothing beside them."""
    got, want = cases.run(backend, case, device), cases.run(reference, case)
    bits.require_equal(got.results(), want.results(), repro_message(backend, "step_equals_reference", case))


def step_keeps_to_itself(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A step changes no gradient, and no element before, between or behind the tensors it was given."""
    calm = replace(case, renewal="same")
    before, after = cases.build(calm, device), cases.run(backend, calm, device)
    for call in (before, after):
        for slot in call.slots:
            for tensor in (slot.param, *slot.state.values()):
                tensor.zero_()
    bits.require_equal(after.buffers, before.buffers, repro_message(backend, "step_keeps_to_itself", calm))


def counts_equal_reference(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """``aligned`` and ``absmax`` give the reference's numbers and write nothing."""
    call, twin = cases.build(case, device), cases.build(case)
    got, want = (
        {
            "aligned": one.aligned(one.prepare(case.plan, it.slots, it.grads), it.grads, case.hyper, it.scalars),
            "absmax": one.absmax(one.prepare(case.plan, it.slots, it.grads), it.grads, case.hyper, it.scalars),
            **it.results(),
        }
        for one, it in ((backend, call), (reference, twin))
    )
    bits.require_equal(got, want, repro_message(backend, "counts_equal_reference", case))


def many_equal_one_by_one(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """k tensors in one call get what k calls of one tensor give them."""
    one_by_one = [slice(j, j + 1) for j in range(len(case.tensors))]
    together, apart = cases.run(backend, case, device), cases.run(backend, case, device, one_by_one)
    bits.require_equal(together.results(), apart.results(), repro_message(backend, "many_equal_one_by_one", case))


def prepared_serves_other_gradients(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """What was prepared with some gradients serves others of the same shapes, strides and dtypes, and keeps none."""
    got, want = cases.build(case, device), cases.run(reference, case)
    others = [like(grad, 1) for grad in got.grads]
    kept = [weakref.ref(other) for other in others]
    prepared = backend.prepare(case.plan, got.slots, others)
    del others
    message = repro_message(backend, "prepared_serves_other_gradients", case)
    if any(ref() is not None for ref in kept):
        raise bits.Disagreement(f"{message}\n  prepare keeps a gradient")
    cases.step(backend, got, [(slice(0, len(got.slots)), prepared)])
    bits.require_equal(got.results(), want.results(), message)


def shards_equal_whole(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """A parameter cut into rows anywhere, empty pieces included, gets what the whole gets."""
    whole, cut = cases.run(backend, case, device), cases.build(case, device)
    pieces = [
        (j, rows, backend.prepare(case.plan, [shard], [cut.grads[j][rows]]))
        for j, slot in enumerate(cut.slots)
        for shard, rows in _shards(slot, case, j)
    ]
    for i in range(case.updates):
        cases.renew(cut, i)
        numbers = cut.scalars
        if case.plan.format.tensor_wise:
            absmax = torch.zeros(len(cut.slots), device=device)
            for j, rows, prepared in pieces:
                part = backend.absmax(prepared, [cut.grads[j][rows]], case.hyper, numbers.part(slice(j, j + 1)))
                absmax[j] = torch.maximum(absmax[j], part[0])
            numbers = replace(numbers, absmax=absmax)
        for j, rows, prepared in pieces:
            backend.step(prepared, [cut.grads[j][rows]], case.hyper, numbers.part(slice(j, j + 1)))
        cases.store_scales(case.plan, cut.slots, numbers)
        cut.scalars.step.add_(1)
    bits.require_equal(cut.results(), whole.results(), repro_message(backend, "shards_equal_whole", case))


def zero_stays_zero(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """An element whose momentum and gradient are zero does not move (without decay), and its momentum stays zero."""
    tensors = tuple(replace(t, momentum_kind="zeros") for t in _writable(case))
    plan = replace(case.plan, nonfinite="skip")
    still = replace(case, plan=plan, weight_decay=0.0, tensors=tensors, renewal="same")
    call, untouched = cases.build(still, device), cases.build(still, device)
    masks = []
    for grad in call.grads:
        grad.mul_(torch.arange(grad.numel(), device=device).reshape(grad.shape) % 2)
        grad.copy_(torch.where(grad.isfinite(), grad, 0.0))
        masks.append(grad == 0)
    cases.update(backend, call, [slice(0, len(call.slots))])
    for mask, slot, twin in zip(masks, call.slots, untouched.slots, strict=True):
        momentum = backend.decode(still.plan.format, slot.state, slot.param.shape)
        got = {"param": slot.param[mask], "momentum": momentum[mask].abs()}
        want = {"param": twin.param[mask], "momentum": torch.zeros_like(momentum[mask])}
        bits.require_equal(got, want, repro_message(backend, "zero_stays_zero", still))


def skipped_harm_nobody(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """NaN and infinity in elements without momentum leave these alone, are counted, and no neighbour notices."""
    tensors = tuple(replace(t, kind="normal", momentum_kind="sparse") for t in _writable(case))
    plan = replace(case.plan, nonfinite="skip", caution="none")
    calm = replace(case, plan=plan, tensors=tensors, grad_scale=1.0, updates=1)
    bad, good = cases.build(calm, device), cases.build(calm, device)
    count, masks = 0, []
    poison = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    for slot, twin, grad, twin_grad in zip(bad.slots, good.slots, bad.grads, good.grads, strict=True):
        place = torch.arange(grad.numel(), device=device).reshape(grad.shape)
        mask = (place % 3 == 1) & (reference.decode(plan.format, _near(twin.state), slot.param.shape).to(device) == 0)
        grad.copy_(torch.where(mask, poison[place % 3].to(grad.dtype), grad))
        twin_grad.copy_(torch.where(mask, 0.0, twin_grad))
        count += int((~grad.isfinite()).sum())
        masks.append((mask, slot.param[mask].clone()))
    for call in (bad, good):
        cases.update(backend, call, [slice(0, len(call.slots))])
    message = repro_message(backend, "skipped_harm_nobody", calm)
    for (mask, before), slot, twin in zip(masks, bad.slots, good.slots, strict=True):
        got = {"param": slot.param[~mask], "skipped": slot.param[mask], **slot.state}
        want = {"param": twin.param[~mask], "skipped": before, **twin.state}
        if "param_residual" in slot.state:
            for side, owner in ((got, slot), (want, twin)):
                side["param_residual"] = owner.state["param_residual"][~mask]
        bits.require_equal(got, want, message)
    counted = int(bad.scalars.skipped) - case.skipped
    if counted != count:
        raise bits.Disagreement(f"{message}\n  skipped counts {counted} elements, {count} were bad")


def codec_equals_reference(backend: Backend, case: Case, device: torch.device = CPU) -> None:
    """``encode`` and ``decode`` give the reference's codes, scales and momentum, and decoding undoes encoding twice."""
    format = case.plan.format
    for j, tensor in enumerate(case.tensors):
        momentum = cases.build(case).slots[j]
        exact = reference.decode(format, momentum.state, tensor.shape)
        got, want = backend.encode(format, exact.to(device)), reference.encode(format, exact)
        if not isinstance(got, dict):
            message = f"encode returned {got!r}; it must be a dict of the state tensors {', '.join(want)}"
            raise bits.Disagreement(f"{repro_message(backend, 'codec_equals_reference', case)}\n  {message}")
        got["momentum"] = backend.decode(format, got, tensor.shape)
        want["momentum"] = reference.decode(format, want, tensor.shape)
        bits.require_equal(got, want, repro_message(backend, "codec_equals_reference", case))


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
        raise bits.Disagreement(f"{repro_message(backend, 'supports_answers', case)}\n  supports answered {answers}")


#: Properties of calls, by name; each is drawn over all plans that the backend supports.
CALLS: dict[str, Property] = {
    check.__name__: check
    for check in (
        step_equals_reference,
        step_keeps_to_itself,
        counts_equal_reference,
        many_equal_one_by_one,
        prepared_serves_other_gradients,
        shards_equal_whole,
        cut_rows_equal_whole,
        zero_stays_zero,
        skipped_harm_nobody,
        codec_equals_reference,
        leaves_the_world_alone,
        keeps_no_gradient,
        codec_shares_no_memory,
        threads_do_not_meet,
    )
}


def _writable(case: Case) -> list[TensorCase]:
    """The case's tensors, with gradients of which every element can be written by itself."""
    return [replace(t, grad_layout="strided") if t.grad_layout == "expanded" else t for t in case.tensors]


def _near(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.cpu() for key, value in state.items()}


def _shards(slot: Slot, case: Case, j: int) -> list[tuple[Slot, Any]]:
    """The rows of a slot in up to four pieces, cut where the tensor's seed says; which gradient rows each has."""
    rows, columns = slot.matrix
    if rows == 1 or columns == 0:
        return [(slot, ...)]
    generator = torch.Generator().manual_seed(case.tensors[j].seed)
    inner = torch.randint(0, rows + 1, (3,), generator=generator).sort().values.tolist()
    cuts = pairwise([0, *inner, rows])
    return [(_rows(slot, case.plan, first, last), slice(first, last)) for first, last in cuts]


def _rows(slot: Slot, plan: Plan, first: int, last: int) -> Slot:
    def part(key: str, tensor: Tensor) -> Tensor:
        return tensor if key == "exp_avg_scale" and plan.format.tensor_wise else tensor[first:last]

    state = {key: part(key, value) for key, value in slot.state.items()}
    start = slot.start + first * slot.row_pitch
    return Slot(slot.param[first:last], state, slot.index, start, slot.row_pitch)
