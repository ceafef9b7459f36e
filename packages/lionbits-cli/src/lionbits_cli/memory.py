"""``lionbits memory``: memory for training a model, variant by variant.

Weights, gradients and optimizer state only: activations depend on the batch, not on the optimizer. Of a number of
parameters alone, state sizes are those of tensors in whole blocks: nearly all of a large model. Of shapes, or of a
model that a function makes, every tensor is counted as it is, and those that keep 32 bits are named.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from lionbits_reference.spec import Format

from . import counting, members
from .console import CommandError, Table, count, show

DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2}
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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
    """Add options of the model: its size, shapes or maker, and the types of its parameters and gradients."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "model",
        nargs="?",
        help="module:function that returns a torch.nn.Module, in the types that it has; under torch.device('meta') it "
        "takes no memory",
    )
    which.add_argument("--shapes", help="of all parameters, such as 4096x8,11008x4096")
    which.add_argument("--params", type=count, help="such as 7e9, 7B or 350M (default 7e9)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the parameters (default bf16; of a model: its own)")
    parser.add_argument("--grad-dtype", choices=DTYPES, help="of the gradients (default: as the parameters)")
    parser.add_argument("--min-8bit-size", type=count, default=4096, help="smaller tensors keep 32 bits (default 4096)")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.model is not None or args.shapes is not None:
        return _counted(args)
    params, dtype = count("7e9") if args.params is None else args.params, args.dtype or "bf16"
    if params < 1:
        raise CommandError(f"--params must be at least 1, not {params}")
    show(table(params, dtype, args.grad_dtype or dtype))
    return 0


def _counted(args: argparse.Namespace) -> int:
    """Print what each of these tensors really takes."""
    if args.min_8bit_size < 1:
        raise CommandError(f"--min-8bit-size must be at least 1, not {args.min_8bit_size}")
    if args.model is not None and args.dtype is not None:
        raise CommandError("--dtype is for --shapes and --params: a model has types of its own")
    if args.model is not None:
        found = members.from_function(args.model)
    else:
        found = members.from_shapes(args.shapes, TORCH_DTYPES[args.dtype or "bf16"])
    grad_itemsize = DTYPES[args.grad_dtype] if args.grad_dtype else None
    show(counting.table(args.model or args.shapes, found, grad_itemsize, args.min_8bit_size))
    kept = counting.kept(found, args.min_8bit_size)
    if kept is not None:
        show(kept)
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
