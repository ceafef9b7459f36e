"""Paged state shares pages; what is copied, pickled or saved of one parameter is that parameter's alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits import Lion, PagedLion, PagedLion4bit, PagedLion8bit
from lionbits.paging import PagedCalls

from .family import assert_same, train, weights
from .movers import moving

COUNT = 60  # tensors that share pages


def _torch_save(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _copy(value: Any) -> bytes:
    """Bytes of all storages that a copy has."""
    tensors = [tensor for tensor in copy.deepcopy(value).values() if isinstance(tensor, torch.Tensor)]
    return bytes(sum(tensor.untyped_storage().nbytes() for tensor in tensors))


WAYS: dict[str, Callable[[Any], bytes]] = {"pickle": pickle.dumps, "torch.save": _torch_save, "deepcopy": _copy}


def trained(cls: Callable[..., Lion], **settings: Any) -> tuple[Lion, list[torch.nn.Parameter]]:
    params = weights(shapes=[(64, 64)] * COUNT + [(7,)])
    optimizer = cls(params, **settings)
    train(optimizer, params, [1])
    return optimizer, params


@pytest.mark.parametrize("folder", [False, True], ids=["memory", "files"])
@pytest.mark.parametrize("cls", [PagedLion, PagedLion8bit, PagedLion4bit], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_of_one_parameter_only_its_own_bytes_are_taken(
    way: Callable[[Any], bytes], cls: Callable[..., Lion], folder: bool, tmp_path: Path
) -> None:
    optimizer, params = trained(cls, page_dir=str(tmp_path) if folder else None)
    for param in (params[0], params[COUNT - 1], params[-1]):
        state = optimizer.state[param]
        own = sum(tensor.nbytes for tensor in state.values() if isinstance(tensor, torch.Tensor))
        assert len(way(state)) < own + 4096  # what torch writes beside two tensors


@pytest.mark.parametrize("cls", [PagedLion, PagedLion8bit, Lion], ids=lambda cls: cls.__name__)
def test_a_pickled_optimizer_has_every_byte_once(cls: Callable[..., Lion]) -> None:
    """Pickled tensor by tensor, shared memory was written once for each: 50 times as much."""
    optimizer, params = trained(cls)
    states = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))
    content = pickle.dumps(optimizer)
    assert len(content) < states + sum(param.nbytes for param in params) + 4096 * len(params)
    again = pickle.loads(content)
    assert_same(again.state_dict(), optimizer.state_dict())


def test_small_tensors_of_one_shape_too() -> None:
    """Resident, their momentum is one tensor that a backend can take for a matrix."""
    params = weights(shapes=[(512,)] * COUNT)
    optimizer = Lion(params)
    train(optimizer, params, [1])
    assert len(pickle.dumps(optimizer)) < sum(param.nbytes for param in params) * 2 + 4096 * len(params)
    again = copy.deepcopy(optimizer)
    assert_same(again.state_dict(), optimizer.state_dict())


def test_what_is_copied_and_pickled_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    optimizer, params = trained(PagedLion8bit, page_dir=str(tmp_path))
    content = pickle.dumps(optimizer.state[params[3]])
    assert_same(pickle.loads(content), dict(optimizer.state[params[3]]))


def test_neighbours_still_travel_together() -> None:
    """A page is one copy for each dtype, whatever tensors are in it."""
    params = weights(shapes=[(64, 64)] * 8)
    optimizer = moving(params, 1 << 20, 0, optim_bits=8)
    train(optimizer, params, [1])
    assert optimizer._step_cache is not None
    calls = optimizer._step_cache._launch_groups[0].calls
    assert isinstance(calls, PagedCalls)
    (page,) = calls._staged
    assert page is not None
    copies = page.copies([torch.zeros(64, 64)] * 8).arriving
    assert len(copies) == 2
    assert sum(staged.nbytes for staged, _ in copies) >= 8 * 64 * 64
