"""Streams and events: work runs late, in any order that they permit, and in no other."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_

import pytest
import torch
from torch import nn

from cuda_on_cpu.device import Deadlock, launch, simulated_cuda
from cuda_on_cpu.device.schedule import Moment

SEEDS = range(30)


def outcomes(program: Callable[[], torch.Tensor]) -> set[tuple[float, ...]]:
    """What a program computes, under many schedules."""
    found = set()
    for seed in SEEDS:
        with simulated_cuda(seed):
            result = program()
            found.add(tuple(result.tolist()))
            torch.cuda.synchronize()  # before it dies
    return found


def two_streams(*, ordered: bool, joined: bool) -> torch.Tensor:
    x = torch.ones(4, device="cuda")
    side = torch.cuda.Stream()
    if ordered:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x.mul_(3)
    if joined:
        torch.cuda.current_stream().wait_event(side.record_event())
    return x.add_(1)


def test_one_stream_runs_in_order() -> None:
    assert outcomes(lambda: torch.ones(2, device="cuda").mul_(3).add_(1)) == {(4.0, 4.0)}


def test_events_order_streams() -> None:
    assert outcomes(lambda: two_streams(ordered=True, joined=True)) == {(4.0,) * 4}


@pytest.mark.parametrize(("ordered", "joined"), [(False, True), (True, False), (False, False)])
def test_a_wait_that_is_missing_shows_as_other_bits(ordered: bool, joined: bool) -> None:
    assert len(outcomes(lambda: two_streams(ordered=ordered, joined=joined))) > 1


def test_the_same_seed_gives_the_same_schedule() -> None:
    def bits(seed: int) -> list[float]:
        with simulated_cuda(seed):
            result = two_streams(ordered=False, joined=False)
            values = result.tolist()
            torch.cuda.synchronize()
            return values

    for seed in SEEDS:
        assert bits(seed) == bits(seed)


def test_an_event_is_the_work_of_when_it_was_recorded() -> None:
    """A wait takes the record of before; recording again does not move it."""

    def program() -> torch.Tensor:
        x, side, event = torch.zeros(1, device="cuda"), torch.cuda.Stream(), torch.cuda.Event()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
            event.record()
            torch.cuda.current_stream().wait_event(torch.cuda.Event())  # never recorded: it has happened
        torch.cuda.default_stream().wait_event(event)
        event.record(side)
        return x * 2

    assert outcomes(program) == {(2.0,)}


@pytest.mark.parametrize("way", ["stream", "event", "device", "query"])
def test_the_host_waits_in_any_way(way: str) -> None:
    for seed in SEEDS:
        with simulated_cuda(seed):
            ran, side = [], torch.cuda.Stream()
            launch("noting", lambda ran=ran: ran.append(1), side.cuda_stream)
            event = side.record_event()
            if way == "stream":
                side.synchronize()
            elif way == "event":
                event.synchronize()
            elif way == "device":
                torch.cuda.synchronize()
            else:
                torch.cuda.current_stream().wait_event(event)
                torch.zeros(1, device="cuda").item()
                assert event.query()
            assert ran


def test_work_is_late_under_some_schedules() -> None:
    late = 0
    for seed in SEEDS:
        with simulated_cuda(seed):
            ran: list[int] = []
            launch("noting", lambda ran=ran: ran.append(1), torch.cuda.current_stream().cuda_stream)
            late += not ran
    assert 0 < late < len(SEEDS)


def test_streams_that_wait_for_each_other_are_named() -> None:
    """Only work outside of torch can do that: here, a stream whose moment another holds back."""
    with simulated_cuda():
        side = torch.cuda.Stream()
        event = side.record_event()
        side.queue.waiting.appendleft(Moment())
        with pytest.raises(Deadlock, match="no stream can go on"):
            event.synchronize()
        side.queue.waiting.popleft()


def test_two_devices_have_streams_and_a_current_one_each() -> None:
    for seed in SEEDS:
        with simulated_cuda(seed):
            x = torch.arange(3.0, device="cuda:1")
            assert (x.device.index, torch.cuda.current_device(), torch.cuda.device_count()) == (1, 0, 2)
            with torch.cuda.device(1):
                assert torch.empty(1, device="cuda").device.index == torch.cuda.current_stream().device.index == 1
                stream = torch.cuda.Stream("cuda:0")
            with torch.cuda.stream(stream):
                assert torch.cuda.current_stream("cuda:1") == torch.cuda.default_stream(1)
            assert torch.cuda.current_stream() == torch.cuda.default_stream()
            assert (x.add_(1).to("cuda:0") * 2).tolist() == [2.0, 4.0, 6.0]
            with pytest.raises(RuntimeError, match="same device"):
                x + torch.zeros(3, device="cuda:0")


def test_modules_train_as_on_the_cpu() -> None:
    """Forward, backward in torch's own thread, hooks; parameters moved by ``to``."""

    def train(device: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 2)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        seen: list[torch.device] = []
        model[0].weight.register_post_accumulate_grad_hook(lambda param: seen.append(param.grad.device))
        for _ in range(3):
            model(torch.ones(4, 5).to(device)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert [found.type for found in seen] == [device] * 3
        return model[0].weight.detach().cpu()

    expected = train("cpu")
    for seed in range(5):
        with simulated_cuda(seed):
            assert torch.equal(train("cuda"), expected)


def test_torch_is_as_before_afterwards() -> None:
    def now() -> list[object]:
        return [getattr(torch.cuda, name) for name in dir(torch.cuda)] + [torch.empty, torch.Tensor.pin_memory]

    before = now()
    with simulated_cuda():
        assert torch.cuda.is_available()
        x = torch.ones(3, device="cuda")
    assert all(map(is_, now(), before))
    assert not torch.cuda.is_available()
    with pytest.raises(RuntimeError, match="outside of `simulated_cuda"):
        x + 1


@pytest.mark.parametrize("devices", [0, 3])
def test_other_numbers_of_devices_are_refused(devices: int) -> None:
    with pytest.raises(ValueError, match=f"devices={devices}"), simulated_cuda(devices=devices):
        pass


def test_devices_inside_of_devices_are_refused() -> None:
    with simulated_cuda():
        with pytest.raises(RuntimeError, match="already"), simulated_cuda():
            pass
        assert torch.ones(1, device="cuda").item() == 1
