"""The steps of an optimizer: what one keeps for the next, as between most of them nothing changes but gradients.

Works are made and checked by :mod:`lionbits.work`, and used again, with the same slots and the same numbers on the
device, until :mod:`lionbits.watch` finds that anything else is not as it was. Then they are made anew, and whatever
is wrong with the change is refused there.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lionbits_reference.spec import Backend

from . import options, paging, select, shards, work
from .counts import Counts
from .interrupts import uninterrupted
from .paging import Movement
from .watch import Groups, States, Tensors

if TYPE_CHECKING:
    from .optimizer import Lion

Group = dict[str, Any]
State = dict[str, Any]


class Steady:
    """Works that are ready to run again.

    Args:
        groups, states: of the optimizer.
        requested: the backend that was asked for, or None.
        movement: of state that does not live beside its parameter.
        before: the one that this replaces. What captured graphs go on reading, of it and of others before, is kept.
        first: position of the first parameter, where these groups are a part of the optimizer's.

    Raises:
        TypeError, ValueError, RuntimeError: as in :func:`work.collect`; nothing was changed.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        states: MutableMapping[Tensor, State],
        requested: Backend | None,
        movement: Movement,
        before: Steady | None,
        first: int = 0,
    ) -> None:
        pager = movement.pager
        works = work.collect(groups, states, movement, first)
        backends = [select.serving(requested, w.launch.plan, w.launch.device, offloaded=pager.offloads) for w in works]
        devices = {w.launch.device for w in works}
        if any(map(capturing, devices)):
            raise RuntimeError(
                "a step that is captured in a graph must be like the one before it. Take a step with the same "
                "parameters, gradients and settings first, as PyTorch's notes on CUDA graphs ask for."
            )
        if before is not None:
            before.recount()
        work.prepare(works, states, movement)
        self.captured = False
        self._before = None if before is None else before.recorded()
        self._works = list(zip(works, backends, strict=True))
        self._devices = devices
        self._counts = list(dict.fromkeys((w.launch.device, w.launch.spread) for w in works))
        self._requested, self._movement = requested, movement
        self._slots: list[Any] = [slot for w in works for slot in w.batch]
        self._counted: list[State] = [state for w in works for state in w.states]
        self._params: list[Tensor] = [member.param for w in works for member in w.members]
        self._parts = shards.Parts(self._params) if any(map(shards.distributed, self._params)) else None
        serving = set(map(id, self._params))
        self._others = [param for group in groups for param in group["params"] if id(param) not in serving]
        self._groups = Groups(groups)
        self._updates = Counts(self._counted, [count for w in works for count in w.counts])
        self._states = States(states, self._counted, (pair for w in works for pair in w.state_tensors()))
        self._tensors = Tensors(*self._now())
        self._sound = True

    def grads(
        self, groups: Sequence[Group], states: MutableMapping[Tensor, State], requested: Backend | None
    ) -> list[Any] | None:
        """The gradients of a step to come, or None where anything else has changed, so that this is of no more use.

        Raises:
            TypeError, ValueError: a learning rate, decay or ``maximize`` that is not accepted.
        """
        params, grads = list(self._params), [param.grad for param in self._params]
        try:
            holds = (
                self._sound
                and requested is self._requested
                and self._groups.hold(groups)
                and not [param for param in self._others if param.grad is not None]
                and self._states.hold(states)
                and self._updates.hold()
                and (self._parts is None or self._parts.of(params, grads))
                and self._tensors.hold(params, grads)
            )
            restless = self._groups.restless(groups) if holds else []
        except KeyError:  # a setting or state tensor is gone
            return None
        if not holds:
            return None
        if restless:
            for group in restless:
                options.check_rates(group)
            for w, _ in self._works:
                w.numbers.write()
            self._groups.seen(groups)
        return grads

    def first_grads(self) -> list[Any]:
        """The gradients that the works were made from, until these have run."""
        return self._now()[1]

    def _now(self) -> tuple[list[Tensor], list[Any]]:
        params, grads = list(self._params), [param.grad for param in self._params]
        if self._parts is not None:
            self._parts.of(params, grads)
        return params, grads

    def run(self, grads: Sequence[Tensor], loss_scale: Tensor | None, skipped: work.Counts) -> None:
        """Count and update. Pages may still be on their way when it returns.

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
        for device, spread in self._counts:
            if (device, spread) not in skipped:
                skipped[device, spread] = torch.zeros(1, dtype=torch.int64, device=device)
        self._sound = False  # until all is done
        raising = []
        try:
            self._updates.add_one()
            for slot, grad in zip(self._slots, grads, strict=True):
                slot.grad = grad
            for w, backend in self._works:
                w.numbers.step.add_(1)
                total = skipped[w.launch.device, w.launch.spread]
                now = torch.zeros_like(total) if w.launch.raises else total
                work.run(w, backend, self._movement, loss_scale, now)
                if w.launch.raises:
                    total += now
                    raising.append(shards.total(now, w.launch.spread))
        finally:
            for slot in self._slots:
                slot.grad = None  # a gradient that is let go of must die
        self._sound = True
        count = sum(int(now.item()) for now in raising)
        if count:
            raise FloatingPointError(
                f"nonfinite='raise': {count} element(s) had a gradient or momentum that is not finite. They were "
                f"left as they were, and all others updated. Lower lr, clip gradients, or use nonfinite='skip'."
            )

    def recorded(self) -> Steady | None:
        """The last one that a graph has captured and may read: this, or one before it. It keeps those before itself."""
        return self if self.captured else self._before

    @uninterrupted
    def recount(self) -> None:
        """After a step was captured: read from the device how often it ran, unless a count was set by hand."""
        if self.captured:
            self._updates.set([count for w, _ in self._works for count in w.numbers.step.tolist()])


def capturing(device: torch.device) -> bool:
    """Whether a graph is being recorded there, rather than anything done."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def update(optimizer: Lion) -> None:
    """One update of every parameter that has a gradient, by what was kept of the last, where that still holds.

    Raises:
        TypeError, ValueError, RuntimeError, FloatingPointError: as :class:`Steady`.
    """
    held = optimizer.param_groups, optimizer.state, optimizer._backend
    grads = None if optimizer._steady is None else optimizer._steady.grads(*held)
    if optimizer._steady is None or grads is None:
        optimizer._steady = Steady(*held, optimizer._moves(), before=optimizer._steady)
        grads = optimizer._steady.first_grads()
    try:
        optimizer._steady.run(grads, getattr(optimizer, "grad_scale", None), optimizer._skipped)
    finally:
        optimizer._moves().settle()
