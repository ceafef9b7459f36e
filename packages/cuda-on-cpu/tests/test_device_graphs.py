"""Graph capture, and what is not permitted in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cuda_on_cpu.device import CaptureViolation, UseOfFreedMemory, simulated_cuda

SEEDS = range(10)


def test_a_capture_runs_nothing_and_each_replay_runs_it() -> None:
    for seed in SEEDS:
        with simulated_cuda(seed):
            x, graph = torch.zeros(3, device="cuda"), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                assert torch.cuda.is_current_stream_capturing()
                x.add_(1)
                y = (x * 2).add_(x)  # with memory that is used again within the graph
            assert not torch.cuda.is_current_stream_capturing()
            assert x.tolist() == [0, 0, 0]
            for times in (1, 2, 3):
                graph.replay()
                assert (x.tolist(), y.tolist()) == ([times] * 3, [3 * times] * 3)


def test_streams_join_a_capture_by_its_events() -> None:
    for seed in SEEDS:
        with simulated_cuda(seed):
            x, graph, side = torch.zeros(3, device="cuda"), torch.cuda.CUDAGraph(), torch.cuda.Stream()
            with torch.cuda.graph(graph):
                x.add_(1)
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    x.mul_(2)
                torch.cuda.current_stream().wait_stream(side)
            graph.replay()
            graph.replay()
            assert x.tolist() == [6, 6, 6]


FORBIDDEN: dict[str, Callable[[torch.Tensor, torch.cuda.Event], object]] = {
    "pinned memory": lambda x, event: torch.ones(3).pin_memory(),
    "pinned memory of a factory": lambda x, event: torch.empty(3, pin_memory=True),
    "item": lambda x, event: x[0].item(),
    "tolist": lambda x, event: x.tolist(),
    "nonzero": lambda x, event: x.nonzero(),
    "copy to the host": lambda x, event: x.cpu(),
    "copy from the host": lambda x, event: x.copy_(torch.ones(3)),
    "copy of memory that is not pinned": lambda x, event: x.copy_(torch.ones(3), non_blocking=True),
    "synchronize": lambda x, event: torch.cuda.synchronize(),
    "stream": lambda x, event: torch.cuda.default_stream().synchronize(),
    "event": lambda x, event: event.synchronize(),
    "query": lambda x, event: event.query(),
    "an event of before": lambda x, event: torch.cuda.current_stream().wait_event(event),
    "a capture": lambda x, event: torch.cuda.CUDAGraph().capture_begin(),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_not_permitted_is_named(what: str) -> None:
    with simulated_cuda():
        x = torch.zeros(3, device="cuda")
        event = torch.cuda.current_stream().record_event()
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(CaptureViolation), torch.cuda.graph(graph):
            FORBIDDEN[what](x, event)
        assert not torch.cuda.is_current_stream_capturing()
        assert x.tolist() == [0, 0, 0]
        with pytest.raises(CaptureViolation, match="not captured"):
            graph.replay()


def test_a_stream_that_is_not_joined_again_is_named() -> None:
    with simulated_cuda():
        x, side, capture = torch.zeros(3, device="cuda"), torch.cuda.Stream(), torch.cuda.graph(torch.cuda.CUDAGraph())
        capture.__enter__()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
        with pytest.raises(CaptureViolation, match="Unjoined"):
            capture.__exit__(None, None, None)


def test_the_default_stream_is_not_captured() -> None:
    with simulated_cuda(), pytest.raises(CaptureViolation, match="non-default"):
        torch.cuda.CUDAGraph().capture_begin()


@pytest.mark.parametrize("where", ["device", "host"])
def test_memory_that_a_replay_reads_has_to_live(where: str) -> None:
    for kept in (True, False):
        with simulated_cuda():
            x = torch.zeros(300, device="cuda")
            y = torch.ones(300, device="cuda") if where == "device" else torch.ones(300).pin_memory()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                x.copy_(y, non_blocking=True)
            if kept:
                graph.replay()
                assert x.sum().item() == 300
            else:
                del y
                others = [torch.ones(1).pin_memory(), torch.ones(1, device="cuda")]
                with pytest.raises(UseOfFreedMemory, match="since it was captured"):
                    graph.replay()
                del others


def test_pinned_memory_is_read_at_each_replay() -> None:
    with simulated_cuda():
        x, y, graph = torch.zeros(3, device="cuda"), torch.ones(3).pin_memory(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x.copy_(y, non_blocking=True)
        for value in (5, 6):
            y.fill_(value)
            graph.replay()
            assert x.tolist() == [value] * 3
