"""Which backend serves: argument, then LIONBITS_BACKEND, then auto; never another than the one that was asked for."""

from __future__ import annotations

import copy
import importlib
import pickle
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lionbits import Lion, Lion4bit, Lion8bit, install, select
from lionbits.select import BackendUnavailable
from lionbits_reference.spec import FLOAT32, Plan

from .family import Variant, assert_same, free_gradients, snapshot, train, weights

CHECKOUT = Path(__file__).parents[3]

#: A third party's backend: the reference's functions under another name, with a note of every call.
TOY = """
from lionbits_reference.backend import absmax, aligned, encode, prepare
from lionbits_reference import backend as reference

name = "{name}"
calls = []


def supports(plan, device):
    {supports}
    return ""


def step(prepared, grads, hyper, scalars):
    calls.append("step")
    reference.step(prepared, grads, hyper, scalars)


def decode(format, state, shape):
    calls.append("decode")
    return reference.decode(format, state, shape)
"""

NO_FOUR_BITS = "if plan.format.bits == 4: return 'four bits are not enough'"
NO_BFLOAT16_GRADIENTS = "if str(plan.grad_dtype) == 'torch.bfloat16': return 'gradients must not be bfloat16'"

Maker = Callable[..., ModuleType]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    """Install a package ``lionbits_<name>`` for the length of a test."""
    monkeypatch.delenv("LIONBITS_BACKEND", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str = "toy", supports: str = "pass", source: str = TOY) -> ModuleType:
        (tmp_path / f"lionbits_{name}.py").write_text(source.format(name=name, supports=supports))
        importlib.invalidate_caches()
        return importlib.import_module(f"lionbits_{name}")

    yield make
    for path in tmp_path.glob("lionbits_*.py"):
        sys.modules.pop(path.stem, None)


def _steps(module: ModuleType, optimizer: Lion) -> int:
    """How many calls of ``step`` a training step costs this module."""
    params = optimizer.param_groups[0]["params"]
    before: int = module.calls.count("step")
    train(optimizer, params, [1])
    return int(module.calls.count("step") - before)


def test_a_third_partys_backend_is_found_by_name(toy: Maker, variant: Variant) -> None:
    """Publishing lionbits_<name> is all: the name is enough, every call goes there, and the bits are the same."""
    module = toy()
    params, plain = weights(), weights()
    optimizer, reference = variant(params, backend="toy"), variant(plain)
    train(optimizer, params, [1, 2])
    train(reference, plain, [1, 2])
    assert module.calls
    assert set(module.calls) == {"step"}
    optimizer.momentum(params[0])
    assert module.calls[-1] == "decode"
    assert_same(snapshot(optimizer)["state"], snapshot(reference)["state"])
    assert_same(snapshot(optimizer)["params"], snapshot(reference)["params"])


def test_a_backend_gets_many_tensors_in_one_call(toy: Maker) -> None:
    """Calls per step grow with the kinds of tensors, quantised or not, and not with their number or their groups."""
    module = toy()
    params = weights(shapes=[(64, 64), (70, 61), (33,), ()] * 6)
    half = len(params) // 2
    optimizer = Lion8bit([{"params": params[:half]}, {"params": params[half:], "lr": 0.5}], backend="toy")
    train(optimizer, params, [1])
    assert module.calls == ["step", "step"]


