"""Each private name of torch is in one module, and where a torch has it no more, steps have the same bits.

What needs several ranks is taken away in ``distributed/test_shards_private.py``.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lionbits import Lion, Lion8bit, PagedLion8bit, decorators, torch_private
from lionbits.step import prepare

from .family import assert_same, gradient, snapshot, train, weights
from .private_names import defined, sources, taken

GUARDS = "torch._C._dynamo.guards"

#: Of each distribution the one module that may take private names.
HOMES = {
    "lionbits": "torch_private.py",
    "lionbits_reference": None,
    "lionbits_conformance": None,
    "lionbits_table": None,
    "lionbits_cupy": None,
    "lionbits_triton": "triton_private.py",
}

Take = Callable[[pytest.MonkeyPatch], None]


class NoArguments:
    """What takes the place of a function or class whose arguments have changed."""

    def __init__(self) -> None:
        pass


class GuardsWithAnotherCheck:
    def __init__(self, *tensors: Any, **dims: Any) -> None:
        del tensors, dims

    def check(self) -> bool:
        return True


def guards_in_place_of(kind: type | None) -> Take:
    def take(monkeypatch: pytest.MonkeyPatch) -> None:
        module = importlib.import_module(GUARDS)
        if kind is None:
            monkeypatch.delattr(module, "TensorGuards")
        else:
            monkeypatch.setattr(module, "TensorGuards", kind)

    return take


def no_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("torch._dynamo")  # which cannot do without, and is there once an optimizer is made
    monkeypatch.setitem(sys.modules, GUARDS, None)


#: Private names of which a step would be faster, and ways to take them away.
FASTER: dict[str, Take] = {
    "_foreach_copy_": lambda monkeypatch: monkeypatch.delattr(torch, "_foreach_copy_"),
    "torch._C._dynamo.guards": no_guards,
    "TensorGuards": guards_in_place_of(None),
    "TensorGuards, other arguments": guards_in_place_of(NoArguments),
    "TensorGuards, another check": guards_in_place_of(GuardsWithAnotherCheck),
}


def from_us(name: str) -> Take:
    """Take an attribute of optimizers from lionbits alone: torch itself cannot do without."""

    def get(self: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"] == torch_private.__name__:
            raise AttributeError(name)
        return self.__dict__[name]

    def put(self: Any, value: Any) -> None:
        self.__dict__[name] = value

    return lambda monkeypatch: monkeypatch.setattr(Optimizer, name, property(get, put), raising=False)


def module_without(module: str, name: str) -> Take:
    """Take a name of a module of torch from lionbits alone."""

    def take(monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(torch_private, module)
        assert hasattr(real, name)
        rest = {key: value for key, value in vars(real).items() if key != name}
        monkeypatch.setattr(torch_private, module, SimpleNamespace(**rest))

    return take


def no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch wraps every step, whatever is marked."""

    def patch(self: Optimizer) -> None:
        kind: Any = type(self)
        if not getattr(kind.step, "wrapped_by_torch", False):
            kind.step = Optimizer.profile_hook_step(kind.step)
            kind.step.wrapped_by_torch = True

    monkeypatch.setattr(Optimizer, "_patch_step_function", patch)


#: Private names by which a step calls hooks, and ways to take them away.
HOOKS: dict[str, Take] = {
    "profile_hook_step": module_without("Optimizer", "profile_hook_step"),
    "profile_hook_step, other arguments": lambda monkeypatch: monkeypatch.setattr(
        torch_private, "Optimizer", SimpleNamespace(profile_hook_step=NoArguments)
    ),
    "profile_hook_step, no function": lambda monkeypatch: monkeypatch.setattr(
        torch_private, "Optimizer", SimpleNamespace(profile_hook_step=lambda step: object())
    ),
    "hooked": no_mark,
    "_is_profiler_enabled": module_without("profiler", "_is_profiler_enabled"),
    "_global_optimizer_pre_hooks": module_without("optimizer", "_global_optimizer_pre_hooks"),
    "_global_optimizer_post_hooks": module_without("optimizer", "_global_optimizer_post_hooks"),
    "_optimizer_step_pre_hooks": from_us("_optimizer_step_pre_hooks"),
    "_optimizer_step_post_hooks": from_us("_optimizer_step_post_hooks"),
}

#: Private names that are taken away elsewhere: of DTensor, by ``distributed/test_shards_private.py``. Nothing can stand
#: for the mark of FSDP1; that this torch sets it is seen by ``distributed/test_shards_others.py``.
#: The hooks of parameters are taken away by ``test_backward_replaced.py``.
ELSEWHERE = {"_post_accumulate_grad_hooks", "_in_backward_optimizers"}
ELSEWHERE |= {"_local_tensor", "DTensorSpec", "TensorMeta", "torch.distributed.tensor._dtensor_spec", "_fsdp_flattened"}


