"""The update during backward: of each parameter as soon as its gradient is there, which is then let go.

The gradients of a model are never in memory together. What else a step needs is the same: an update is of the same bits
wherever it runs, as none depends on another parameter.
"""

from __future__ import annotations

import sys
from collections import ChainMap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lionbits_reference.spec import checks

from .interrupts import uninterrupted
from .steady import Steady
from .uncompiled import uncompiled

if TYPE_CHECKING:
    from .optimizer import Lion

Group = Any  # a parameter group, or a view of one


def fuse_into_backward(model: nn.Module, optimizer: Lion) -> InBackward:
    """Update the parameters of ``model`` while ``backward()`` runs, and free each gradient at once.

    The training loop stays as it is: ``backward()``, then ``step()``, which updates what is left (parameters that are
    not the model's, or came to the optimizer later), then whatever scheduler there is. Results are those of a step
    after backward, bit for bit, paged state included. With ``fully_shard`` (FSDP2) call it after sharding.

    What it cannot work with, as no moment is left at which all gradients are there: clipping by the norm of all
    gradients (``clip_grad_norm_`` finds none; ``grad_clip=`` clips each tensor), a ``GradScaler``, the sum of
    gradients of several backward passes, hooks that average gradients afterwards (DDP).

    Args:
        model: whose parameters are updated during backward, where ``optimizer`` holds them.
        optimizer: any of the family.

    Returns:
        What undoes it: :meth:`InBackward.remove`.

    Raises:
        TypeError: ``model`` is no module, or ``optimizer`` none of lionbits. ValueError: the optimizer holds none of
            its parameters, or is fused already; the model is one of DDP or FSDP1; ``nonfinite="raise"``. Nothing was
            changed.
    """
    _check_model(model)
    if not hasattr(optimizer, "_in_backward"):
        raise checks.refusal(TypeError, "optimizer", optimizer, "must be an optimizer of lionbits")
    ours = {id(param): param for param in model.parameters() if param.requires_grad}
    found = [param for group in optimizer.param_groups for param in group["params"] if id(param) in ours]
    if not found:
        raise ValueError(
            f"model={type(model).__name__} has no parameter that requires a gradient and that the optimizer holds. "
            f"Make the optimizer over model.parameters() first."
        )
    if optimizer._in_backward is not None:
        raise ValueError("optimizer is fused into a backward already. Call remove() on what that returned first.")
    for group in optimizer.param_groups:
        if group["nonfinite"] == "raise":
            rule = "ends a step in which all elements were looked at, and here no step does"
            hint = "Use nonfinite='skip' and optimizer.skipped_elements()."
            raise checks.refusal(ValueError, "nonfinite", "raise", rule, hint)
    return InBackward(optimizer, found)


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise checks.refusal(TypeError, "model", model, "must be a torch.nn.Module, before the optimizer")
    kinds: dict[type, str] = {nn.parallel.DistributedDataParallel: "averages gradients, which are used before that"}
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        kinds[fsdp.FullyShardedDataParallel] = "hands gradients to flat parameters, behind the hooks of autograd"
    for kind, reason in kinds.items():
        if any(isinstance(module, kind) for module in model.modules()):
            raise ValueError(f"model has a {kind.__name__}, which {reason}. Use fully_shard (FSDP2), or do not fuse.")


class InBackward:
    """The hooks of some parameters. Neither copied nor pickled with the optimizer: fuse the copy anew.

    Args:
        optimizer: that holds the parameters.
        params: to be updated in backward.
    """

    def __init__(self, optimizer: Lion, params: list[Tensor]) -> None:
        self._optimizer = optimizer
        self._updated: set[int] = set()
        self._complete = False
        self.complete()
        self._hooks = [_Update(self, optimizer) for _ in params]
        pairs = zip(params, self._hooks, strict=True)
        self._handles = [param.register_post_accumulate_grad_hook(hook) for param, hook in pairs]
        optimizer._in_backward = self

    def remove(self) -> None:
        """From now on ``step()`` updates all, as usual."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizer._in_backward = None

    def complete(self) -> None:
        """See that there is all state. What of it is to stay on the device is decided for all at once."""
        if not self._complete:
            self._optimizer.init_state()
            self._complete = True

    def forget(self) -> None:
        """Let go of the state that there was: the optimizer has another."""
        self._complete = False
        for hook in self._hooks:
            hook.forget()

    def count(self, param: Tensor) -> None:
        """Note that ``param`` is updated.

        Raises:
            RuntimeError: it has been, since the last step.
        """
        if id(param) in self._updated:
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} has a second gradient since the last optimizer.step(), and "
                f"the first was used and freed in backward. Call step() after every backward; to add up gradients "
                f"of several, undo fuse_into_backward with remove()."
            )
        self._updated.add(id(param))

    def step(self, grad_scale: object) -> None:
        """What ``optimizer.step()`` has to see to.

        Raises:
            RuntimeError: with a GradScaler.
        """
        updated = bool(self._updated)
        self._updated.clear()
        self._complete = False
        if grad_scale is not None and updated:
            raise RuntimeError(
                "a GradScaler cannot be used with fuse_into_backward: the gradients of this step were used in "
                "backward, multiplied by its scale. Go back to your last checkpoint, and train without it (bfloat16 "
                "needs none) or without fusing."
            )


class _Update:
    """The hook of one parameter, and what it keeps for the next time."""

    def __init__(self, fused: InBackward, optimizer: Lion) -> None:
        self._fused, self._optimizer = fused, optimizer
        self._place = (-1, -1)
        self._view: tuple[Group, int] | None = None
        self.forget()

    def forget(self) -> None:
        """Keep nothing of the last time."""
        self._states: dict[Tensor, dict[str, Any]] = {}
        self._steady: Steady | None = None

    @torch.no_grad()
    @uncompiled
    @uninterrupted
    def __call__(self, param: Tensor) -> None:
        """Update it and let its gradient go."""
        found = self._found(param)
        if found is None:  # it has left the optimizer
            return
        self._fused.count(param)
        optimizer = self._optimizer
        group, position = found
        held = [group], self._states, optimizer._backend
        known = self._steady is not None and optimizer.state.get(param) is self._states[param]
        grads = self._steady.grads(*held) if known and self._steady is not None else None
        if self._steady is None or grads is None:
            self._fused.complete()
            self._states = {param: optimizer.state[param]}
            held = [group], self._states, optimizer._backend
            self._steady = Steady(*held, optimizer._moves(), before=self._steady, first=position)
            grads = self._steady.first_grads()
        self._steady.run(grads, None, optimizer._skipped)
        param.grad = None

    def _found(self, param: Tensor) -> tuple[Group, int] | None:
        """A view of its group that has no other parameter, and its position over all groups."""
        groups = self._optimizer.param_groups
        i, j = self._place
        known = 0 <= i < len(groups) and j < len(groups[i]["params"]) and groups[i]["params"][j] is param
        if self._view is None or not known or self._view[0].maps[1] is not groups[i]:
            self._view, position = None, 0
            for i, group in enumerate(groups):
                for j, held in enumerate(group["params"]):
                    if held is param:
                        self._place, self._view = (i, j), (ChainMap({"params": [param]}, group), position)
                        return self._view
                    position += 1
        return self._view
