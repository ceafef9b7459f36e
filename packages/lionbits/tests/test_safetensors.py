"""safetensors: every variant there and back, bit for bit; plain readers see the tensors; damage is reported."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lionbits import Lion8bit, PagedLion8bit, load_safetensors, save_safetensors
from lionbits.paging import host_memory

from .family import Variant, assert_same, train, weights

safetensors = pytest.importorskip("safetensors", reason="reads what is written here")

#: Every dtype of state: param_residual is int16 or int8.
COMPENSATED = [{}, {"param_rounding": "compensated"}, {"param_rounding": "compensated", "master_bits": 24}]


def _fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(2)


def _there_and_back(value: Any, path: Path) -> Any:
    save_safetensors(value, path)
    return load_safetensors(path)


@pytest.mark.parametrize("extra", COMPENSATED, ids=["nearest", "compensated", "compensated-24"])
def test_every_variant_continues_bit_for_bit(variant: Variant, extra: dict[str, Any], tmp_path: Path) -> None:
    """State, groups, seed beyond 2^63 and all; an empty parameter too; and then the next steps."""
    params = weights(torch.bfloat16, [(64, 64), (70, 61), (33,), (), (0, 40)])
    optimizer = variant(params, lr=0.01, percentile_clipping=80, seed=2**64 - 1, **extra)
    train(optimizer, params, [1, 2])
    saved = optimizer.state_dict()
    loaded = _there_and_back(saved, tmp_path / "state.safetensors")
    assert_same(loaded, saved)
    resumed_params = copy.deepcopy(params)
    resumed = variant(resumed_params, **extra)
    resumed.load_state_dict(loaded)
    for one, some in ((optimizer, params), (resumed, resumed_params)):
        train(one, some, [3])
    assert_same(resumed.state_dict(), optimizer.state_dict())
    assert_same([param.data for param in resumed_params], [param.data for param in params])


def test_plain_readers_find_tensors_by_number_or_name(tmp_path: Path) -> None:
    params = weights(shapes=[(64, 64), (33,)])
    for names in (None, ["layer.weight", "layer.bias"]):
        optimizer = Lion8bit(params if names is None else list(zip(names, params, strict=True)))
        train(optimizer, params, [1])
        save_safetensors(optimizer.state_dict(), tmp_path / "state.safetensors")
        first, second = names or ["0", "1"]
        with safetensors.safe_open(tmp_path / "state.safetensors", framework="pt") as file:
            assert set(file.keys()) == {
                f"state.{first}.exp_avg_codes", f"state.{first}.exp_avg_scale", f"state.{second}.exp_avg",
                f"state.{first}.step", f"state.{second}.step",
            }  # fmt: skip
            codes = file.get_tensor(f"state.{first}.exp_avg_codes")
            entry = json.loads(file.metadata()["lionbits"])
            assert file.metadata()["lionbits_version"] == "3"
        assert_same(codes, optimizer.state[params[0]]["exp_avg_codes"])
        assert entry["param_groups"][0]["state_format"] == "e3m4"


@pytest.mark.parametrize("folder", [False, True], ids=["memory", "files"])
def test_tensors_of_one_page_are_written_once_each(folder: bool, tmp_path: Path) -> None:
    """Paged state lies packed in shared pages: the file holds each tensor's own bytes, and nothing else of a page."""
    params = weights(shapes=[(64, 64)] * 5)
    optimizer = PagedLion8bit(params, page_dir=str(tmp_path) if folder else None)
    train(optimizer, params, [1])
    saved = optimizer.state_dict()
    tensors = [t for state in saved["state"].values() for t in state.values() if isinstance(t, torch.Tensor)]
    assert len({host_memory.place(t)[0].data_ptr() for t in tensors}) < len(tensors)
    path = tmp_path / "state.safetensors"
    assert_same(_there_and_back(saved, path), saved)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + sum(t.nbytes for t in tensors)