def test_argument_before_environment_before_auto(toy: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument wins over the environment, the environment over auto, and "auto" as an argument over both."""
    one, other = toy("toy"), toy("other")
    monkeypatch.setenv("LIONBITS_BACKEND", "other")
    assert _steps(one, Lion(weights(), backend="toy")) > 0
    assert not other.calls
    assert _steps(other, Lion(weights())) > 0
    assert _steps(other, Lion(weights(), backend="auto")) == 0
    monkeypatch.setenv("LIONBITS_BACKEND", "auto")
    assert _steps(other, Lion(weights())) == 0
    monkeypatch.setenv("LIONBITS_BACKEND", "")
    assert _steps(other, Lion(weights())) == 0


def test_the_environment_is_read_at_construction(toy: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing the variable later, either way, concerns later optimizers only."""
    module = toy()
    before = Lion(weights())
    monkeypatch.setenv("LIONBITS_BACKEND", "toy")
    during = Lion(weights())
    monkeypatch.delenv("LIONBITS_BACKEND")
    assert _steps(module, before) == 0
    assert _steps(module, during) > 0


def test_a_module_may_be_the_backend(toy: Maker) -> None:
    """A module object with the protocol's functions serves without a name to look up."""
    module = toy("unlisted")
    assert _steps(module, Lion8bit(weights(), backend=module)) > 0


@pytest.mark.parametrize("missing", ["name", "supports", "aligned", "absmax", "step", "encode", "decode"])
def test_a_module_without_the_protocol_is_refused(toy: Maker, missing: str) -> None:
    """TypeError names exactly what is missing, by name or as an object; a name of the wrong kind is missing, too."""
    module = toy(source=TOY + f"\ndel {missing}\n")
    for backend in ("toy", module):
        with pytest.raises(TypeError, match=rf"lionbits_toy.*lacks {missing} of"):
            Lion(weights(), backend=backend)
    setattr(module, missing, 5)
    with pytest.raises(TypeError, match=rf"lacks {missing} of"):
        Lion(weights(), backend=module)


@pytest.mark.parametrize(
    ("asked", "meant"), [("refrence", "reference"), ("Reference", "reference"), ("TRITON", "triton"), ("toyy", "toy")]
)
def test_a_misspelt_backend_is_guessed(toy: Maker, asked: str, meant: str) -> None:
    """BackendUnavailable, an ImportError, says what was asked for and what may have been meant."""
    toy()
    with pytest.raises(BackendUnavailable, match=rf"backend='{asked}'.*Did you mean '{meant}'\?") as caught:
        Lion(weights(), backend=asked)
    assert issubclass(caught.type, ImportError)


@pytest.mark.parametrize("name", ["cpp", "cupy", "triton"])
def test_a_backend_of_ours_that_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable) as caught:
        Lion(weights(), backend=name)
    assert str(caught.value).endswith(f"there is no module lionbits_{name}. To install it: {install.command(name)}")


