"""Launch groups: parameters that one call of a backend updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lionbits import sharding
from lionbits.paging import PagedCalls, ResidentCalls
from lionbits_reference.spec import Backend, Hyper, Plan

from . import factors
from .scalars import SlotScalars
from .shared_blocks import SharedBlocks

Group = dict[str, Any]
State = dict[str, Any]

#: Skipped elements on this rank, int64[1], by device and by the ranks that the tensors are sharded over.
Counts = dict[tuple[torch.device, "sharding.ShardGroup | None"], Tensor]


class LaunchKey(NamedTuple):
    """Settings that tensors must share to be updated by one call of a backend.

    The backend does not read the last four: they concern the code around the call.
    """

    plan: Plan
    hyper: Hyper
    device: torch.device  # where the call runs
    home: torch.device  # where the parameters are
    cautious: str | None
    raises: bool
    shard_group: sharding.ShardGroup | None
    shares_blocks: bool


class ParamEntry(NamedTuple):
    """A parameter that takes part."""

    param: Tensor
    group: Group
    position: int

    @property
    def local(self) -> Tensor:
        """The parameter, or the part of it on this rank."""
        return sharding.local_tensor(self.param)


@dataclass(eq=False)
class LaunchGroup:
    """Parameters of one launch, and what is prepared for their steps.

    Between steps it keeps no gradient alive, and of state and parameters only the dicts and Parameters that users see,
    and local tensors of these.

    Attributes:
        key: what the parameters share.
        entries: the parameters.
        groups, states: of each.
        counts: updates of each when this was prepared.
        backend: that updates them.
        calls: of the backend, prepared.
        scalars: the numbers of each.
        padded: shards that backends see padded, by place.
        clipping: of the gradients, if some may be scaled down.
        numel: int64[k], for caution.
    """

    key: LaunchKey
    entries: list[ParamEntry] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    backend: Backend = field(init=False)
    calls: ResidentCalls | PagedCalls | SharedBlocks = field(init=False)
    scalars: SlotScalars = field(init=False)
    padded: dict[int, sharding.PaddedShard] = field(default_factory=dict)
    clipping: factors.Clipping | None = None
    numel: Tensor | None = None

    def with_padding(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients, padded where backends see their shards so."""
        return [self.padded[j].padded(grad) if j in self.padded else grad for j, grad in enumerate(grads)]

    def tensors(self) -> list[Tensor]:
        """Return what is kept on the device beside what backends prepared."""
        return [
            *self.scalars.tensors(),
            *([] if self.clipping is None else self.clipping.tensors()),
            *([] if self.numel is None else [self.numel]),
            *(self.calls.tensors() if isinstance(self.calls, PagedCalls) else []),
        ]

    def state_tensors(self) -> Iterator[tuple[str, list[State]]]:
        """Yield names of state tensors that a step reads and writes, with the states that have them."""
        for key in self.key.plan.state_spec(()):
            yield key, self.states
        pairs = zip(self.entries, self.states, strict=True)
        yield "grad_norms", [state for entry, state in pairs if factors.keeps_norms(entry.group)]
