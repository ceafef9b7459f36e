"""One line about a parameter group: formats, bytes, where the state is, backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lionbits_reference.spec import Backend

from . import select, settings, sharding
from .paging import Paged, Pager, host_memory


def with_groups(text: str, groups: Sequence[Mapping[str, Any]], backend: Backend | None, pager: Pager) -> str:
    """Return torch's text of an optimizer with a group's line after each heading."""
    for i, group in enumerate(groups):
        head = f"Parameter Group {i}\n"
        text = text.replace(head, f"{head[:-1]}: {of_group(group, backend, pager)}\n")
    return text


def of_group(group: Mapping[str, Any], backend: Backend | None, pager: Pager) -> str:
    """Return the line of a group, about its parameters that require or have a gradient, with or without state.

    Args:
        group: with all settings.
        backend: that was asked for, or None.
        pager: where state is kept.
    """
    try:
        return _of_group(group, backend, pager)
    except (TypeError, ValueError) as error:  # parameters have become what they were not when they were checked
        return f"a step would be refused: {error}"


def _of_group(group: Mapping[str, Any], backend: Backend | None, pager: Pager) -> str:
    formats: Counter[str] = Counter()
    serving: set[str] = set()
    size = 0
    for param in (param for param in group["params"] if param.requires_grad or param.grad is not None):
        plan = settings.plan(group, param, param.dtype)
        formats[str(plan.format)] += 1
        size += sum(map(host_memory.bytes_of, sharding.state_spec(plan, param).values()))
        device = pager.computes_on(param.device)
        serving.add(select.serving(backend, plan, device).name)
    if not formats:
        return "nothing to train"
    shown = ", ".join(f"{count} in {name}" for name, count in formats.most_common())
    return f"{shown}; {size:,} bytes{_arranged(pager)}; backend {', '.join(sorted(serving))}"


def _arranged(pager: Pager) -> str:
    if not isinstance(pager, Paged):
        return ""
    where = " in files" if pager.page_dir is not None else ""
    return f", paged{where}" + (", updated on the host" if pager.offloads else "")
