"""Paged state: the same bits as resident state, in memory or in files that nobody has to clean up."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lionbits
from lionbits import Lion, PagedLion, PagedLion8bit, QLion

from .family import assert_same, snapshot, train, weights

MAPS = Path("/proc/self/maps")
linux = pytest.mark.skipif(not MAPS.exists(), reason="looks at the process's mappings in /proc")

#: Settings whose arithmetic needs more than one pass over the state, or more state.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "one scale": {"block_wise": False},
    "mask": {"cautious": "mask"},
    "mask, one scale": {"cautious": "timm", "block_wise": False},
    "clipped": {"percentile_clipping": 30, "grad_clip": 0.5},
    "stochastic": {"rounding": "stochastic", "seed": 2**40},
    "tensor lr": {"lr": torch.tensor(0.01)},
}


def mapped_under(tensor: Tensor, folder: Path) -> bool:
    """Whether the tensor's memory is a file of this folder that has lost its name."""
    for line in MAPS.read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= tensor.data_ptr() < high:
            return path.startswith(str(folder)) and path.endswith("(deleted)")
    return False


def mappings(folder: Path) -> int:
    return sum(str(folder) in line for line in MAPS.read_text().splitlines())


def pages(optimizer: Lion) -> list[Tensor]:
    """State tensors that are laid out like a parameter."""
    return [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key not in ("grad_norms", "step")
    ]


def pair(bits: int, dtype: torch.dtype, **settings: Any) -> list[tuple[list[nn.Parameter], Lion]]:
    """The resident and the paged class of these bits (2 bits have none of their own), over equal parameters."""
    made = []
    for resident, paged in ((True, False), (False, True)):
        params = weights(dtype)
        cls = getattr(lionbits, ("Paged" if paged else "") + (f"Lion{bits}bit" if bits > 2 else "Lion"))
        page = {} if resident else {key: settings[key] for key in ("page_dir", "page_budget") if key in settings}
        rest = {key: value for key, value in settings.items() if not key.startswith("page_")}
        made.append((params, cls(params, optim_bits=bits, **rest, **page)))
    return made


@pytest.mark.filterwarnings("ignore:optim_bits=2:UserWarning")
@pytest.mark.parametrize("bits", [32, 8, 4, 2])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("where", ["memory", "files", "budget"])
def test_paged_equals_resident(tmp_path: Path, bits: int, name: str, where: str) -> None:
    """Bit for bit: parameters, state, momentum and skip count, in memory and in files, whatever the budget."""
    place = {"memory": {}, "files": {"page_dir": str(tmp_path)}, "budget": {"page_budget": 0}}[where]
    results = []
    for params, optimizer in pair(bits, torch.float32, **SETTINGS[name], **place):
        train(optimizer, params, [1, 2])
        assert params[0].grad is not None
        params[0].grad[1, 1] = torch.nan
        optimizer.step()
        momenta = [optimizer.momentum(param) for param in params]
        results.append((snapshot(optimizer), momenta, optimizer.skipped_elements()))
    assert results[0][2] == 1
    assert_same(results[0], results[1])


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("settings", [{}, {"master_bits": 24}], ids=["32", "24"])
def test_paged_master_weights_equal_resident_ones(tmp_path: Path, bits: int, settings: dict[str, int]) -> None:
    """The rest of a compensated bfloat16 parameter is state like any other."""
    results = []
    settings = {"param_rounding": "compensated", "page_dir": str(tmp_path), **settings}
    for params, optimizer in pair(bits, torch.bfloat16, **settings):
        train(optimizer, params, [1, 2, 3])
        results.append(snapshot(optimizer))
    assert_same(results[0], results[1])


@linux
def test_page_files_have_no_names_and_die_with_the_optimizer(tmp_path: Path) -> None:
    """State is in files under page_dir, the folder looks empty all the while, and nothing stays when all is done."""
    params = weights()
    optimizer = PagedLion8bit(params, page_dir=str(tmp_path))
    train(optimizer, params, [1, 2])
    assert len(pages(optimizer)) == 6
    assert all(mapped_under(page, tmp_path) for page in pages(optimizer))
    assert list(tmp_path.iterdir()) == []
    del optimizer
    gc.collect()
    assert mappings(tmp_path) == 0


def loaded(params: list[nn.Parameter], optimizer: Lion, folder: Path) -> Lion:
    twin = PagedLion8bit(copy.deepcopy(params), page_dir=str(folder))
    twin.load_state_dict(optimizer.state_dict())
    return twin


def copied(params: list[nn.Parameter], optimizer: Lion, folder: Path) -> Lion:
    return copy.deepcopy(optimizer)


def pickled(params: list[nn.Parameter], optimizer: Lion, folder: Path) -> Lion:
    twin: Lion = pickle.loads(pickle.dumps(optimizer))
    return twin


