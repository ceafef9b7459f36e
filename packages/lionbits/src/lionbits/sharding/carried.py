"""State as checkpoints and collective calls carry it: tensors that are cut where their parameter is cut.

Two kinds of state tensors differ from what kernels read:

- An int16 residual is carried as pairs of bytes, since neither gloo nor NCCL carries int16.
- Codes of fewer than 8 bits are packed along rows, and those of a parameter that is one row (a vector, LoRA's B, a
  depthwise convolution) across all its entries, so that a cut may fall inside a byte. They are carried with the
  parameter's first dimension: as (n, bytes) if each of its n entries takes whole bytes, else one code per byte, in the
  parameter's shape.

All else is carried as it is held, over the same memory. The form depends on the whole parameter alone: one process and
any number of ranks write the same tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import pad

from lionbits_reference import formats
from lionbits_reference.spec import Format, Plan, TensorSpec, matrix_shape

from .dtensors import from_dtensor, to_dtensor
from .local import box, distributed, lead, local_tensor, run_of

CODES, SCALE, RESIDUAL = "exp_avg_codes", "exp_avg_scale", "param_residual"

State = dict[str, Any]
Specs = dict[str, TensorSpec]


def state_spec(plan: Plan, param: Tensor) -> Specs:
    """Names, shapes and dtypes of the state of the part of a parameter on this rank.

    Of a run of one row these are the bytes that its codes lie in, with room for codes of others in the first and the
    last, and the scales of the whole row.
    """
    specs, run = plan.state_spec(local_tensor(param).shape), run_of(param)
    if run is not None and plan.format.quantised:
        specs[SCALE] = TensorSpec((1, plan.format.blocks(run.size)), torch.float32)
        if plan.format.bits < 8:
            specs[CODES] = TensorSpec(
                (1, _bytes(plan.format, lead(plan.format, run) + run.last - run.first)), torch.uint8
            )
    return specs


def to_carried(format: Format, param: Tensor, state: Mapping[str, Any]) -> State:
    """Return the state of the part of a parameter on this rank in the form of a checkpoint, as local tensors.

    Args:
        format: of the momentum.
        param: whose state it is.
        state: as kernels read it. Codes of another format stay as they are.
    """
    run, carried = run_of(param), dict(state)
    shape, codes, residual = local_tensor(param).shape, state.get(CODES), state.get(RESIDUAL)
    if isinstance(residual, Tensor) and residual.dtype == torch.int16:
        carried[RESIDUAL] = residual[..., None].view(torch.uint8)
    count = lead(format, run) + math.prod(shape)
    if isinstance(codes, Tensor) and _joined(format, param.shape) and codes.shape == (1, _bytes(format, count)):
        if codes_are_copied(format, param):
            codes = formats.unpack(codes, format.bits, count)[:, lead(format, run) :].contiguous()
        carried[CODES] = codes.reshape(_joined_codes(format, shape))
    return carried


def as_dtensors(format: Format, param: Tensor, specs: Mapping[str, TensorSpec], carried: Mapping[str, Any]) -> State:
    """Return what :func:`to_carried` returned with DTensors in place of what is cut like the parameter.

    Args:
        format, param: as there.
        specs: of whole tensors, as kernels read them.
        carried: local tensors.
    """
    forms, whole = _carried_specs(format, param.shape, specs), _whole(format, param.shape)
    return to_dtensor(param, {key: form for key, form in forms.items() if key not in whole}, carried)


def from_carried(format: Format, param: Tensor, specs: Mapping[str, TensorSpec], state: Mapping[str, Any]) -> State:
    """The other way round: the state of the part on this rank, from DTensors or whole tensors.

    A residual may be int16 already.

    Args:
        format, param, specs: as in :func:`as_dtensors`.
        state: as a checkpoint carries it.

    Raises:
        ValueError: a tensor has not the shape that it should have in all, or is placed otherwise than the parameter.
    """
    forms = _carried_specs(format, param.shape, specs)
    if getattr(state.get(RESIDUAL), "dtype", None) == torch.int16:
        forms[RESIDUAL] = specs[RESIDUAL]
    found = from_dtensor(param, forms, state, _whole(format, param.shape))
    residual = found.get(RESIDUAL)
    if RESIDUAL in specs and specs[RESIDUAL].dtype == torch.int16 and _in_pairs(residual):
        found[RESIDUAL] = residual.contiguous().view(torch.int16)[..., 0]
    if CODES in specs and _joined(format, param.shape):
        found[CODES] = _rejoined(format, param, found[CODES], forms[CODES])
    return found


def _rejoined(format: Format, param: Tensor, codes: Any, carried: TensorSpec) -> Tensor:
    """Return codes as kernels read them, of the part that is here."""
    wanted = tuple(cut.stop - cut.start for cut in box(param, carried.shape)) if distributed(param) else carried.shape
    if not isinstance(codes, Tensor) or tuple(codes.shape) != wanted or codes.dtype != carried.dtype:
        has = f"{codes.dtype} of shape {tuple(codes.shape)}" if isinstance(codes, Tensor) else repr(codes)
        raise ValueError(f"{CODES} should be {carried.dtype} of shape {wanted}, the state has {has}.")
    if not codes_are_copied(format, param):
        return codes.reshape(1, -1)
    if codes.numel() and int(codes.max()) >> format.bits:
        raise ValueError(f"{CODES} has {int(codes.max())}, which is no code of {format.bits} bits.")
    return packed_codes(format, param, codes)


def codes_are_copied(format: Format, param: Tensor) -> bool:
    """True if the codes of a checkpoint have a byte each, unlike those that kernels read."""
    return _joined(format, param.shape) and _joined_codes(format, param.shape) == tuple(param.shape)


def packed_codes(format: Format, param: Tensor, codes: Tensor) -> Tensor:
    """Return codes that have a byte each, of the part of a parameter on this rank, as kernels read them."""
    return formats.pack(pad(codes.reshape(1, -1), (lead(format, run_of(param)), 0)), format.bits)


def _whole(format: Format, shape: Sequence[int]) -> set[str]:
    """Names of tensors that every rank has whole: scales of blocks, or of a tensor, that ranks share."""
    rows = matrix_shape(shape)[0]
    return {SCALE} if format.tensor_wise or rows != (shape[0] if shape else 1) else set()


def _bytes(format: Format, elements: int) -> int:
    return -(-elements * format.bits // 8)


def _in_pairs(residual: Any) -> TypeGuard[Tensor]:
    return isinstance(residual, Tensor) and residual.dtype == torch.uint8 and residual.shape[-1:] == (2,)


def _joined(format: Format, shape: Sequence[int]) -> bool:
    """True if codes of several entries of the first dimension are packed into one row."""
    return format.bits < 8 and len(shape) > 0 and shape[0] != 1 and matrix_shape(shape)[0] == 1


def _joined_codes(format: Format, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in which such codes are carried."""
    width = math.prod(shape[1:]) * format.bits
    return tuple(shape) if width % 8 else (shape[0], width // 8)


def _carried_specs(format: Format, shape: Sequence[int], specs: Mapping[str, TensorSpec]) -> Specs:
    found = dict(specs)
    if RESIDUAL in specs and specs[RESIDUAL].dtype == torch.int16:
        found[RESIDUAL] = TensorSpec((*specs[RESIDUAL].shape, 2), torch.uint8)
    if CODES in specs and _joined(format, shape):
        found[CODES] = TensorSpec(_joined_codes(format, shape), torch.uint8)
    return found
