"""How the command line is entered: its version, its help, and ``python -m lionbits``."""

from __future__ import annotations

import runpy
import sys

import pytest

import lionbits
from lionbits_cli import main


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"lionbits {lionbits.__version__}\n"


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: lionbits")
    assert all(f"    {command}" in said for command in ("train", "report", "convert", "doctor", "memory"))


def test_the_module_is_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lionbits", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("lionbits", run_name="__main__")
    assert end.value.code == 0
    assert lionbits.__version__ in capsys.readouterr().out


def test_the_module_says_how_to_install_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lionbits_cli", None)
    with pytest.raises(SystemExit, match=r"The command line is not installed: pip install .*lionbits-cli"):
        runpy.run_module("lionbits", run_name="__main__")
