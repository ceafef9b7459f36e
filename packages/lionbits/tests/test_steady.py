"""Works are kept from step to step, and whatever changes between two steps is noticed all the same.

The subject runs on a backend that believes all it is told of a batch: it looks at a slot's parameter and state once,
and reads nothing but gradients afterwards, as one does whose kernels read addresses from a table. The twin forgets its
works before every step.
"""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lionbits_reference
from lionbits import Lion, QLion, steady, watch
from lionbits_reference.spec import Batch, Hyper, Plan, Scalars, Slot

from .family import Variant, assert_same, gradient, snapshot, train, weights

SHAPES = ((64, 64), (64, 64), (70, 61), (33,))
FORMS = {
    "32": {"shapes": SHAPES, "dtype": torch.float32, "settings": {}},
    "8": {"shapes": SHAPES, "dtype": torch.float32, "settings": {"optim_bits": 8}},
    "4, compensated": {
        "shapes": SHAPES,
        "dtype": torch.bfloat16,
        "settings": {"optim_bits": 4, "param_rounding": "compensated", "percentile_clipping": 50, "cautious": "mask"},
    },
}


def _remembered(batch: Sequence[Slot]) -> list[Slot]:
    """The slots as they were when they came for the first time, with the gradients of now."""
    assert isinstance(batch, Batch)
    first = batch.memo.setdefault("believing", [(slot.param.detach(), dict(slot.state)) for slot in batch])
    return [replace(slot, param=param, state=state) for slot, (param, state) in zip(batch, first, strict=True)]


