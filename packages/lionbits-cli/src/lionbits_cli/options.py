"""The options of ``lionbits train``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .config import CAUTIOUS, DTYPES, PARAM_ROUNDING, TrainConfig, option
from .console import count
from .targets import path
from .variants import VARIANTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all options. Settings have no default here: TrainConfig or the checkpoint has it."""
    _optimizer(parser.add_argument_group("optimizer"))
    _training(parser.add_argument_group("training"))
    _model(parser.add_argument_group("model"))
    _files(parser.add_argument_group("runs and files"))


def _optimizer(group: argparse._ArgumentGroup) -> None:
    known = f"{', '.join(VARIANTS)}, or a class name"
    group.add_argument("--variant", default=argparse.SUPPRESS, help=f"{known} (default {TrainConfig.variant})")
    _setting(group, "bits", int, "optimizer state bits: 32, 8, 4 or 2, for lion, paged-lion and qlion")
    _setting(group, "backend", str, "backend name instead of the automatic choice")
    _setting(group, "lr", float, "peak learning rate")
    _setting(group, "weight_decay", float, "decoupled weight decay")
    group.add_argument(
        "--cautious", nargs="?", const="mask", choices=CAUTIOUS, default=argparse.SUPPRESS,
        help="hold back where update and gradient disagree (mask if no word follows)",
    )  # fmt: skip
    group.add_argument("--paged", action="store_true", help="keep the state in host pages: lion8 is paged-lion8")
    _setting(group, "page_budget", count, "bytes of paged state on the device at most, such as 64M")
    _setting(group, "paged_compute", str, "where paged state is updated: device, or host")


def _training(group: argparse._ArgumentGroup) -> None:
    _setting(group, "steps", int, "training steps")
    _setting(group, "batch", int, "windows per step")
    _setting(group, "context", int, "bytes per window")
    _setting(group, "clip", float, "norm to which all gradients together are clipped, for every variant; 0: off")
    _setting(group, "seed", int, "of weights, data order and rounding")
    _setting(group, "eval_every", int, "steps between evaluations, each of which saves a checkpoint")
    _choice(group, "dtype", tuple(DTYPES), "of the parameters")
    _choice(group, "param_rounding", PARAM_ROUNDING, "how bfloat16 parameters are stored")
    _setting(group, "master_bits", int, "with --param-rounding compensated: 32 or 24")
    group.add_argument(
        "--device", default=argparse.SUPPRESS, help="cpu, cuda, cuda:1 ... (default: cuda where there is one)"
    )


def _model(group: argparse._ArgumentGroup) -> None:
    _setting(group, "layers", int, "transformer blocks")
    _setting(group, "width", int, "features per position")
    _setting(group, "heads", int, "attention heads")


def _files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--compare", nargs="+", metavar="VARIANT",
        help="train each from the same weights on the same data and overlay them",
    )  # fmt: skip
    group.add_argument("--out", type=path, metavar="DIR", help="folder for results (default lionbits-out)")
    group.add_argument(
        "--resume", type=path, metavar="CHECKPOINT",
        help="continue a checkpoint.pt, or the folder of a comparison, bit for bit",
    )  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="no progress, no sample; the table only")


def _setting(group: argparse._ArgumentGroup, name: str, kind: Callable[[str], object], text: str) -> None:
    default = getattr(TrainConfig, name)
    group.add_argument(
        option(name),
        type=kind,
        default=argparse.SUPPRESS,
        metavar=name.rpartition("_")[2].upper(),
        help=text if default is None else f"{text} (default {default})",
    )


def _choice(group: argparse._ArgumentGroup, name: str, choices: tuple[str, ...], text: str) -> None:
    group.add_argument(
        option(name), choices=choices, default=argparse.SUPPRESS,
        help=f"{text} (default {getattr(TrainConfig, name)})",
    )  # fmt: skip
