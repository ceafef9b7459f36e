"""Free memory in a container: fake files of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from lionbits_bench import memory
from lionbits_cli import config, containers

FREE = 8 << 30


def files(root: Path, contents: dict[str, object]) -> None:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n", encoding="ascii")


@pytest.mark.parametrize(
    ("groups", "contents", "expected"),
    [
        ("0::/", {"memory.max": 4 << 30, "memory.current": 1 << 30}, 3 << 30),
        ("0::/", {"memory.max": "max", "memory.current": 1 << 30}, FREE),
        ("0::/a/b", {"a/memory.max": 2 << 30, "a/memory.current": 0, "a/b/memory.max": "max"}, 2 << 30),
        ("0::/outside", {"memory.max": 1 << 30, "memory.current": 0}, 1 << 30),
        ("0::/", {"memory.max": 100, "memory.current": 200}, 0),
        (
            "4:cpu:/x\n3:memory:/x",
            {"memory/x/memory.limit_in_bytes": 5 << 30, "memory/x/memory.usage_in_bytes": 1 << 30},
            4 << 30,
        ),
        ("3:memory:/x", {"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.usage_in_bytes": 0}, FREE),
        ("0::/", {}, FREE),
    ],
)
def test_the_limit_of_the_container_counts(
    groups: str, contents: dict[str, object], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, {"meminfo": f"MemAvailable: {FREE // 1024} kB", "groups": groups})
    files(tmp_path / "cgroups", contents)
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(containers, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(containers, "_CGROUPS", tmp_path / "cgroups")
    assert memory.available() == expected


def test_a_model_larger_than_the_container_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used does not count there: it may be given back."""
    files(tmp_path, {"groups": "0::/", "memory.max": 1 << 20, "memory.current": 1 << 19})
    monkeypatch.setattr(containers, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(containers, "_CGROUPS", tmp_path)
    assert config._memory() == 1 << 20
