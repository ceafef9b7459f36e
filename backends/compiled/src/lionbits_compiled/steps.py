"""The step of a matrix, by the compiled functions in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lionbits_reference import formats, rounding
from lionbits_reference.spec import Hyper

from . import functions, packing
from .functions import Blocks, Codes, Draw, Rates
from .matrices import Matrix
from .numbers import Numbers, by_row
from .prepared import Prepared

#: Linux' file with the size of the shared cache.
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def _run(cache: Path = _CACHE) -> int:
    """Return how many elements are unpacked at once: their new momentum takes an eighth of the cache, 4 to 16 MB."""
    try:
        size = int(cache.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):  # another system, or one that does not say
        size = 0
    return min(max(size // 8 // 4, 1 << 20), 1 << 22)


#: Elements of a run: many rows of any width, so that half a run is, too.
RUN = _run()


def step(prepared: Prepared, matrix: Matrix, hyper: Hyper, numbers: Numbers) -> None:
    """Update the matrix in place, and add to the skipped elements."""
    plan, tensors = prepared.plan, matrix.tensors
    param = tensors["param"]
    if plan.param_rounding == "compensated":
        functions.load(tensors["param_residual"].dtype)(tensors["stored"], tensors["param_residual"], param)
    if plan.format.quantised:
        _step_codes(prepared, matrix, hyper, numbers)
    else:
        advance = functions.advance(param.dtype, plan.caution, plan.nonfinite, _width(prepared, matrix))
        rates, skipped = numbers.rates(matrix), numbers.scalars.skipped
        # By value: too few reads for Inductor to make the new momentum once, which torch 2.13 fails over (KeyError).
        advance(param, tensors["grad"], tensors["exp_avg"], rates, numbers.betas_in_memory, skipped)
    if "stored" in tensors:
        _store_param(prepared, matrix, numbers)


class _Rows(NamedTuple):
    """Inputs and outputs of a step on codes: (n, width), and (n, 1) for numbers of rows."""

    param: Tensor
    grad: Tensor
    packed: Tensor  # uint8 (n, width * bits / 8)
    scale: Tensor
    blocks: Blocks
    rates: Rates
    draw: Draw | None

    def runs(self) -> list[_Rows]:
        """Return the rows in runs."""
        height, width = self.param.shape
        if height * width <= RUN:  # no view takes long, but there are a dozen, for each tensor of a model
            return [self]
        count = runs(height, width)
        draws: list[Draw | None] = [None] * count
        if self.draw is not None:
            low, spread, phase, *columns = self.draw
            draws = [Draw(*keys, *columns) for keys in split((low, spread, phase), count)]
        own = split((*self[:4], *self.blocks, *self.rates), count)
        return [
            _Rows(param, grad, packed, scale, Blocks(inverse, limit), Rates(lr, keep, grad_scale), draw)
            for (param, grad, packed, scale, inverse, limit, lr, keep, grad_scale), draw in zip(own, draws, strict=True)
        ]


def _step_codes(prepared: Prepared, matrix: Matrix, hyper: Hyper, numbers: Numbers) -> None:
    """Decode, update and encode, one run of rows after the other, so that intermediate results stay in the cache."""
    plan, bits, scratch, width = prepared.plan, prepared.plan.format.bits, prepared.scratch, matrix.width
    param, grad, packed = (matrix.tensors[name] for name in ("param", "grad", "exp_avg_codes"))
    scale, blocks, skipped = _scale(prepared, matrix), _blocks(prepared, matrix, numbers), numbers.scalars.skipped
    rates, draw = numbers.rates(matrix), numbers.draw(matrix, hyper.rounding, rounding.STATE)
    dtype, own, format = packing.CODES, _width(prepared, matrix), formats.FormatConstants.of(plan.format)
    scales = not plan.format.tensor_wise
    advance = functions.advance_codes(param.dtype, dtype, plan.caution, plan.nonfinite, scales, own)
    encode = functions.encode(dtype, draw is not None, own)
    for run in _Rows(param, grad, packed, scale, blocks, rates, draw).runs():
        codes = packing.unpack(run.packed, bits, scratch)
        momentum = scratch.take("momentum", torch.float32, len(codes), width)
        held = Codes(codes, run.scale, format)
        advance(run.param, run.grad, held, run.rates, numbers.betas, skipped, momentum, run.blocks)
        encode(momentum, run.blocks, format, run.draw, codes)
        packing.pack(codes, run.packed, bits, scratch)


def runs(height: int, width: int) -> int:
    """Return the number of runs for the rows, all about as long. No run is a single row, a special case in torch."""
    return -(-height * width // RUN)


def split(tensors: Iterable[Tensor], count: int) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors into runs of rows. All views are made at once: later, with cold caches, one takes 10 us."""
    return zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)


