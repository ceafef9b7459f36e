"""Races that are planted in the sources: each shows on the simulated device as wrong bits, or as a fault by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lionbits
import lionbits_reference
from lionbits_conformance.patched_import import Edit, patched_import

from .family import gradient, same, weights
from .simulated import device, simulated

SHAPES = ((20, 70), (900,))
DEVICE = {"is_paged": True, "page_budget": 0}
HOST = {"is_paged": True, "paged_compute": "host"}
RESIDENT: dict[str, Any] = {}

#: Schedules that are tried: a race has to show under one of them, and the right code under none.
SEEDS = range(12)

_STREAMS, _PREFETCH = "lionbits/paging/streams.py", "lionbits/paging/prefetch.py"
_WRITE_BACK = "                    buffers.free[buffer] = streams.write_back(copies.empty, (done,))\n"

#: What is planted, and the settings that it is planted under.
RACES: dict[str, tuple[Edit, dict[str, Any]]] = {
    "copies do not wait for events": (
        Edit(_STREAMS, "                stream.wait_event(event)\n", "                pass\n"),
        DEVICE,
    ),
    "updates do not wait for pages": (
        Edit(_STREAMS, "            torch.cuda.current_stream(self._device).wait_event(event)\n", "            pass\n"),
        DEVICE,
    ),
    "the host does not wait for pages": (
        Edit(_STREAMS, "            event.synchronize()\n", "            pass\n"),
        HOST,
    ),
    "the mark of an update is never recorded": (
        Edit(_STREAMS, "torch.cuda.current_stream(self._device).record_event()", "torch.cuda.Event()"),
        DEVICE,
    ),
    "the mark of a copy is never recorded": (
        Edit(_STREAMS, "        return stream.record_event()\n", "        return torch.cuda.Event()\n"),
        DEVICE,
    ),
    "the mark of a copy is recorded before the copy": (
        Edit(
            _STREAMS,
            "        with torch.cuda.stream(stream):\n            copy()\n        return stream.record_event()\n",
            "        event = stream.record_event()\n        with torch.cuda.stream(stream):\n            copy()\n"
            "        return event\n",
        ),
        DEVICE,
    ),
    "readers do not wait for the last page": (
        Edit(_STREAMS, "        self._out.synchronize()\n", ""),
        DEVICE,
    ),
    "a step does not end when pages have left": (
        Edit("lionbits/step/cache.py", "        optimizer._get_prefetcher().settle()\n", "        pass\n"),
        DEVICE,
    ),
    "pages are prefetched into buffers in use": (
        Edit(_PREFETCH, "(buffers.free[buffer], made)", "(made,)"),
        DEVICE,
    ),
    "pages leave before they are updated": (
        Edit(_PREFETCH, "streams.write_back(copies.empty, (done,))", "streams.write_back(copies.empty, ())"),
        DEVICE,
    ),
    "buffers are filled before they are empty": (
        Edit(_PREFETCH, _WRITE_BACK, _WRITE_BACK.replace("buffers.free[buffer] = ", "")),
        DEVICE,
    ),
    "gradients are copied before they are made": (
        Edit(_PREFETCH, "streams.computed() if offloads else None  #", "None  #"),
        HOST,
    ),
    "new buffers are filled before the current stream has let go of them": (
        Edit(_PREFETCH, "[self.streams_of(device).computed()] * count", "[None] * count"),
        DEVICE,
    ),
    "rates are uploaded from memory that is written again": (
        Edit(
            "lionbits/step/scalars.py",
            "    return host.pin_memory().to(device, non_blocking=True)\n",
            "    kept, key = globals().setdefault('kept', {}), (dtype, host.shape)\n"
            "    kept[key] = kept[key] if key in kept and kept[key].is_pinned() else host.pin_memory()\n"
            "    return kept[key].copy_(host).to(device, non_blocking=True)\n",
        ),
        RESIDENT,
    ),
}


def trained(family: ModuleType, backend: ModuleType | str, where: str, settings: dict[str, Any]) -> list[Any]:
    """What three steps make of parameters and momentum; the host waits for nothing but what lionbits waits for."""
    params = [nn.Parameter(param.detach().to(where)) for param in weights(shapes=SHAPES)]
    optimizer = family.Lion(params, lr=0.01, weight_decay=0.1, min_8bit_size=100, backend=backend, **settings)
    if settings.get("is_paged"):
        optimizer._pager = replace(optimizer._pager, page_size=2500)
    for number in (1, 2, 3):
        optimizer.param_groups[0]["lr"] = 0.01 / number
        for position, param in enumerate(params):
            grad = gradient(param, position, number)
            param.grad = grad if where == "cpu" else _work(grad.pin_memory().to(where, non_blocking=True))
        optimizer.step()
        for param in params:
            param.grad = None
    states = [optimizer.state[param] for param in params]
    momenta = [
        state[key].to("cpu", copy=True) for state in states for key in sorted(state) if isinstance(state[key], Tensor)
    ]
    return [*(param.detach().cpu() for param in params), *momenta]


def _work(grad: Tensor) -> Tensor:
    """The gradient, after work in memory that is free again when the step begins."""
    scratch = grad.reshape(-1).repeat(2)
    for _ in range(3):
        scratch.mul_(2.0).mul_(0.5)
    return scratch[: grad.numel()].clone().view(grad.shape)


def shows(run: Callable[[int], list[Any]], expected: list[Any], seeds: Sequence[int] = SEEDS) -> str:
    """How a race shows, under the first schedule in which it does; an empty string: under none."""
    return next(filter(None, (_shows(run, expected, seed) for seed in seeds)), "")


def _shows(run: Callable[[int], list[Any]], expected: list[Any], seed: int) -> str:
    try:
        return "" if same(run(seed), expected) else f"wrong bits under seed {seed}"
    except device.DeviceFault as fault:
        return f"{type(fault).__name__} under seed {seed}"


def on_device(family: ModuleType, backend: ModuleType | str, settings: dict[str, Any]) -> Callable[[int], list[Any]]:
    def run(seed: int) -> list[Any]:
        with simulated(seed, backend if isinstance(backend, str) else "reference"):
            return trained(family, backend, "cuda", settings)

    return run


@pytest.mark.parametrize("settings", [DEVICE, HOST, RESIDENT], ids=["device", "host", "resident"])
def test_the_right_code_has_no_race(settings: dict[str, Any]) -> None:
    expected = trained(lionbits, lionbits_reference, "cpu", settings)
    assert not shows(on_device(lionbits, lionbits_reference, settings), expected, range(6))


@pytest.mark.slow
@pytest.mark.parametrize("race", RACES)
def test_races_show(race: str) -> None:
    edit, settings = RACES[race]
    expected = trained(lionbits, lionbits_reference, "cpu", settings)
    with patched_import([edit]) as copy:
        assert shows(on_device(copy.lionbits, copy.reference, settings), expected)


def test_a_table_that_is_uploaded_on_another_stream_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kernels that find their memory in it; the launch does not wait for it."""
    table = importlib.import_module("lionbits_table.table")
    upload = table._upload

    def elsewhere(values: Any, to: Tensor) -> None:
        if to.device.type == "cpu":
            upload(values, to)
            return
        with torch.cuda.stream(torch.cuda.Stream(to.device)):
            upload(values, to)

    expected = trained(lionbits, "reference", "cpu", RESIDENT)
    assert not shows(on_device(lionbits, "cupy", RESIDENT), expected, range(3))
    monkeypatch.setattr(table, "_upload", elsewhere)
    assert shows(on_device(lionbits, "cupy", RESIDENT), expected)


