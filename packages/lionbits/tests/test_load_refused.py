"""A refused ``load_state_dict`` changes nothing: parameters, state, groups, and the next step, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import lionbits_reference
from lionbits import Lion, Lion8bit, groups
from lionbits.paging import Paged, Resident
from lionbits_reference.spec import Plan

from .family import Variant, assert_same, snapshot, train, weights

State = dict[str, Any]
SETTINGS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "percentile_clipping": 50, "rounding": "stochastic"}


def twins(variant: Callable[..., Lion], **more: Any) -> list[tuple[list[torch.nn.Parameter], Lion]]:
    """Two optimizers after the same three steps."""
    made = []
    for _ in range(2):
        params = weights()
        optimizer = variant([{"params": params[:2]}, {"params": params[2:]}], **SETTINGS, **more)
        train(optimizer, params, [1, 2, 3])
        made.append((params, optimizer))
    return made


def assert_untouched(
    subject: tuple[list[torch.nn.Parameter], Lion], twin: tuple[list[torch.nn.Parameter], Lion]
) -> None:
    """The subject is as the twin, now and after a step."""
    assert_same(snapshot(subject[1]), snapshot(twin[1]))
    for params, optimizer in (subject, twin):
        train(optimizer, params, [4])
    assert_same(snapshot(subject[1]), snapshot(twin[1]))
    assert_same(subject[1].state_dict(), twin[1].state_dict())


#: What ends in a refusal after torch has looked at a state dict, were it not looked at before.
LATE: dict[str, Callable[[State], Any]] = {
    **{
        f"{key} in a group": lambda given, key=key: given["param_groups"][1].update({key: None}) for key in groups.WHOLE
    },
    "a group's other seed": lambda given: given["param_groups"][1].update(seed=5),
    "a note that cannot be copied": lambda given: given["param_groups"][1].update(note=ModuleType("note")),
}


@pytest.mark.parametrize("name", LATE)
def test_what_is_refused_late_changes_nothing(variant: Variant, name: str) -> None:
    subject, twin = twins(variant)
    given = copy.deepcopy(subject[1].state_dict())
    LATE[name](given)
    with pytest.raises((TypeError, ValueError), match=r"page_dir|param_groups\[1\]|seeds|pickle"):
        subject[1].load_state_dict(given)
    assert_untouched(subject, twin)


def test_settings_that_no_backend_serves_are_refused_on_loading() -> None:
    """And not at the next step, when the state that could be served is gone."""
    module = ModuleType("lionbits_plain")
    vars(module).update({key: getattr(lionbits_reference, key) for key in lionbits_reference.__all__})

    def supports(plan: Plan, device: torch.device) -> str:
        return "no caution here" if plan.caution == "mask" else ""

    vars(module).update(name="plain", supports=supports)
    subject, twin = twins(Lion, optim_bits=8, backend=module)
    given = copy.deepcopy(subject[1].state_dict())
    given["param_groups"][0]["cautious"] = "mask"
    with pytest.raises(ValueError, match="no caution here"):
        subject[1].load_state_dict(given)
    assert_untouched(subject, twin)


def test_a_users_hook_that_fails_changes_nothing(variant: Variant) -> None:
    subject, twin = twins(variant)
    given = subject[1].state_dict()

    def fail(*_: object) -> None:
        raise RuntimeError("from the hook")

    handle = subject[1].register_load_state_dict_pre_hook(fail)
    with pytest.raises(RuntimeError, match="from the hook"):
        subject[1].load_state_dict(given)
    handle.remove()
    assert_untouched(subject, twin)


#: Tensors that are no plain memory.
KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse by rows": lambda tensor: tensor.reshape(1, -1).to_sparse_csr(),
    "mkldnn": lambda tensor: tensor.reshape(1, -1).float().to_mkldnn(),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor.reshape(-1)], layout=torch.jagged),
    "old nested": lambda tensor: torch.nested.nested_tensor([tensor.reshape(-1)]),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor.float(), 1.0, 0, torch.quint8),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors|quantize_per_tensor).*:UserWarning")
def test_tensors_that_are_no_plain_memory_are_refused(variant: Variant, kind: str) -> None:
    """Each tensor of a state, and a learning rate: ValueError or TypeError, with the parameter and the name."""
    subject, twin = twins(variant)
    saved = subject[1].state_dict()
    for key, state in saved["state"].items():
        for name, value in state.items():
            if (kind, name) == ("quantised", "step"):  # which can be read
                continue
            given = {**saved, "state": {**saved["state"], key: {**state, name: KINDS[kind](value)}}}
            with pytest.raises(ValueError, match=rf"parameter {key}\b.*{name}"):
                subject[1].load_state_dict(given)
    for rate in (KINDS[kind](torch.tensor(0.5).reshape(1)),):
        given = {**saved, "param_groups": [{**group, "lr": rate} for group in saved["param_groups"]]}
        with pytest.raises((TypeError, ValueError), match=r"param_groups\[0\].*lr"):
            subject[1].load_state_dict(given)
        with pytest.raises((TypeError, ValueError), match=r"^lr|Tensor lr"):
            variant(weights(), lr=rate)
    assert_untouched(subject, twin)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "quantised"])
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors|quantize_per_tensor).*:UserWarning")
def test_tensors_that_are_no_plain_memory_are_refused_at_a_step(variant: Variant, kind: str) -> None:
    """Where somebody put one into the state of a running optimizer: kernels take addresses."""
    subject, twin = twins(variant)
    params, optimizer = subject
    for param in params:
        held = optimizer.state[param]
        for name, value in dict(held).items():
            held[name] = KINDS[kind](value)
            shown = [other.detach().clone() for other in params]
            with pytest.raises(ValueError, match=rf"state of a parameter of shape .*{name}"):
                train(optimizer, params, [4])
            assert_same([other.detach() for other in params], shown)
            if name.startswith("exp_avg"):
                with pytest.raises(ValueError, match=rf"state of a parameter of shape .*{name}"):
                    optimizer.momentum(param)
            held[name] = value
    assert_untouched(subject, twin)


@pytest.mark.parametrize("value", [10**400, 10**5000, -(10**400)], ids=["400 digits", "5000 digits", "negative"])
@pytest.mark.parametrize(
    "name", ["lr", "weight_decay", "grad_clip", "betas", "seed", "percentile_clipping", "block_size"]
)
def test_numbers_beyond_floats_are_refused(name: str, value: int) -> None:
    """In the constructor, in a group that was edited, and in a checkpoint; in a line that can be read."""
    (params, optimizer), twin = twins(Lion8bit)
    given = copy.deepcopy(optimizer.state_dict())
    shown: Any = (value, 0.9) if name == "betas" else value
    kept = optimizer.param_groups[0][name]
    given["param_groups"][0][name] = optimizer.param_groups[0][name] = shown
    for call in (
        lambda: Lion(weights(), **{name: shown}),
        lambda: optimizer.load_state_dict(given),
        lambda: train(optimizer, params, [4]),
    ):
        with pytest.raises(ValueError, match=name) as caught:
            call()
        assert len(str(caught.value)) < 600
    optimizer.param_groups[0][name] = kept
    assert_untouched((params, optimizer), twin)


def test_state_on_another_device_is_refused_by_name(variant: Variant) -> None:
    """Each tensor of a state, and all of it: the model was moved and its state was not, or one tensor by hand.

    A fused kernel would take the address of memory that it cannot reach.
    """
    subject, twin = twins(variant)
    params, optimizer = subject
    for name in dict(optimizer.state[params[0]]):
        if name == "step":
            continue
        kept = optimizer.state[params[0]][name]
        optimizer.state[params[0]][name] = kept.to("meta")
        with pytest.raises(ValueError, match=rf"{name} is on meta, it must be on cpu.*load_state_dict"):
            train(optimizer, params, [4])
        optimizer.state[params[0]][name] = kept
    kept_states = {param: dict(optimizer.state[param]) for param in params}
    for state in optimizer.state.values():
        state.update({name: value.to("meta") for name, value in state.items() if name != "step"})
    with pytest.raises(ValueError, match=r"on another device than its update: exp_avg\w* is on meta, .* on cpu"):
        train(optimizer, params, [4])
    optimizer.state.update(kept_states)
    assert_untouched(subject, twin)


def test_state_that_stayed_behind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model was moved: its parameters are updated where the state is not. Loading moves it."""
    (_, optimizer), _ = twins(Lion8bit)
    optimizer._step_cache = None
    monkeypatch.setattr(Resident, "reaches", lambda self, device: [torch.device("meta")])
    with pytest.raises(ValueError, match=r"exp_avg_codes is on cpu, it must be on meta. Move the model first"):
        train(optimizer, optimizer.param_groups[0]["params"], [4])


@pytest.mark.parametrize("compute", ["device", "host"])
def test_paged_state_may_be_on_the_host(compute: str) -> None:
    """Where the parameter is elsewhere: there, or on the host; with ``paged_compute="host"`` on the host alone."""
    near, far, other = torch.device("cuda:0"), torch.device("cpu"), torch.device("meta")
    assert Paged(paged_compute=compute).reaches(near) == ([near, far] if compute == "device" else [far])
    assert Paged(paged_compute=compute).reaches(far) == [far]
    assert Resident().reaches(other) == [other]