@pytest.fixture
def believing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A backend that makes its table once per batch; ``calls`` are the batches that it was given."""
    module = ModuleType("lionbits_believing")
    for key in ("supports", "encode", "decode"):
        setattr(module, key, getattr(lionbits_reference, key))
    calls: list[Sequence[Slot]] = []

    def step(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> None:
        calls.append(slots)
        lionbits_reference.step(plan, _remembered(slots), hyper, scalars)

    def aligned(plan: Plan, slots: Sequence[Slot], hyper: Hyper, scalars: Scalars) -> Tensor:
        return lionbits_reference.aligned(plan, _remembered(slots), hyper, scalars)

    vars(module).update(name="believing", step=step, aligned=aligned, absmax=lionbits_reference.absmax, calls=calls)
    monkeypatch.setitem(sys.modules, "lionbits_believing", module)
    return module


class Pair:
    """A subject and its twin, to whom the same happens."""

    def __init__(self, believing: ModuleType, form: str, **more: Any) -> None:
        settings = {"lr": 0.01, "weight_decay": 0.1, **FORMS[form]["settings"], **more}
        made = [weights(FORMS[form]["dtype"], FORMS[form]["shapes"]) for _ in range(2)]
        self.subject = Lion(_groups(made[0]), **settings, backend=believing)
        self.twin = Lion(_groups(made[1]), **settings, backend="reference")
        self.params = dict(zip((self.subject, self.twin), made, strict=True))
        self.taken = 0

    def step(self, times: int = 1, grad: Callable[[Tensor, int, int], Tensor | None] = gradient) -> None:
        for _ in range(times):
            self.taken += 1
            for params in self.params.values():
                for position, param in enumerate(params):
                    param.grad = grad(param, position, self.taken)
            self.update()

    def update(self) -> None:
        """A step with the gradients that there are."""
        self.twin._steady = None
        self.subject.step()
        self.twin.step()
        self.same()

    def both(self, event: Callable[[Lion, list[nn.Parameter]], object]) -> None:
        for optimizer, params in self.params.items():
            event(optimizer, params)

    def same(self) -> None:
        for key in ("params", "state", "groups"):
            assert_same(snapshot(self.subject)[key], snapshot(self.twin)[key])
        assert self.subject.skipped_elements() == self.twin.skipped_elements()


def _groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:1]}, {"params": params[1:3], "weight_decay": 0.2}, {"params": params[3:]}]


@pytest.fixture(params=FORMS)
def pair(request: pytest.FixtureRequest, believing: ModuleType) -> Iterator[Pair]:
    made = Pair(believing, request.param)
    made.step(3)
    yield made
    made.step(2)


def test_the_same_batch_comes_again(believing: ModuleType) -> None:
    """What a backend keeps in the memo of a batch is there at the next step."""
    params = weights()
    optimizer = Lion(params, optim_bits=8, backend=believing)
    train(optimizer, params, (1, 2, 3))
    batches = {id(batch) for batch in believing.calls}
    assert len(believing.calls) == 3 * len(batches)


def _settings(**settings: Any) -> Callable[[Lion, list[nn.Parameter]], None]:
    def change(optimizer: Lion, params: list[nn.Parameter]) -> None:
        for group in optimizer.param_groups:
            group.update(settings)

    return change


def _of_last_group(**settings: Any) -> Callable[[Lion, list[nn.Parameter]], None]:
    return lambda optimizer, params: optimizer.param_groups[-2].update(settings)


def _moved(optimizer: Lion, params: list[nn.Parameter]) -> None:
    """The list of all parameters stays as it is; one of them gets other settings."""
    first, second = optimizer.param_groups[:2]
    first["params"].append(second["params"].pop(0))


def _replaced_tensors(optimizer: Lion, params: list[nn.Parameter]) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = value.clone()


def _replaced_tensor_lives_on(optimizer: Lion, params: list[nn.Parameter]) -> None:
    state = optimizer.state[params[1]]
    optimizer.held = dict(state)  # type: ignore[attr-defined]
    key = next(key for key, value in state.items() if isinstance(value, Tensor) and key.startswith("exp_avg"))
    state[key] = state[key].clone()


def _swapped_states(optimizer: Lion, params: list[nn.Parameter]) -> None:
    state = optimizer.state
    state[params[0]], state[params[1]] = state[params[1]], state[params[0]]


def _given_to_another(optimizer: Lion, params: list[nn.Parameter]) -> None:
    last = next(reversed(optimizer.state))
    optimizer.state[nn.Parameter(torch.zeros(1))] = optimizer.state.pop(last)


def _swap_data(param: Tensor, value: Tensor) -> None:
    param.data = value


def _each(change: Callable[[Tensor], Tensor]) -> Callable[[Lion, list[nn.Parameter]], None]:
    def swap(optimizer: Lion, params: list[nn.Parameter]) -> None:
        for param in params:
            param.data = change(param.data)

    return swap


EVENTS: dict[str, Callable[[Lion, list[nn.Parameter]], Any]] = {
    "nothing": lambda optimizer, params: None,
    "lr": _settings(lr=0.05),
    "lr of a group": _of_last_group(lr=0.05),
    "lr becomes a tensor": _settings(lr=torch.tensor(0.05)),
    "weight_decay": _settings(weight_decay=0.5),
    "maximize": _settings(maximize=True),
    "maximize of a group": _of_last_group(maximize=True),
    "betas": _settings(betas=(0.5, 0.6)),
    "betas of a group": _of_last_group(betas=(0.5, 0.6)),
    "seed": _settings(seed=99),
    "rounding": _settings(rounding="stochastic"),
    "cautious": _settings(cautious="gradient"),
    "another cautious mask": _settings(cautious="c-optim"),
    "grad_clip": _settings(grad_clip=0.1),
    "percentile_clipping": _settings(percentile_clipping=3),
    "percentile_clipping off": _settings(percentile_clipping=100),
    "nonfinite": _settings(nonfinite="propagate"),
    "params reversed in place": lambda optimizer, params: optimizer.param_groups[1]["params"].reverse(),
    "params removed in place": lambda optimizer, params: optimizer.param_groups[1]["params"].pop(),
    "params in another list": lambda optimizer, params: optimizer.param_groups[1].update(params=params[2:0:-1]),
    "a parameter in another group": _moved,
    "groups reversed": lambda optimizer, params: optimizer.param_groups.reverse(),
    "a group is gone": lambda optimizer, params: optimizer.param_groups.pop(),
    "groups in another list": lambda optimizer, params: setattr(
        optimizer, "param_groups", [{**group, "lr": 0.05} for group in optimizer.param_groups]
    ),
    "a group in another dict": lambda optimizer, params: optimizer.param_groups.__setitem__(
        0, dict(optimizer.param_groups[0])
    ),
    "a new group": lambda optimizer, params: optimizer.add_param_group({"params": weights()[:1]}),
    "data swapped": _each(torch.clone),
    "data of one swapped": lambda optimizer, params: _swap_data(params[1], params[1].data + 1),
    "data transposed in place": lambda optimizer, params: _swap_data(params[1], params[1].data.t()),
    "state cleared": lambda optimizer, params: optimizer.state.clear(),
    "state of one cleared": lambda optimizer, params: optimizer.state[params[1]].clear(),
    "state of one gone": lambda optimizer, params: optimizer.state.pop(params[1]),
    "state in another dict": lambda optimizer, params: setattr(
        optimizer, "state", defaultdict(dict, {key: dict(value) for key, value in optimizer.state.items()})
    ),
    "state of one in another dict": lambda optimizer, params: optimizer.state.update(
        {params[1]: dict(optimizer.state[params[1]])}
    ),
    "state swapped": _swapped_states,
    "state given to another": _given_to_another,
    "state tensors replaced": _replaced_tensors,
    "a state tensor replaced that lives on": _replaced_tensor_lives_on,
    "norms gone": lambda optimizer, params: [state.pop("grad_norms", None) for state in optimizer.state.values()],
    "step set by hand": lambda optimizer, params: optimizer.state[params[1]].update(step=77),
    "loaded": lambda optimizer, params: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_what_changes_between_steps_is_noticed(pair: Pair, event: Callable[[Lion, list[nn.Parameter]], Any]) -> None:
    pair.both(event)
    pair.step(2)


def test_betas_that_are_a_list_may_change_in_place(believing: ModuleType) -> None:
    pair = Pair(believing, "8", betas=[0.9, 0.99])
    pair.step(2)
    pair.both(lambda optimizer, params: [group["betas"].__setitem__(0, 0.3) for group in optimizer.param_groups])
    pair.step(2)


def test_a_tensor_learning_rate_is_read_at_every_step(believing: ModuleType) -> None:
    pair = Pair(believing, "8", lr=torch.tensor(0.01))
    pair.step(2)
    pair.subject.param_groups[0]["lr"].fill_(0.1)  # the twin's, too: groups share the default
    pair.step(2)
    pair.subject.param_groups[0]["lr"].fill_(-1.0)
    with pytest.raises(ValueError, match="lr=-1"):
        pair.step()


def test_an_address_that_is_used_again_is_not_taken_for_what_was_there() -> None:
    """A state tensor dies, and the next is born where it was."""
    params = weights()
    optimizer = Lion(params)
    train(optimizer, params, (1, 2))
    kept, state = optimizer._steady, optimizer.state[params[1]]
    value, place = state["exp_avg"].clone(), id(state["exp_avg"])
    del state["exp_avg"]
    born = [value.detach()]
    while id(born[-1]) != place and len(born) < 1000:
        born.append(value.detach())
    assert id(born[-1]) == place
    state["exp_avg"] = born[-1]
    train(optimizer, params, (3,))
    assert optimizer._steady is not kept


def test_rates_are_written_when_they_change(believing: ModuleType) -> None:
    """A rate that was taken is not taken again."""
    pair = Pair(believing, "8")
    pair.step(2)
    kept = pair.subject._steady
    pair.both(_settings(lr=0.05))
    pair.step(1)
    assert kept is not None
    assert kept is pair.subject._steady
    assert not kept._groups.restless(pair.subject.param_groups)


def test_parameters_come_and_go(pair: Pair) -> None:
    """Which parameters have gradients changes."""
    for absent in ({1}, {1, 2}, set(), {0, 1, 2, 3}, {0, 3}):
        pair.step(
            2,
            lambda param, position, step, absent=absent: (
                None if position in absent else gradient(param, position, step)
            ),
        )


def test_parameters_freeze_and_thaw(pair: Pair) -> None:
    """A gradient that a frozen parameter still has is not used."""
    for freezes in (True, False):
        pair.both(lambda optimizer, params, freezes=freezes: params[1].requires_grad_(not freezes))
        pair.update()
        pair.update()


def test_strides_of_a_gradient_change(pair: Pair) -> None:
    """The kept batch promises a backend that these stay."""
    assert pair.subject._steady is not None
    batch = pair.subject._steady._works[0][0].batch
    pair.step(
        1,
        lambda param, position, step: (
            gradient(param, position, step).t().contiguous().t()
            if param.dim() == 2
            else gradient(param, position, step)
        ),
    )
    assert pair.subject._steady._works[0][0].batch is not batch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_a_gradient_changes(believing: ModuleType, dtype: torch.dtype) -> None:
    pair = Pair(believing, "8")
    pair.step(2)
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this torch has gradients of the parameter's dtype only")
    pair.both(lambda optimizer, params: [setattr(param, "grad_dtype", None) for param in params])
    pair.step(2, lambda param, position, step: gradient(param, position, step).to(dtype))
    pair.step(2)


def _sparse(param: nn.Parameter) -> None:
    param.grad = torch.sparse_coo_tensor([[0], [0]], [1.0], tuple(param.shape), check_invariants=True)


REFUSED: dict[str, tuple[Callable[[Lion, list[nn.Parameter]], Any], type[Exception], str]] = {
    "sparse": (lambda optimizer, params: _sparse(params[1]), RuntimeError, "sparse"),
    "lr": (_settings(lr=-1.0), ValueError, "lr=-1"),
    "lr of True": (_settings(lr=True), TypeError, "lr=True"),
    "weight_decay": (_settings(weight_decay=-1.0), ValueError, "weight_decay"),
    "maximize": (_settings(maximize=1), TypeError, "maximize=1"),
    "betas": (_settings(betas=(2.0, 0.9)), ValueError, "betas"),
    "no betas": (_settings(betas=None), TypeError, "betas"),
    "percentile_clipping": (_settings(percentile_clipping=100.0), TypeError, "percentile_clipping"),
    "bits": (_settings(optim_bits=4, state_format=None), ValueError, "does not fit"),
    "shape": (lambda optimizer, params: _swap_data(params[1], params[1].data.view(32, 128)), ValueError, "shape"),
    "state": (lambda optimizer, params: optimizer.state[params[1]].pop("exp_avg_codes"), ValueError, "does not fit"),
}


@pytest.mark.parametrize(("event", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_refused_at_any_step(
    believing: ModuleType, event: Callable[[Lion, list[nn.Parameter]], Any], error: type[Exception], message: str
) -> None:
    pair = Pair(believing, "8")
    pair.step(2)
    for optimizer, params in pair.params.items():
        event(optimizer, params)
        before = snapshot(optimizer)
        for _ in range(2):
            with pytest.raises(error, match=message):
                optimizer.step()
        assert_same(snapshot(optimizer), before)


def test_a_setting_that_is_gone_is_missed(believing: ModuleType) -> None:
    pair = Pair(believing, "8")
    pair.step(2)
    del pair.subject.param_groups[0]["lr"]
    with pytest.raises(KeyError, match="lr"):
        pair.subject.step()


def test_a_backend_may_be_put_in_another_place(believing: ModuleType) -> None:
    pair = Pair(believing, "8")
    pair.step(2)
    calls = len(believing.calls)
    pair.subject._backend = lionbits_reference
    pair.step(2)
    assert len(believing.calls) == calls


def test_copies_share_nothing_that_is_kept(variant: Variant) -> None:
    """Original and copies go separate ways, and each as if it were alone."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    twins = [copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))]
    for _, twin in twins:
        assert twin._steady is None
    train(optimizer, params, (3, 4))
    for their_params, twin in twins:
        train(twin, their_params, (3, 4))
        assert_same(snapshot(twin), snapshot(optimizer))