def test_any_nest_of_plain_things_comes_back(tmp_path: Path) -> None:
    """Types too: tuples, keys that are numbers, keys that look like marks, floats that JSON has no word for."""
    rate = torch.tensor(0.1)
    page = torch.arange(12, dtype=torch.int16)
    given: dict[str, Any] = {
        "a.b": torch.tensor([1.5, -0.0]), "a": {"b": torch.tensor([True, False]), "c": page[2:8].view(2, 3).t()},
        "__metadata__": torch.zeros(2, 0), "numbers": [1, 1.0, True, None, 2**70, 0.1, -0.0, (), [], {}],
        "odd": (math.inf, -math.inf, {"$tensor": "no", 3: {None: "x", 2.5: torch.tensor(7)}}), "ü\n\udc80": "\x00é",
        "dtypes": [torch.ones(3, dtype=d) for d in (torch.float64, torch.bfloat16, torch.float16, torch.int64,
                                                    torch.int8, torch.uint8, torch.int32)],
        "rates": [rate, rate], "mark": {"$tensor": "a.b", "plain": 1},
    }  # fmt: skip
    before = copy.deepcopy(given)
    loaded = _there_and_back(given, tmp_path / "file")
    assert_same(given, before)
    assert loaded["rates"][0] is loaded["rates"][1]
    assert_same(loaded, given)
    assert math.isnan(_there_and_back({"x": math.nan}, tmp_path / "file")["x"])


class Plain(Tensor):
    """A subclass with bytes of its own."""


