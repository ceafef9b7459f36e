"""Saves in a loop, in children that are killed at random moments, and tells what each of them left; run as a script.

Arguments: an empty folder, then ways to save with the number of children, as ``whole=50``. Prints JSON: for each way an
object for each child.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lionbits

SAVERS: dict[str, tuple[str, Callable[[Any, Path], None]]] = {
    "whole": ("checkpoint.pt", lionbits.save),
    "whole-safetensors": ("checkpoint.safetensors", lionbits.save_safetensors),
    "in-place": ("checkpoint.pt", torch.save),
}


def content(number: int) -> dict[str, Any]:
    """A checkpoint of 4 MiB that tells which it is, everywhere."""
    return {"number": number, "tensors": [torch.full((1 << 19,), float(number)) for _ in range(2)]}


def read(path: Path) -> int:
    """The number of the checkpoint that lies there whole; -1: there is none that can be read."""
    try:
        loaded = lionbits.load_safetensors(path) if path.suffix == ".safetensors" else torch.load(path)
    except Exception:  # noqa: BLE001
        return -1
    number: int = loaded["number"]
    intact = all(bool((tensor == number).all()) for tensor in loaded["tensors"])
    return number if intact else -1


def save_without_end(save: Callable[[Any, Path], None], path: Path, first: int, pipe: int) -> None:
    """Tell that it begins, by the number before the first, and each number when its checkpoint has been saved."""
    number = first - 1
    while True:
        os.write(pipe, number.to_bytes(8, "little"))
        number += 1
        save(content(number), path)


def child_run(save: Callable[[Any, Path], None], path: Path, first: int, patience: float) -> dict[str, int]:
    """One child: what it had saved for certain when it was killed, what lies there, and how much lies beside it."""
    listen, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_without_end(save, path, first, pipe)
        finally:
            os._exit(1)
    os.close(pipe)
    numbers = os.read(listen, 8)  # it has begun
    time.sleep(patience)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(listen, "rb") as stream:
        numbers += stream.read()
    saved = int.from_bytes(numbers[-8:], "little")
    beside = len(list(path.parent.iterdir())) - path.exists()
    return {"saved": saved, "found": read(path), "beside": beside, "signal": os.WTERMSIG(status)}


def timed(save: Callable[[Any, Path], None], path: Path) -> float:
    """Seconds that a save takes."""
    begin = time.perf_counter()
    save(content(0), path)
    return time.perf_counter() - begin


def children(folder: Path, how: str, count: int) -> list[dict[str, int]]:
    """Children one after the other; each goes on counting where a reader would."""
    name, save = SAVERS[how]
    path = folder / name
    once = min(timed(save, path) for _ in range(5))
    chance = random.Random(0)
    results: list[dict[str, int]] = []
    last = 0
    for _ in range(count):
        results.append(child_run(save, path, last + 1, chance.uniform(0.2, 2.2) * once))
        last = max(last, results[-1]["saved"], results[-1]["found"])
    return results


def main() -> None:
    """All ways, each in a folder of its own."""
    results = {}
    for way in sys.argv[2:]:
        how, count = way.split("=")
        folder = Path(sys.argv[1]) / how
        folder.mkdir()
        results[how] = children(folder, how, int(count))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
