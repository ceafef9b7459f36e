"""Memory of state beside its parameter."""

from __future__ import annotations

import copy
import io
import re
import sys
from pathlib import Path

import pytest
import torch

import lionbits
from lionbits.paging import colocated, huge_pages
from lionbits_reference.spec import TensorSpec

SHAPES = ((100,), (3, 7), (100,), (), (0, 4), (3, 7), (1024,)) * 2


def mappings() -> str:
    """What Linux says of the memory of this process; empty where it says nothing, or has no huge pages."""
    smaps, huge_pages = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage")
    return smaps.read_text() if smaps.exists() and huge_pages.exists() else ""


def flags(address: int) -> list[str]:
    """Of the memory there."""
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", mappings(), flags=re.MULTILINE)[1:]:
        begin, end = (int(number, 16) for number in mapping.split(maxsplit=1)[0].split("-"))
        if begin <= address < end:
            return mapping.partition("VmFlags:")[2].split()
    raise AssertionError("there is no such memory")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_state_is_zero_and_each_tensor_has_memory_of_its_own(device: str) -> None:
    """Of the shapes and dtypes that were asked for, contiguous."""
    wanted = [
        {"exp_avg": TensorSpec(shape, torch.float32), "param_residual": TensorSpec(shape, torch.int8)}
        for shape in SHAPES
    ]
    made = colocated.zeros(wanted, torch.device(device))
    assert [{key: (tuple(t.shape), t.dtype) for key, t in tensors.items()} for tensors in made] == wanted
    tensors = [tensor for found in made for tensor in found.values()]
    assert all(tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
    assert device == "meta" or not any(tensor.any() for tensor in tensors)


@pytest.mark.skipif("VmFlags" not in mappings(), reason="a system that does not tell of huge pages")
def test_large_momentum_asks_for_huge_pages() -> None:
    """``hg``: Linux has heard it."""
    (made,) = colocated.zeros([{"exp_avg": TensorSpec((1 << 24,), torch.float32)}], torch.device("cpu"))
    assert "hg" in flags(made["exp_avg"].data_ptr() + made["exp_avg"].nbytes // 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")
def test_huge_pages_are_asked_for_within_the_tensor_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside it is not this optimizer's; what is small does not ask."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda begin, size, _: asked.append((begin, size)))
    memory = torch.empty(huge_pages.LEAST + huge_pages.PAGE, dtype=torch.uint8)
    for offset in range(0, huge_pages.PAGE, huge_pages.PAGE // 8):
        tensor = memory[offset : offset + huge_pages.LEAST]
        assert huge_pages.ask(tensor) is tensor
        (begin, size), first = asked.pop(), tensor.data_ptr()
        assert begin % huge_pages.PAGE == size % huge_pages.PAGE == 0
        assert first <= begin < begin + size <= first + tensor.nbytes
        assert tensor.nbytes - size < 2 * huge_pages.PAGE
    huge_pages.ask(memory[: huge_pages.LEAST - 1])
    assert not asked


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
