"""Other optimizers that lionbits is compared with, and their settings. All are optional."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Collection
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import rule
from .candidates import DTYPES, Candidate
from .eager import EagerLion
from .rule import COMMON, Check

#: Check of 8-bit Lions, with the share of the signs of three steps that rounded state may change.
EIGHT_BITS = partial(rule.lion, allowed=0.02)

TIMM = "_lionbits_bench_timm_optim"

#: Bytes of state per element, by the size of a parameter.
State = Callable[[int], float]


class Peer(NamedTuple):
    """One optimizer of another library.

    Attributes:
        name: of the distribution, as pip knows it.
        variant: which of its optimizers, in which settings.
        module: where it is.
        make: its attribute there, or what makes it from the module.
        state: bytes per element.
        check: of its rule.
        settings: beyond the common ones.
        compiled: its step goes through torch.compile.
        devices: where it works.
        managed: pages by managed memory, which not every machine may be asked for.
        main: whether charts over sizes show it.
    """

    name: str
    variant: str
    module: str
    make: str | type[Optimizer]
    state: State
    check: Check
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed
    compiled: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    main: bool = False
    managed: bool = False


def _one(size: int) -> float:
    return float(size)


def _two(size: int) -> float:
    return 2.0 * size


def _bytes(count: float) -> State:
    return lambda size: count


def _kahan(size: int) -> float:
    return float(size if size == 4 else 2 * size)


EAGER = "eager Lion"
BNB = "bitsandbytes.optim"
CUDA = ("cuda",)
BETAS = {"betas": (rule.B1, rule.B2)}

PEERS = (
    Peer("torch", EAGER, "torch", EagerLion, _bytes(4), rule.lion, main=True),
    Peer("torch", "Lion, compiled", "torch", EagerLion, _bytes(4), rule.lion, {"compiled": True}, True, main=True),
    Peer("torch", "AdamW, fused", "torch.optim", "AdamW", _two, rule.adamw, {"fused": True}, main=True),
    Peer("torch", "AdamW, foreach", "torch.optim", "AdamW", _two, rule.adamw, {"foreach": True}),
    Peer("bitsandbytes", "Lion, 32 bits", BNB, "Lion", _bytes(4), rule.lion),
    Peer("bitsandbytes", "Lion8bit", BNB, "Lion8bit", _bytes(1.02), EIGHT_BITS, main=True),
    Peer("bitsandbytes", "PagedLion", BNB, "PagedLion", _bytes(4), rule.lion, devices=CUDA, managed=True),
    Peer("bitsandbytes", "PagedLion8bit", BNB, "PagedLion8bit", _bytes(1.02), EIGHT_BITS, devices=CUDA, managed=True),
    Peer("lion-pytorch", "Lion", "lion_pytorch", "Lion", _one, rule.lion),
    Peer("timm", "Lion", "timm", "Lion", _one, rule.lion, {"foreach": False}),
    Peer("timm", "Lion, foreach", "timm", "Lion", _one, rule.lion, {"foreach": True}),
    Peer("timm", "Lion, step compiled", "timm", "Lion", _one, rule.lion, {"foreach": False}, True, main=True),
    Peer("pytorch-optimizer", "Lion", "pytorch_optimizer", "Lion", _one, rule.lion),
    Peer("torch-optimi", "Lion", "optimi", "Lion", _kahan, rule.lion),
    Peer("torchao", "AdamW8bit", "torchao.optim", "AdamW8bit", _bytes(2.04), rule.adamw, compiled=True),
    Peer("torchao", "AdamW4bit", "torchao.optim", "AdamW4bit", _bytes(1.07), rule.adamw, compiled=True),
    Peer("flashoptim", "FlashLion", "flashoptim", "FlashLion", _bytes(2.1), EIGHT_BITS, devices=CUDA),
    # it makes a second state, which Lion has no use for, and has betas of its own
    Peer(
        "deepspeed", "CPULion", "deepspeed.ops.lion", "DeepSpeedCPULion", _bytes(8), rule.lion, BETAS, devices=("cpu",)
    ),
)

NAMES = tuple(dict.fromkeys(peer.name for peer in PEERS))


def peers(
    dtype: str,
    device: torch.device,
    names: Collection[str] = NAMES,
    *,
    compiled: bool = True,
    managed: bool = True,
) -> list[Candidate]:
    """Return the optimizers of these libraries that can be imported here and work on the device."""
    able = [peer for peer in PEERS if peer.name in names and device.type in peer.devices]
    wanted = [peer for peer in able if (compiled or not peer.compiled) and (managed or not peer.managed)]
    return [_candidate(peer, dtype) for peer in wanted if not _missing(peer)]


def peers_found(device: torch.device, names: Collection[str] = NAMES) -> dict[str, str]:
    """Return the version of each library, or the reason why it is missing."""
    one_of_each = {peer.name: peer for peer in reversed(PEERS)}  # the first, which works on the most devices
    return {name: _found(one_of_each[name], device) for name in NAMES if name in names}


def _found(peer: Peer, device: torch.device) -> str:
    if device.type not in peer.devices:
        return f"works on {' and '.join(peer.devices)} only"
    return _missing(peer) or (str(torch.__version__) if peer.name == "torch" else _version(peer.name))


def _candidate(peer: Peer, dtype: str) -> Candidate:
    state = peer.state(DTYPES[dtype].itemsize)
    return Candidate(peer.name, peer.variant, dtype, state, partial(_build, peer), False, peer.check, peer.main)


def _build(peer: Peer, parameters: list[Tensor]) -> Optimizer:
    make: Any = getattr(_imported(peer.module), peer.make) if isinstance(peer.make, str) else peer.make
    optimizer: Optimizer = make(parameters, **COMMON, **peer.settings)
    if peer.compiled and peer.name == "timm":
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[assignment]
    return optimizer


def _missing(peer: Peer) -> str:
    """Return the reason why the peer cannot be imported, or an empty string. A broken one must not end the run."""
    if importlib.util.find_spec(peer.module.partition(".")[0]) is None:
        return "not installed"
    try:
        _imported(peer.module)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the reason
        return f"does not import: {type(error).__name__}: {error}"
    return ""


def _imported(module: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside somebody else's import
        return _timm() if module == "timm" else importlib.import_module(module)


def _timm() -> ModuleType:
    """Import timm's optimizers under another name: they need nothing of timm, whose import wants torchvision."""
    if TIMM not in sys.modules:
        spec = importlib.util.find_spec("timm")
        assert spec is not None
        folder = ModuleType(TIMM)
        folder.__path__ = [str(Path(path, "optim")) for path in spec.submodule_search_locations or ()]
        sys.modules[TIMM] = folder
    return importlib.import_module(f"{TIMM}.lion")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
