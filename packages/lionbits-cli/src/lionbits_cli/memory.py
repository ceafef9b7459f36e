"""``lionbits memory``: memory for training a model of a given size, variant by variant.

Weights, gradients and optimizer state only: activations depend on the batch, not on the optimizer. State
sizes come from ``Format``, and hold for tensors large enough to be quantised: nearly all of a large model.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from lionbits_reference.spec import Format

from .console import CommandError, Table, count, show

DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2}
GIGA = 1e9
ADAM_BLOCK = 256  # bitsandbytes: two codes of one byte, each with a float32 absmax per block


@dataclass(frozen=True)
class Row:
    """Bytes per parameter of one way to train."""

    name: str
    parameter: float
    gradient: float
    state: float
    on_host: bool = False

    @property
    def device(self) -> float:
        """Bytes per parameter on the device, without paged state (its pages take ``page_budget`` at most)."""
        return self.parameter + self.gradient + (0.0 if self.on_host else self.state)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add options of the model: its size and the types of its parameters and gradients."""
    parser.add_argument("--params", type=count, default=count("7e9"), help="such as 7e9, 7B or 350M (default 7e9)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the parameters (default bf16)")
    parser.add_argument("--grad-dtype", choices=DTYPES, help="of the gradients (default: as the parameters)")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.params < 1:
        raise CommandError(f"--params must be at least 1, not {args.params}")
    show(table(args.params, args.dtype, args.grad_dtype or args.dtype))
    return 0


def state(bits: int) -> float:
    """Return bytes of state per parameter at this width, scales included."""
    return float(Format.of(bits).bytes_per_element)


def rows(dtype: str, grad_dtype: str) -> list[Row]:
    """Return every variant, from AdamW to the smallest."""
    parameter, gradient = float(DTYPES[dtype]), float(DTYPES[grad_dtype])

    def row(name: str, state_bytes: float, *, on_host: bool = False) -> Row:
        return Row(name, parameter, gradient, state_bytes, on_host)

    found = [row("AdamW 32-bit", 8.0), row("AdamW 8-bit", 2 * (1 + 4 / ADAM_BLOCK))]
    found += [row(f"Lion{bits}bit", state(bits)) for bits in (32, 8, 4)]
    found.append(row("Lion 2-bit (research)", state(2)))
    if dtype == "bf16":  # what bf16 drops is kept in the state: 16 more bits make 32, 8 more make 24
        found += [
            row(f"Lion{bits}bit, {master}-bit master", state(bits) + (master - 16) / 8)
            for bits in (32, 8, 4)
            for master in (32, 24)
        ]
    found += [row(f"PagedLion{bits}bit", state(bits), on_host=True) for bits in (32, 8, 4)]
    return found


def table(params: int, dtype: str, grad_dtype: str) -> Table:
    """Return the rows in gigabytes, with the share of AdamW's total that each needs on the device."""
    found = rows(dtype, grad_dtype)
    columns = (
        "",
        "state B/param",
        "total B/param",
        "params GB",
        "grads GB",
        "state GB",
        "total GB",
        "on device GB",
        "of AdamW",
    )
    drawn = Table(f"{params:,} parameters in {dtype}, gradients in {grad_dtype}", columns)
    for row in found:
        total = row.parameter + row.gradient + row.state
        sizes = (row.parameter, row.gradient, row.state, total, row.device)
        gigabytes = (f"{params * size / GIGA:,.2f}" for size in sizes)
        share = f"{100 * row.device / found[0].device:.0f} %"
        drawn.add(row.name, f"{row.state:.3f}", f"{total:.3f}", *gigabytes, share)
    drawn.caption = (
        "1 GB = 1e9 bytes; activations come on top. Paged state is in host memory. 'master': param_rounding="
        "'compensated', which keeps the bits that bf16 drops."
    )
    return drawn
