"""The floor of a step's memory traffic, against which bandwidth is measured.

A parameter is read and written, its gradient read, its state read and written, scales included::

    fp32 parameters and gradients, 32 bits   4+4 + 4 + 4+4           = 20
    bf16 parameters and gradients, 32 bits   2+2 + 2 + 4+4           = 14
                                    8 bits   2+2 + 2 + 2*(1+4/256)   =  8.03
                                    4 bits   2+2 + 2 + 2*(1/2+4/128) =  7.06

Everything beyond that (temporaries, a second pass) is what an implementation adds, so it counts against it. The one
second pass that no implementation can avoid is counting before writing: ``cautious="mask"`` and one scale per tensor
need a number of the whole tensor first, so gradient and momentum are read twice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from torch import Tensor
from torch.optim import Optimizer

from lionbits import Lion, settings
from lionbits.paging import Paged, PagingStats
from lionbits_reference.spec import Plan, TensorSpec

from .transfers import TransferStats

#: State that a step neither reads nor writes, by the class that holds it.
IDLE = {"DeepSpeedCPULion": ("exp_avg_sq",)}


def plan_bytes(plan: Plan, shape: Sequence[int]) -> int:
    """Return the floor of one parameter under ``plan``, exactly, with short blocks and packed rows."""
    elements = math.prod(shape)
    parameter, gradient = elements * plan.param_dtype.itemsize, elements * plan.grad_dtype.itemsize
    counting = 0
    if plan.caution == "mask" or plan.format.tensor_wise:
        counting = gradient + _spec_bytes(plan.format.momentum_spec(shape).values())
    return 2 * parameter + gradient + 2 * _spec_bytes(plan.state_spec(shape).values()) + counting


def floor_bytes(optimizer: Optimizer) -> int:
    """Return the floor of a step of an optimizer that has taken one: of Lion by its plans, else by its state."""
    total = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, Lion):
                total += plan_bytes(settings.plan(group, parameter, parameter.grad.dtype), parameter.shape)
            else:
                idle = IDLE.get(type(optimizer).__name__, ())
                state = state_bytes(optimizer, parameter, idle)
                total += 2 * parameter.nbytes + parameter.grad.nbytes + 2 * state
    return total


def state_bytes(optimizer: Optimizer, parameter: Tensor, without: Collection[str] = ()) -> int:
    """Return bytes of the tensors in a parameter's state, except some."""
    state = optimizer.state[parameter].items()
    return sum(_lying(value) for key, value in state if isinstance(value, Tensor) and key not in without)


def planned_state_bytes(optimizer: Lion) -> int:
    """Return bytes of the state that a step needs, whether a step was taken or not."""
    return sum(
        _spec_bytes(settings.plan(group, parameter, parameter.grad.dtype).state_spec(parameter.shape).values())
        for group in optimizer.param_groups
        for parameter in group["params"]
    )


def paging_stats(optimizer: Optimizer) -> PagingStats | None:
    """Return the counts of paging so far; None if state is not paged."""
    if isinstance(optimizer, Lion) and isinstance(optimizer._pager, Paged):
        return optimizer.paging_stats()
    return None


def moved(optimizer: Optimizer, before: PagingStats | None) -> TransferStats | None:
    """Return what paging has copied since these counts."""
    if before is None:
        return None
    assert isinstance(optimizer, Lion)
    assert isinstance(optimizer._pager, Paged)
    now = optimizer.paging_stats()
    return TransferStats(
        state_bytes=planned_state_bytes(optimizer),
        budget=optimizer._pager.page_budget,
        page_size=optimizer._pager.page_size,
        bytes_in=now.bytes_in - before.bytes_in,
        bytes_out=now.bytes_out - before.bytes_out,
        pages=now.pages_in - before.pages_in,
        passing_bytes=now.passing_bytes,
        shrinks=now.shrinks,
    )


def _lying(tensor: Tensor) -> int:
    """Return bytes in memory; of a tensor that wraps others, as torchao's quantised ones do, theirs."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(_lying(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def held_bytes(optimizer: Optimizer) -> int:
    """Return bytes of parameters, gradients, and state: what training holds on the device."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    far = {p: [key for key, value in optimizer.state[p].items() if _elsewhere(value, p)] for p in parameters}
    return sum(p.nbytes + p.grad.nbytes + state_bytes(optimizer, p, far[p]) for p in parameters)


def _elsewhere(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.device != parameter.device


def _spec_bytes(specs: Iterable[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