@pytest.mark.parametrize("extra", install.EXTRAS)
def test_a_release_is_installed_from_an_index_and_a_development_version_from_its_checkout(
    monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    monkeypatch.setattr("lionbits.__version__", "0.1.0")
    assert install.command(extra) == f'pip install "lionbits[{extra}]"'
    monkeypatch.setattr("lionbits.__version__", "0.1.0.dev0")
    words = shlex.split(install.command(extra).removesuffix(" (in a checkout of lionbits)"))
    assert words[:2] == ["pip", "install"]
    assert words[2:]
    for folder, _, inner in (word.partition("[") for word in words[2:]):
        project = (CHECKOUT / folder / "pyproject.toml").read_text(encoding="utf-8")
        assert not inner or f"\n{inner.removesuffix(']')} = [" in project


@pytest.mark.parametrize("asked", ["", "a.b", "no such", "../toy"])
def test_what_is_no_name_is_unavailable(toy: Maker, asked: str) -> None:
    """Any other text is a backend that does not exist, whatever the import system would say about it."""
    with pytest.raises(BackendUnavailable) as caught:
        Lion(weights(), backend=asked)
    assert f"backend={asked!r}" in str(caught.value)


def test_a_name_from_the_environment_is_blamed_on_the_environment(toy: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """If backend= was not passed, the message says where the name came from."""
    monkeypatch.setenv("LIONBITS_BACKEND", "tritn")
    with pytest.raises(BackendUnavailable, match=r"^LIONBITS_BACKEND='tritn': there is no.*Did you mean 'triton'"):
        Lion(weights())


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_a_backend_that_fails_to_import_says_why(toy: Maker, error: str) -> None:
    """A missing driver library, say, makes a backend unavailable, with the reason in the message."""
    with pytest.raises(Exception, match="libcuda"):
        toy("broken", source=f"raise {error}('libcuda.so.1 is missing')")
    with pytest.raises(BackendUnavailable, match=r"broken.*libcuda\.so\.1 is missing"):
        Lion(weights(), backend="broken")


@pytest.mark.parametrize("by", ["argument", "environment", "module"])
def test_an_explicit_choice_that_cannot_serve_raises(toy: Maker, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """The backend's own reason, at construction; nothing else steps in, and what it can do it still does."""
    module = toy(supports=NO_FOUR_BITS)
    chosen = {"argument": "toy", "environment": None, "module": module}[by]
    if by == "environment":
        monkeypatch.setenv("LIONBITS_BACKEND", "toy")
    with pytest.raises(ValueError, match=r"toy.*four bits are not enough.*it is 'cpp' that serves"):
        Lion4bit(weights(), backend=chosen)
    optimizer = Lion8bit(weights(), backend=chosen)
    assert _steps(module, optimizer) > 0
    before = snapshot(optimizer)
    group = {"params": weights(shapes=[(64, 64)]), "optim_bits": 4}
    with pytest.raises(ValueError, match=r"toy.*four bits are not enough"):
        optimizer.add_param_group(group)
    assert_same(snapshot(optimizer), before)


def test_a_gradient_that_the_choice_cannot_serve_stops_the_step_whole(toy: Maker) -> None:
    """A gradient dtype is only known at the step: it raises before any parameter has moved or any step is counted."""
    module = toy(supports=NO_BFLOAT16_GRADIENTS)
    params = weights()
    optimizer = Lion8bit(params, backend="toy")
    train(optimizer, params, [1])
    before, calls = snapshot(optimizer), len(module.calls)
    free_gradients(params[-1])
    params[-1].grad = torch.ones_like(params[-1], dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"toy.*gradients must not be bfloat16"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)
    assert len(module.calls) == calls


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_the_choice_survives_copies(toy: Maker, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A copy keeps the backend of the original, whatever the environment says by then; an automatic one stays so."""
    module = toy()
    optimizer, automatic = Lion8bit(weights(), backend="toy"), Lion8bit(weights())
    train(optimizer, optimizer.param_groups[0]["params"], [1])

    def duplicate(original: Lion) -> Lion:
        twin: Lion = copy.deepcopy(original) if how == "deepcopy" else pickle.loads(pickle.dumps(original))
        return twin

    monkeypatch.setenv("LIONBITS_BACKEND", "reference")
    assert _steps(module, duplicate(optimizer)) > 0
    monkeypatch.setenv("LIONBITS_BACKEND", "toy")
    assert _steps(module, duplicate(automatic)) == 0


def test_a_checkpoint_does_not_know_its_backend(toy: Maker) -> None:
    """Saved under one backend, continued under another: the same bits, and the loader's choice stays."""
    module = toy()
    params, alone = weights(), weights()
    optimizer, reference = Lion4bit(params, backend="toy"), Lion4bit(alone, backend="reference")
    train(optimizer, params, [1])
    train(reference, alone, [1])
    assert_same(optimizer.state_dict(), reference.state_dict())
    resumed = Lion4bit(copy.deepcopy(params), backend="reference")
    resumed.load_state_dict(optimizer.state_dict())
    assert _steps(module, resumed) == 0


def test_where_nothing_serves_every_reason_is_reported() -> None:
    """The reference refuses no device but those that hold no values."""
    with pytest.raises(ValueError, match=r"no backend serves .* on meta \(reference: .+\)"):
        select.serving(None, Plan(torch.float32, torch.float32, FLOAT32), torch.device("meta"))
