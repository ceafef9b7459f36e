"""The cache of a step: between most steps only gradients change, so launch groups are kept.

Launch groups are made and prepared by :mod:`lionbits.step.prepare`, and used again until :mod:`lionbits.step.snapshot`
finds that anything but gradients has changed. Then they are made anew, and ``prepare`` refuses a wrong change. This
is the only cache of a step: backends keep nothing of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lionbits import paging, select, settings, sharding
from lionbits.interrupts import uninterrupted
from lionbits.paging import Prefetcher
from lionbits.state.counts import Counts
from lionbits_reference.spec import Backend

from . import agreement, prepare, shared_blocks
from .launch import Counts as Skipped
from .run import run
from .snapshot import GroupSnapshot, StateSnapshot, TensorSnapshot

if TYPE_CHECKING:
    from lionbits.optimizer import Lion

Group = dict[str, Any]
State = dict[str, Any]


class StepCache:
    """Launch groups that are ready to run again.

    Args:
        groups, states: of the optimizer.
        requested: the backend that was asked for, or None.
        prefetcher: of state that is not kept beside its parameter.
        before: the one that this replaces. What captured graphs go on reading, of it and of others before, is kept.
        first: position of the first parameter, where these groups are a part of the optimizer's.

    Raises:
        TypeError, ValueError, RuntimeError: as in :func:`prepare.collect`; nothing was changed.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        states: MutableMapping[Tensor, State],
        requested: Backend | None,
        prefetcher: Prefetcher,
        before: StepCache | None,
        first: int = 0,
    ) -> None:
        launch_groups = prepare.collect(groups, states, prefetcher, first)
        devices = {found.key.device for found in launch_groups}
        if any(map(capturing, devices)):
            raise RuntimeError(
                "a step that is captured in a graph must be like the one before it. Take a step with the same "
                "parameters, gradients and settings first, as PyTorch's notes on CUDA graphs ask for."
            )
        for found in launch_groups:
            plan, parts = found.key.plan, [shared_blocks.for_parts(found.key.plan)] * found.key.shares_blocks
            found.backend = select.tested(requested, (plan, *parts), found.key.device)
        if before is not None:
            before.recount()
        self._params: list[Tensor] = [entry.param for found in launch_groups for entry in found.entries]
        self._local = sharding.LocalTensors(self._params) if any(map(sharding.distributed, self._params)) else None
        params, grads = self._now()
        self._tensors = TensorSnapshot(params, grads)
        self._first = self._redistributed(grads)
        prepare.prepare(launch_groups, self._first, states, prefetcher)
        self.captured: bool = False
        self._before = None if before is None else before.recorded()
        self._launch_groups, self._devices = launch_groups, devices
        self._skips = list(dict.fromkeys((found.key.device, found.key.shard_group) for found in launch_groups))
        self._requested, self._prefetcher = requested, prefetcher
        self._counted: list[State] = [state for found in launch_groups for state in found.states]
        self._params_on = {param.device for param in self._params}
        serving = set(map(id, self._params))
        self._others = [param for group in groups for param in group["params"] if id(param) not in serving]
        self._groups = GroupSnapshot(groups)
        self._updates = Counts(self._counted, [count for found in launch_groups for count in found.counts])
        tensors = (pair for found in launch_groups for pair in found.state_tensors())
        self._states = StateSnapshot(states, self._counted, tensors)
        self._streams: set[torch.cuda.Stream] = set()
        self._sound = True

    def grads(
        self, groups: Sequence[Group], states: MutableMapping[Tensor, State], requested: Backend | None
    ) -> list[Any] | None:
        """Return the gradients of the next step, or None if anything else has changed and the cache is of no more use.

        Raises:
            TypeError, ValueError: a learning rate, decay or ``maximize`` that is not accepted.
            RuntimeError: a graph captures the step, and its state is paged.
        """
        if any(self._prefetcher.pager.moves(device) and capturing(device) for device in self._params_on):
            raise RuntimeError(
                "is_paged=True: a step with paged state cannot be captured in a graph, as the host waits for pages. "
                "Use is_paged=False, or leave the step out of the capture."
            )
        params, grads = list(self._params), [param.grad for param in self._params]
        try:
            unchanged = (
                self._sound
                and requested is self._requested
                and self._groups.unchanged(groups)
                and not [param for param in self._others if param.grad is not None]
                and self._states.unchanged(states)
                and self._updates.unchanged()
                and (self._local is None or self._local.of(params, grads))
                and self._tensors.unchanged(params, grads)
            )
            changed_rates = self._groups.changed_rates(groups) if unchanged else []
        except KeyError:  # a setting or state tensor is gone
            return None
        if not unchanged:
            return None
        if changed_rates:
            for group in changed_rates:
                settings.check_rates(group)
            for found in self._launch_groups:
                found.scalars.write()
            self._groups.seen(groups)
        return self._redistributed(grads)

    def first_grads(self) -> list[Any]:
        """The gradients that this was prepared for. It gives them up, as it keeps none between steps."""
        grads, self._first = self._first, []
        return grads

    def _redistributed(self, grads: list[Any]) -> list[Any]:
        """Put gradients in place that lie as their parameters do. Ranks do so once a step, in the same order."""
        for j in self._local.moving if self._local is not None else ():
            grads[j] = sharding.redistributed(self._params[j])
        return grads

    def _now(self) -> tuple[list[Tensor], list[Any]]:
        params, grads = list(self._params), [param.grad for param in self._params]
        if self._local is not None:
            self._local.of(params, grads)
        return params, grads

    def run(self, grads: Sequence[Tensor], loss_scale: Tensor | None, skipped: Skipped) -> None:
        """Count the step and update. Pages may still be copied when it returns.

        Args:
            grads: of this step.
            loss_scale: divides them, or None.
            skipped: the elements that are skipped are added.

        Raises:
            FloatingPointError: with ``nonfinite="raise"``, if an element was skipped.
            RuntimeError: another process' files hold the state; nothing was changed.
        """
        paging.check_process(self._counted)
        if any(map(capturing, self._devices)):
            self.captured = True
        elif self.captured:
            self.recount()
        for device, shard_group in self._skips:
            if (device, shard_group) not in skipped:
                skipped[device, shard_group] = torch.zeros(1, dtype=torch.int64, device=device)
        self._keep_for_streams(skipped.values())
        self._sound = False  # until all is done
        raising = []
        self._updates.add_one()
        at = 0
        for found in self._launch_groups:
            own, at = grads[at : at + len(found.entries)], at + len(found.entries)
            found.scalars.step.add_(1)
            total = skipped[found.key.device, found.key.shard_group]
            now = torch.zeros_like(total) if found.key.raises else total
            run(found, own, loss_scale, now)
            if found.key.raises:
                total += now
                raising.append(sharding.total(now, found.key.shard_group))
        self._sound = True
        count = sum(int(now.item()) for now in raising)
        if count:
            raise FloatingPointError(
                f"nonfinite='raise': {count} element(s) had a gradient or momentum that is not finite. They were "
                f"left as they were, and all others updated. Lower lr, clip gradients, or use nonfinite='skip'."
            )

    def _keep_for_streams(self, others: Iterable[Tensor]) -> None:
        """Let no memory of this, and of ``others``, be used again before the current streams have done their work."""
        for device in self._devices:
            if device.type == "cuda" and (stream := torch.cuda.current_stream(device)) not in self._streams:
                self._streams.add(stream)
                for tensor in (*others, *(kept for found in self._launch_groups for kept in found.tensors())):
                    if tensor.device == device:
                        tensor.record_stream(stream)

    def recorded(self) -> StepCache | None:
        """Return the last cache that a captured graph may read: this or an earlier one. It keeps earlier ones."""
        return self if self.captured else self._before

    @uninterrupted
    def recount(self) -> None:
        """Read from the device how often a captured step ran, unless a count was set by hand."""
        if self.captured:
            self._updates.set([count for found in self._launch_groups for count in found.scalars.step.tolist()])


def capturing(device: torch.device) -> bool:
    """True if a CUDA graph is being captured on the device: nothing is computed then."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def update(optimizer: Lion) -> None:
    """Update every parameter that has a gradient, with the kept launch groups if they are still valid.

    Raises:
        TypeError, ValueError, RuntimeError, FloatingPointError: as :class:`StepCache` and :func:`agreement.check`.
    """
    held = optimizer.param_groups, optimizer.state, optimizer._backend
    optimizer._get_prefetcher().exported.write_back()
    grads = None if optimizer._step_cache is None else optimizer._step_cache.grads(*held)
    if grads is None or optimizer._agreed is None:
        optimizer._agreed = agreement.check(optimizer)
    if optimizer._step_cache is None or grads is None:
        optimizer._step_cache = StepCache(*held, optimizer._get_prefetcher(), before=optimizer._step_cache)
        grads = optimizer._step_cache.first_grads()
    try:
        optimizer._step_cache.run(grads, getattr(optimizer, "grad_scale", None), optimizer._skipped)
    finally:
        optimizer._get_prefetcher().settle()
