"""All generated mutants: which files they are made of, which are equivalent or live, and samples of the rest."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .generator import Generated, generated

#: Files whose texts are mutated, by what checks them.
FILES: dict[str, tuple[str, ...]] = {
    "reference": tuple(
        f"lionbits_reference/{name}.py" for name in ("update", "formats", "rounding", "slices", "backend")
    ),
    "front end": (
        *("lionbits_reference/caution.py", "lionbits_reference/clipping.py", "lionbits_reference/pairwise.py"),
        *(f"lionbits/step/{name}.py" for name in ("factors", "run", "scalars", "prepare", "cache", "snapshot")),
    ),
    "table": tuple(f"lionbits_table/{name}.py" for name in ("table", "layout", "codec")),
    "cupy": (
        *(f"lionbits_cupy/cuda/{name}" for name in ("kernels.cu", "lion.cuh", "tiles.cuh", "access.cuh")),
        *("lionbits_cupy/launch.py", "lionbits_cupy/source.py", "lionbits_cupy/backend.py"),
    ),
    "triton": tuple(
        f"lionbits_triton/{name}.py" for name in ("kernels", "lion", "tiles", "access", "dither", "launch")
    ),
}

#: How many of each are sampled, and by which seed: those that every release has to reject.
SAMPLE, SEED = {"reference": 150, "front end": 70, "table": 40, "cupy": 40, "triton": 25}, 27


class Known(NamedTuple):
    """A mutant of which something is known, and why that is so."""

    place: tuple[str, str, str, str, int]  # as of :attr:`Generated.place`
    reason: str


def equivalents() -> list[Known]:
    """Those that no input tells from the original."""
    return _known("equivalent.json")


def surviving() -> list[Known]:
    """Those that the suite does not reject yet, each with the draw that would."""
    return _known("surviving.json")


def _known(file: str) -> list[Known]:
    read = json.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    return [
        Known((each["file"], each["line"], each["old"], each["new"], each.get("occurrence", 0)), each["reason"])
        for each in read
    ]


def every(target: str) -> list[Generated]:
    """Every mutant of a target's files, equivalent or not, in the order of the texts.

    Args:
        target: a key of ``FILES``, whose packages can be imported.
    """
    return [mutant for file in FILES[target] for mutant in of_file(file)]


def of_file(file: str) -> list[Generated]:
    """Every mutant of a file, named as in ``FILES``."""
    return generated(file, _path(file).read_text(encoding="utf-8"))


def sample(target: str, count: int | None = None, seed: int = SEED) -> list[Generated]:
    """Some mutants of a target, of which none is known to be equivalent or to live, in the order of the texts.

    Args:
        target: a key of ``FILES``.
        count: how many; ``SAMPLE`` says, if it is None.
        seed: of the choice. A mutant is chosen by what it is, so that an edit elsewhere does not change the rest.
    """
    known = {each.place for each in (*equivalents(), *surviving())}
    mutants = [mutant for mutant in every(target) if mutant.place not in known]
    chosen = sorted(mutants, key=lambda mutant: random.Random(f"{seed} {mutant.place}").random())
    kept = set(chosen[: SAMPLE[target] if count is None else count])
    return [mutant for mutant in mutants if mutant in kept]


def targets(names: Sequence[str]) -> list[str]:
    """Those of the names whose packages are installed."""
    return [name for name in names if all(importlib.util.find_spec(file.split("/")[0]) for file in FILES[name])]


def _path(file: str) -> Path:
    package, _, rest = file.partition("/")
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], rest)
