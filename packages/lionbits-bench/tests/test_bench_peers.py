"""Peers: each that is installed follows its rule, one that is missing is reported, and none is required."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits_bench import peers, rule
from lionbits_bench.candidates import Candidate

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_without_any_library_torch_is_there(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: find(name, *rest) if name == "torch" else None)
    assert {peer.name for peer in peers.peers(dtype, CPU)} == {"torch"}
    found = peers.peers_found(CPU)
    assert set(found) == set(peers.NAMES)
    assert found["torch"] == torch.__version__
    assert {found[name] for name in found if name not in ("torch", "flashoptim")} == {"not installed"}
    assert found["flashoptim"] == "works on cuda only"
    assert peers.peers_found(CUDA)["flashoptim"] == "not installed"


def test_only_those_that_were_asked_for() -> None:
    assert peers.peers("fp32", CPU, []) == []
    assert peers.peers_found(CPU, []) == {}
    assert {peer.name for peer in peers.peers("fp32", CPU, ["torch"])} == {"torch"}


def test_the_baseline_is_there_and_nothing_compiles_where_that_is_not_wanted() -> None:
    variants = [peer.variant for peer in peers.peers("fp32", CPU, ["torch"], compiled=False)]
    assert variants == [peers.EAGER, "AdamW, fused", "AdamW, foreach"]


@pytest.mark.parametrize(
    "peer", peers.peers("fp32", CPU, compiled=False), ids=lambda peer: f"{peer.name} {peer.variant}"
)
def test_whoever_is_installed_is_right(peer: Candidate) -> None:
    assert rule.result(peer.check, peer.build, CPU).startswith("right")


def package(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", peers.TIMM, "lion_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", peers.TIMM, "lion_pytorch")]:
        del sys.modules[name]


LION = """
from lionbits_bench.eager import EagerLion
from ._help import NOTHING

class Lion(EagerLion):
    def __init__(self, parameters, foreach, **settings):
        super().__init__(parameters, **settings)
"""


def test_timm_is_there_where_torchvision_is_not(fake: Path) -> None:
    broken = "raise ImportError('No module named torchvision')"
    files = {"__init__.py": broken, "optim/__init__.py": broken, "optim/lion.py": LION, "optim/_help.py": "NOTHING = 0"}
    package(fake / "timm", files)
    plain, foreach = peers.peers("fp32", CPU, ["timm"], compiled=False)
    assert (plain.variant, foreach.variant) == ("Lion", "Lion, foreach")
    assert rule.result(plain.check, plain.build, CPU) == "right"
    assert "timm" not in sys.modules


def test_one_that_is_broken_is_reported_and_left_out(fake: Path) -> None:
    package(fake / "lion_pytorch", {"__init__.py": "raise OSError('no such library')"})
    assert peers.peers("fp32", CPU, ["lion-pytorch"]) == []
    assert peers.peers_found(CPU, ["lion-pytorch"]) == {"lion-pytorch": "does not import: OSError: no such library"}


def test_one_that_leaves_weights_as_they_were_is_reported(fake: Path) -> None:
    lazy = "from torch.optim import SGD\ndef Lion(ps, lr, weight_decay):\n    return SGD(ps, lr=0.0)\n"
    package(fake / "lion_pytorch", {"__init__.py": lazy})
    (found,) = peers.peers("fp32", CPU, ["lion-pytorch"])
    assert rule.result(found.check, found.build, CPU) == "weights unchanged"


def test_steps_go_through_the_compiler_where_they_say_so(monkeypatch: pytest.MonkeyPatch, fake: Path) -> None:
    package(fake / "timm", {"optim/lion.py": LION, "optim/_help.py": "NOTHING = 0", "__init__.py": ""})
    compiled: list[Any] = []
    monkeypatch.setattr("torch.compile", lambda function, **_: compiled.append(function) or function)
    tensors = [torch.ones(4, requires_grad=True)]
    for peer in peers.peers("fp32", CPU, ["torch", "timm"]):
        before = len(compiled)
        peer.build(tensors)
        assert (len(compiled) > before) == ("compiled" in peer.variant)
