"""Whether ranks that share sharded parameters take the same step: parameters in one order, with the same settings.

Ranks that differ would diverge without an error, or add up numbers about different tensors, or wait for each other.

**When.** At the first whole step of an optimizer that holds DTensors, and when it prepares a step anew and something
has changed that is the same on all ranks of a right program: the parameters, their order, names, shapes and placements,
every setting but the rates, and, where numbers are added up over ranks, which parameters have gradients. Ranks may
prepare anew at different times for reasons of their own (an address, strides of a gradient, state that one rank has
touched, a copy, an interrupted step): that alone never leads to a check, as the others would not take part in it. A
change that is the same on all ranks leads to a check on all of them in the same step. If one rank alone makes such a
change later on, which is a fault, the others do not come to its check: it calls no collective before they all have
come, and raises when they have not within nine tenths of their process group's timeout. The others wait for it in
collectives of the step, whose timeout is longer, so that the message comes first.

**Rates** (``lr``, ``weight_decay``, ``maximize``) may change at every step, and a change of them prepares nothing: they
are compared in every check, but lead to none. While every ``lr`` is 0, as in the step by which torch's checkpoint tools
make state, the next step checks again.

**Where not.** Parameters that are no DTensors: nothing says which ranks share them. Updates in backward and of single
parameters (:mod:`lionbits.step.single`): ranks may have their gradients in different order. A fused optimizer is
checked in ``step()``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lionbits import groups as grouping
from lionbits import settings, sharding

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lionbits.optimizer import Lion

Group = dict[str, Any]

#: What one rank says: (what it is about, what it is here).
Entries = list[tuple[str, str]]

#: Parameters of a group on one mesh: the group, and number, name and parameter of each.
Part = tuple[Group, list[tuple[int, str, Tensor]]]

#: What ranks agreed on: for each mesh, what leads to a check when it changes.
Agreed = list[Entries]

#: Differences that a message names.
_SHOWN = 3

#: Part of a process group's timeout for which a rank waits for the others to come to a check.
_PATIENCE = 0.9


def check(optimizer: Lion) -> Agreed | None:
    """Compare with the other ranks, if there is reason to; for :func:`lionbits.step.cache.update`. May wait for them.

    Args:
        optimizer: whose next step is to be prepared, or that was not compared yet.

    Returns:
        What ranks agree on, to be kept until the next call; None if that call shall compare again.

    Raises:
        RuntimeError: ranks differ; naming in what. Every rank of the mesh raises it, or this rank alone if the others
            take the step that all agreed on before. Nothing was changed.
        TypeError, ValueError: groups or settings that no step accepts.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return optimizer._agreed
    grouping.check_once(optimizer.param_groups)
    for group in optimizer.param_groups:
        settings.check(group)
    held = _by_mesh(optimizer.param_groups)
    before = optimizer._agreed
    lasting = [[entry for part in parts for entry in _lasting(*part)] for _, parts in held]
    if lasting != before:
        for j, (mesh, parts) in enumerate(held):
            known = before[j] if before is not None and len(before) == len(held) else None
            _await_ranks(mesh, lasting[j], known)
            _compare(mesh, [*lasting[j], *(entry for part in parts for entry in _rates(*part))])
    started = not held or any(float(group["lr"]) for _, parts in held for group, _ in parts)
    return lasting if started else None


def _by_mesh(groups: Sequence[Group]) -> list[tuple[DeviceMesh, list[Part]]]:
    """Meshes of several ranks that this rank is in, in an order that is the same on all ranks, with what they share."""
    meshes: dict[Any, list[Part]] = {}
    number = 0
    for group in groups:
        names = group.get("param_names") or [""] * len(group["params"])
        for param, name in zip(group["params"], names, strict=False):
            mesh, _ = sharding.placement(param)
            if mesh is not None and mesh.size() > 1 and mesh.get_coordinate() is not None:
                parts = meshes.setdefault(mesh, [])
                if not parts or parts[-1][0] is not group:
                    parts.append((group, []))
                parts[-1][1].append((number, name, param))
            number += 1
    return sorted(meshes.items(), key=lambda item: (item[0].mesh.tolist(), str(item[0].mesh_dim_names)))


