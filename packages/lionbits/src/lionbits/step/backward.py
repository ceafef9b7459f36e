"""The update during backward: each parameter is updated when its gradient is complete, which is then freed.

The gradients of a model are never in memory together. The bits are those of a step after backward, as no update
depends on another parameter.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from lionbits import advice, groups, torch_private
from lionbits.decorators import uncompiled
from lionbits.interrupts import uninterrupted
from lionbits_reference.spec import checks

from .single import ParameterStep

if TYPE_CHECKING:
    from lionbits.optimizer import Lion


def fuse_into_backward(model: nn.Module, optimizer: Lion, *, replace: bool = False) -> InBackward:
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
        replace: remove the hooks of optimizers that update these parameters in backward already: of lionbits, of
            torch's optimizer-in-backward, and of this optimizer. Gradients and the state of those optimizers stay as
            they are, and they go on with parameters that ``optimizer`` does not hold. False: such hooks are refused.

    Returns:
        What undoes it: :meth:`InBackward.remove`.

    Raises:
        TypeError: ``model`` is no module, or ``optimizer`` none of lionbits. ValueError: the optimizer holds none of
            its parameters, or is fused already, or another one is; a DDP averages gradients of the model, or it is one
            of FSDP1; ``nonfinite="raise"``. Nothing was changed. A model that is wrapped in a DDP afterwards is refused
            when its first gradient arrives, in ``backward()``, with RuntimeError.
    """
    _check_model(model)
    checks.flag("replace", replace)
    groups.check_optimizer(optimizer)
    ours = {id(param): param for param in model.parameters() if param.requires_grad}
    found = [param for group in optimizer.param_groups for param in group["params"] if id(param) in ours]
    if not found:
        raise ValueError(
            f"model={type(model).__name__} has no parameter that requires a gradient and that the optimizer holds. "
            f"Make the optimizer over model.parameters() first."
        )
    before = optimizer._in_backward
    if before is not None and not replace:
        raise ValueError(
            "optimizer is fused into a backward already. Call remove() on what that returned first, or pass "
            "replace=True."
        )
    if any(param.is_meta for param in found):
        raise ValueError(
            f"model={type(model).__name__} has parameters on the meta device, whose hooks to_empty() would remove. "
            f"Call to_empty() first, then fuse_into_backward."
        )
    if _reduced_later(found):
        raise ValueError(f"model={type(model).__name__} {_REDUCED_LATER}")
    others = [other for param in found for other in _others(param, optimizer)]
    _check_others(model, others, replace=replace)
    for group in optimizer.param_groups:
        if group["nonfinite"] == "raise":
            rule = "ends a step in which all elements were looked at, and here no step does"
            hint = "Use nonfinite='skip' and optimizer.skipped_elements()."
            raise checks.refusal(ValueError, "nonfinite", "raise", rule, hint)
    fused = InBackward(optimizer, found)
    if before is not None:
        before.remove()
    for other in others:
        if other.remove is not None:
            other.remove()
    return fused


_REDUCED_LATER = (
    "has parameters of a DistributedDataParallel (replicate() makes one, too), which averages gradients over ranks "
    "after the update in backward has used them: ranks would diverge. Use fully_shard (FSDP2), or do not fuse."
)