def test_a_backend_that_fails_is_not_built_upon(believing: ModuleType) -> None:
    """After an exception from within a backend the works are made anew, from the counts that users see."""
    pair = Pair(believing, "8")
    pair.both(_of_last_group(betas=(0.5, 0.9)))  # a second work whose lanes depend on its count
    pair.step(2)

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    kept, believing.step = believing.step, fail
    with pytest.raises(RuntimeError, match="luck"):
        pair.subject.step()
    believing.step = kept
    pair.twin.state = copy.deepcopy(pair.twin.state)
    for state in pair.twin.state.values():
        state["step"] += 1
    pair.twin.state = defaultdict(dict, zip(pair.params[pair.twin], pair.twin.state.values(), strict=True))
    assert all(param.grad is not None for param in pair.params[pair.subject])
    pair.step(2)


def test_gradients_die_when_they_are_let_go_of(variant: Variant) -> None:
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    refs = [weakref.ref(param.grad) for param in params]
    gc.disable()
    try:
        optimizer.zero_grad()
        assert not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_state_dies_with_the_optimizer(variant: Variant) -> None:
    """At once: nothing waits for the garbage collector."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    refs = [
        weakref.ref(value) for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    gc.disable()
    try:
        del optimizer
        assert not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_what_is_moved_away_leaves_its_place(variant: Variant) -> None:
    """State and parameters that are replaced between steps, to make room, do not live on in what is kept."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    refs = [
        weakref.ref(value) for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    storages = [weakref.ref(param.untyped_storage()) for param in params]
    gc.disable()
    try:
        _replaced_tensors(optimizer, params)
        _each(torch.clone)(optimizer, params)
        assert not [ref for ref in (*refs, *storages) if ref() is not None]
    finally:
        gc.enable()


