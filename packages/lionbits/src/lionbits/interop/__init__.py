"""State dicts of other Lions, in and out: training continues here, or there, with the momentum that it had.

    optimizer.load_state_dict(interop.from_bitsandbytes(state_dict, optimizer))

Every ``from_`` function returns a state dict for ``optimizer``, which holds the same parameters and supplies the form:
bits, format, block size, seed. Momentum is decoded to float32 and rounded to nearest once. Settings that the peer has
(learning rate, betas, weight decay, what a schedule noted) come from its groups, as in any ``load_state_dict``; the
others stay the optimizer's. Nothing is changed, neither the state dict nor the optimizer. Parameters are converted one
after the other, so that float32 of a whole model is never in memory at a time.

An optimizer over sharded parameters takes and gives whole state dicts: each rank loads its part, and all ranks call the
``to_`` functions and :func:`compare` together.

Parameters are matched by position, as torch does; or by name, where both sides have names, and then groups may differ.
``names=`` supplies the peer's, in the order of its groups: ``[name for name, _ in model.named_parameters()]`` where it
had one group of all parameters, the names of each group one after the other where it had several.

All of them raise TypeError or ValueError, naming the parameter or group, where a state dict has not the form it should
have, is of another model, or follows a rule that Lion here cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lionbits.checkpoint.recognise import reader, recognise
from lionbits.groups import check_optimizer

from . import bitsandbytes, comparison, exp_avg, flashlion, optax, qlion
from .comparison import Difference
from .imported import ImportedStateDict
from .lion import export, import_, matched, warn_of_losses
from .peers import PEERS, read

if TYPE_CHECKING:
    from lionbits.optimizer import Lion

__all__ = [
    "Difference",
    "compare",
    "from_bitsandbytes",
    "from_flashlion",
    "from_lion_pytorch",
    "from_optax",
    "from_optimi",
    "from_pytorch_optimizer",
    "from_qlion",
    "from_timm",
    "recognise",
    "to_bitsandbytes",
    "to_lion_pytorch",
    "to_optax",
    "to_optimi",
    "to_pytorch_optimizer",
    "to_qlion",
    "to_timm",
]

StateDict = Mapping[str, Any]
Names = Sequence[str] | None


def from_bitsandbytes(
    state_dict: StateDict, optimizer: Lion, *, names: Names = None, written_on: str | None = None
) -> dict[str, Any]:
    """Return a state dict for ``optimizer`` from bitsandbytes' Lion (any release, 8 or 32 bits, paged or not).

    Wrapped and flat, blocks of 256 and of 2048, one scale per tensor, and parameters of 8 and of 32 bits in one state
    dict are read as they come; codes are decoded with the table beside them. Percentile clipping's history is carried
    over where ``optimizer`` clips.

    Args:
        state_dict: as its ``state_dict()`` returned it.
        optimizer: that is to load the result.
        names: of its parameters, in its order; see :mod:`lionbits.interop`.
        written_on: ``"cuda"`` or ``"cpu"``, needed where a parameter was channels_last when its state was made: on
            CUDA bitsandbytes then keeps its state in another order than the tensor says.
    """
    return import_(
        _read("bitsandbytes", partial(bitsandbytes.read, written_on=written_on), state_dict), optimizer, names
    )


def to_bitsandbytes(optimizer: Lion, optim_bits: int | None = None) -> dict[str, Any]:
    """Return a state dict for bitsandbytes' Lion, 0.49.2 or later, over the same parameters in the same groups.

    Args:
        optimizer: whose state it is.
        optim_bits: 32: float32, exact; 8: parameters of 4,096 elements or more in its codes, blocks of 256, rounded to
            nearest; None: float32 stays float32, what is narrower here becomes 8 bits. bitsandbytes continues either,
            whatever ``optim_bits`` its own optimizer was made with.

    Raises:
        TypeError, ValueError: ``optim_bits``.
    """
    return _written(optimizer, partial(bitsandbytes.write, optim_bits=optim_bits))


def from_qlion(state_dict: StateDict, optimizer: Lion, *, names: Names = None) -> dict[str, Any]:
    """Return a state dict for ``optimizer`` from QLion's, quantised or not, reloaded or not.

    QLion's order of operations is Lion's with betas (b1*b2, b2). The result has these betas, so that training continues
    under the same rule. A :class:`lionbits.QLion` with ``momentum_first=False`` keeps QLion's betas in Lion's order.
    ``grad_clip`` and ``cautious`` are carried over.
    """
    check_optimizer(optimizer)
    lions_order = any(group.get("momentum_first") is False for group in optimizer.param_groups)
    return import_(_read("qlion", partial(qlion.read, lions_order=lions_order), state_dict), optimizer, names)


def to_qlion(optimizer: Lion) -> dict[str, Any]:
    """Return a state dict for QLion: plain momentum, which QLion quantises at its next step.

    Raises:
        ValueError: betas that its order of operations cannot have.
    """
    return _written(optimizer, qlion.WRITTEN.write, qlion.WRITTEN.carries)


def from_lion_pytorch(state_dict: StateDict, optimizer: Lion, *, names: Names = None) -> dict[str, Any]:
    """Return a state dict for ``optimizer`` from lion-pytorch's, or any Lion's that keeps ``exp_avg`` and nothing else.

    Such state dicts do not count steps: the next update is the first. lion-pytorch's ``decoupled_weight_decay`` is not
    in its state dict; where it was on, divide ``weight_decay`` by the initial learning rate.
    """
    return import_(_read("lion-pytorch", exp_avg.LION_PYTORCH.read, state_dict), optimizer, names)


def to_lion_pytorch(optimizer: Lion) -> dict[str, Any]:
    """Return a state dict for lion-pytorch and for Lions whose groups need ``lr``, ``betas``, ``weight_decay`` only."""
    return _written(optimizer, exp_avg.LION_PYTORCH.write)


def from_timm(state_dict: StateDict, optimizer: Lion, *, names: Names = None) -> dict[str, Any]:
    """Return a state dict for ``optimizer`` from timm's Lion.

    ``maximize`` is carried over; ``caution`` becomes ``cautious="timm"``.
    """
    return import_(_read("timm", exp_avg.TIMM.read, state_dict), optimizer, names)


def to_timm(optimizer: Lion) -> dict[str, Any]:
    """Return a state dict for timm's Lion."""
    return _written(optimizer, exp_avg.TIMM.write, exp_avg.TIMM.carries)