def count(kind: str, prepared: Prepared, matrix: Matrix, numbers: Numbers) -> Tensor:
    """Return float32, for each row: the number of aligned elements (``"aligned"``) or the largest new momentum."""
    plan, format, grad = prepared.plan, prepared.plan.format, matrix.tensors["grad"]
    found = torch.empty(matrix.height, 1, dtype=torch.float32, device="cpu")
    grad_scale = numbers.rates(matrix).grad_scale
    counting = functions.count(grad.dtype, packing.CODES if format.quantised else None, kind, plan.nonfinite)
    if not format.quantised:
        counting(matrix.tensors["exp_avg"], grad, grad_scale, numbers.betas, found)
        return found.view(-1)
    packed, scale = matrix.tensors["exp_avg_codes"], _scale(prepared, matrix)
    parts = split((packed, scale, grad, grad_scale, found), runs(matrix.height, matrix.width))
    for packed_run, scale_run, grad_run, grad_scale_run, found_run in parts:
        codes = packing.unpack(packed_run, format.bits, prepared.scratch)
        held = Codes(codes, scale_run, formats.FormatConstants.of(format))
        counting(held, grad_run, grad_scale_run, numbers.betas, found_run)
    return found.view(-1)


def _scale(prepared: Prepared, matrix: Matrix) -> Tensor:
    """Return the scale of each row, float32: of its block or of its whole tensor."""
    if not prepared.plan.format.tensor_wise:
        return matrix.tensors["exp_avg_scale"]
    scales = torch.cat([slot.state["exp_avg_scale"].view(1, 1) for slot in matrix.slots], dim=1)
    (scale,) = by_row(prepared.scratch, "scale", matrix, scales, own=True)
    return scale


def _blocks(prepared: Prepared, matrix: Matrix, numbers: Numbers) -> Blocks:
    """Return memory for the inputs of encoding; for one scale per tensor they are already known."""
    absmax, take, height = numbers.scalars.absmax, prepared.scratch.take, matrix.height
    if absmax is None:
        return Blocks(take("inverse", torch.float32, height, 1), take("limit", torch.int32, height, 1))
    (largest,) = by_row(prepared.scratch, "absmax", matrix, absmax[None])
    return Blocks(*formats.block_inverse(largest, prepared.plan.format))


def _store_param(prepared: Prepared, matrix: Matrix, numbers: Numbers) -> None:
    """Round the float32 parameter to its stored form, with noise or with a residual."""
    plan, tensors = prepared.plan, matrix.tensors
    mode = plan.param_rounding
    if mode == "compensated":
        mode = "dithered" if plan.master_bits == 24 else "nearest"
    draw = numbers.draw(matrix, mode, rounding.PARAMETER)
    residual = tensors.get("param_residual")
    store = functions.store(None if residual is None else residual.dtype, draw is not None)
    store(tensors["param"], tensors["stored"], residual, draw)


def _width(prepared: Prepared, matrix: Matrix) -> int:
    """Return the width of rows if it has code of its own, else 0."""
    default = prepared.plan.caution == "none" and prepared.plan.nonfinite == "skip"
    own = functions.WIDTHS if prepared.plan.format.quantised else functions.WIDTHS[:1]
    return matrix.width if default and matrix.width in own else 0
