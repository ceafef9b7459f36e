"""The corpus: the same bytes every time, and nothing of the validation text among the training text."""

from pathlib import Path

import pytest
import torch

from lionbits_cli import corpus
from lionbits_cli.console import CommandError


def write(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"# {name}\nvalue = {len(name)}\n".encode() * 20)


def test_two_reads_agree() -> None:
    first, second = corpus.load.__wrapped__(), corpus.load.__wrapped__()
    assert first.digest == second.digest
    assert torch.equal(first.train, second.train)
    assert first.train_files == second.train_files


def test_the_order_of_creation_does_not_matter(tmp_path: Path) -> None:
    names = [f"package{i % 3}/module{i}.py" for i in range(60)]
    write(tmp_path / "a", names)
    write(tmp_path / "b", names[::-1])
    assert corpus.load(tmp_path / "a").digest == corpus.load(tmp_path / "b").digest


def test_held_out_files_are_disjoint_and_whole() -> None:
    found = corpus.load()
    assert set(found.train_files).isdisjoint(found.held_out_files)
    assert len(found.held_out_files) >= 10
    assert corpus.HELD_OUT * corpus.CAP >= len(found.held_out) > 100_000
    assert corpus.CAP >= len(found.train) > 1_000_000


def test_a_smaller_cap_does_not_move_files_between_the_sides() -> None:
    small, large = corpus.load(cap=200_000), corpus.load()
    assert set(small.train_files) <= set(large.train_files)
    assert set(small.held_out_files) <= set(large.held_out_files)


def test_tests_and_other_peoples_packages_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, ["a.py", "b/c.py", "test/d.py", "b/tests/e.py", "site-packages/f.py", "_sysconfigdata_x.py"])
    assert corpus.python_files(tmp_path) == ["a.py", "b/c.py"]


def test_a_python_without_sources_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no Python sources"):
        corpus.load(tmp_path)


def test_batches_are_a_function_of_seed_and_step() -> None:
    text = corpus.load().train
    again = [corpus.training_batch(text, 1, 7, 4, 32)[0] for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], corpus.training_batch(text, 1, 8, 4, 32)[0])
    assert not torch.equal(again[0], corpus.training_batch(text, 2, 7, 4, 32)[0])


def test_targets_are_the_next_bytes_and_windows_stay_inside() -> None:
    text = torch.arange(200, dtype=torch.uint8)
    for inputs, targets in (
        corpus.training_batch(text, 0, 1, 64, 32),
        corpus.validation_windows(text, 64, 32),
    ):
        assert torch.equal(targets, inputs + 1)
        assert inputs.shape == (64, 32)
