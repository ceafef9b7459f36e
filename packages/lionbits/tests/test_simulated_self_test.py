"""Kernels with a fault in them refuse at the first step on a (simulated) GPU, and the next backend serves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits import select, self_test
from lionbits.select import NotServed
from lionbits_cupy import emulate

from .family import assert_same, weights
from .simulated import simulated
from .test_simulated_cuda import SHAPES, moved, optimizer_of, result, step

#: A kernel's file, what stands in it, and what a wrong compiler might make of that: a contraction.
FILE, RIGHT = "lion.cuh", "__fadd_rn(__fmul_rn(m, b), __fmul_rn(g, one_minus_b))"
WRONG = "fmaf(m, b, __fmul_rn(g, one_minus_b))"


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process, with an empty cache."""
    monkeypatch.setenv("LIONBITS_CACHE", str(tmp_path / "cache"))
    forget()
    yield
    forget()


def forget() -> None:
    """Forget what a process knows; what is on disk stays."""
    self_test._passed.clear()
    self_test._refused.clear()
    select._automatic.cache_clear()


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fault in the CUDA kernels."""
    folder = tmp_path / "cuda"
    shutil.copytree(emulate.FOLDER, folder)
    text = (folder / FILE).read_text()
    assert text.count(RIGHT) == 1
    (folder / FILE).write_text(text.replace(RIGHT, WRONG))
    monkeypatch.setattr(emulate, "FOLDER", folder)
    emulate.module.cache_clear()
    yield
    emulate.module.cache_clear()


def trained(device: str, backend: str | None, **settings: Any) -> dict[str, Any]:
    params = moved(weights(shapes=SHAPES), device)
    optimizer = optimizer_of(params, backend, **{"optim_bits": 8, **settings})
    for number in (1, 2):
        step(optimizer, params, number)
    return result(optimizer, params)


@pytest.mark.usefixtures("fault")
def test_wrong_kernels_refuse_and_the_next_backend_serves(tmp_path: Path) -> None:
    """By name with the element and what to report; ``auto`` goes on. Switched off, the kernels serve."""
    expected = trained("cpu", "reference")
    with simulated(0, "cupy", self_tested=True):
        with pytest.raises(NotServed, match=r"'cupy' cannot .*wrong on simulated CUDA device: element \(.*report"):
            trained("cuda", "cupy")
        with pytest.raises(NotServed):  # when it is made, from now on
            optimizer_of(moved(weights(shapes=SHAPES), "cuda"), "cupy", optim_bits=8)
        forget()
        assert_same(trained("cuda", None), expected)
        assert "cupy" in {name for name, _ in self_test._refused}
    assert not list(tmp_path.rglob("*.self-test"))
    forget()
    with simulated(0, "cupy", self_tested=False):
        trained("cuda", "cupy")


def test_wrong_interpreted_kernels_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    lion = pytest.importorskip("lionbits_triton.lion")
    narrow = lion.narrow
    monkeypatch.setattr(lion, "narrow", lambda x, to: narrow(x * (1 + 2.0**-23), to))
    refused = pytest.raises(NotServed, match=r"'triton' cannot .*the parameter of tensor 0")
    with simulated(0, "triton", self_tested=True), refused:
        trained("cuda", "triton")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plans of self-tests that run."""
    plans: list[Any] = []
    run = self_test.run

    def counted(backend: Any, plan: Any, device: Any) -> str:
        plans.append(plan)
        return run(backend, plan, device)

    monkeypatch.setattr(self_test, "run", counted)
    return plans


def test_what_passed_is_kept_until_something_changes(
    runs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tested(**settings: Any) -> int:
        runs.clear()
        forget()
        trained("cuda", "cupy", **settings)
        return len(runs)

    expected = trained("cpu", "reference")
    with simulated(0, "cupy", self_tested=True):
        assert_same(trained("cuda", "cupy"), expected)
        both = len(runs)  # vectors and small tensors keep 32 bits
        assert both == 2
        assert tested() == 0
        assert tested(cautious="mask") == both
        files = list((tmp_path / "cache").glob("*.self-test"))
        assert len(files) == 2 * both
        for file in files:
            file.write_text("passe")
        assert tested() == both
        with monkeypatch.context() as other:
            other.setattr(self_test, "_machine", lambda index: "another GPU, driver or version")
            assert tested() == both
        with monkeypatch.context() as other:
            other.setattr(self_test, "_source", lambda backend: "another release")
            assert tested() == both


def test_nothing_is_kept_where_nothing_can_be_written(
    runs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIONBITS_CACHE", str(tmp_path / "file" / "cache"))
    with simulated(0, "cupy", self_tested=True):
        for _ in range(2):
            runs.clear()
            forget()
            trained("cuda", "cupy")
            assert len(runs) == 2


def test_an_error_is_a_reason_and_a_lack_of_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from lionbits_cupy import backend as module

    cupy: Any = select.load("cupy")
    plan, device = self_test.plans()[1], torch.device("cuda", 0)

    def fails(error: Exception) -> str:
        def step(*call: Any) -> None:
            raise error

        monkeypatch.setattr(cupy, "step", step)
        return self_test.run(cupy, plan, device)

    with simulated(0, "cupy", self_tested=True):
        assert "CompileError: ptxas died" in fails(type("CompileError", (Exception,), {})("ptxas\ndied"))
        assert fails(torch.OutOfMemoryError("full")) == ""
        monkeypatch.setattr(cupy, "step", module.step)
        assert self_test.run(cupy, plan, device) == ""


def test_settings_of_the_process_do_not_matter() -> None:
    """Neither defaults of torch, nor inference mode, nor a CPU that flushes subnormal numbers."""
    cupy, plan, device = select.load("cupy"), self_test.plans()[2], torch.device("cuda", 0)
    with simulated(0, "cupy", self_tested=True):
        before = torch.get_rng_state()
        try:
            torch.set_default_dtype(torch.float64)
            with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                assert self_test.run(cupy, plan, device) == ""
            if torch.set_flush_denormal(True):
                assert self_test.run(cupy, plan, device) == ""
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_flush_denormal(False)
        assert torch.equal(before, torch.get_rng_state())


def test_reference_passes_and_every_common_way_is_tried() -> None:
    """And the numbers reach what the self-test is for: skipped elements, subnormal numbers, codes of both signs."""
    reference: Any = select.load("reference")
    for plan in self_test.plans():
        *_, last = self_test._results(reference, plan, torch.device("cpu"))
        assert (int(last["the count of skipped elements, step 3"]) > 0) == (plan.nonfinite == "skip")
        if plan.nonfinite == "skip":  # else most of the numbers are NaN by now
            assert all(tensor.count_nonzero() for key, tensor in last.items() if "skipped" not in key), plan
    numbers = torch.cat([self_test._numbers(shape, 10).flatten() for shape in self_test.SHAPES])
    assert ((numbers != 0) & (numbers.abs() < 2.0**-126)).any()
    assert numbers.isinf().any()
    assert numbers.isnan().any()
    assert (numbers == 0).any()
