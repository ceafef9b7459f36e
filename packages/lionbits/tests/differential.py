"""Differential runs: the same happens to two optimizers, of which one keeps its step cache and the other does not.

The subject runs on a backend that looks at parameters and state when it prepares, and reads nothing but gradients
afterwards, as one does whose kernels read addresses from a table. The twin forgets its step cache before every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lionbits import Lion
from lionbits_conformance import address_caching
from lionbits_reference.spec import Hyper, Prepared, Scalars

from .family import assert_same, gradient, snapshot, weights

#: What happens between two steps.
Event = Callable[[Lion, list[nn.Parameter]], Any]

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


def address_caching_backend() -> ModuleType:
    """The backend ``address_caching``; ``calls`` has what it had prepared, for each of its steps."""
    module = ModuleType("lionbits_address_caching")
    for key in address_caching.__all__:
        setattr(module, key, getattr(address_caching, key))
    calls: list[Prepared] = []

    def step(prepared: Prepared, grads: Sequence[Tensor], hyper: Hyper, scalars: Scalars) -> None:
        calls.append(prepared)
        address_caching.step(prepared, grads, hyper, scalars)

    vars(module).update(step=step, calls=calls)
    return module


class DifferentialRun:
    """A subject and its twin, to whom the same happens."""

    def __init__(self, backend: ModuleType, form: str, **more: Any) -> None:
        settings = {"lr": 0.01, "weight_decay": 0.1, **FORMS[form]["settings"], **more}
        made = [weights(FORMS[form]["dtype"], FORMS[form]["shapes"]) for _ in range(2)]
        self.subject = Lion(_groups(made[0]), **settings, backend=backend)
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
        self.twin._step_cache = None
        self.subject.step()
        self.twin.step()
        self.same()

    def both(self, event: Event) -> None:
        for optimizer, params in self.params.items():
            event(optimizer, params)

    def same(self) -> None:
        for key in ("params", "state", "groups"):
            assert_same(snapshot(self.subject)[key], snapshot(self.twin)[key])
        assert self.subject.skipped_elements() == self.twin.skipped_elements()


def _groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:1]}, {"params": params[1:3], "weight_decay": 0.2}, {"params": params[3:]}]


def setting(**settings: Any) -> Event:
    def change(optimizer: Lion, params: list[nn.Parameter]) -> None:
        for group in optimizer.param_groups:
            group.update(settings)

    return change


def setting_of_one(**settings: Any) -> Event:
    return lambda optimizer, params: optimizer.param_groups[-2].update(settings)


def replace_tensors(optimizer: Lion, params: list[nn.Parameter]) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = value.clone()


def swap_data(param: Tensor, value: Tensor) -> None:
    param.data = value


def swap_each(change: Callable[[Tensor], Tensor]) -> Event:
    def swap(optimizer: Lion, params: list[nn.Parameter]) -> None:
        for param in params:
            param.data = change(param.data)

    return swap
