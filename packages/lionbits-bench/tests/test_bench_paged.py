"""The part ``paging``: a dry run of it alone, and what it says of made-up numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits.paging.streams import Synchronous
from lionbits_bench import bus, cli, compare, gpu, paged, paged_table, report, transfers, workloads
from lionbits_bench.results import Findings, Part, Results, Row
from lionbits_bench.timing import Clock, Deadline, HostClock, wall_time
from lionbits_bench.transfers import Crossing, TransferStats

CPU = torch.device("cpu")
PAGING = gpu.dry_run().paging
BUDGETS = [f"{bits} bits, {factor}x the budget, pages of 8 KiB" for bits in (8, 32, 4) for factor in (2, 4, 10)]
SIZES = [f"8 bits, 4x the budget, pages of {size} KiB" for size in (4, 32)]
HOST = "32 bits, updated on the host"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paged")
    arguments = ["gpu", "--dry-run", "--parts", "paging", "--backends", "reference", "--out", str(folder)]
    assert cli.main(arguments) == gpu.COMPLETE
    return folder


@pytest.fixture
def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_nothing_else_is_done(results: dict[str, Any]) -> None:
    assert {name: part["status"] for name, part in results["parts"].items()} == {
        "environment": "complete",
        "paging": "complete",
    }


def test_every_budget_and_page_size_moves_what_does_not_stay(results: dict[str, Any]) -> None:
    rows = {row["variant"]: row for row in results["paging"] if row["remark"]}
    assert list(rows) == ["8 bits", *BUDGETS[:3], *SIZES, "32 bits", *BUDGETS[3:6], "4 bits", *BUDGETS[6:]]
    for bits in (8, 32, 4):
        assert rows[f"{bits} bits"]["moved"] is None
        for factor in (2, 4, 10):
            row = rows[f"{bits} bits, {factor}x the budget, pages of 8 KiB"]
            found = row["moved"]
            assert found["budget"] == found["state_bytes"] // factor
            # padding of tensors to 64 bytes makes pages a little larger than the state in them
            assert found["state_bytes"] - found["budget"] <= found["bytes_in"] <= 1.05 * found["state_bytes"]
            assert found["bytes_out"] == found["bytes_in"]
            assert found["passing_bytes"] <= max(found["budget"], 2 * found["page_size"])
            assert found["resident_seconds"] == rows[f"{bits} bits"]["step_seconds"]
            assert found["forecast_seconds"] > 0
            assert row["crossing_bandwidth"] == 2 * found["bytes_in"] / row["step_seconds"]
            assert row["of_bus"] == row["crossing_bandwidth"] / found["bus"]
    assert [rows[variant]["moved"]["page_size"] for variant in SIZES] == [1 << 12, 1 << 15]


def test_the_host_takes_parameters_and_gradients(results: dict[str, Any]) -> None:
    (row,) = (row for row in results["paging"] if row["variant"] == HOST)
    assert (row["moved"]["bytes_in"], row["moved"]["bytes_out"]) == (4 * row["elements"], 2 * row["elements"])
    assert (row["moved"]["budget"], row["moved"]["forecast_seconds"]) == (None, None)


def test_the_bus_is_measured_each_way_and_both(results: dict[str, Any]) -> None:
    found = [(crossing["page_size"], crossing["way"], crossing["bytes_moved"]) for crossing in results["bus"]]
    each = (("in", 1 << 16), ("out", 1 << 16), ("both", 1 << 17))
    assert found == [(size, *case) for size in PAGING.bus_sizes for case in each]
    assert all(len(crossing["seconds"]) == bus.SAMPLES for crossing in results["bus"])
    assert {row["moved"]["bus"] for row in results["paging"] if row["moved"]} == {
        max(crossing["bandwidth"] for crossing in results["bus"] if crossing["way"] == "both")
    }


def test_rows_are_compared_like_all_others(results: dict[str, Any], out: Path) -> None:
    slower = json.loads((out / "results.json").read_text())
    for row in slower["paging"]:
        row["seconds"] = [2 * second for second in row["seconds"]]
    changes = dict(compare.changes(results, slower))["paging"]
    assert [change.ratio for change in changes] == [2.0] * len(results["paging"])


@pytest.mark.parametrize("way", transfers.WAYS)
@pytest.mark.parametrize("page_size", [100, 1000, 4096])
def test_all_bytes_cross_the_way_that_was_asked_for(way: str, page_size: int) -> None:
    crossed = bus.Bus(CPU, 1000)
    crossed.in_on_device.zero_()
    crossed.out_on_host.zero_()
    crossed.cross(page_size, way)
    assert torch.equal(crossed.in_on_device, crossed.in_on_host) == (way != "out")
    assert torch.equal(crossed.out_on_host, crossed.out_on_device) == (way != "in")


def test_copies_wait_for_what_was_computed_before_and_the_device_for_the_last_ones() -> None:
    noted: list[tuple[Any, ...]] = []

    class Noting(Synchronous):
        def computed(self) -> str:
            return "begin"

        def prefetch(self, copy: Any, after: Any) -> str:
            noted.append(("prefetch", *after))
            return f"prefetched {len(noted)}"

        def write_back(self, copy: Any, after: Any) -> str:
            noted.append(("write back", *after))
            return f"written {len(noted)}"

        def compute_after(self, event: Any) -> None:
            noted.append(("compute after", event))

    crossed = bus.Bus(CPU, 200)
    crossed._streams = Noting()
    crossed.cross(100, "both")
    assert noted == [("prefetch", "begin"), ("write back", "begin"), ("prefetch",), ("write back",),
                    ("compute after", "prefetched 3"), ("compute after", "written 4")]  # fmt: skip


def test_a_bus_that_time_does_not_reach_is_reported() -> None:
    findings = Findings()
    assert bus.measure(HostClock(), [64], 128, Deadline(0), findings) == []
    assert findings.unfinished == [f"the bus, {way}, in pages of 64 bytes" for way in transfers.WAYS]


def crossings(**both: float) -> list[Crossing]:
    """Bandwidths both ways by page size in MiB, and fast small pages one way, which must not count."""
    one_way = [Crossing(1 << 18, way, 10**12, [0.1]) for way in ("in", "out")]
    return one_way + [Crossing(int(mib[1:]) << 20, "both", int(gbs * 1e9), [1.0]) for mib, gbs in both.items()]


def test_the_smallest_page_that_reaches_nearly_the_best_is_enough() -> None:
    assert transfers.enough(crossings(_64=100.0, _16=97.0, _4=96.9, _1=50.0)) == 16 << 20
    assert transfers.enough(crossings(_1=100.0, _4=99.0)) == 1 << 20
    assert transfers.enough(crossings()) is None
    found = Crossing(1, "both", 100, [1.0, 50.0, 2.0])
    assert found.bandwidth == 50.0


def known() -> Row:
    """Half a second for 40 GB: 80 GB/s."""
    row = Row("list", "", 3, 1000, "bf16", "triton", "8 bits, 4x the budget, pages of 16 MiB", ours=True)
    row.seconds, row.peak_bytes = [0.5], 5_004_000
    row.moved = TransferStats(25 * 10**9, 6 * 10**9, 1 << 24, 20 * 10**9, 20 * 10**9, 1000, 3 << 24, 0)
    return row


def test_steps_are_measured_against_the_bus_and_the_resident_step() -> None:
    resident = Row("list", "", 3, 1000, "bf16", "triton", "8 bits", ours=True, seconds=[0.25])
    other = replace(resident, name="cupy", seconds=[9.0])
    row = known()
    paged.complete([resident, other, row], crossings(_16=100.0, _64=90.0))
    assert row.moved is not None
    assert (row.moved.bus, row.of_bus, row.moved.resident_seconds) == (100e9, 0.8, 0.25)
    assert row.moved.device_bytes == 5_000_000
    # 1,000 pages of 20 MB: each takes 0.4 ms each way and 0.2 ms to update; the last has yet to be updated and leave
    assert row.moved.forecast_seconds == pytest.approx(1001 * 0.4e-3 + 0.2e-3)


def test_without_a_bus_there_is_nothing_to_measure_against() -> None:
    row = known()
    paged.complete([row], [])
    assert row.moved is not None
    assert (row.moved.bus, row.of_bus, row.moved.forecast_seconds) == (None, None, None)
    assert row.crossing_bandwidth == 80e9


def made_up(*, managed: bool) -> Results:
    row = known()
    lost = Row("list", "", 3, 1000, "bf16", "cupy", "8 bits", ours=True, problem="not reached")
    found = crossings(_4=96.0, _16=99.0, _64=100.0)
    paged.complete([row, lost], found)
    parts = {"paging": Part("complete", 1.0, 2.0)}
    return Results(False, "cuda:0", 9.0, ["triton"], parts, managed=managed, bus=found, paging=[row, lost])


def test_the_report_says_what_was_found() -> None:
    text = report.markdown(made_up(managed=False))
    assert "| 16 MiB | - | - | 99.0 | 99 % |" in text
    assert "The smallest page that reaches 97 % of the best both ways at once: 16 MiB. The default is 16 MiB." in text
    variant = "8 bits, 4x the budget, pages of 16 MiB"
    numbers = "500.0 | - | - | - | 20,000.0 | 20,000.0 | 80.0 | 80 % | 5.0 | 6,000.0 |  |"
    assert "### list, bf16\n\n3 tensors, 1,000 elements.\n\n| who | variant | ms |" in text
    assert f"| triton | {variant} | {numbers}" in text
    assert "| cupy | 8 bits | - | - | - | - | - | - | - | - | - | - | not reached |" in text
    assert f"paging: triton {variant}, bf16: 500.0 ms, 80 % of the bus" in report.summary(made_up(managed=False))


def test_the_report_says_whether_managed_memory_was_used() -> None:
    without, let_in = (report.markdown(made_up(managed=managed)) for managed in (False, True))
    assert paged_table.LEFT_OUT in without
    assert paged_table.LET_IN in let_in
    assert paged_table.LEFT_OUT not in let_in


def test_managed_memory_is_used_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lionbits_bench.peers._missing", lambda peer: "")
    cuda = torch.device("cuda", 0)
    for managed in (False, True):
        racing = {one.variant for one in gpu.everyone(cuda, ["triton"], "bf16", managed=managed)}
        paging = [one.variant for round_, _ in paged.rounds(replace(PAGING, managed=managed), ["triton"], cuda)
                  for one in round_.candidates if one.name == "bitsandbytes"]  # fmt: skip
        assert {"Lion8bit", "FlashLion"} < racing
        assert ({"PagedLion", "PagedLion8bit"} & racing == set()) is not managed
        assert paging == (["PagedLion8bit"] if managed else [])


def test_wall_time_sees_what_the_device_does_after_the_call() -> None:
    events: list[str] = []

    class Late(HostClock):
        def wait(self) -> None:
            events.append("wait")

    clock: Clock = Late()
    assert wall_time(clock, lambda: events.append("work")) >= 0
    assert events == ["wait", "work", "wait"]


def test_state_is_a_few_gib_at_most_and_a_small_part_of_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    for gib, layers in ((1000, 4), (8, 1), (0, 1)):
        monkeypatch.setattr("lionbits_bench.memory.available", lambda gib=gib: gib << 30)
        largest = gpu.full().paging.family[0]
        assert largest == workloads.llama(layers)
        assert 4 * largest.elements < 5 << 30


def test_parts_that_are_unknown_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["gpu", "--dry-run", "--parts", "pagin"])
    assert "there is no 'pagin'" in capsys.readouterr().err
