"""Ctrl-C and `--resume`: nothing is lost, and nothing differs from a run that was never interrupted."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits_cli import main
from lionbits_cli.training import CHECKPOINT

Train = Callable[..., int]
Interrupt = Callable[..., None]
Read = Callable[[Path], dict[str, Any]]


def same(left: Any, right: Any) -> bool:
    """Equality that looks into containers and compares tensors bit by bit, dtypes included."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def resume_command(shown: str) -> list[str]:
    """The arguments of the command that an interrupted run prints."""
    (line,) = [line for line in shown.splitlines() if line.startswith("  lionbits ")]
    return shlex.split(line)[1:]


@pytest.mark.parametrize(
    "options",
    [
        "--variant lion32",
        "--variant lion8 --cautious",
        "--variant lion4 --seed 5",
        "--variant paged-lion8",
        "--variant qlion",
        "--variant lion8 --dtype bfloat16 --param-rounding dithered",
        "--variant lion4 --dtype bfloat16 --param-rounding compensated",
    ],
)
@pytest.mark.parametrize("step", [1, 4])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(
    train: Train, interrupt_at: Interrupt, read_checkpoint: Read, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], options: str, step: int,
) -> None:  # fmt: skip
    straight = tmp_path / "straight"
    stopped = tmp_path / "stopped here"  # a space: the command must be quoted
    assert train(*options.split(), "--out", straight) == 0

    interrupt_at(step)
    assert train(*options.split(), "--out", stopped) == 130
    assert read_checkpoint(stopped)["step"] == step

    assert main([*resume_command(capsys.readouterr().err), "--quiet"]) == 0
    expected, found = read_checkpoint(straight), read_checkpoint(stopped)
    assert same(expected["model"], found["model"])
    assert same(expected["optimizer"], found["optimizer"])
    assert expected["step"] == found["step"] == 6
    for curve in ("train", "validation"):
        assert expected["history"][curve] == found["history"][curve]
    assert (straight / "sample.txt").read_bytes() == (stopped / "sample.txt").read_bytes()


def test_a_second_ctrl_c_stops_at_once(
    train: Train, interrupt_at: Interrupt, read_checkpoint: Read, tmp_path: Path
) -> None:
    interrupt_at(4, presses=2)
    assert train("--out", tmp_path) == 130
    assert read_checkpoint(tmp_path)["step"] == 2  # the last evaluation's: step 4 had not ended


def test_a_failing_disk_leaves_the_previous_checkpoint(
    train: Train, read_checkpoint: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train("--steps", 2, "--out", tmp_path) == 0

    def full(content: object, stream: Any) -> None:
        stream.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert train("--out", tmp_path) == 2
    assert capsys.readouterr().err == "lionbits train: No space left on device\n"
    assert read_checkpoint(tmp_path)["step"] == 2


def test_more_steps_continue_a_finished_run(train: Train, read_checkpoint: Read, tmp_path: Path) -> None:
    assert train("--steps", 2, "--out", tmp_path) == 0
    command = ["train", "--resume", str(tmp_path / CHECKPOINT), "--steps", "4", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "longer")]) == 0
    assert read_checkpoint(tmp_path)["step"] == 2
    assert read_checkpoint(tmp_path / "longer")["step"] == 4


def test_what_would_make_another_run_is_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--steps", 2, "--out", tmp_path) == 0
    resume = ["train", "--quiet", "--resume", str(tmp_path / CHECKPOINT)]
    assert main([*resume, "--lr", "0.5"]) == 2
    assert "--lr 0.5: the checkpoint was made with 0.0004" in capsys.readouterr().err
    assert main([*resume, "--compare", "lion8", "lion4"]) == 2
    assert main([*resume, "--batch", "2"]) == 0  # saying what it is anyway does no harm


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint at all"])
def test_an_unreadable_checkpoint_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / CHECKPOINT
    if content is not None:
        path.write_bytes(content)
    assert main(["train", "--resume", str(path)]) == 2
    assert f"cannot read the checkpoint {path}" in capsys.readouterr().err


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_or_altered_checkpoint_is_reported_by_name(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: float
) -> None:
    """Cut short anywhere, or with one bit changed."""
    assert train("--steps", 2, "--out", tmp_path) == 0
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    at = int(part * len(whole))
    for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
        path.write_bytes(content)
        assert main(["train", "--resume", str(path)]) == 2
        assert f"cannot read the checkpoint {path}" in capsys.readouterr().err


def test_a_checkpoint_that_lacks_something_or_does_not_fit_is_reported_by_name(
    train: Train, read_checkpoint: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--steps", 2, "--out", tmp_path) == 0
    whole, path = read_checkpoint(tmp_path), tmp_path / CHECKPOINT
    for key in ("optimizer", "history", "model"):
        torch.save({name: value for name, value in whole.items() if name != key}, path)
        assert main(["train", "--resume", str(path)]) == 2
        assert f"the checkpoint {path} lacks {key}" in capsys.readouterr().err
    group = {**whole["optimizer"]["param_groups"][0], "lionbits_version": 99}
    for broken, words in (
        ({"optimizer": {**whole["optimizer"], "param_groups": [group]}}, "lionbits_version"),
        ({"model": dict(list(whole["model"].items())[1:])}, "Missing key"),
    ):
        torch.save(whole | broken, path)
        assert main(["train", "--resume", str(path)]) == 2
        shown = capsys.readouterr().err
        assert f"cannot continue from the checkpoint {path}" in shown
        assert words in shown


def test_what_a_killed_run_left_is_gone_at_the_next_start(train: Train, tmp_path: Path) -> None:
    """Before the first save, not only by it: a run that starts on a full disk makes room first."""
    assert train("--steps", 2, "--out", tmp_path) == 0
    left = tmp_path / f"{CHECKPOINT}.0123456789abcdef.tmp"
    left.write_bytes(b"half")
    assert main(["train", "--resume", str(tmp_path / CHECKPOINT), "--quiet"]) == 0  # nothing is left to train
    assert not left.exists()


def test_another_text_is_refused(
    train: Train, read_checkpoint: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--steps", 2, "--out", tmp_path) == 0
    torch.save(read_checkpoint(tmp_path) | {"corpus": "another"}, tmp_path / CHECKPOINT)
    assert main(["train", "--resume", str(tmp_path / CHECKPOINT)]) == 2
    assert "another text" in capsys.readouterr().err