def found_in(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.mark.parametrize("package", HOMES)
def test_one_module_takes_private_names(package: str) -> None:
    folder, home = found_in(package), HOMES[package]
    trees = sources(folder)
    ours = defined(list(trees.values()))
    taking = {str(path.relative_to(folder)): names for path, tree in trees.items() if (names := taken(tree, ours))}
    assert taking.keys() == ({home} if home else set()), taking


def test_each_of_them_is_taken_away_by_a_test() -> None:
    trees = sources(found_in("lionbits"))
    (home,) = [tree for path, tree in trees.items() if path.name == HOMES["lionbits"]]
    tried = {name for name in (*FASTER, *HOOKS) if "," not in name}
    assert taken(home, defined(list(trees.values()))) == tried | ELSEWHERE


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch._C import _x",
        "from torch import _foreach_add_",
        "from torch.distributed.tensor._utils import compute",
        "from triton.runtime import driver",
        "importlib.import_module('torch._C._dynamo.guards')",
        "tensor._local_tensor",
        "getattr(tensor, '_fsdp_flattened', False)",
        "self._optimizer_step_pre_hooks",
        "Optimizer.profile_hook_step(step)",
        "replace(options, sanitize_overflow=False)",
    ],
)
def test_private_names_are_found(source: str) -> None:
    assert taken(ast.parse(source), {"_mine"})


def test_ours_are_no_private_names_of_others() -> None:
    source = "class A:\n    def _mine(self):\n        self._x = sys._getframe()\n        return self._x._mine()\n"
    tree = ast.parse(source)
    assert not taken(tree, defined([tree]))


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    times: list[int] = []
    original = prepare.prepare

    def counted(*args: Any) -> None:
        times.append(len(args[0]))
        original(*args)

    monkeypatch.setattr(prepare, "prepare", counted)
    return times


@pytest.mark.parametrize("kind", [Lion, Lion8bit, PagedLion8bit])
@pytest.mark.parametrize("take", FASTER.values(), ids=FASTER)
def test_a_step_does_without(
    take: Take, kind: type[Lion], prepared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is prepared again but where strides change, and every bit is the same."""
    ends = []
    for gone in (False, True):
        if gone:
            take(monkeypatch)
        params = weights()
        optimizer = kind(params)
        train(optimizer, params, (1, 2, 3))
        assert len(prepared) == 1
        for position, param in enumerate(params):
            param.grad = gradient(param, position, 4)
        assert params[0].grad is not None
        params[0].grad = params[0].grad.t().contiguous().t()
        optimizer.step()
        assert len(prepared) == 2
        prepared.clear()
        ends.append(snapshot(optimizer))
    assert_same(*ends)


def made_anew(kind: type[Lion]) -> type[Lion]:
    """The class as it would be if it was imported now."""
    raw: Any = Lion.step
    return type(kind.__name__, (kind,), {"step": decorators.hooked_if_watched(raw.__wrapped__)})


def with_own_step(base: type[Lion]) -> type[Lion]:
    """A subclass of which torch wraps the step."""

    def step(self: Lion, closure: Any = None) -> Any:
        return base.step(self, closure)

    return type("Own", (base,), {"step": step})


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """Which of the global hooks have run."""
    names: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: names.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: names.append("global post")),
    ]
    yield names
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("take", HOOKS.values(), ids=HOOKS)
def test_hooks_run_without(take: Take, monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> None:
    """Each once and in order, of a subclass with a step of its own, too; and the same bits as with none."""
    params = weights()
    plain = Lion8bit(params)
    train(plain, params, (1, 2))
    seen.clear()
    take(monkeypatch)
    for kind in (made_anew(Lion8bit), with_own_step(made_anew(Lion8bit))):
        params = weights()
        optimizer = kind(params)
        handles = [
            optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
            optimizer.register_step_post_hook(lambda *_: seen.append("post")),
        ]
        train(optimizer, params, (1,))
        assert seen == ["global pre", "pre", "post", "global post"]
        for handle in handles:
            handle.remove()
        train(optimizer, params, (2,))
        seen.clear()
        assert_same(snapshot(optimizer)["state"], snapshot(plain)["state"])
        assert_same(snapshot(optimizer)["params"], snapshot(plain)["params"])


@pytest.mark.parametrize("take", HOOKS.values(), ids=HOOKS)
def test_profilers_see_a_step_without(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch)
    params = weights()
    optimizer = made_anew(Lion8bit)(params)
    with torch.profiler.profile() as profile:
        train(optimizer, params, (1,))
    names = [event.name for event in profile.events() or ()]
    assert names.count("Optimizer.step#Lion8bit.step") == 1
