"""Faults to plant in the kernels, and who finds them: Triton's interpreter, or the compiled program when executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lionbits_conformance.patched_import import Edit
from lionbits_reference.spec import Format, Plan, Slot

from .cases import misaligned, mixed

_F32, _BF16 = torch.float32, torch.bfloat16
_8 = Plan(_F32, _F32, Format.of(8))
_BF16_32 = Plan(_BF16, _BF16, Format.of(32))
_TENSOR_WISE = Plan(_F32, _F32, Format.of(8, block_wise=False))


class Planted(NamedTuple):
    """A fault in the kernels.

    Attributes:
        edit: of their source.
        plan, make: an update that shows it.
        interpreted: True if the interpreter's results are wrong.
        executed: the executed program's error, as ptx-on-cpu names it; ``wrong`` or ``right`` are results.
    """

    edit: Edit
    plan: Plan
    interpreted: bool
    executed: str
    make: Callable[[Plan], list[tuple[Slot, Tensor]]] = mixed


FAULTS = {
    "a bfloat16 is truncated": Planted(
        Edit("lion.py", "x.to(tl.bfloat16).to(", 'x.to(tl.bfloat16, fp_downcast_rounding="rtz").to('),
        _BF16_32,
        False,
        "wrong",
    ),
    "products are fused with sums": Planted(
        Edit("launch.py", '"enable_fp_fusion": False', '"enable_fp_fusion": True'), _8, False, "wrong"
    ),
    "a quotient is approximate": Planted(
        Edit("lion.py", "tl.math.div_rn(top, tl.where(usable, held(absmax), 1.0))",
             "top / tl.where(usable, held(absmax), 1.0)"),
        _8,
        False,
        "UnknownInstruction",
    ),
    "the fast path asks for no alignment": Planted(
        Edit("kernels.py", "even=(aligned != 0) & (last <= slot.even_blocks)", "even=last <= slot.even_blocks"),
        _8,
        False,
        "MemoryFault",
        misaligned,
    ),
    "scales are loaded without a mask": Planted(
        Edit("access.py", "tile, VARIANT), mask=tile.length > 0, other=0.0)", "tile, VARIANT))"),
        Plan(_F32, _F32, Format.of(8, block_size=32)),
        False,
        "MemoryFault",
    ),
    "parameters are loaded without a mask": Planted(
        Edit("access.py", "tl.load(tiles.param_pointers(slot, tile, VARIANT), mask=tile.mask, other=0)",
             "tl.load(tiles.param_pointers(slot, tile, VARIANT))"),
        _8,
        False,
        "MemoryFault",
    ),
    "the largest of programs is found without an atomic": Planted(
        Edit("kernels.py", 'tl.atomic_max(found + item.j, count, sem="relaxed")',
             "tl.store(found + item.j, tl.maximum(tl.load(found + item.j), count))"),
        _TENSOR_WISE,
        False,
        "RaceFault",
    ),
    "the hardware's conversion, also interpreted": Planted(
        Edit("lion.py", "elif INTERPRETED:  # whose own", "elif False:  # whose own"), _BF16_32, True, "right"
    ),
    "a column in 8 bits": Planted(
        Edit(
            "tiles.py",
            "(block - row * slot.row_blocks).to(tl.int64) * VARIANT.block",
            "((block - row * slot.row_blocks) * VARIANT.block).to(tl.int8).to(tl.int64)",
        ),
        _8,
        True,
        "RaceFault",
    ),
    "a hash is shifted too little": Planted(Edit("dither.py", "(h >> 16)", "(h >> 15)"), _8, True, "wrong"),
    "tails are an element too long": Planted(
        Edit("tiles.py", "slot.columns - begin, VARIANT.block)", "slot.columns - begin + 1, VARIANT.block)"),
        _8,
        True,
        "MemoryFault",
    ),
}  # fmt: skip
