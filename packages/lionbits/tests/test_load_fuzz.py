"""State dicts that were changed at random: each is refused with nothing changed, or loaded and good for more steps."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lionbits import Lion, groups
from lionbits.state import entries

from .family import FAMILY, Variant, assert_same, snapshot, train, weights

#: Over this many cases, of which `--smoke` runs some, as many state dicts each: `nox -s fuzz` sets others.
CASES, EACH = int(os.environ.get("LIONBITS_FUZZ_CASES", "48")), 70

#: What all of chance follows from.
SEED = int(os.environ.get("LIONBITS_FUZZ_SEED", "0"))

SETTINGS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "percentile_clipping": 50, "rounding": "stochastic"}

#: What may stand in the place of anything.
JUNK: list[Callable[[], Any]] = [
    lambda: None,
    lambda: -1,
    lambda: 0,
    lambda: 7,
    lambda: 0.5,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: 10**400,
    lambda: True,
    lambda: "x",
    lambda: "1e-4",
    list,
    dict,
    lambda: (0.5, 0.75),
    lambda: b"x",
    lambda: np.float64(0.25),
    lambda: np.array([1.0, 2.0]),
    object,
    lambda: torch.tensor(1),
    lambda: torch.tensor(0.5, device="meta"),
    lambda: torch.tensor(float("nan")),
    lambda: torch.zeros(3, 3),
    lambda: torch.eye(3).to_sparse(),
    lambda: "nearest",
    lambda: "compensated",
    lambda: "e4m3",
    lambda: 100,
    lambda: 32,
    lambda: 8,
]

#: What may become of a tensor, if its values can be read.
TENSORS: list[Callable[[Tensor], Any]] = [
    lambda t: t.to(torch.float64),
    lambda t: t.to(torch.bfloat16),
    lambda t: t.to("meta"),
    lambda t: t[..., None],
    lambda t: t.reshape(-1),
    lambda t: t.reshape(-1)[:1],
    lambda t: -t.to(torch.float32),
    lambda t: t * 0,
    lambda t: torch.full_like(t, 3),
    lambda t: torch.full(t.shape, torch.nan),
    lambda t: torch.full(t.shape, torch.inf),
    lambda t: t.tolist(),
    lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(),
    lambda t: t.t().contiguous().t() if t.dim() == 2 else t,
    lambda t: t.expand(2, *t.shape),
]


def containers(value: Any) -> list[Any]:
    """All dicts and lists within, itself among them."""
    found = [value] if isinstance(value, (dict, list)) and value else []
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        found += containers(item)
    return found


def change(chance: random.Random, given: Any) -> None:
    """Change one thing, in place."""
    place = chance.choice(containers(given))
    key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
    kind = chance.randrange(8)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[chance.choice([str(key), f"{key}_", 3, 1.5, "note", ("a", 1)])] = place.pop(key)
    elif kind == 2 and isinstance(place, dict):
        place[chance.choice([*groups.WHOLE, "exp_avg", "param_residual", "step", "seed", "slow"])] = chance.choice(
            JUNK
        )()
    elif kind == 3:
        other = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key], place[other] = place[other], place[key]
    elif kind == 4 and isinstance(place, list):
        place.append(copy.copy(place[key]))
    elif kind <= 6 and isinstance(place[key], Tensor) and entries.readable(place[key]):
        place[key] = chance.choice(TENSORS)(place[key])
    else:
        place[key] = chance.choice(JUNK)()


def made(variant: Variant, chance: random.Random, *, strict: bool) -> tuple[list[nn.Parameter], Lion]:
    """A running optimizer, over one group or two, with names or, where these are not needed, without."""
    dtype, more = chance.choice([(torch.float32, {}), (torch.bfloat16, {"param_rounding": "compensated"})])
    params = weights(dtype)
    named = not strict or chance.random() < 0.5
    listed: list[Any] = list(zip("abcd", params, strict=True)) if named else list(params)
    parts: list[Any] = [{"params": listed[:2]}, {"params": listed[2:]}] if chance.random() < 0.5 else listed
    optimizer = variant(parts, **SETTINGS, **more)
    train(optimizer, params, [1, 2])
    return params, optimizer


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_state_dict_is_refused_whole_or_loaded_whole(case: int, strict: bool) -> None:
    """After a refusal parameters, state, groups and the next step are, bit for bit, as without the call."""
    chance = random.Random(f"{SEED}, {case}")
    variant = FAMILY[case % len(FAMILY)]
    start = made(variant, chance, strict=strict)
    saved = copy.deepcopy(start[1].state_dict())
    subject, twin = copy.deepcopy(start), copy.deepcopy(start)
    refused = loaded = 0
    for attempt in range(EACH):
        given = copy.deepcopy(saved)
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            change(chance, given)
        try:
            subject[1].load_state_dict(given, strict=strict)
        except (TypeError, ValueError):
            refused += 1
            for params, optimizer in (subject, twin):
                train(optimizer, params, [attempt + 3])
            assert_same(snapshot(subject[1]), snapshot(twin[1]))
        else:
            loaded += 1
            train(subject[1], subject[0], [attempt + 3])
            again = copy.deepcopy(subject)
            again[1].load_state_dict(subject[1].state_dict())
            for params, optimizer in (again, subject):
                train(optimizer, params, [attempt + 4])
            assert_same(snapshot(again[1])["params"], snapshot(subject[1])["params"])
            subject, twin = copy.deepcopy(start), copy.deepcopy(start)
    assert refused > EACH // 3
    assert loaded
