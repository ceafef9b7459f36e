"""``lionbits convert``: the optimizer state in a checkpoint of another Lion, in the form of this one, or the reverse.

It needs the file alone: every form but packed codes (4 and 2 bits) has the shapes of the parameters. It measures and
prints the error of the conversion.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import lionbits
from lionbits import interop
from lionbits.interop import comparison, standalone
from lionbits.interop.imported import ImportedStateDict
from lionbits.interop.lion import export
from lionbits.interop.peers import PEERS, read
from lionbits.options import Bits
from lionbits_reference.spec import DEFAULTS

from .console import CommandError, Table, show
from .targets import check_new, check_source, path

OURS = "lionbits"
FILES = tuple(peer for peer in PEERS if peer != "optax")  # whose state dicts lie in files that torch reads
TENSORFILE = ".safetensors"  # a file of this name is one, read and written; any other is torch's
SHOWN = 40  # rows of the table; a large model has thousands of parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the files and the forms."""
    parser.add_argument(
        "source", type=path, metavar="IN", help="a checkpoint of torch.save, or *.safetensors of lionbits"
    )
    parser.add_argument("target", type=path, metavar="OUT", help="the file to write; it must not be there yet")
    parser.add_argument("--from", dest="peer", choices=(OURS, *FILES), help="default: as it looks")
    parser.add_argument("--to", choices=(OURS, *interop.WRITERS), default=OURS, help=f"default {OURS}")
    parser.add_argument(
        "--bits", type=int, choices=tuple(DEFAULTS),
        help="of the momentum, for lionbits and bitsandbytes (default: 8 where it has less than 32 bits now)",
    )  # fmt: skip
    parser.add_argument(
        "--key", help="where the checkpoint keeps the optimizer, such as optimizer, or train.optimizer; the rest stays"
    )
    parser.add_argument(
        "--written-on", choices=("cuda", "cpu"), help="where bitsandbytes ran, if the model was channels_last"
    )


def run(args: argparse.Namespace) -> int:
    """Read, convert, write, and print the error of the conversion."""
    check_new(args.target)
    content = load(args.source)
    state_dict = find(content, args.key)
    try:
        converted, found = convert(state_dict, args)
    except (TypeError, ValueError) as error:
        raise CommandError(f"{args.source}: {error}") from error
    save(put(content, args.key, converted), args.target)
    show(table(found, f"{args.source.name} to {args.target.name}"))
    return 0


def load(file: Path) -> dict[str, Any]:
    check_source(file)
    try:
        if file.suffix == TENSORFILE:
            return lionbits.load_safetensors(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a missing file, a truncated one, or something else entirely
        raise CommandError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise CommandError(f"{file} holds a {type(content).__name__}; a checkpoint is a dict")
    return content


def save(content: dict[str, Any], file: Path) -> None:
    try:
        (lionbits.save_safetensors if file.suffix == TENSORFILE else lionbits.save)(content, file)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise CommandError(f"cannot write {file}: {error}") from error


def find(content: Mapping[str, Any], key: str | None) -> Mapping[str, Any]:
    """Return the optimizer's state dict: at ``key``, or the checkpoint itself."""
    here: Any = content
    for name in key.split(".") if key else ():
        if not isinstance(here, Mapping) or name not in here:
            there = ", ".join(map(str, here)) if isinstance(here, Mapping) else type(here).__name__
            raise CommandError(f"--key {key}: there is no {name!r}, only {there}")
        here = here[name]
    if not isinstance(here, Mapping) or not {"state", "param_groups"} <= here.keys():
        inside = [name for name, value in content.items() if isinstance(value, Mapping) and "param_groups" in value]
        hint = f"; try --key {inside[0]}" if inside and not key else ""
        raise CommandError(f"{'--key ' + key if key else 'the checkpoint'} is no optimizer's state dict{hint}")
    return here


def put(content: dict[str, Any], key: str | None, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the checkpoint with another state dict at ``key``."""
    if not key:
        return state_dict
    name, _, rest = key.partition(".")
    return {**content, name: put(content[name], rest or None, state_dict)}


def convert(state_dict: Mapping[str, Any], args: argparse.Namespace) -> tuple[dict[str, Any], list[interop.Difference]]:
    """Return the state dict in its new form, and the differences.

    Raises:
        TypeError, ValueError: it is not what it should be.
    """
    before = examine(state_dict, args)
    bits: Bits = args.bits or (8 if any(held.quantised for held in before.held.values()) else 32)
    if args.to == OURS:
        optimizer = standalone.restored(before, bits)
        converted, after = optimizer.state_dict(), export(optimizer)
    else:
        optimizer = standalone.restored(before, 32)
        if args.to == "bitsandbytes":
            converted = interop.to_bitsandbytes(optimizer, bits)
        elif args.bits in (None, 32):
            converted = interop.WRITERS[args.to](optimizer)
        else:
            raise ValueError(f"--bits {args.bits}: {args.to} is written as plain momentum")
        after = read(converted, args.to)
    return converted, comparison.differences(before, after, zip(before.ids, after.ids, strict=True))


def examine(state_dict: Mapping[str, Any], args: argparse.Namespace) -> ImportedStateDict:
    """Decode the state dict of any known Lion."""
    peer = args.peer or interop.recognise(state_dict)
    if peer is None:
        raise ValueError("it does not look like a Lion's state dict; if it is one, name it with --from")
    if peer == OURS:
        return export(standalone.revived(state_dict))
    return read(state_dict, peer, written_on=args.written_on)


def table(found: list[interop.Difference], title: str) -> Table:
    """Return a table of the parameters with the largest differences, and totals."""
    columns = ("parameter", "shape", "before", "after", "equal", "largest error", "rms error")
    drawn = Table(title, columns, left=("before", "after"))
    worst = sorted(found, key=lambda one: -one.rms)[:SHOWN]
    for one in (one for one in found if one in worst):
        shape = " x ".join(map(str, one.shape)) or "scalar"
        equal = f"{100 * one.exact / max(one.elements, 1):.1f} %" if one.exact < one.elements else "all"
        drawn.add(one.name, shape, one.before, one.after, equal, f"{one.largest:.2g}", f"{one.rms:.2g}")
    exact, elements = sum(one.exact for one in found), sum(one.elements for one in found)
    drawn.caption = (
        f"{len(found)} parameters with state; {exact:,} of {elements:,} elements equal. Errors of the momentum, in "
        f"units of its root mean square before."
    )
    if len(found) > SHOWN:
        drawn.caption += f" Shown are the {SHOWN} with the largest rms error."
    return drawn