def reopened(params: list[nn.Parameter], optimizer: Lion, folder: Path) -> Lion:
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    twin: Lion = torch.load(file, weights_only=False)
    return twin


@linux
@pytest.mark.parametrize("how", [loaded, copied, pickled, reopened])
def test_pages_survive(tmp_path: Path, how: Callable[[list[nn.Parameter], Lion, Path], Lion]) -> None:
    """After load_state_dict, deepcopy and pickle state is in pages of its own again, and training continues."""
    params = weights()
    optimizer = PagedLion8bit(params, page_dir=str(tmp_path))
    train(optimizer, params, [1, 2])
    twin = how(params, optimizer, tmp_path)
    assert all(mapped_under(page, tmp_path) for page in pages(twin))
    assert not {page.data_ptr() for page in pages(twin)} & {page.data_ptr() for page in pages(optimizer)}
    assert list(tmp_path.iterdir()) == []
    train(twin, twin.param_groups[0]["params"], [3])
    train(optimizer, params, [3])
    assert_same(snapshot(twin)["state"], snapshot(optimizer)["state"])
    assert_same(snapshot(twin)["params"], snapshot(optimizer)["params"])


@linux
def test_loading_twice_leaves_no_old_pages(tmp_path: Path) -> None:
    """What a load replaces is given back."""
    params = weights()
    optimizer = PagedLion8bit(params, page_dir=str(tmp_path))
    train(optimizer, params, [1])
    given = copy.deepcopy(optimizer.state_dict())
    before = mappings(tmp_path)
    assert before == 2 < len(pages(optimizer))  # codes share a page, and float32 numbers another
    for _ in range(3):
        optimizer.load_state_dict(given)
    gc.collect()
    assert mappings(tmp_path) == before


def test_two_optimizers_may_share_a_folder(tmp_path: Path) -> None:
    """Pages of two optimizers in one folder are two sets of pages."""
    finals = []
    many = [(weights(), seed) for seed in (1, 2, 1)]
    optimizers = [PagedLion8bit(params, seed=seed, page_dir=str(tmp_path)) for params, seed in many]
    for step in (1, 2):
        for (params, _), optimizer in zip(many, optimizers, strict=True):
            train(optimizer, params, [step])
    finals = [snapshot(optimizer)["state"] for optimizer in optimizers]
    assert_same(finals[0], finals[2])
    assert not torch.equal(finals[0][0]["exp_avg_codes"], finals[1][0]["exp_avg_codes"])


def test_empty_and_zero_dimensional_parameters_in_files(tmp_path: Path) -> None:
    """Nothing to store is no reason to fail."""
    params = weights(shapes=[(0,), (64, 0), (), (64, 64)])
    optimizer = PagedLion(params, page_dir=tmp_path)
    train(optimizer, params, [1, 2])
    assert [optimizer.momentum(param).shape for param in params] == [param.shape for param in params]


@pytest.mark.parametrize("cls", [Lion, lionbits.Lion8bit, QLion])
@pytest.mark.parametrize(("name", "value"), [("page_budget", 10**6), ("page_budget", 0), ("page_dir", ".")])
def test_page_arguments_are_for_paged_optimizers(cls: type[Lion], name: str, value: Any) -> None:
    """A budget or a folder without is_paged is refused; with is_paged it is accepted, by QLion too."""
    with pytest.raises(ValueError, match=rf"^{name}=.*is_paged=True"):
        cls(weights(), **{name: value})
    cls(weights(), is_paged=True, **{name: value})


@linux
def test_qlion_can_be_paged(tmp_path: Path) -> None:
    """QLion with is_paged is QLion in pages."""
    results = []
    for settings in ({}, {"is_paged": True, "page_dir": str(tmp_path)}):
        params = weights()
        optimizer = QLion(params, use_4bit=True, **settings)
        train(optimizer, params, [1, 2])
        results.append(snapshot(optimizer))
    assert_same(results[0]["state"], results[1]["state"])
    assert all(mapped_under(page, tmp_path) for page in pages(optimizer))


@pytest.mark.parametrize("call", ["step", "load"])
def test_a_folder_that_is_gone_stops_without_harm(tmp_path: Path, call: str) -> None:
    """Where no page can be made the error is the system's, nothing has changed, and a second try succeeds."""
    folder = tmp_path / "pages"
    folder.mkdir()
    params = weights()
    optimizer = PagedLion8bit(params, page_dir=str(folder))
    given = copy.deepcopy(optimizer.state_dict())
    if call == "load":
        train(optimizer, params, [1])
        given = copy.deepcopy(optimizer.state_dict())
    before = snapshot(optimizer)
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        train(optimizer, params, [2]) if call == "step" else optimizer.load_state_dict(given)
    assert_same(snapshot(optimizer), before)
    folder.mkdir()
    train(optimizer, params, [2])
    assert optimizer.state[params[0]]["step"] == 1 + (call == "load")
