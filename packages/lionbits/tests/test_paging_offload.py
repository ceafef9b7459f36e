"""``paged_compute="host"``: parameters and gradients travel to the state, which never does."""

from __future__ import annotations

import random
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lionbits import Lion, PagedLion8bit
from lionbits_reference import backend
from lionbits_reference.spec import Format, Plan

from .family import assert_same, gradient, snapshot, train, weights
from .movers import moving
from .test_paging_prefetch import SHAPES, Failing

CPU = torch.device("cpu")
PLAN = Plan(torch.float32, torch.float32, Format.of(8))


def offloading(params: list[nn.Parameter], page_size: int, **settings: Any) -> Lion:
    """An optimizer that updates copies of parameters as another device would have them."""
    return moving(params, page_size, None, paged_compute="host", backend="reference", **settings)


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("seed", range(8))
def test_the_host_gives_the_bits_of_the_device(bits: int, seed: int) -> None:
    """Whatever the order of parameters, the size of pages, and when copies happen."""
    chance = random.Random(seed)
    shapes = chance.sample(SHAPES, len(SHAPES))
    dtype = chance.choice([torch.float32, torch.bfloat16])
    settings = chance.choice([{}, {"cautious": "mask"}, {"block_wise": False}, {"percentile_clipping": 30}])
    if dtype == torch.bfloat16:
        settings |= chance.choice([{"param_rounding": "dithered"}, {"param_rounding": "compensated"}])
    results = []
    for paged in (False, True):
        params = weights(dtype, shapes)
        settings |= {"optim_bits": bits, "min_8bit_size": 100}
        page_size = chance.choice([1, 300, 4000, 60_000])
        optimizer = offloading(params, page_size, **settings) if paged else Lion(params, **settings)
        train(optimizer, params, [1, 2, 3])
        results.append(snapshot(optimizer))
    assert_same(*results)


def test_strides_and_aliases_of_parameters_are_kept() -> None:
    """What comes back is written into the parameter's own memory: a transposed one, a view of another tensor."""
    results = []
    for paged in (False, True):
        base = torch.arange(64 * 96, dtype=torch.float32).div_(1000)
        params = [
            nn.Parameter(base.view(96, 64).t()),
            nn.Parameter(torch.ones(8, 4, 6, 6).to(memory_format=torch.channels_last)),
        ]
        optimizer = offloading(params, 1000) if paged else Lion(params)
        train(optimizer, params, [1, 2])
        assert params[0].data_ptr() == base.data_ptr()
        results.append([base.clone(), *(param.detach().clone() for param in params)])
    assert_same(*results)


@pytest.mark.parametrize("compute", ["host", "device"])
@pytest.mark.parametrize("bits", [8, 4])
def test_strides_of_short_rows(bits: int, compute: str) -> None:
    """Elements count in row-major order, wherever parameter and gradient have them: no copy is taken for the tensor."""
    order = {"row-major": lambda t: t, "column-major": lambda t: t.t().contiguous().t()}
    for of_param in order.values():
        results = []
        for paged in (False, True):
            (param,) = weights(shapes=[(700, 7)])
            param = nn.Parameter(of_param(param.detach()))
            settings = {"optim_bits": bits, "min_8bit_size": 1, "backend": "reference"}
            offloads = {"paged_compute": "host"} if compute == "host" else {}
            optimizer = moving([param], 1000, None if offloads else 0, **settings, **offloads)
            optimizer = optimizer if paged else Lion([param], **settings)
            for step, of_grad in enumerate([*order.values(), *order.values()], 1):
                param.grad = of_grad(gradient(param, 0, step))
                optimizer.step()
            results.append([param.detach().clone(), optimizer.momentum(param), optimizer.state_dict()["state"][0]])
        assert_same(*results)


def test_what_travels_is_parameters_and_gradients() -> None:
    """12 bytes an element whatever the width of the state, of which no byte leaves the host."""
    params = weights(shapes=[(100, 64), (200, 64)])
    optimizer = offloading(params, 100 * 64 * 4, optim_bits=8)
    train(optimizer, params, [1, 2])
    stats = optimizer.paging_stats()
    elements = 300 * 64
    assert (stats.bytes_in, stats.bytes_out) == (2 * 8 * elements, 2 * 4 * elements)
    assert (stats.hits, stats.resident_bytes) == (0, 0)


@pytest.mark.parametrize("direction", ["prefetch", "write back"])
def test_a_copy_that_fails_is_reported_and_parameters_are_whole(direction: str) -> None:
    """Each is of the step before or of this one; the message says what is stale."""
    twins = weights(shapes=[(100, 64)] * 6)
    train(Lion(twins), twins, [1])
    params = weights(shapes=[(100, 64)] * 6)
    before = [param.detach().clone() for param in params]
    streams = partial(Failing, direction=direction, at=4)
    optimizer = moving(params, 2 * 100 * 64 * 4, None, streams, paged_compute="host", backend="reference")
    message = "could not be prefetched" if direction == "prefetch" else "parameters are of the step before"
    with pytest.raises(RuntimeError, match=message):
        train(optimizer, params, [1])
    moved = [not torch.equal(param, old) for param, old in zip(params, before, strict=True)]
    assert moved == sorted(moved, reverse=True)
    assert 1 <= sum(moved) < 6
    assert_same(
        [param.detach() for param in params],
        [(twin.detach() if new else old) for twin, old, new in zip(twins, before, moved, strict=True)],
    )


def test_it_survives_copies_and_checkpoints() -> None:
    """A state dict of it is any other's, and a copy goes on updating on the host."""
    params = weights(shapes=[(64, 640)])
    optimizer = offloading(params, 4000, optim_bits=8)
    train(optimizer, params, [1])
    resident_params = [nn.Parameter(param.detach().clone()) for param in params]
    resident = Lion(resident_params, optim_bits=8)
    resident.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(resident.state_dict())
    for one, held in ((optimizer, params), (resident, resident_params)):
        held[0].grad = gradient(held[0], 0, 2)
        one.step()
    assert torch.equal(params[0], resident_params[0])
    assert torch.equal(optimizer.momentum(params[0]), resident.momentum(resident_params[0]))
    assert optimizer._pager.offloads


def test_a_backend_of_devices_is_refused() -> None:
    """It would have to update on the CPU: said at construction."""
    metal = ModuleType("metal")
    vars(metal).update({key: value for key, value in vars(backend).items() if not key.startswith("_")})
    vars(metal).update(name="metal", supports=lambda plan, device: "" if device.type == "meta" else "needs a device")
    params = [nn.Parameter(torch.ones(64, 640, device="meta"))]
    PagedLion8bit(params, backend=metal)
    with pytest.raises(ValueError, match="on cpu: needs a device"):
        PagedLion8bit(params, paged_compute="host", backend=metal)
