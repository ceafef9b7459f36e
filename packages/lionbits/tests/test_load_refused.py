"""A refused ``load_state_dict`` changes nothing: parameters, state, groups, and the next step, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import lionbits_reference
from lionbits import Lion, groups
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
        f"{key} in a group": lambda given, key=key: given["param_groups"][1].update({key: None})
        for key in groups.WHOLE
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
