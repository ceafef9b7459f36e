"""Wrong calls end with one sentence on stderr and exit code 2, before any training; never with a traceback."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lionbits_cli import main
from lionbits_cli.training import Run

from .conftest import SMALL

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, devices and modes of POSIX")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that is no folder for results, and a checkpoint."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "file").write_text("x")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere" / "x")
    for name in ("checkpoint.pt", "loss.png", "metrics.json", "sample.txt", "report.png"):
        (folder / f"has-{name}" / name).mkdir(parents=True)
    for name in ("checkpoint.pt", "loss.png", "metrics.json", "sample.txt"):
        (folder / f"has-lion4-{name}" / "lion4" / name).mkdir(parents=True)
    assert main(["train", *SMALL, "--steps", "2", "--out", str(folder / "good")]) == 0
    good = torch.load(folder / "good" / "checkpoint.pt", weights_only=True)
    torch.save(good["optimizer"], folder / "state.pt")
    return folder


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must not train; the sentence that it says."""

    def trained(*given: object) -> None:
        raise AssertionError("it trains")

    def run(*arguments: object) -> str:
        monkeypatch.setattr(Run, "advance", trained)
        monkeypatch.setattr("lionbits_cli.report.measure", trained)
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr().err
        assert code == 2, said
        last = said.strip().splitlines()[-1]
        assert said.startswith(("usage:", f"lionbits {arguments[0]}: ")), said
        assert said.startswith("usage:") or said.count("\n") == 1, said
        assert len(last) < 900
        return last

    return run


OUTS = (
    *("file", "file/x", "pipe", "loop", "dangling", "n" * 300, "", "a\0b", "/dev/null", "/dev/full", "/dev/null/x"),
    *("has-checkpoint.pt", "has-loss.png", "has-metrics.json", "has-sample.txt", "/proc/nothing"),
)


@pytest.mark.parametrize("out", OUTS, ids=repr)
def test_targets_of_train(out: str, place: Path, refused: Callable[..., str]) -> None:
    where = place / out if out and not out.startswith("/") else out
    refused("train", *SMALL, "--out", where)
    if out not in ("has-checkpoint.pt", "has-sample.txt"):  # which a comparison has in its sub-folders
        refused("train", *SMALL, "--compare", "lion8", "lion4", "--out", where)
    refused("train", "--resume", place / "good" / "checkpoint.pt", "--out", where)


@pytest.mark.parametrize("name", ["checkpoint.pt", "loss.png", "metrics.json", "sample.txt"])
def test_targets_of_the_last_variant_of_a_comparison(name: str, place: Path, refused: Callable[..., str]) -> None:
    """Not after the others have trained."""
    assert name in refused("train", *SMALL, "--compare", "lion8", "lion4", "--out", place / f"has-lion4-{name}")


@pytest.mark.parametrize("out", ["file", "pipe", "loop", "has-report.png", "", "/dev/null", "n" * 300], ids=repr)
def test_targets_of_report(out: str, place: Path, refused: Callable[..., str]) -> None:
    refused("report", "--steps", 20, "--out", place / out if out and not out.startswith("/") else out)