def _on_two_streams(backend: str) -> Callable[[int], list[Any]]:
    """A run whose second step is on another stream, and whose optimizer then dies while that stream is at work."""

    def run(seed: int) -> list[Any]:
        with simulated(seed, backend):
            params = [nn.Parameter(param.detach().to("cuda")) for param in weights(shapes=SHAPES)]
            grads = [gradient(param, i, 1).to("cuda") for i, param in enumerate(params)]
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer = lionbits.Lion(params, lr=0.01, optim_bits=8, min_8bit_size=100, grad_clip=0.5, backend=backend)
            optimizer.step()
            other = torch.cuda.Stream()
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                optimizer.step()
            states = [optimizer.state[param] for param in params]
            del optimizer
            again = [torch.full((count,), -1, device="cuda") for count in (2, 4, 8, 40) for _ in range(3)]
            del again
            torch.cuda.synchronize()
            momenta = [state["exp_avg_codes"].cpu() for state in states]
            return [*(param.detach().cpu() for param in params), *momenta]

    return run


@pytest.mark.parametrize(
    ("backend", "module", "name"),
    [
        ("cupy", "lionbits_table.table", "Table._keep_for_stream"),
        ("reference", "lionbits.step.cache", "StepCache._keep_for_streams"),
    ],
)
def test_memory_that_is_not_kept_for_another_stream_shows(
    backend: str, module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and tables of a step are used on streams that they were not made on."""
    run = _on_two_streams(backend)
    expected = run(0)
    assert not shows(run, expected, range(6))
    kind, method = name.split(".")
    monkeypatch.setattr(getattr(importlib.import_module(module), kind), method, lambda *_: None)
    assert shows(run, expected, range(40))