def _reduced_later(params: Sequence[Tensor]) -> bool:
    """True if some DistributedDataParallel adds up gradients of these parameters, after they are accumulated.

    It leaves no mark on a parameter, as its hooks are known to C++ alone, and a model may be wrapped at any time. So it
    is looked for among all objects of this process.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    ours, objects = set(map(id, params)), gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, nn.parallel.DistributedDataParallel)}
    return any(
        id(param) in ours and name not in ddp.parameters_to_ignore
        for ddp in (found for found in objects if type(found) in kinds)
        for name, param in ddp.module.named_parameters()
    )


class _Other(NamedTuple):
    """Another optimizer that updates a parameter in backward."""

    param: Tensor
    optimizer: str
    remove: Callable[[], None] | None  # None: this torch has no way to it


def _others(param: Tensor, optimizer: Lion) -> list[_Other]:
    """Return the other optimizers that update ``param`` in backward."""
    hooks = [hook for hook in torch_private.gradient_hooks(param) if isinstance(hook, _Update)]
    found = [_Other(param, hook.owner, hook.remove) for hook in hooks if not hook.is_of(optimizer)]
    torchs = torch_private.in_backward(param)
    if torchs:
        names = ", ".join(type(one).__name__ for one in torchs)
        found.append(_Other(param, f"{names} (torch's optimizer-in-backward)", torch_private.in_backward_end(param)))
    return found


def tell_of_others(optimizer: Lion) -> None:
    """Warn of parameters that have no gradient for a step because another optimizer used it in backward.

    An optimizer that is fused itself was checked for others when it was fused.
    """
    if optimizer._in_backward is not None:
        return
    params = (param for group in optimizer.param_groups for param in group["params"] if param.grad is None)
    hooks = [hook for param in params for hook in torch_private.gradient_hooks(param) if isinstance(hook, _Update)]
    others = [hook.owner for hook in hooks if not hook.is_of(optimizer)]
    if others:
        advice.warn(
            f"{len(others)} parameter(s) of this {type(optimizer).__name__} have no gradient, as another optimizer "
            f"({', '.join(dict.fromkeys(others))}) updates them in backward. Call remove() on what its "
            f"fuse_into_backward returned, or lionbits.fuse_into_backward(model, optimizer, replace=True)."
        )


def _check_others(model: nn.Module, others: Sequence[_Other], *, replace: bool) -> None:
    """Refuse a second optimizer for a parameter: the first would take every gradient."""
    fixed = [other for other in others if other.remove is None] if replace else others
    if not fixed:
        return
    names = {id(param): name for name, param in model.named_parameters()}
    shown = dict.fromkeys(names[id(other.param)] for other in fixed)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    hint = (
        "Apply it to a new model."
        if replace
        else (
            "It would go on training them, whether or not a variable still holds it. Call remove() on what its "
            "fuse_into_backward returned, or pass replace=True, which removes its hooks from them."
        )
    )
    owners = ", ".join(dict.fromkeys(other.optimizer for other in fixed))
    raise ValueError(
        f"model={type(model).__name__} has parameters that another optimizer updates in backward already: "
        f"{owners} updates {', '.join([*shown][:3])}{more}. {hint}"
    )


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
        self._optimizer, self._params = optimizer, params
        self._updated: set[int] = set()
        self._complete, self._first = False, True
        self.complete()
        self._hooks = [_Update(self, optimizer, param) for param in params]
        optimizer._in_backward = self

    def remove(self) -> None:
        """Remove the hooks: from now on ``step()`` updates all parameters."""
        for hook in list(self._hooks):
            hook.remove()

    def without(self, hook: _Update) -> None:
        """Note that a hook is removed."""
        if hook in self._hooks:
            self._hooks.remove(hook)
        if not self._hooks and self._optimizer._in_backward is self:
            self._optimizer._in_backward = None

    def complete(self) -> None:
        """Create missing state of all parameters at once, as what stays on the device is decided for all together."""
        if not self._complete:
            self._optimizer.init_state()
            self._complete = True

    def forget(self) -> None:
        """Drop what is kept of the present state: the optimizer has another."""
        self._complete, self._first = False, True
        for hook in self._hooks:
            hook.forget()

    def recount(self) -> None:
        """Count the replays of captured graphs."""
        for hook in self._hooks:
            hook.recount()

    def count(self, param: Tensor) -> None:
        """Note that ``param`` is updated.

        Raises:
            RuntimeError: it has been, since the last step; or, at the first gradient, a DistributedDataParallel has
                been made of the model.
        """
        if self._first:
            if _reduced_later(self._params):
                raise RuntimeError(f"the model {_REDUCED_LATER} Call remove() on what fuse_into_backward returned.")
            self._first = False
        if id(param) in self._updated:
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} has a second gradient since the last optimizer.step(), and "
                f"the first was used and freed in backward. Call step() after every backward; to add up gradients "
                f"of several, undo fuse_into_backward with remove()."
            )
        self._updated.add(id(param))

    def step(self, grad_scale: object) -> None:
        """Check the end of a step, for ``optimizer.step()``, and begin the next.

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
    """The hook of one parameter, with what it keeps from step to step."""

    def __init__(self, fused: InBackward, optimizer: Lion, param: Tensor) -> None:
        self._fused, self._optimizer = fused, optimizer
        self._step = ParameterStep(optimizer, param)
        self._handle = param.register_post_accumulate_grad_hook(self)

    @property
    def owner(self) -> str:
        """Class name of the optimizer that updates."""
        return type(self._optimizer).__name__

    def is_of(self, optimizer: Lion) -> bool:
        """True if ``optimizer`` is the one that updates."""
        return self._optimizer is optimizer

    def remove(self) -> None:
        """Remove the hook."""
        self._handle.remove()
        self._fused.without(self)

    def forget(self) -> None:
        """Drop what is kept of earlier steps."""
        self._step.forget()

    def recount(self) -> None:
        """Count the replays of captured graphs."""
        self._step.recount()

    @torch.no_grad()
    @uncompiled
    @uninterrupted
    def __call__(self, param: Tensor) -> None:
        """Update the parameter and free its gradient."""
        found = self._step.found()
        if found is None:  # it has left the optimizer
            return
        if param.grad is None:
            raise RuntimeError(
                f"the gradient of a parameter of shape {tuple(param.shape)} is gone before {self.owner} could use it: "
                f"a hook that was registered on the parameter earlier freed it, as that of another optimizer in "
                f"backward does. Remove that hook."
            )
        self._fused.count(param)
        self._step.run(found, self._fused.complete)
        param.grad = None