def _lasting(group: Group, params: Sequence[tuple[int, str, Tensor]]) -> Entries:
    """What leads to a check when it changes."""
    needs_whole = sharding.needs_whole(group)
    found = []
    for number, name, param in params:
        adds_up = needs_whole or sharding.shares_blocks(param, settings.plan(group, param, param.dtype).format)
        form = f"{tuple(param.shape)} {param.dtype} {sharding.placement(param)[1]} {name}".rstrip()
        found.append((f"parameter {number}", form))
        if adds_up and param.requires_grad:
            gradient = "none" if param.grad is None else "there"
            found.append((f"the gradient of parameter {number} ({name or tuple(param.shape)})", gradient))
    where = f"of the group of parameter {params[0][0]}"
    return [*found, *((f"{key} {where}", _shown(group.get(key))) for key in settings.STRUCTURE)]


def _rates(group: Group, params: Sequence[tuple[int, str, Tensor]]) -> Entries:
    return [(f"{key} of the group of parameter {params[0][0]}", _shown(group.get(key))) for key in settings.RATES]


def _number(value: object) -> int:
    """A hash of 60 bits that is the same on all ranks."""
    return int(hashlib.sha256(repr(value).encode()).hexdigest()[:15], 16)


def _shown(value: Any) -> str:
    return repr(float(value) if isinstance(value, Tensor) else list(value) if isinstance(value, tuple) else value)


def _await_ranks(mesh: DeviceMesh, entries: Entries, before: Entries | None) -> None:
    """Wait until all ranks of the mesh have come to the same check, by the store that started their process group.

    Args:
        mesh: of which all ranks have to come.
        entries: what this rank is going to compare.
        before: what all ranks agreed on, None before the first check.

    Raises:
        RuntimeError: they have not come in time; naming what is not as it was on this rank.
    """
    import torch.distributed as dist

    world = dist.group.WORLD
    if world is None or dist.get_backend(world) == "fake":  # whose other ranks are not there, and never come
        return
    store, key = world.get_group_store(), f"lionbits/{_number(mesh.mesh.tolist())}"
    came = store.add(key, 1)
    complete = f"{key}/{(came - 1) // mesh.size()}"
    if came % mesh.size() == 0:
        store.set(complete, "")
    patience = store.timeout * _PATIENCE  # type: ignore[attr-defined]  # torch's stubs leave it out
    try:
        store.wait([complete], patience)
    except RuntimeError as error:  # of whatever class the store has
        store.add(key, -1)
        changed = "" if before is None else f": {_changes(before, entries)}"
        raise RuntimeError(
            f"rank {dist.get_rank()} has to compare this step with {mesh.size() - 1} other rank(s) that share its "
            f"parameters, and some did not come within {patience.total_seconds():.0f} seconds{changed}. Make the same "
            f"change on all ranks in the same step; a parameter needs its gradient on all of them. Nothing was changed."
        ) from error


def _compare(mesh: DeviceMesh, entries: Entries) -> None:
    """One all-reduce along each dimension of the mesh; only where ranks differ they exchange what they have.

    Raises:
        RuntimeError: naming what differs, on every rank.
    """
    import torch.distributed as dist

    mine = _number(entries)
    found = torch.tensor([mine, -mine], dtype=torch.int64, device=mesh.device_type)
    for dim in range(mesh.ndim):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=mesh.get_group(dim))
    largest, smallest = found.tolist()
    if largest == -smallest:
        return
    known = {dist.get_rank(): entries}
    for dim in range(mesh.ndim):
        gathered: list[Any] = [None] * mesh.size(dim)
        dist.all_gather_object(gathered, known, group=mesh.get_group(dim))
        known = {rank: said for part in gathered for rank, said in part.items()}
    raise RuntimeError(
        f"ranks that share parameters differ before a step: {_differences(known)}. Make the optimizer on every rank "
        f"over the same parameters in the same order, with the same settings and seed; nothing was changed."
    )


def _differences(known: dict[int, Entries]) -> str:
    """What other ranks have otherwise than the first."""
    first, *others = sorted(known)
    return _listed(
        [
            f"{what} is {there} on rank {rank} and {here} on rank {first}"
            for rank in others
            for what, here, there in _unequal(known[first], known[rank])
        ]
    )


def _changes(before: Entries, now: Entries) -> str:
    """What this rank has otherwise than before."""
    return _listed([f"{what} is {new} here and was {old}" for what, old, new in _unequal(before, now)])


def _unequal(one: Entries, other: Entries) -> list[tuple[str, str | None, str | None]]:
    """What two lists say differently, and what each says; None where it says nothing."""
    here, there = dict(one), dict(other)
    return [(what, here.get(what), there.get(what)) for what in {**here, **there} if here.get(what) != there.get(what)]


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