def from_pytorch_optimizer(state_dict: StateDict, optimizer: Lion, *, names: Names = None) -> dict[str, Any]:
    """Return a state dict for ``optimizer`` from pytorch_optimizer's Lion; its ``cautious`` becomes ``"c-optim"``."""
    return import_(_read("pytorch-optimizer", exp_avg.PYTORCH_OPTIMIZER.read, state_dict), optimizer, names)


def to_pytorch_optimizer(optimizer: Lion) -> dict[str, Any]:
    """Return a state dict for pytorch_optimizer's Lion."""
    return _written(optimizer, exp_avg.PYTORCH_OPTIMIZER.write, exp_avg.PYTORCH_OPTIMIZER.carries)


def from_optimi(state_dict: StateDict, optimizer: Lion, *, names: Names = None) -> dict[str, Any]:
    """Return a state dict for ``optimizer`` from torch-optimi's Lion, with a warning if it held Kahan compensation."""
    return import_(_read("optimi", exp_avg.OPTIMI.read, state_dict), optimizer, names)


def to_optimi(optimizer: Lion) -> dict[str, Any]:
    """Return a state dict for torch-optimi's Lion; Kahan compensation begins at zero."""
    return _written(optimizer, exp_avg.OPTIMI.write)


def from_flashlion(state_dict: StateDict, optimizer: Lion, *, names: Names = None) -> dict[str, Any]:
    """Return a state dict for ``optimizer`` from flashoptim's FlashLion, compressed or not.

    ``error_bits``, the residuals of its parameters, are not momentum; a warning says if some are left behind.
    ``decouple_lr`` is not in its state dict.
    """
    return import_(_read("flashlion", flashlion.read, state_dict), optimizer, names)


def from_optax(state: object, optimizer: Lion) -> dict[str, Any]:
    """Return a state dict for ``optimizer`` from optax's Lion. Settings are the optimizer's: optax's state has none.

    Args:
        state: ``ScaleByLionState``, or a mapping with its ``count`` and ``mu``. ``mu`` is a list of arrays in the order
            of the optimizer's parameters, or a mapping, nested or not, by their names, and each array has its
            parameter's shape. A square weight that was not transposed on its way to torch looks like one that was.
        optimizer: that is to load the result.
    """
    return import_(optax.read(state, _sizes(optimizer)), optimizer)


def to_optax(optimizer: Lion) -> dict[str, Any]:
    """Return ``count`` and ``mu`` as float32 numpy arrays: by name if parameters have names, else in their order.

    Raises:
        ValueError: a parameter has no state yet.
    """
    return _written(optimizer, optax.write)


#: Writers of peers' state dicts that need the optimizer alone, by the same names.
WRITERS: dict[str, Callable[[Lion], dict[str, Any]]] = {
    "bitsandbytes": to_bitsandbytes,
    "qlion": to_qlion,
    "lion-pytorch": to_lion_pytorch,
    "timm": to_timm,
    "pytorch-optimizer": to_pytorch_optimizer,
    "optimi": to_optimi,
}


def compare(
    state_dict: Any, optimizer: Lion, *, names: Names = None, written_on: str | None = None
) -> list[Difference]:
    """Return the differences between a peer's momentum and ``optimizer``'s, parameter by parameter.

    Called after loading from the state dict, or after writing it, it measures the conversion.

    After loading what was made of the state dict, or after writing it: what the conversion cost.

    Args:
        state_dict: any that :func:`recognise` knows but lionbits' own.
        optimizer: over the same parameters.
        names: as in :func:`from_bitsandbytes`.
        written_on: likewise.

    Raises:
        TypeError, ValueError: it is not recognised, or does not hold the same parameters.
    """
    peer = recognise(state_dict)
    if peer in (None, "lionbits"):
        raise ValueError(f"state_dict is not one of {', '.join(PEERS)}; recognise() says {peer!r}.")
    reading = read(state_dict, str(peer), written_on=written_on, sizes=_sizes(optimizer))
    after = export(optimizer)
    keys = [key for group in matched(reading, optimizer, names) for key in group]
    return comparison.differences(reading, after, zip(keys, after.ids, strict=True))


def _read(peer: str, read: Callable[[StateDict], ImportedStateDict], state_dict: StateDict) -> ImportedStateDict:
    """Return ``read(state_dict)``. If that fails on another peer's state dict, the error names the function to use."""
    try:
        return read(state_dict)
    except (TypeError, ValueError) as error:
        found = recognise(state_dict)
        if found in (None, peer):
            raise
        way = "load it as it is" if found == "lionbits" else f"read it by {reader(str(found))}"
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{error} The state dict has the form of {found}: {way}.") from None


def _sizes(optimizer: Lion) -> list[int]:
    check_optimizer(optimizer)
    return [len(group["params"]) for group in optimizer.param_groups]


def _written(
    optimizer: Lion,
    write: Callable[[ImportedStateDict], dict[str, Any]],
    carries: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, Any]:
    state_dict = write(export(optimizer))
    warn_of_losses(optimizer, carries)
    return state_dict
