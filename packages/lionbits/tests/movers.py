"""Paged optimizers whose state moves although their parameters are on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lionbits import Lion, PagedLion
from lionbits.paging.streams import CopyStreams
from lionbits_conformance.adversarial_streams import AdversarialStreams


def moving(
    params: list[nn.Parameter],
    page_size: int,
    budget: int | None,
    streams: Callable[[torch.device], CopyStreams] | None = None,
    **settings: Any,
) -> Lion:
    """A paged optimizer whose state moves although its parameters are on the CPU."""
    optimizer = PagedLion(params, page_budget=budget, **settings)
    streams = streams or (lambda device: AdversarialStreams(page_size))
    optimizer._pager = replace(optimizer._pager, page_size=page_size, streams=streams)  # type: ignore[call-arg]
    return optimizer
