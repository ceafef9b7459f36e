"""Private names of torch, all in this module, with a fallback for each.

If a name only saves time, or a version of torch lacks it, public functions are used instead. Where there are none,
:func:`check_elsewhere` says so before anything is changed. ``tests/test_private_names.py`` removes each name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim import Optimizer, optimizer

Step = Callable[..., Any]


def alike(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Return a function: True if other tensors have the type, dtype, device, shape, strides and requires_grad of these.

    False may have other reasons: autocast or a mode of ``torch.utils`` was entered or left since, or this torch lacks
    the function. torch.compile checks its inputs with it; it takes an eighth of the time of a comparison in Python.
    """
    try:
        guards = importlib.import_module("torch._C._dynamo.guards")
        check = guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    except (ImportError, AttributeError, TypeError):
        return lambda *_: False

    def are(*now: Any) -> bool:
        try:
            return bool(check(*now))
        except TypeError:  # another number of tensors
            return False

    return are


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source to the target in its place, on a GPU in launches for many tensors at once."""
    try:
        torch._foreach_copy_(list(targets), list(sources))
    except AttributeError:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def with_hooks(step: Step) -> Step | None:
    """Return the step wrapped as torch wraps every optimizer's, with hooks and a profiler record; None if impossible.

    ``step`` must not be wrapped already.
    """
    try:
        wrapped: Step = Optimizer.profile_hook_step(step)
        wrapped.__code__  # noqa: B018 -- by which `wraps` knows what torch has wrapped
    except (AttributeError, TypeError):
        return None
    return wrapped


def leave_unwrapped(step: Step) -> None:
    """Mark this step of a class so that torch does not wrap it."""
    step.hooked = True  # type: ignore[attr-defined]


def is_watched(of: Optimizer) -> bool:
    """True if there is a hook or a profiler for steps, or if this torch does not say."""
    try:
        return bool(
            profiler._is_profiler_enabled
            or of._optimizer_step_pre_hooks
            or of._optimizer_step_post_hooks
            or optimizer._global_optimizer_pre_hooks
            or optimizer._global_optimizer_post_hooks
        )
    except AttributeError:
        return True


def local(tensor: Tensor) -> Tensor:
    """Return the local part of a DTensor itself: ``to_local()`` makes a view of a Parameter's at every call."""
    try:
        part = cast(Any, tensor)._local_tensor
    except AttributeError:
        with torch.no_grad():
            part = cast(Any, tensor).to_local()
    ready = type(part) is Tensor or not hasattr(part, "wait")  # a collective result may still be on its way
    return cast(Tensor, part if ready else part.wait())


def elsewhere(part: Tensor, mesh: Any, placements: Any, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """Return a DTensor over a local part on another device than its mesh; ``DTensor.from_local`` would copy it there.

    Args:
        part: of a tensor of this shape and stride.
        mesh, placements: of the DTensor.
        shape, stride: of the whole.

    Raises:
        RuntimeError: this torch has no way to it.
    """
    from torch.distributed.tensor import DTensor

    try:
        specs = importlib.import_module("torch.distributed.tensor._dtensor_spec")
        meta = specs.TensorMeta(shape, stride, part.dtype)
        return DTensor(part, specs.DTensorSpec(mesh, placements, tensor_meta=meta), requires_grad=False)
    except (ImportError, AttributeError, TypeError) as error:
        raise RuntimeError(
            f"torch {torch.__version__} has no torch.distributed.tensor._dtensor_spec as lionbits knows it ({error}), "
            f"without which paged state of a sharded parameter, on the host, is in no state dict. Use is_paged=False, "
            f"or torch 2.9 to 2.15."
        ) from error


def check_elsewhere(mesh: Any, placements: Any) -> None:
    """Refuse state on another device than its mesh if this torch cannot make a DTensor of it.

    Raises:
        RuntimeError: as of :func:`elsewhere`.
    """
    elsewhere(torch.empty(0, device="meta"), mesh, placements, torch.Size((0,)), (1,))


def is_flat_piece(param: Tensor) -> bool:
    """True if FSDP1 has put the parameter into a vector with others. Only this mark shows it."""
    return bool(getattr(param, "_fsdp_flattened", False))


def gradient_hooks(param: Tensor) -> list[Any]:
    """Return the hooks that run when the parameter has accumulated a gradient; none if this torch does not say."""
    return [*(getattr(param, "_post_accumulate_grad_hooks", None) or {}).values()]


def in_backward(param: Tensor) -> list[Optimizer]:
    """Return the optimizers by which ``torch.distributed.optim`` updates the parameter in backward."""
    return [*getattr(param, "_in_backward_optimizers", ())]


def in_backward_end(param: Tensor) -> Callable[[], None] | None:
    """Return a function that removes the hooks of :func:`in_backward`'s optimizers; None if this torch has no way."""
    module = sys.modules.get("torch.distributed.optim.apply_optimizer_in_backward")
    handles = getattr(module, "param_to_optim_hook_handle_map", {}).get(param)
    if handles is None:
        return None

    def end() -> None:
        while handles:
            handles.pop().remove()
        cast(Any, param)._in_backward_optimizers.clear()

    return end
