"""Backends that are the reference but for one fault, of the kinds that kernels and the code around them have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import lionbits_reference as reference
from lionbits_reference.spec import Format, Plan, Slot, matrix_shape

FUNCTIONS = ("supports", "prepare", "aligned", "absmax", "step", "encode", "decode")
BF16_8 = Plan(torch.bfloat16, torch.bfloat16, Format.of(8))


def backend(**others: Callable[..., Any]) -> Any:
    """The reference with some functions of its own."""
    return SimpleNamespace(name="wrong", **{name: getattr(reference, name) for name in FUNCTIONS} | others)


def on_gradients(change: Callable[[Any, Sequence[Tensor]], Sequence[Tensor]]) -> Any:
    """A backend that makes other gradients of those it is given."""

    def step(prepared: Any, grads: Sequence[Tensor], hyper: Any, scalars: Any) -> None:
        reference.step(prepared, change(prepared, grads), hyper, scalars)

    return backend(step=step)


def on_slots(change: Callable[[Slot], Slot]) -> Any:
    """A backend that makes other slots of those it is given."""

    def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Any:
        return reference.prepare(plan, [change(slot) for slot in slots], grads)

    return backend(prepare=prepare)


def _narrow(name: str, bits: int) -> Any:
    """A backend that keeps so many bits of a number of its slots."""
    field = name.removeprefix("row_")
    return on_slots(lambda slot: replace(slot, **{field: getattr(slot, name) % 2**bits}))


def forgets(mask: Callable[[Plan, Slot, Tensor], Tensor]) -> Any:
    """A backend that does not write the parameter's elements of a mask over (rows, columns)."""

    def step(prepared: Any, grads: Sequence[Tensor], hyper: Any, scalars: Any) -> None:
        before = [slot.param.clone() for slot in prepared.slots]
        reference.step(prepared, grads, hyper, scalars)
        for slot, old in zip(prepared.slots, before, strict=True):
            rows, columns = matrix_shape(slot.param.shape)
            if rows * columns:
                places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
                lost = mask(prepared.plan, slot, places).expand(rows, columns).reshape(old.shape)
                slot.param.copy_(torch.where(lost, old, slot.param))

    return backend(step=step)


def on_parameters(change: Callable[[Tensor], Tensor]) -> Any:
    """A backend that stores 16-bit parameters in another way."""

    def step(prepared: Any, grads: Sequence[Tensor], hyper: Any, scalars: Any) -> None:
        reference.step(prepared, grads, hyper, scalars)
        for slot in prepared.slots:
            if slot.param.dtype != torch.float32:
                slot.param.copy_(change(slot.param))

    return backend(step=step)


def before_each(action: Callable[..., Any]) -> Any:
    """A backend that does something else first, at each step."""

    def step(*call: Any) -> None:
        action(*call)
        reference.step(*call)

    return backend(step=step)


