"""Bytes that given parameters take under each variant: what a run allocates for them, every scale counted.

The state of lionbits comes from ``Plan.state_spec``, the one place that knows it. Of bitsandbytes: tensors of 4,096
elements and more have a byte for each element of each moment and a float32 for each 256, smaller ones float32; the 256
values of its codes are one table for each moment. The counts of steps, eight bytes for a parameter, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lionbits_reference.spec import Format, Plan

from .console import Table, human_bytes
from .members import Member, shown

BNB_BLOCK, BNB_SMALLEST, BNB_TABLE = 256, 4096, 256 * 4

#: Shapes that the table of what keeps 32 bits has, at most.
SHOWN = 20


class Count(NamedTuple):
    """Bytes of state of a variant; of a paged one they are on the host."""

    name: str
    state: int
    on_host: bool = False


def counts(members: Sequence[Member], min_8bit_size: int) -> list[Count]:
    """Every variant, beside AdamW and what bitsandbytes has."""

    def ours(name: str, bits: int, master: int = 0, *, on_host: bool = False) -> Count:
        return Count(name, sum(_ours(member, bits, master, min_8bit_size) for member in trained), on_host)

    trained = [member for member in members if member.trained]
    found = [
        Count("AdamW 32-bit", sum(8 * member.elements for member in trained)),
        Count("AdamW8bit of bitsandbytes", _bitsandbytes(trained, 2)),
        Count("Lion8bit of bitsandbytes", _bitsandbytes(trained, 1)),
        *(ours(f"Lion{bits}bit", bits) for bits in (32, 8, 4)),
        ours("Lion 2-bit (research)", 2),
    ]
    if any(member.dtype == torch.bfloat16 for member in trained):
        found += [
            ours(f"Lion{bits}bit, {master}-bit master", bits, master) for bits in (32, 8, 4) for master in (32, 24)
        ]
    return [*found, *(ours(f"PagedLion{bits}bit", bits, on_host=True) for bits in (32, 8, 4))]


def _ours(member: Member, bits: int, master: int, min_8bit_size: int) -> int:
    compensated = bool(master) and member.dtype == torch.bfloat16
    plan = Plan(
        member.dtype,
        member.dtype,
        Format.of(bits).for_parameter(member.shape, min_8bit_size),
        param_rounding="compensated" if compensated else "nearest",
        master_bits=master if compensated else 32,
    )
    return sum(spec.dtype.itemsize * torch.Size(spec.shape).numel() for spec in plan.state_spec(member.shape).values())


def _bitsandbytes(members: Sequence[Member], moments: int) -> int:
    def each(elements: int) -> int:
        return elements + 4 * -(-elements // BNB_BLOCK) if elements >= BNB_SMALLEST else 4 * elements

    tables = BNB_TABLE if any(member.elements >= BNB_SMALLEST for member in members) else 0
    return moments * (sum(each(member.elements) for member in members) + tables)


def table(title: str, members: Sequence[Member], grad_itemsize: int | None, min_8bit_size: int) -> Table:
    """Bytes of every variant.

    Args:
        title: says which model it is.
        members: its parameters.
        grad_itemsize: bytes of an element of a gradient; None: as the parameter's.
        min_8bit_size: as in lionbits.
    """
    trained = [member for member in members if member.trained]
    elements = sum(member.elements for member in trained)
    params = sum(member.elements * member.dtype.itemsize for member in members)
    grads = sum(member.elements * (grad_itemsize or member.dtype.itemsize) for member in trained)
    found = counts(members, min_8bit_size)
    columns = ("", "state bytes", "state B/param", "state", "total", "on device", "of AdamW")
    drawn = Table(f"{title}: {elements:,} trained parameters in {len(trained)} tensors", columns)
    adamw = params + grads + found[0].state
    for count in found:
        total = params + grads + count.state
        near = total - count.state * count.on_host
        sizes = (human_bytes(count.state), human_bytes(total), human_bytes(near))
        each = count.state / elements if elements else 0.0
        drawn.add(
            count.name, f"{count.state:,}", f"{each:.3f}", *sizes, f"{100 * near / adamw if adamw else 100:.0f} %"
        )
    drawn.caption = (
        f"Parameters are {human_bytes(params)}, gradients {human_bytes(grads)}; activations come on top. Paged state "
        "is in host memory. 'master': param_rounding='compensated'. Nothing is sharded here."
    )
    return drawn


def kept(members: Sequence[Member], min_8bit_size: int) -> Table | None:
    """What keeps float32 momentum under every variant, by shape; None where nothing does."""
    trained = [member for member in members if member.trained]
    wide = [member for member in trained if not Format.of(8).for_parameter(member.shape, min_8bit_size).quantised]
    if not wide:
        return None
    by_shape: dict[tuple[int, ...], list[Member]] = {}
    for member in wide:
        by_shape.setdefault(member.shape, []).append(member)
    elements = sum(member.elements for member in wide)
    whole = sum(member.elements for member in trained)
    share = f"{100 * elements / whole if whole else 0:.2f} %"
    title = f"keep 32 bits: {elements:,} elements ({share}) of tensors with fewer than {min_8bit_size:,}"
    drawn = Table(title, ("shape", "tensors", "elements", "names"), left=("names",))
    ordered = sorted(by_shape.items(), key=lambda pair: -sum(member.elements for member in pair[1]))
    for shape, alike in ordered[:SHOWN]:
        size = sum(member.elements for member in alike)
        drawn.add("x".join(map(str, shape)) or "()", f"{len(alike):,}", f"{size:,}", shown(alike))
    if len(ordered) > SHOWN:
        drawn.caption = f"and {len(ordered) - SHOWN} more shapes"
    return drawn
