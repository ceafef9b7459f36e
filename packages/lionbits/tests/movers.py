"""Paged optimizers whose state moves although their parameters are on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lionbits import Lion, PagedLion
from lionbits.paging.lanes import Lanes
from lionbits_conformance.adversary import Adversary


def moving(
    params: list[nn.Parameter],
    page_size: int,
    budget: int | None,
    lanes: Callable[[torch.device], Lanes] | None = None,
    **settings: Any,
) -> Lion:
    """A paged optimizer whose state moves although its parameters are on the CPU."""
    optimizer = PagedLion(params, page_budget=budget, **settings)
    lanes = lanes or (lambda device: Adversary(page_size))
    optimizer._pager = replace(optimizer._pager, page_size=page_size, lanes=lanes)  # type: ignore[call-arg]
    return optimizer