def _kept_copies(by_object: bool) -> Any:
    kept: dict[Any, tuple[Tensor | None, Tensor]] = {}

    def change(prepared: Any, grads: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for slot, grad in zip(prepared.slots, grads, strict=True):
            key = (id(prepared.slots), id(slot))
            if not grad.is_contiguous() and (key not in kept or (by_object and kept[key][0] is not grad)):
                kept[key] = (grad if by_object else None, grad.contiguous())
            found.append(grad if grad.is_contiguous() else kept[key][1])
        return found

    return on_gradients(change)


def _as_contiguous(wrong: Callable[[Tensor], bool]) -> Any:
    """Gradients of which ``wrong`` is true are read in the order in which they lie in memory."""

    def read(grad: Tensor) -> Tensor:
        if not wrong(grad) or not grad.numel():
            return grad
        first = grad.storage_offset()
        flat = grad.as_strided((grad.untyped_storage().nbytes() // grad.element_size() - first,), (1,))
        return flat[: grad.numel()].reshape(grad.shape) if flat.numel() >= grad.numel() else grad

    return on_gradients(lambda prepared, grads: [read(grad) for grad in grads])


def _first(count: int) -> Any:
    def step(prepared: Any, grads: Sequence[Tensor], hyper: Any, scalars: Any) -> None:
        some = reference.prepare(prepared.plan, prepared.slots[:count], grads[:count])
        reference.step(some, grads[:count], hyper, scalars)

    return backend(step=step)


def _wrong_at(number: int) -> Any:
    def prepare(plan: Plan, slots: Sequence[Slot], grads: Sequence[Tensor]) -> Any:
        made = reference.prepare(plan, slots, grads)
        return SimpleNamespace(plan=made.plan, slots=made.slots, count=0)

    def step(prepared: Any, *call: Any) -> None:
        prepared.count += 1
        if prepared.count != number:
            reference.step(prepared, *call)

    return backend(prepare=prepare, step=step)


def _last_block(short: Callable[[int], int], least: int) -> Any:
    def mask(plan: Plan, slot: Slot, places: Tensor) -> Tensor:
        block, columns = plan.format.block_size, matrix_shape(slot.param.shape)[1]
        hit = block >= least and columns % block == short(block)
        return (places[1] == columns - 1) & torch.tensor(hit)

    return forgets(mask)


def _numbers_in_a_global() -> Any:
    now: list[Any] = [None]

    def step(prepared: Any, grads: Sequence[Tensor], hyper: Any, scalars: Any) -> None:
        now[0] = hyper
        for j, slot in enumerate(prepared.slots):
            one = reference.prepare(prepared.plan, [slot], [grads[j]])
            reference.step(one, [grads[j]], now[0], scalars.part(slice(j, j + 1)))

    return backend(step=step)


def _keeps(what: Callable[[Tensor], Any]) -> Any:
    kept: list[Any] = []
    return before_each(lambda prepared, grads, *_: kept.extend(map(what, grads)))


def _skipped(bits: int) -> Any:
    """A backend that counts skipped elements in so many bits."""

    def step(prepared: Any, grads: Any, hyper: Any, scalars: Any) -> None:
        reference.step(prepared, grads, hyper, scalars)
        scalars.skipped.remainder_(2**bits)

    return backend(step=step)


def _default_dtype() -> Any:
    """Rates pass through a tensor of the default dtype."""

    def step(prepared: Any, grads: Any, hyper: Any, scalars: Any) -> None:
        shrunk = torch.tensor([x * 0.9 for x in scalars.lr.tolist()], device=scalars.lr.device)
        same = torch.tensor([x * 0.9 for x in scalars.lr.tolist()], dtype=torch.float32, device=scalars.lr.device)
        lr = scalars.lr + (shrunk.to(torch.float64) - same.to(torch.float64)).float()
        reference.step(prepared, grads, hyper, replace(scalars, lr=lr))

    return backend(step=step)


def _one_plan() -> Any:
    def step(prepared: Any, *call: Any) -> None:
        if prepared.plan != BF16_8:
            reference.step(prepared, *call)

    return backend(step=step)


def _infinite_scale_is_one() -> Any:
    def step(prepared: Any, grads: Any, hyper: Any, scalars: Any) -> None:
        scale = torch.where(scalars.grad_scale.isinf(), 1.0, scalars.grad_scale)
        reference.step(prepared, grads, hyper, replace(scalars, grad_scale=scale))

    return backend(step=step)


def _live(name: str) -> Any:
    def encode(format: Any, momentum: Tensor) -> dict[str, Tensor]:
        return reference.encode(format, momentum) if format.quantised else {"exp_avg": momentum}

    def decode(format: Any, state: Any, shape: Any) -> Tensor:
        return reference.decode(format, state, shape) if format.quantised else state["exp_avg"].view(tuple(shape))

    return backend(encode=encode) if name == "encode" else backend(decode=decode)


def _decode_into_one_buffer() -> Any:
    buffer = torch.empty(1 << 20)

    def decode(format: Any, state: Any, shape: Any) -> Tensor:
        momentum = reference.decode(format, state, shape)
        return buffer[: momentum.numel()].view(momentum.shape).copy_(momentum)

    return backend(decode=decode)


def _flushed(param: Tensor) -> Tensor:
    return torch.where(param.abs() < torch.finfo(param.dtype).tiny, 0.0, param)


def _saturated(param: Tensor) -> Tensor:
    limit = torch.finfo(param.dtype).max
    return torch.where(param.isinf(), torch.sign(param) * limit, param)


#: What is wrong, and what rejects it: cases of ``directed``, or a property. The backend in which it is.
WRONG: dict[tuple[str, str], Callable[[], Any]] = {
    ("rows from the sixth on", "plain_calls"): lambda: forgets(lambda plan, slot, places: places[0] >= 5),
    ("rows over 8192", "large"): lambda: forgets(lambda plan, slot, places: places[0] > 8192),
    ("rows over 65535", "large"): lambda: forgets(lambda plan, slot, places: places[0] > 65_535),
    ("a last block of 1", "last_blocks"): lambda: _last_block(lambda block: 1, 512),
    ("a last block of B-1", "last_blocks"): lambda: _last_block(lambda block: block - 1, 256),
    ("a contiguous copy of a gradient is not renewed", "long_run"): lambda: _kept_copies(False),
    ("a contiguous copy is kept as long as the gradient", "long_run"): lambda: _kept_copies(True),
    ("big[:, :k] is taken for contiguous", "layouts"): lambda: _as_contiguous(
        lambda g: g.dim() == 2 and g.stride(1) == 1 and g.stride(0) > g.shape[1]
    ),
    ("channels_last_3d is taken for contiguous", "layouts"): lambda: _as_contiguous(
        lambda g: g.dim() == 5 and g.is_contiguous(memory_format=torch.channels_last_3d)
    ),
    ("permuted dimensions are taken for contiguous", "layouts"): lambda: _as_contiguous(
        lambda g: g.dim() == 3 and g.stride() != tuple(sorted(g.stride(), reverse=True)) and 0 not in g.stride()
    ),
    ("expanded gradients are taken for zero", "layouts"): lambda: on_gradients(
        lambda prepared, grads: [g * 0 if 0 in g.stride() and g.numel() > 1 else g for g in grads]
    ),
    ("33 tensors", "many"): lambda: _first(32),
    ("257 tensors", "many"): lambda: _first(256),
    ("the ninth step of a preparation", "plain_calls"): lambda: _wrong_at(9),
    ("the twelfth step of a preparation", "plain_calls"): lambda: _wrong_at(12),
    ("another default dtype", "leaves_the_world_alone"): _default_dtype,
    ("index in 8 bits", "positions"): lambda: _narrow("index", 8),
    ("index in 16 bits", "positions"): lambda: _narrow("index", 16),
    ("index in 31 bits", "step_equals_reference"): lambda: _narrow("index", 31),
    ("the pitch of the rectangle", "positions"): lambda: on_slots(lambda slot: replace(slot, pitch=None)),
    ("pitch in 31 bits", "positions"): lambda: _narrow("row_pitch", 31),
    ("start in 32 bits", "positions"): lambda: _narrow("start", 32),
    ("skipped in 31 bits", "step_equals_reference"): lambda: _skipped(31),
    ("skipped in 32 bits", "step_equals_reference"): lambda: _skipped(32),
    ("-0.0 in 16-bit parameters", "step_equals_reference"): lambda: on_parameters(lambda param: param + 0.0),
    ("16-bit parameters are saturated", "step_equals_reference"): lambda: on_parameters(_saturated),
    ("16-bit parameters are flushed", "step_equals_reference"): lambda: on_parameters(_flushed),
    ("infinite grad_scale", "step_equals_reference"): _infinite_scale_is_one,
    ("a generator is advanced", "leaves_the_world_alone"): lambda: before_each(lambda *_: torch.rand(1)),
    ("grad mode", "leaves_the_world_alone"): lambda: before_each(lambda *_: torch.set_grad_enabled(False)),
    ("subnormal numbers are switched off", "leaves_the_world_alone"): lambda: before_each(
        lambda *_: torch.set_flush_denormal(True)
    ),
    ("the number of threads", "leaves_the_world_alone"): lambda: before_each(lambda *_: torch.set_num_threads(3)),
    ("gradients are kept", "keeps_no_gradient"): lambda: _keeps(lambda grad: grad),
    ("memory of gradients is kept", "keeps_no_gradient"): lambda: _keeps(lambda grad: grad.view(grad.shape)),
    ("decode hands out live memory", "codec_shares_no_memory"): lambda: _live("decode"),
    ("encode hands out live memory", "codec_shares_no_memory"): lambda: _live("encode"),
    ("decode has one buffer for all", "codec_shares_no_memory"): _decode_into_one_buffer,
    ("a call's numbers are in a global", "threads_do_not_meet"): _numbers_in_a_global,
    ("one plan", "plain_calls"): _one_plan,
}
