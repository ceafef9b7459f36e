"""Copies, pinned memory, and memory that is used again."""

from __future__ import annotations

import gc

import pytest
import torch

from cuda_on_cpu.device import UseOfFreedMemory, launch, simulated_cuda

SEEDS = range(30)


def test_pinned_memory_is_read_when_the_copy_runs() -> None:
    found = set()
    for seed in SEEDS:
        with simulated_cuda(seed):
            host = torch.ones(4).pin_memory()
            assert host.is_pinned()
            copied = host.to("cuda", non_blocking=True)
            host.fill_(2)  # too early
            found.add(copied.sum().item())
    assert found == {4.0, 8.0}


@pytest.mark.parametrize("waits", [True, False])
def test_other_memory_is_read_at_once(waits: bool) -> None:
    """Memory that is not pinned, and pinned memory whose copy waits or converts."""
    for seed in SEEDS:
        with simulated_cuda(seed):
            host, narrow = torch.ones(4), torch.ones(4, dtype=torch.float16).pin_memory()
            copies = [
                host.to("cuda", non_blocking=not waits),
                torch.empty(4, device="cuda").copy_(narrow, non_blocking=True),
            ]
            host.fill_(2)
            narrow.fill_(2)
            assert [copied.sum().item() for copied in copies] == [4.0, 4.0]


def test_copies_to_pinned_memory_are_late_and_others_wait() -> None:
    late = 0
    for seed in SEEDS:
        with simulated_cuda(seed) as devices:
            there = torch.full((4,), 5.0, device="cuda")
            host = torch.zeros(4).pin_memory()
            before = devices.counts["host waits"]
            host.copy_(there, non_blocking=True)
            assert devices.counts["host waits"] == before
            late += host[0] == 0
            assert torch.zeros(4).copy_(there, non_blocking=True).tolist() == there.cpu().tolist() == [5.0] * 4
            assert host.tolist() == [5.0] * 4
            assert there.to("cpu", non_blocking=True).is_pinned()
    assert 0 < late < len(SEEDS)


def test_pinned_memory_lives_until_its_copies_are_done() -> None:
    """As torch's own allocator keeps it: nobody else has to."""
    for seed in SEEDS:
        with simulated_cuda(seed):
            copied = torch.ones(400).pin_memory().to("cuda", non_blocking=True)
            others = [torch.zeros(400).pin_memory() for _ in range(3)]
            assert copied.sum().item() == 400, others


def side_work(*, recorded: bool, waited: bool) -> torch.Tensor:
    x = torch.ones(1000, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        doubled = x * 2
    doubled.record_stream(torch.cuda.current_stream())  # which reads it in the end
    if recorded:
        x.record_stream(side)
    if waited:
        torch.cuda.current_stream().wait_stream(side)
    del x
    y = torch.full((1000,), 7.0, device="cuda")  # may have the memory of x
    torch.cuda.current_stream().wait_stream(side)
    return torch.stack((doubled, y)).sum(1)


@pytest.mark.parametrize("way", ["recorded", "waited"])
def test_memory_is_kept_for_streams_that_use_it(way: str) -> None:
    for seed in SEEDS:
        with simulated_cuda(seed):
            assert side_work(recorded=way == "recorded", waited=way == "waited").tolist() == [2000, 7000]


def fault(seed: int) -> str:
    try:
        with simulated_cuda(seed):
            side_work(recorded=False, waited=False).tolist()
    except UseOfFreedMemory as found:
        return str(found)
    return ""


def test_use_of_freed_memory_is_named() -> None:
    assert sum("record_stream" in fault(seed) for seed in SEEDS) > 3


def test_kernels_that_read_freed_addresses_read_other_bits() -> None:
    """Addresses that a kernel finds in a table are not known; the memory is overwritten."""
    wrong = 0
    for seed in SEEDS:
        with simulated_cuda(seed):
            x, side = torch.ones(1000, device="cuda"), torch.cuda.Stream()
            torch.cuda.synchronize()
            found: list[bytes] = []
            address, take = x.data_ptr(), _bytes_at
            launch("reading", lambda: found.append(take(address)), side.cuda_stream)  # noqa: B023
            del x
            torch.cuda.synchronize()
            wrong += found != [b"\0\0\x80\x3f"]
    assert wrong > 3


def _bytes_at(address: int) -> bytes:
    import ctypes

    return ctypes.string_at(address, 4)


def test_a_stream_uses_its_freed_memory_again_in_order() -> None:
    again = 0
    for seed in SEEDS:
        with simulated_cuda(seed):
            x = torch.ones(1000, device="cuda")
            total, address = x.sum(), x.data_ptr()
            del x
            y = torch.zeros(1000, device="cuda")
            again += y.data_ptr() == address
            with torch.cuda.stream(torch.cuda.Stream()):
                assert torch.empty(1000, device="cuda").data_ptr() != address
            assert (total.item(), y.sum().item()) == (1000, 0)
    assert again > 10


def test_new_memory_holds_no_zeros() -> None:
    with simulated_cuda():
        assert torch.empty(100, device="cuda").isnan().all().item()


def test_statistics_and_limits() -> None:
    with simulated_cuda(capacity=1 << 20) as devices:
        x = torch.zeros(1000, device="cuda")
        assert torch.cuda.memory_allocated() == 4096
        assert torch.cuda.mem_get_info() == ((1 << 20) - 4096, 1 << 20)
        assert torch.cuda.memory_allocated(1) == 0
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.empty(1 << 20, device="cuda")
        devices.fail_allocations(1)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(1, device="cuda")
        del x
        gc.collect()
        assert torch.cuda.memory_allocated() == 0
        assert torch.cuda.max_memory_allocated() == 4096
        y = torch.empty(1000, dtype=torch.uint8, pin_memory=True)
        assert devices.pinned_bytes == 1024, y.shape


def test_waits_uploads_and_launches_are_counted() -> None:
    with simulated_cuda() as devices:
        x = torch.ones(3).to("cuda")
        assert (devices.counts["uploads"], devices.counts["host waits"]) == (1, 1)
        x.add_(1).mul_(2)
        assert devices.counts["launches"] == 2
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        assert (devices.counts["pinned allocations"], devices.counts["host waits"]) == (1, 1)
        assert x[0].item() == 4
        assert devices.counts["host waits"] == 2
