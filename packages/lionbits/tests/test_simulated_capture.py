"""Steps that are captured in a graph on simulated devices, where the rules of capture are enforced."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import lionbits
from lionbits import Lion
from lionbits_table import table

from .family import assert_same, gradient, weights
from .simulated import simulated
from .test_simulated_cuda import SEEDS, SETTINGS, SHAPES, moved, optimizer_of, result, step

CAPTURED = ["resident", "resident, 32 bits", "resident, clipped", "resident, one scale"]


def fill(params: list[nn.Parameter], number: int) -> None:
    """Write the gradients of a step to where a graph reads them."""
    for position, param in enumerate(params):
        assert param.grad is not None
        param.grad.copy_(gradient(param, position, number))


def captured(optimizer: Lion, params: list[nn.Parameter]) -> torch.cuda.CUDAGraph:
    """A first step, and the graph of another, in gradients that stay."""
    for param in params:
        param.grad = torch.empty_like(param)
    fill(params, 1)
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


def uncaptured(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    params = weights(shapes=SHAPES)
    optimizer = optimizer_of(params, "reference", **settings)
    for number in range(1, steps + 1):
        step(optimizer, params, number)
    return result(optimizer, params)


@pytest.mark.parametrize("backend", ["reference", "cupy"])
@pytest.mark.parametrize("name", CAPTURED)
def test_replays_are_steps(name: str, backend: str) -> None:
    """Also after an ordinary step in between, whose gradients are elsewhere."""
    expected = uncaptured(SETTINGS[name], 5)
    for seed in range(SEEDS[backend]):
        with simulated(seed, backend):
            params = moved(weights(shapes=SHAPES), "cuda")
            optimizer = optimizer_of(params, backend, **SETTINGS[name])
            graph = captured(optimizer, params)
            for number in (2, 3):
                fill(params, number)
                graph.replay()
            kept = [param.grad for param in params]
            step(optimizer, params, 4)
            for param, grad in zip(params, kept, strict=True):
                param.grad = grad
            fill(params, 5)
            graph.replay()
            assert optimizer.state_dict()["state"][0]["step"] == 5
            assert_same(result(optimizer, params), expected)
            torch.cuda.synchronize()


@pytest.mark.parametrize("backend", ["reference", "cupy"])
def test_a_rate_that_changes_before_the_capture(backend: str) -> None:
    """The captured step uploads it, from memory that replays read again."""

    def run(device: str) -> dict[str, Any]:
        params = moved(weights(shapes=SHAPES), device)
        optimizer = optimizer_of(params, backend if device == "cuda" else "reference", optim_bits=8)
        for param in params:
            param.grad = torch.empty_like(param)
        fill(params, 1)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.003
        if device == "cpu":
            for number in (2, 3):
                fill(params, number)
                optimizer.step()
            return result(optimizer, params)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        for number in (2, 3):
            fill(params, number)
            graph.replay()
        optimizer.state_dict()  # which reads the counts of replays
        return result(optimizer, params)

    expected = run("cpu")
    for seed in range(SEEDS[backend]):
        with simulated(seed, backend):
            assert_same(run("cuda"), expected)


@pytest.mark.parametrize("more", [2, 3])
def test_captures_that_follow_one_another(more: int) -> None:
    """Each with gradients elsewhere, and no ordinary step in between: none of them pins memory."""
    expected = uncaptured(SETTINGS["resident"], 1 + 2 * more)
    for seed in range(SEEDS["cupy"]):
        with simulated(seed, "cupy") as devices:
            params = moved(weights(shapes=SHAPES), "cuda")
            optimizer = optimizer_of(params, "cupy", **SETTINGS["resident"])
            step(optimizer, params, 1)
            torch.cuda.synchronize()
            before, kept = devices.counts.copy(), []
            for _ in range(more):
                for param in params:
                    param.grad = torch.empty_like(param)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    optimizer.step()
                kept.append((graph, [param.grad for param in params]))
            assert devices.counts["pinned allocations"] == before["pinned allocations"]
            for number in range(2, 2 + 2 * more):
                graph, grads = kept[number % more]
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad
                fill(params, number)
                graph.replay()
            optimizer.state_dict()  # which reads the counts of replays
            assert_same(result(optimizer, params), expected)


def test_too_many_captures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary step makes room for more."""
    monkeypatch.setattr(importlib.import_module("lionbits_table.table"), "CAPTURES", 1)
    with simulated(0, "cupy"):
        params = moved(weights(shapes=SHAPES), "cuda")
        optimizer = optimizer_of(params, "cupy", optim_bits=8)
        step(optimizer, params, 1)

        def capture() -> None:
            for param in params:
                param.grad = torch.zeros_like(param)
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                optimizer.step()

        grads = [torch.zeros_like(param) for param in params]
        capture()
        with pytest.raises(RuntimeError, match="captured more than 1 times"):
            capture()
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        assert optimizer.state[params[0]]["step"] == 2
        capture()


