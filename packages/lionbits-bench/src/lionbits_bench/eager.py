"""Plain Lion in PyTorch, tensor by tensor: the baseline of all ratios."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .rule import B1, B2


def update(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float) -> None:
    """Update one tensor in place."""
    u = m.mul(B1).add_(g, alpha=1 - B1).sign_()
    p.mul_(1 - lr * decay).add_(u, alpha=-lr)
    m.mul_(B2).add_(g, alpha=1 - B2)


class EagerLion(Optimizer):
    """A loop over the tensors, momentum in 32 bits.

    ``compiled`` is the same loop with its body through torch.compile. Shapes are dynamic and contiguous tensors flat,
    so one kernel serves all of a dtype, ten thousand tensors too; whole steps through torch.compile are timm's rows.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float, compiled: bool = False) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._update = torch.compile(update, dynamic=True) if compiled else update
        self._flat = compiled

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; a closure is ignored."""
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
                self._one(p, p.grad, state["exp_avg"], group)

    def _one(self, p: Tensor, g: Tensor, m: Tensor, group: dict[str, Any]) -> None:
        if self._flat and p.is_contiguous() and g.is_contiguous():
            p, g, m = p.view(-1), g.view(-1), m.view(-1)
        self._update(p, g, m, group["lr"], group["weight_decay"])
