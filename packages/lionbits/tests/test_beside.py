"""Memory of state beside its parameter: small momentum of one shape lies together, and nobody can tell."""

from __future__ import annotations

import copy
import io

import torch

import lionbits
from lionbits.paging import beside
from lionbits_reference.spec import TensorSpec

SHAPES = ((100,), (3, 7), (100,), (), (0, 4), (3, 7), (beside.SMALL,), (beside.SMALL + 1,)) * 2


def test_small_momentum_of_one_shape_is_rows_of_one_tensor() -> None:
    """In the order of the specs, on the CPU; other state, larger momentum, and each on its own device, lie alone."""
    wanted = [
        {"exp_avg": TensorSpec(shape, torch.float32), "param_rest": TensorSpec(shape, torch.int8)} for shape in SHAPES
    ]
    for device in (torch.device("cpu"), torch.device("meta")):
        made = beside.zeros(wanted, device)
        places: dict[tuple[int, ...], list[int]] = {}
        for j, (tensors, specs) in enumerate(zip(made, wanted, strict=True)):
            assert tensors.keys() == specs.keys()
            for key, tensor in tensors.items():
                assert TensorSpec(tuple(tensor.shape), tensor.dtype) == specs[key]
                assert tensor.is_contiguous()
            places.setdefault(SHAPES[j], []).append(j)
        for shape, some in places.items():
            offsets = [made[j]["exp_avg"].storage_offset() for j in some]
            count = torch.Size(shape).numel()
            together = device.type == "cpu" and 0 < count <= beside.SMALL
            assert offsets == [j * count if together else 0 for j in range(len(some))]
    assert all(not tensor.any() for tensors in beside.zeros(wanted, torch.device("cpu")) for tensor in tensors.values())


def test_a_copy_is_independent_and_a_file_no_larger() -> None:
    """Memory that is shared is copied and saved once."""
    params = [torch.nn.Parameter(torch.ones(100)) for _ in range(200)]
    optimizer = lionbits.Lion(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    (copied, *_) = twin.state.values()
    copied["exp_avg"].fill_(7.0)
    assert all((optimizer.state[param]["exp_avg"] < 1).all() for param in params)
    assert sum(bool((state["exp_avg"] == 7).all()) for state in twin.state.values()) == 1

    def size(state: object) -> int:
        stream = io.BytesIO()
        torch.save(state, stream)
        return stream.getbuffer().nbytes

    saved = optimizer.state_dict()
    alone = {key: {**state, "exp_avg": state["exp_avg"].clone()} for key, state in saved["state"].items()}
    assert size(saved) <= size({**saved, "state": alone})