class Wrapper(Tensor):
    """A subclass that has no bytes, but a tensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made: Wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(torch.zeros(args[0].shape), *args[1:], **(kwargs or {}))


def _freed(length: int) -> Tensor:
    """A tensor of 100 elements in a storage of fewer bytes, as FSDP leaves them."""
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(length)
    return tensor


BASE = torch.arange(1.0, 25.0)
VIEWS = {
    "negated": torch._neg_view(BASE),
    "imaginary": torch.complex(BASE[:1], BASE[:1]).conj().imag,
    "imaginary parts": torch.complex(BASE, BASE).conj().imag,
    "negated and transposed": torch._neg_view(BASE.view(4, 6)).t(),
    "negated scalar": torch._neg_view(BASE)[3],
    "transposed": BASE.view(4, 6).t(),
    "expanded": BASE[:3, None].expand(3, 5),
    "overlapping": BASE.as_strided((4, 4), (1, 2), 3),
    "every second": BASE[1::2],
    "bytes": BASE.view(torch.uint8)[3:9],
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "empty": BASE[:0].expand(3, 0),
    "a subclass": BASE.as_subclass(Plain),
    "a parameter": nn.Parameter(BASE.clone()),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_is_written_as_what_it_shows(view: Tensor, tmp_path: Path) -> None:
    """Its signs, too: torch keeps that of a negated view beside the bytes, as of the imaginary part of a conjugate."""
    want = view.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
    assert_same(_there_and_back({"x": view}, tmp_path / "file")["x"], want)


@pytest.mark.filterwarnings("ignore:(The PyTorch API of nested|Sparse CSR):UserWarning")
def test_what_has_no_bytes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Its address is none, or its bytes end before it does."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for tensor in (
        Wrapper(BASE), FakeTensorMode().from_tensor(BASE), _freed(0), _freed(40),
        torch.nested.nested_tensor([BASE[:2], BASE[:3]]), BASE.to_mkldnn(), torch.eye(3).to_sparse_csr(),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"\['x'\].*must be a plain tensor"):
            save_safetensors({"x": tensor}, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_every_tensor_lies_where_its_dtype_may(tmp_path: Path) -> None:
    """Readers map the file: an odd number of bytes before wider numbers would move them off their places."""
    path = tmp_path / "file"
    kinds = (torch.int8, torch.int16, torch.float32, torch.float64)
    save_safetensors({f"{j}": torch.ones(3, dtype=kind) for j, kind in enumerate(kinds)}, path)
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    assert all((begin + header[f"{j}"]["data_offsets"][0]) % kind.itemsize == 0 for j, kind in enumerate(kinds))


def test_tensor_rates_stay_shared_between_groups(tmp_path: Path) -> None:
    """One learning rate for all groups is one tensor, as torch.save keeps it."""
    params = weights()
    optimizer = Lion8bit([{"params": params[:2]}, {"params": params[2:]}], lr=torch.tensor(0.1))
    train(optimizer, params, [1])
    saved = optimizer.state_dict()
    loaded = _there_and_back(saved, tmp_path / "file")
    assert_same(loaded, saved)
    first, second = loaded["param_groups"]
    assert first["lr"] is second["lr"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"state": {0: {"note": {1, 2}}}}, r"state_dict at \['state'\]\[0\]\['note'\]"),
        ({"x": nn.Linear}, r"\['x'\]"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, r"dtype of state_dict at \['x'\]"),
        ({"x": torch.zeros(2, device="meta")}, "plain tensor"),
        ({"x": torch.zeros(2, 2).to_sparse()}, "plain tensor"),
        ({"x": torch.ones(2).to_mkldnn()}, "plain tensor"),
        ({"x": torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)}, "plain tensor"),
        ({"x": _fake()}, "plain tensor"),
        ({(1, 2): 3}, "state_dict at"),
        ([], r"state_dict=\[\]"),
        (Lion8bit(weights()), r"state_dict=<Lion8bit>.*optimizer\.state_dict\(\)"),
    ],
    ids=[
        *("a set", "a class", "complex", "meta", "sparse", "mkldnn", "nested", "fake", "a tuple as key", "a list"),
        "an optimizer",
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_place(value: Any, words: str, tmp_path: Path) -> None:
    """And the file that is there stays."""
    path = tmp_path / "file"
    save_safetensors({"kept": 1}, path)
    kind = ValueError if "dtype" in words else TypeError
    with pytest.raises(kind, match=words):
        save_safetensors(value, path)
    assert load_safetensors(path) == {"kept": 1}
    assert list(tmp_path.iterdir()) == [path]


LAZY = {
    "a negated view": lambda: torch._neg_view(torch.arange(4.0)),
    "the imaginary part of a conjugate": lambda: torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    "negated and strided": lambda: torch._neg_view(torch.arange(8.0))[::2],
    "zeros without memory": lambda: torch._efficientzerotensor((3, 2)),
    "expanded": lambda: torch.ones(()).expand(3),
    "a subclass": lambda: torch.ones(3).as_subclass(type("Own", (torch.Tensor,), {})),
}


@pytest.mark.parametrize("name", LAZY)
def test_what_a_tensor_shows_is_written(name: str, tmp_path: Path) -> None:
    """Not what is in its memory, which torch may negate on reading, or may not have allocated."""
    shown = LAZY[name]()
    loaded = _there_and_back({"a": shown}, tmp_path / "state.safetensors")["a"]
    assert_same(loaded, torch.zeros(shown.shape).copy_(shown).as_subclass(torch.Tensor))


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_what_is_nested_without_end_is_refused(kind: type, tmp_path: Path) -> None:
    """A dict that holds itself, or a hundred thousand containers in each other."""
    deep: Any = 1
    for _ in range(100_000):
        deep = {"a": deep} if kind is dict else kind([deep])
    itself: dict[str, Any] = {}
    itself["a"] = itself if kind is dict else kind([itself])
    for value in ({"a": deep}, itself):
        with pytest.raises(ValueError, match="must not hold itself"):
            save_safetensors(value, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    while not isinstance(deep, int):  # one by one: Python takes nested tuples apart by recursion
        deep = deep["a"] if kind is dict else deep[0]


def test_damaged_and_foreign_files_are_reported_by_name(tmp_path: Path) -> None:
    """Cut at any place, of another program, of another time."""
    import safetensors.torch as library

    path = tmp_path / "state.safetensors"
    save_safetensors({"a": torch.ones(1000), "b": [torch.zeros(3)]}, path)
    whole = path.read_bytes()
    for length in (0, 3, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"state\.safetensors is no whole"):
            load_safetensors(path)
    for metadata, words in (
        (None, "none that lionbits"),
        ({"lionbits": "{}", "lionbits_version": "99"}, "'99': this lionbits reads version 3"),
        ({"lionbits": "{}"}, "None"),
        ({"lionbits": '{"a": {"$tensor": "gone"}}', "lionbits_version": "3"}, "damaged.*gone"),
        ({"lionbits": '{"a": ', "lionbits_version": "3"}, "damaged"),
        ({"lionbits": '{"a":' * 100_000, "lionbits_version": "3"}, "damaged"),
        ({"lionbits": "[" * 900 + "]" * 900, "lionbits_version": "3"}, "damaged"),
        ({"lionbits": '{"a": ' * 50_000 + "1" + "}" * 50_000, "lionbits_version": "3"}, "damaged"),
        ({"lionbits": "[]", "lionbits_version": "3"}, "damaged.*list"),
        ({"lionbits": '{"$tensor": "a"}', "lionbits_version": "3"}, "damaged.*Tensor"),
        ({"lionbits": '{"$items": 5}', "lionbits_version": "3"}, "damaged"),
        ({"lionbits": '{"$items": [[{}, 1]]}', "lionbits_version": "3"}, "damaged"),
    ):
        library.save_file({"a": torch.ones(2)}, path, metadata)
        with pytest.raises(ValueError, match=rf"state\.safetensors.*{words}"):
            load_safetensors(path)
    with pytest.raises(FileNotFoundError):
        load_safetensors(tmp_path / "nothing")


def test_without_the_library_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing needs nothing; reading names the extra."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    save_safetensors({"a": torch.ones(3)}, tmp_path / "file")
    with pytest.raises(ImportError, match=r"lionbits\[safetensors\]"):
        load_safetensors(tmp_path / "file")
