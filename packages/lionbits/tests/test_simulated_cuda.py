"""On simulated CUDA devices every backend, resident and paged, gives the bits of the reference on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lionbits
from lionbits import Lion
from lionbits.paging import prefetch

from .family import assert_same, gradient, weights
from .simulated import BACKENDS, simulated

SHAPES = ((40, 70), (33,), (3000,), (16, 32), (), (0,))
PAGED = {"is_paged": True, "page_budget": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "resident": {"optim_bits": 8},
    "resident, 32 bits": {},
    "resident, clipped": {"optim_bits": 4, "percentile_clipping": 50, "grad_clip": 0.5},
    "resident, one scale": {"optim_bits": 8, "block_wise": False, "cautious": "mask"},
    "paged": {"optim_bits": 8, **PAGED},
    "paged, some budget": {"optim_bits": 8, "is_paged": True, "page_budget": 3000},
    "paged, free memory": {"optim_bits": 4, "is_paged": True},
    "paged, masked, clipped": {"optim_bits": 8, **PAGED, "cautious": "mask", "percentile_clipping": 50},
    "paged, on the host": {"optim_bits": 8, "is_paged": True, "paged_compute": "host"},
}


#: Schedules that are tried: fewer where kernels are slow.
SEEDS = {"reference": 1, "cupy": 5, "triton": 1}


def optimizer_of(params: Any, backend: str, **settings: Any) -> Lion:
    """An optimizer whose pages are small."""
    given = {"lr": 0.01, "weight_decay": 0.1, "min_8bit_size": 100, **settings}
    made = Lion(params, **given, backend="reference" if settings.get("paged_compute") == "host" else backend)
    if settings.get("is_paged"):
        made._pager = replace(made._pager, page_size=3000)  # type: ignore[call-arg]
    return made


def moved(params: Sequence[nn.Parameter], device: str) -> list[nn.Parameter]:
    """Parameters with these values on a device."""
    return [nn.Parameter(param.detach().to(device)) for param in params]


def step(optimizer: Lion, params: Sequence[nn.Parameter], number: int) -> None:
    """One step, whose gradients die at once, and whose memory is used again."""
    for position, param in enumerate(params):
        param.grad = gradient(param, position, number).to(param.device)
    optimizer.step()
    for param in params:
        param.grad = None
    again = [torch.full_like(param, torch.nan) for param in params]
    del again


def result(optimizer: Lion, params: Iterable[nn.Parameter]) -> dict[str, Any]:
    """Parameters and state, on the host."""
    states = [optimizer.state[param] for param in params]
    optimizer._get_prefetcher().settle()
    tensors = [{key: value.cpu() for key, value in state.items() if isinstance(value, Tensor)} for state in states]
    return {"params": [param.detach().cpu() for param in params], "states": tensors}


def trained(device: str, backend: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What three steps make of the parameters, with another learning rate in the last."""
    params = moved(weights(shapes=SHAPES), device)
    optimizer = optimizer_of(params, backend, **settings)
    for number in (1, 2, 3):
        if number == 3:
            optimizer.param_groups[0]["lr"] = 0.003
        step(optimizer, params, number)
    return result(optimizer, params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_bits_are_those_of_the_reference_on_the_cpu(name: str, backend: str) -> None:
    expected = trained("cpu", "reference", SETTINGS[name])
    for seed in range(SEEDS[backend]):
        with simulated(seed, backend):
            assert_same(trained("cuda", backend, SETTINGS[name]), expected)


@pytest.mark.parametrize("backend", ["reference", "cupy"])
@pytest.mark.parametrize("name", ["resident", "paged"])
def test_two_optimizers_on_two_streams(name: str, backend: str) -> None:
    """Neither sees the other, and each runs behind the gradients of its stream."""
    expected = trained("cpu", "reference", SETTINGS[name])
    for seed in range(SEEDS[backend]):
        with simulated(seed, backend):
            pairs = []
            for _ in range(2):
                params = moved(weights(shapes=SHAPES), "cuda")
                pairs.append((optimizer_of(params, backend, **SETTINGS[name]), params, torch.cuda.Stream()))
            torch.cuda.synchronize()
            for number in (1, 2, 3):
                for optimizer, params, stream in pairs:
                    with torch.cuda.stream(stream):
                        if number == 3:
                            optimizer.param_groups[0]["lr"] = 0.003
                        step(optimizer, params, number)
            torch.cuda.synchronize()
            for optimizer, params, _ in pairs:
                assert_same(result(optimizer, params), expected)


def tensor_lr(optimizer: Lion, params: list[nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.01, device=params[0].device)
    for number in (1, 2):
        step(optimizer, params, number)
        optimizer.param_groups[0]["lr"].mul_(0.5)


def scaled(optimizer: Lion, params: list[nn.Parameter]) -> None:
    """The fused way of GradScaler: ``grad_scale`` and ``found_inf`` on the device."""
    device = params[0].device
    for number, bad in ((1, False), (2, True), (3, False)):
        for position, param in enumerate(params):
            param.grad = gradient(param, position, number).to(device) * 1024
        optimizer.grad_scale = torch.full((), 1024.0, device=device)  # type: ignore[attr-defined]
        optimizer.found_inf = torch.full((), float(bad), device=device)  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        for param in params:
            param.grad = None


def nonfinite(optimizer: Lion, params: list[nn.Parameter]) -> None:
    for number in (1, 2):
        for position, param in enumerate(params):
            param.grad = gradient(param, position, number).to(param.device)
            if number == 2 and param.dim():
                param.grad[:1] = torch.nan
        optimizer.step()


WAYS: dict[str, Callable[[Lion, list[nn.Parameter]], None]] = {
    "learning rate in a tensor": tensor_lr,
    "scaled gradients": scaled,
    "elements are skipped": nonfinite,
}


@pytest.mark.parametrize("backend", ["reference", "cupy"])
@pytest.mark.parametrize("name", ["resident", "paged, masked, clipped"])
@pytest.mark.parametrize("way", WAYS)
def test_ways_to_step(way: str, name: str, backend: str) -> None:
    def run(device: str, served_by: str) -> dict[str, Any]:
        params = moved(weights(shapes=SHAPES), device)
        optimizer = optimizer_of(params, served_by, **SETTINGS[name])
        WAYS[way](optimizer, params)
        return {**result(optimizer, params), "skipped": optimizer.skipped_elements()}

    expected = run("cpu", "reference")
    for seed in range(SEEDS[backend]):
        with simulated(seed, backend):
            assert_same(run("cuda", backend), expected)


@pytest.mark.parametrize("backend", ["reference", "cupy"])
@pytest.mark.parametrize("name", ["resident", "paged"])
def test_fused_into_backward(name: str, backend: str) -> None:
    """Parameters are updated by hooks, in the thread of the backward pass."""
    inputs = torch.randn(8, 40, generator=torch.Generator().manual_seed(1))

    def run(device: str, served_by: str) -> dict[str, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 8)).to(device)
        params = list(model.parameters())
        optimizer = optimizer_of(params, served_by, **SETTINGS[name])
        lionbits.fuse_into_backward(model, optimizer)
        for _ in range(3):
            model(inputs.to(device)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return result(optimizer, params)

    expected = run("cpu", "reference")
    for seed in range(SEEDS[backend]):
        with simulated(seed, backend):
            assert_same(run("cuda", backend), expected)


@pytest.mark.filterwarnings("ignore:.*no room:UserWarning")
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_device_that_runs_out_of_memory(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """State that does not fit is paged; buffers that do not fit are smaller."""
    monkeypatch.setattr(prefetch, "SMALLEST", 64)
    expected = trained("cpu", "reference", SETTINGS["paged"])
    with simulated(failures) as devices:
        params = moved(weights(shapes=SHAPES), "cuda")
        optimizer = optimizer_of(params, "reference", **SETTINGS["paged, some budget"])
        for position, param in enumerate(params):
            param.grad = gradient(param, position, 1).to(param.device)
        devices.fail_allocations(failures, at_least=1000)
        optimizer.step()
        assert optimizer.paging_stats().shrinks > 0
        for number in (2, 3):
            if number == 3:
                optimizer.param_groups[0]["lr"] = 0.003
            step(optimizer, params, number)
        assert_same(result(optimizer, params), expected)


def test_both_devices_at_once() -> None:
    expected = trained("cpu", "reference", SETTINGS["paged"])
    for seed in range(4):
        with simulated(seed, "cupy"):
            params = [nn.Parameter(p.detach().to(f"cuda:{i % 2}")) for i, p in enumerate(weights(shapes=SHAPES))]
            optimizer = optimizer_of(params, "cupy", **SETTINGS["paged"])
            for number in (1, 2, 3):
                if number == 3:
                    optimizer.param_groups[0]["lr"] = 0.003
                step(optimizer, params, number)
            assert_same(result(optimizer, params), expected)


@pytest.mark.parametrize("backend", ["reference", "cupy"])
def test_a_learning_rate_in_a_cpu_tensor_makes_the_host_wait_for_nothing(backend: str) -> None:
    def run(device: str, served_by: str, waits: list[int]) -> dict[str, Any]:
        params = moved(weights(shapes=SHAPES), device)
        optimizer = optimizer_of(params, served_by, optim_bits=8, lr=torch.tensor(0.01, dtype=torch.float64))
        step(optimizer, params, 1)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.param_groups[0]["lr"].mul_(0.3)
        before = devices.counts["host waits"] if device == "cuda" else 0
        optimizer.step()
        waits.append((devices.counts["host waits"] if device == "cuda" else 0) - before)
        return result(optimizer, params)

    expected = run("cpu", "reference", [])
    for seed in range(SEEDS[backend]):
        with simulated(seed, backend) as devices:
            waits: list[int] = []
            assert_same(run("cuda", backend, waits), expected)
            assert waits == [0]
