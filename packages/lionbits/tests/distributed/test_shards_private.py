"""Without what is taken of DTensor beyond its public interface steps have the same bits, or a sentence says why not.

The names are taken from lionbits alone: torch itself cannot do without.
"""

from __future__ import annotations

import copy
import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from lionbits import Lion, Lion8bit, PagedLion8bit, paging, sharding, torch_private

from ..family import assert_same
from .problem import SETTINGS, Bag, assert_equal, sharded, states, train
from .world import World, meshes

SPECS = "torch.distributed.tensor._dtensor_spec"


def trains_without_the_local_tensor() -> None:
    """``to_local()`` in its place: training, checkpoints and momentum equal the whole, and nothing is made anew."""
    asked = []

    def get(self: DTensor) -> torch.Tensor:
        if sys._getframe(1).f_globals["__name__"] == torch_private.__name__:
            asked.append(self)
            raise AttributeError("_local_tensor")
        return slot.__get__(self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        slot: Any = vars(DTensor)["_local_tensor"]
        monkeypatch.setattr(DTensor, "_local_tensor", property(get, slot.__set__))
        for bits in (32, 8):
            module = Bag()
            parts = sharded(module, meshes()[4])
            settings = {**SETTINGS, "optim_bits": bits, "cautious": "mask", "percentile_clipping": 50}
            optimizer, other = Lion(module.parameters(), **settings), Lion(parts.parameters(), **settings)
            train(module, optimizer, [1])
            train(parts, other, [1])
            kept = other._step_cache
            for step in (2, 3):
                train(module, optimizer, [step])
                train(parts, other, [step])
            assert other._step_cache is kept
            assert_equal(parts, other, module, optimizer, f"{bits} bits")
            again = Lion(parts.parameters(), **settings)
            again.load_state_dict(copy.deepcopy(other.state_dict()))
            assert_same(states(again), states(other))
    assert asked


def test_a_step_does_without_the_local_tensor(world: World) -> None:
    world(trains_without_the_local_tensor)


#: Ways to take away by what a DTensor is made.
GONE = ["DTensorSpec", "TensorMeta", "DTensorSpec, other arguments", "TensorMeta, other arguments", SPECS]


def take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module(SPECS)

    def imported(asked: str) -> Any:
        if asked != SPECS:
            return importlib.import_module(asked)
        if name == SPECS:
            raise ModuleNotFoundError(asked)
        key, _, changed = name.partition(",")
        rest = {each: value for each, value in vars(real).items() if each != key}
        return SimpleNamespace(**rest, **({key: object} if changed else {}))

    monkeypatch.setattr(torch_private, "importlib", SimpleNamespace(import_module=imported))


def lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parameters on the CPU be taken for such whose state is on other devices."""
    monkeypatch.setattr(paging.paging_config(True).__class__, "moves", lambda self, device: True)


def refuses_before_anything_is_written(name: str) -> None:
    parts = sharded(Bag(), meshes()[4])
    whole = Bag().plain
    before = [sharding.local_tensor(param.detach()).clone() for param in parts.parameters()]
    with pytest.MonkeyPatch.context() as monkeypatch:
        lies_elsewhere(monkeypatch)
        optimizer = PagedLion8bit([whole], **SETTINGS)
        take(name, monkeypatch)
        found = rf"torch {torch.__version__.replace('+', '.')} has no {SPECS}.*is_paged=False"
        with pytest.raises(RuntimeError, match=found):
            PagedLion8bit(parts.parameters(), **SETTINGS)
        with pytest.raises(RuntimeError, match=found):
            optimizer.add_param_group({"params": list(parts.parameters())})
        assert len(optimizer.param_groups) == 1
        assert not optimizer.state
        assert_same([sharding.local_tensor(param.detach()) for param in parts.parameters()], before)


@pytest.mark.parametrize("name", GONE)
def test_what_could_not_be_saved_is_refused_at_once(world: World, name: str) -> None:
    world(refuses_before_anything_is_written, name)


def does_without_where_state_is_where_the_mesh_is(name: str) -> None:
    ends = []
    for gone in (False, True):
        with pytest.MonkeyPatch.context() as monkeypatch:
            if gone:
                take(name, monkeypatch)
            for kind in (Lion8bit, PagedLion8bit):
                parts = sharded(Bag(), meshes()[4])
                optimizer = kind(parts.parameters(), **SETTINGS)
                train(parts, optimizer, [1, 2])
                again = kind(parts.parameters(), **SETTINGS)
                again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                train(parts, again, [3])
                ends.append([*states(again), *(sharding.local_tensor(param.detach()) for param in parts.parameters())])
    for end in ends[1:]:
        assert_same(end, ends[0])


@pytest.mark.parametrize("name", GONE)
def test_all_else_does_without(world: World, name: str) -> None:
    """State beside its parameter, as that of CPU parameters always is, becomes a DTensor by public functions alone."""
    world(does_without_where_state_is_where_the_mesh_is, name)


class OfMeta(DeviceMesh):
    """A mesh of other devices, which are everywhere."""

    device_type = property(lambda self: "meta")  # type: ignore[assignment]


def keeps_what_is_elsewhere_where_it_is() -> None:
    """As state that is paged from a mesh of GPUs: the same DTensor as of ``from_local``, which would copy it."""
    here, there = meshes()[4], copy.copy(meshes()[4])
    there.__class__ = OfMeta
    local = torch.arange(12.0).reshape(3, 4)
    assert DTensor.from_local(local, there, [Shard(0)]).to_local().is_meta
    placed = sharding.local.dtensor(local, there, (Shard(0),), (12, 4))
    near = sharding.local.dtensor(local, here, (Shard(0),), (12, 4))
    assert near.to_local().data_ptr() == placed.to_local().data_ptr() == local.data_ptr()
    for key in ("shape", "dtype", "placements", "requires_grad", "is_leaf"):
        assert getattr(placed, key) == getattr(near, key)
    assert (placed.stride(), placed.to_local().device) == (near.stride(), local.device)


def test_what_is_elsewhere_stays_there(world: World) -> None:
    world(keeps_what_is_elsewhere_where_it_is)
