"""Language-neutral test vectors: JSON that the oracle wrote, for a Lion in any language.

``cases(kind)`` reads the committed files; ``documents()`` writes them anew, and has to give the same bytes.
``python -m lionbits_conformance.vectors write DIR`` and ``... check`` do the same from a shell. Only ``replays``
needs torch. README.md explains the fields, schema.json their form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import elements, encodings, texts, whole_steps

#: Folder of the committed vectors.
HERE = Path(__file__).parent


class Kind(NamedTuple):
    """One file of vectors."""

    about: str
    make: Callable[[], list[dict[str, Any]]]


KINDS = {
    "arithmetic": Kind("single elements: g, c, u, p' and m' from p, m and a gradient", elements.arithmetic),
    "numbers": Kind("numbers of a whole parameter: rates, cautious factors, norms, clipping", elements.numbers),
    "formats": Kind("every eXmY: values of all codes, encodings, packing", encodings.state_formats),
    "noise": Kind("rounding noise", encodings.rounding_noise),
    "parameters": Kind("how p' is stored in narrower types", encodings.parameter_rounding),
    "steps": Kind("whole optimizers over several steps", whole_steps.steps),
}


def cases(kind: str) -> list[dict[str, Any]]:
    """Return the committed cases of a kind, a key of ``KINDS``."""
    found: list[dict[str, Any]] = json.loads((HERE / f"{kind}.json").read_text(encoding="utf-8"))["cases"]
    return found


def documents() -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of every file, made by the oracle."""
    for kind, (about, make) in KINDS.items():
        yield f"{kind}.json", texts.document(kind, about, make()).encode()


def write(folder: Path) -> list[Path]:
    """Write every file into ``folder``; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in documents():
        (folder / name).write_bytes(content)
        written.append(folder / name)
    return written


def stale() -> list[str]:
    """Return names of committed files that differ from the oracle's output."""
    return [name for name, content in documents() if not _is(HERE / name, content)]


def _is(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