def test_a_captured_step_pins_and_waits_for_nothing() -> None:
    with simulated(1, "cupy") as devices:
        params = moved(weights(shapes=SHAPES), "cuda")
        optimizer = optimizer_of(params, "cupy", optim_bits=8)
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        torch.cuda.synchronize()
        before = devices.counts.copy()
        optimizer.step()
        steady = devices.counts - before
        assert not steady["pinned allocations"]
        assert not steady["host waits"]
        assert not steady["uploads"]


@pytest.mark.parametrize("name", ["paged", "paged, on the host"])
def test_paged_steps_are_not_captured(name: str) -> None:
    """They are refused before anything is counted."""
    with simulated(0, "cupy"):
        params = moved(weights(shapes=SHAPES), "cuda")
        optimizer = optimizer_of(params, "cupy", **SETTINGS[name])
        step(optimizer, params, 1)
        before = result(optimizer, params)
        for position, param in enumerate(params):
            param.grad = gradient(param, position, 2).to("cuda")
        with pytest.raises(RuntimeError, match="is_paged=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()
        assert_same(result(optimizer, params), before)
        assert optimizer.state[params[0]]["step"] == 1


@pytest.mark.parametrize("name", SETTINGS)
def test_a_steady_step_uploads_pages_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients stay where they are and change. Nothing is pinned, and no table is uploaded. Pages are copied; the host
    waits for those that it updates, and at the end of a step for the two streams of copies."""
    tables: list[None] = []
    upload = table._upload
    monkeypatch.setattr(table, "_upload", lambda *values: (tables.append(None), upload(*values)))
    settings = SETTINGS[name]
    with simulated(1, "cupy") as devices:
        params = moved(weights(shapes=SHAPES), "cuda")
        optimizer = optimizer_of(params, "cupy", **settings)
        for param in params:
            param.grad = torch.empty_like(param)
        for number in (1, 2):
            fill(params, number)
            optimizer.step()
        fill(params, 3)
        torch.cuda.synchronize()
        before, pages = devices.counts.copy(), optimizer.paging_stats().pages_in
        assert tables or settings.get("paged_compute") == "host"
        tables.clear()
        optimizer.step()
        steady, pages = devices.counts - before, optimizer.paging_stats().pages_in - pages
        waits = 0 if not settings.get("is_paged") else 2 + (pages if settings.get("paged_compute") == "host" else 0)
        assert not tables
        assert steady["pinned allocations"] == 0
        assert steady["host waits"] == waits
        assert optimizer.paging_stats().bytes_in > 0 or not pages
        assert not steady["uploads"] if not pages else steady["uploads"] >= pages


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "step_parameter"])
def test_replays_of_single_parameters_are_counted_and_outlive_a_load(fused: bool) -> None:
    """By hooks of ours and of a trainer's: the count of updates is right, and what the graph reads is kept."""
    with simulated(0, "reference"):
        torch.manual_seed(0)
        model = nn.Linear(40, 8, bias=False, device="cuda")
        optimizer = optimizer_of([model.weight], "reference", optim_bits=8)
        if fused:
            lionbits.fuse_into_backward(model, optimizer)
        inputs = torch.ones(4, 40, device="cuda")

        def train() -> None:
            model(inputs).square().mean().backward()
            if fused:
                optimizer.step()
            else:
                optimizer.step_parameter(model.weight, optimizer.param_groups[0], 0)
                model.weight.grad = None

        train()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            train()
        for _ in range(3):
            graph.replay()
        assert int(optimizer.state_dict()["state"][0]["step"]) == 4
        old = dict(optimizer.state[model.weight])  # which the graph goes on updating
        optimizer.load_state_dict(optimizer.state_dict())
        train()
        again = [torch.full((count,), -1, device="cuda") for count in (2, 4, 8, 40) for _ in range(3)]
        graph.replay()
        torch.cuda.synchronize()
        assert int(optimizer.state_dict()["state"][0]["step"]) == 5
        del again, old
