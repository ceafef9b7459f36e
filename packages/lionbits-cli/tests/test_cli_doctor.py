"""`lionbits doctor`: reasons instead of failures, also on a machine that lacks nearly everything."""

import importlib.util
import shutil

import pytest
import torch

from lionbits import install, select
from lionbits_cli import doctor, main


def test_every_backend_is_available_or_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    found = {name: reason for name, device, reason in doctor.backends() if device == "cpu"}
    assert set(found) == set(select.known())
    assert found["reference"] == ""
    assert all(name in shown for name in found)


def test_a_backend_that_breaks_is_a_row_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str, device: torch.device) -> str:
        raise RuntimeError(f"{name} fell over")

    monkeypatch.setattr(select, "diagnose", broken)
    assert main(["doctor"]) == 0
    assert "not available: RuntimeError: reference fell over" in capsys.readouterr().out


@pytest.mark.parametrize(("wanted", "code"), [("reference", 0), ("auto", 0), ("nonesuch", 1)])
def test_an_environment_that_cannot_be_served_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: str, code: int
) -> None:
    monkeypatch.setenv("LIONBITS_BACKEND", wanted)
    assert main(["doctor"]) == code
    assert wanted in capsys.readouterr().out


def test_the_self_test_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every backend that serves is compared with the reference; wrong bits are the exit code."""
    monkeypatch.setattr(select, "known", lambda: ("cpp", "reference"))
    monkeypatch.setattr(doctor, "accelerators", list)
    assert main(["doctor", "--self-test"]) == 0
    shown = capsys.readouterr().out
    assert "passed: 14 ways to update" in shown
    cpp = select.load("cpp")
    monkeypatch.setattr(cpp, "step", lambda *call: None)
    assert main(["doctor", "--self-test"]) == 1
    assert "wrong" in capsys.readouterr().out


@pytest.mark.parametrize(("obstacle", "expected"), [("", "cpp"), ("no library", "reference")])
def test_it_says_what_auto_takes(
    obstacle: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And how to get the fast backend where the reference serves."""
    monkeypatch.setattr(doctor, "accelerators", list)
    monkeypatch.setattr(select.load("cpp"), "supports", lambda plan, device: obstacle)
    select._automatic.cache_clear()
    assert main(["doctor"]) == 0
    select._automatic.cache_clear()
    shown = capsys.readouterr().out.split("Chosen by `auto`")[1]
    assert expected in shown
    assert ("backends/cpp" in shown) is (expected == "reference")


def test_it_works_without_rich_and_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "rich" else find(name, *a))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert install.command("cli") in shown
    assert "none found" in shown
    assert "╭" not in shown


def test_what_only_pretends_to_be_a_gpu_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in doctor.PRETENCES:
        monkeypatch.setenv(variable, "1")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "interpreted" in shown
    assert "emulated" in shown
    monkeypatch.setenv("LIONBITS_CUPY_EMULATE", "ptx:80")
    monkeypatch.setenv("LIONBITS_TRITON_EMULATE", "90")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "ptx:80: NVRTC's PTX" in shown
    assert "90: Triton's PTX for sm_90" in shown
    for variable in ("LIONBITS_CUPY_EMULATE", "LIONBITS_TRITON_EMULATE"):
        monkeypatch.delenv(variable)
    assert main(["doctor"]) == 0
    assert "emulated" not in capsys.readouterr().out
