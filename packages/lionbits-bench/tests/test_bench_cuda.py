"""The clock of CUDA devices: how it reads a trace anywhere; against known work where there is a device."""

import pytest
import torch

from lionbits_bench.cuda import CudaClock, launches_in
from lionbits_bench.timing import CopyMeter

on_a_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_launches_are_what_the_device_ran() -> None:
    categories = ["kernel", "cuda_runtime", "gpu_memcpy", "kernel", "gpu_memset", "gpu_user_annotation", None]
    events = [{"name": "x"} if category is None else {"cat": category} for category in categories]
    assert launches_in(events) == (2, 2)


@pytest.fixture(scope="module")
def clock() -> CudaClock:
    return CudaClock(torch.device("cuda", 0))


@on_a_device
def test_time_is_the_devices_and_not_the_hosts(clock: CudaClock) -> None:
    x = torch.rand(1 << 26, device=clock.device)
    small, large = (min(clock.time(lambda n=n: x[:n].neg_(), 1e-3) for _ in range(5)) for n in (1 << 22, 1 << 26))
    assert 4 < large / small < 64


@on_a_device
def test_launches_transfers_and_waits_of_known_work(clock: CudaClock) -> None:
    x = torch.rand(1000, device=clock.device)

    def work() -> None:
        x.neg_()
        x.abs_()
        x.cpu()

    assert clock.launches(work) == (2, 1)
    assert clock.waits(work) == 1
    assert clock.waits(x.neg_) == 0


@on_a_device
def test_peak_is_what_was_allocated(clock: CudaClock) -> None:
    before = clock.allocated()
    assert before is not None
    assert clock.peak(lambda: torch.empty(1 << 22, device=clock.device)) == before + (1 << 24)


@on_a_device
def test_a_recording_runs_once_per_call(clock: CudaClock) -> None:
    x = torch.zeros(1, device=clock.device)
    replay = clock.capture(lambda: x.add_(1), 3)
    assert x.item() == 3
    replay()
    replay()
    assert x.item() == 5


@on_a_device
def test_a_copy_reaches_a_plausible_bandwidth(clock: CudaClock) -> None:
    assert 1e11 < CopyMeter(clock, 1 << 28).bandwidth() < 2e13
