"""Replay of a recorded step: does it have the bits of a plain step, and how long does it take."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import workloads
from .candidates import DTYPES, Candidate
from .results import Findings, Replay, in_a_line
from .timing import Clock
from .workloads import Workload

WARM, REPLAYS, TIMED = 3, 10, 20


def try_replay(candidate: Candidate, workload: Workload, clock: Clock, findings: Findings) -> Replay:
    """Record after warming up, replay ten times, and compare with an optimizer that took as many plain steps.

    Recordings tend to get the step number wrong: rounding depends on it, so a constant one shows in the bits
    of parameters or of state after the first replay.
    """
    result = Replay(candidate.name, candidate.variant, candidate.dtype, len(workload.shapes))
    try:
        _try(result, candidate, workload, clock)
    except Exception as error:  # noqa: BLE001 - reported, and the next one is tried
        result.problem = in_a_line(error)
    if result.problem or not result.equal:
        what = result.problem or f"{REPLAYS} replays differ from {REPLAYS} steps: {result.difference}"
        findings.failed.append(f"{result.name} {result.variant}: {what}")
    return result


def _try(result: Replay, candidate: Candidate, workload: Workload, clock: Clock) -> None:
    dtype = DTYPES[candidate.dtype]
    recorded_tensors, twin_tensors = (workloads.tensors(workload, dtype, clock.device) for _ in range(2))
    recorded, twin = candidate.build(recorded_tensors), candidate.build(twin_tensors)
    replay = clock.capture(recorded.step, WARM)
    for _ in range(REPLAYS):
        replay()
    for _ in range(WARM + REPLAYS):
        twin.step()
    clock.wait()
    result.replays = REPLAYS
    result.difference = difference(recorded, twin)
    result.equal = not result.difference
    result.seconds = [clock.time(replay) for _ in range(TIMED)]


def difference(one: Optimizer, other: Optimizer) -> str:
    """Return the first difference in the bits of parameters or state of two optimizers; empty if there is none."""
    pairs = zip(_parameters(one), _parameters(other), strict=True)
    for position, (p, q) in enumerate(pairs):
        state = [(key, value, other.state[q][key]) for key, value in one.state[p].items() if isinstance(value, Tensor)]
        for key, mine, its in [("parameter", p, q), *state]:
            unequal = int((_bytes(mine) != _bytes(its)).sum())
            if unequal:
                return f"{key} of tensor {position} in {unequal} of {mine.nbytes} bytes"
    return ""


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