def test_a_folder_without_permission_or_room(
    place: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the answer of the system is made up."""
    for number in (13, 28, 30):

        def fail(number: int = number, **given: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr("tempfile.TemporaryFile", fail)
            words = os.strerror(number)
            assert words in refused("train", *SMALL, "--out", place / "new")
            assert words in refused("report", "--steps", 20, "--out", place / "new")
            assert words in refused("convert", place / "state.pt", place / "new.pt")


WRONG = {
    "device": ["gpu", "cuda:99", "cuda:x", "meta", "", "cpu:1", "cpu:0:0", "hpu", "vulkan", "cuda:-1"],
    "seed": ["-1", "x", str(2**64), "1.5", ""],
    "steps": ["0", "-1", "x", "nan", "1.5", "9" * 20],
    "batch": ["0", "-1", "x", "1000000000", "9" * 20],
    "context": ["0", "x", "3999999", "9" * 20],
    "layers": ["0", "1000000000", "9" * 20],
    "width": ["0", "65", "1000000000"],
    "heads": ["0", "3", "-2"],
    "eval-every": ["0", "x"],
    "lr": ["-1", "nan", "inf", "1e400", "x", ""],
    "clip": ["-1", "nan"],
    "weight-decay": ["inf", "-0.1"],
    "bits": ["3", "x", "0"],
    "master-bits": ["7", "x"],
    "page-budget": ["-1", "x", "nan", "inf", "5"],
    "paged-compute": ["x", "host"],
    "variant": ["foo", ""],
    "compare": ["foo"],
    "backend": ["foo"],
    "dtype": ["float16"],
    "cautious": ["x"],
    "param-rounding": ["x", "dithered"],
    "resume": ["/dev/zero", "/dev/null", "", "/nowhere/x"],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, some in WRONG.items() for value in some])
def test_options_of_train(option: str, value: str, place: Path, refused: Callable[..., str]) -> None:
    refused("train", *SMALL, "--out", place / "options", f"--{option}={value}")


CLAIMS: list[tuple[str, Any]] = [
    *(("config", value) for value in (5, None)),
    *(("config." + name, value) for name in ("steps", "batch", "seed", "layers") for value in ("x", None, -1, 1.5)),
    *(("config." + name, 10**9) for name in ("width", "layers", "context", "batch")),
    *(
        ("config." + name, value)
        for name in ("variant", "dtype", "device", "param_rounding")
        for value in ("foo", 5, [])
    ),
    *(("config." + name, value) for name in ("lr", "clip", "weight_decay") for value in ("x", [], float("nan"))),
    *(
        ("config." + name, "x")
        for name in ("bits", "page_budget", "paged_compute", "cautious", "backend", "eval_every")
    ),
    *(("step", value) for value in ("x", -1, None, 10**9, 1.5)),
    *(("history", value) for value in (5, {}, {"train": 5})),
    *(("history.train", value) for value in (5, ["x", 1.0], [1.0])),
    *(("history.validation", value) for value in (5, [[1]], [[1, "x"]])),
    *((name, value) for name in ("corpus", "environment", "model", "optimizer", "version") for value in (5, None, [])),
    *((name, {}) for name in ("model", "optimizer")),
]


@pytest.mark.parametrize(("key", "value"), CLAIMS, ids=str)
def test_what_a_resumed_file_claims(key: str, value: Any, place: Path, refused: Callable[..., str]) -> None:
    content = copy.deepcopy(torch.load(place / "good" / "checkpoint.pt", weights_only=True))
    first, _, second = key.partition(".")
    if second:
        content[first][second] = value
    else:
        content[first] = value
    torch.save(content, place / "claims.pt")
    refused("train", "--resume", place / "claims.pt", "--steps", 4) if key != "config.steps" else refused(
        "train", "--resume", place / "claims.pt"
    )


def test_a_file_that_is_read_is_a_file(place: Path, refused: Callable[..., str]) -> None:
    for source in (place / "pipe", "/dev/zero", place):
        assert "cannot read" in refused("convert", source, place / "new.pt")
    assert "it is no file" in refused("train", "--resume", place / "pipe")


COMPARISONS = [
    5, [], {}, {"variants": 5, "config": {}}, {"variants": ["foo"], "config": {}}, {"variants": [5], "config": {}},
    {"variants": [], "config": {}}, {"variants": ["lion8"], "config": 5}, {"variants": ["../x"], "config": {}},
    {"variants": [[]], "config": {}}, {"variants": ["lion8"], "config": {"steps": "x"}},
]  # fmt: skip


@pytest.mark.parametrize("content", [*map(json.dumps, COMPARISONS), "", "[" * 100_000], ids=lambda text: text[:40])
def test_what_a_comparison_claims(content: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "comparison.json").write_text(content)
    refused("train", "--resume", tmp_path)


@pytest.mark.parametrize(
    "target", ["file", "pipe", "loop", "dangling", "n" * 300, "nowhere/x", "", "a\0b", "/dev/null"]
)
def test_targets_of_convert(target: str, place: Path, refused: Callable[..., str]) -> None:
    refused("convert", place / "state.pt", place / target if target and target[0] != "/" else target)


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "nan", "inf", "1e400", "1e30", "9B9", "B"])
def test_sizes_of_memory(value: str, refused: Callable[..., str]) -> None:
    refused("memory", f"--params={value}")


def test_control_characters_do_not_reach_the_terminal(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that the model writes, nor those in names of files and parameters."""
    monkeypatch.setattr("lionbits_cli.model.ByteTransformer.generate", lambda *given: b"\x1b[2Jx\x07\ty\x9b\nz")
    loud = [argument for argument in SMALL if argument != "--quiet"]
    assert main(["train", *loud, "--steps", "2", "--out", str(place / "loud")]) == 0
    assert main(["convert", str(place / "\x1b[2J"), str(place / "new.pt")]) == 2
    shown = "".join(capsys.readouterr())
    assert "[2Jx" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


def test_a_model_that_diverged_writes_what_there_is(place: Path) -> None:
    assert main(["train", *SMALL, "--steps", "2", "--lr", "1e30", "--out", str(place / "diverged")]) == 0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lionbits_cli", *arguments]


@pytest.mark.parametrize(
    ("shell", "codes"),
    [
        ('"$@" >&-', {0}),
        ('"$@" >&- 2>&-', {0}),
        ('"$@" > /dev/full', {2}),
        ('LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 "$@" > /dev/null', {0}),
        ('PYTHONIOENCODING=ascii "$@" > /dev/null', {0}),
        ('"$@" | true; exit ${PIPESTATUS[0]}', {0, 141}),
    ],
    ids=["closed", "both closed", "full", "C", "ascii", "a pipe that nobody reads"],
)
def test_streams_that_do_not_take_what_is_written(shell: str, codes: set[int]) -> None:
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *command("memory")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("after", [0.0, 0.2, 0.5, 1.0])
def test_ctrl_c_while_torch_is_imported(after: float, tmp_path: Path) -> None:
    """Before there is a command, `after` seconds into the import."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from lionbits_cli import main\n"
    code += "assert 'torch' not in sys.modules and 'lionbits' not in sys.modules\n"
    code += "class Starts:\n"
    code += "    def find_spec(self, name, *rest):\n"
    code += "        if name == 'torch': print('starts', flush=True)\n"
    code += "sys.meta_path.insert(0, Starts())\n"
    code += "sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *SMALL, "--steps", "10000", "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "starts\n"
    time.sleep(after)
    said = interrupted(process)
    assert process.returncode == 130, said
    assert "interrupted" in said.strip().splitlines()[-1]
    assert "Traceback" not in said


def interrupted(process: subprocess.Popen[str]) -> str:
    """Send Ctrl-C until the process ends; return its error output.

    Python drops an exception that is raised in a callback of the import system, and the signal with it.
    """
    try:
        for _ in range(60):
            process.send_signal(signal.SIGINT)
            try:
                return process.communicate(timeout=2)[1]
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError("it does not end")
    finally:
        process.kill()


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    """As soon as there is a command to stop: while it reads the text and makes the model."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job has none
    code += "from lionbits_cli import corpus, main\n"
    code += "def slow(): print('starts', flush=True); import time; time.sleep(60)\n"
    code += "corpus.load = slow; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *SMALL, "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "starts\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == "interrupted"