def test_loading_lets_go_of_what_was_there(variant: Variant) -> None:
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1, 2))
    saved = copy.deepcopy(optimizer.state_dict())
    refs = [
        weakref.ref(value) for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    gc.disable()
    try:
        optimizer.load_state_dict(saved)
        assert not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_counts_are_read_back_after_a_capture(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay counts on the device alone; checkpoints, copies and later steps hear of it."""
    params = weights()
    optimizer = variant(params)
    train(optimizer, params, (1,))
    monkeypatch.setattr(steady, "capturing", lambda device: True)
    train(optimizer, params, (2,))
    monkeypatch.undo()
    assert optimizer._steady is not None
    for w, _ in optimizer._steady._works:
        w.numbers.step.add_(5)  # as replays do
    for state in optimizer.state_dict()["state"].values():
        assert state["step"] == 7
    for w, _ in optimizer._steady._works:
        w.numbers.step.add_(1)
    assert {state["step"] for state in copy.deepcopy(optimizer).state.values()} == {8}
    for w, _ in optimizer._steady._works:
        w.numbers.step.add_(1)
    train(optimizer, params, (3,))
    assert {state["step"] for state in optimizer.state.values()} == {10}
    for w, _ in optimizer._steady._works:
        w.numbers.step.add_(1)
    optimizer.state[params[0]]["step"] = 3  # by hand, which counts more
    optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    train(optimizer, params, (4,))
    assert [state["step"] for state in optimizer.state.values()].count(12) == len(params) - 1
    assert optimizer.state[params[0]]["step"] == 4


def test_a_capture_needs_a_step_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded for a captured step would be uploaded again at every replay, counts among it."""
    params = weights()
    optimizer = Lion(params)
    monkeypatch.setattr(steady, "capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="Take a step"):
        train(optimizer, params, (1,))
    assert not optimizer.state


def test_without_torchs_guards_the_same_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison in Python, for a torch that has none in C++, tells the same apart."""
    square, strided = torch.zeros(4, 4), torch.zeros(8, 4)[::2]
    cases: list[tuple[Any, Any]] = [
        (square, torch.ones(4, 4)),
        (square, square.double()),
        (square, torch.zeros(2, 8)),
        (square, strided),
        (square, nn.Parameter(square)),
        (nn.Parameter(square), nn.Parameter(square, requires_grad=False)),
        (square, square.to_sparse()),
        (square, square.to("meta")),
        (square, None),
    ]
    fast = [watch._alike([then])(now) for then, now in cases]
    monkeypatch.setitem(sys.modules, "torch._C._dynamo.guards", None)
    slow = [watch._alike([then])(now) for then, now in cases]
    assert fast == slow == [True] + [False] * (len(cases) - 1)


def test_one_gradient_for_two_parameters(believing: ModuleType) -> None:
    pair = Pair(believing, "8")
    pair.step(1)
    for taken in (5, 6):
        for params in pair.params.values():
            params[0].grad = params[1].grad = gradient(params[0], 0, taken)
        pair.update()


def test_qlion_keeps_too(believing: ModuleType) -> None:
    params = weights()
    optimizer = QLion(params, use_4bit=True, backend=believing)
    train(optimizer, params, (1, 2))
    assert len({id(batch) for batch in believing.calls}) * 2 == len(believing.calls)
