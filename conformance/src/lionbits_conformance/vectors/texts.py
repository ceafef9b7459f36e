"""Notation of the vectors: JSON, numbers as bit patterns in hexadecimal digits, one case to a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lionbits_conformance.oracle.floats import BINARY32, BINARY64, Binary, Number, of_float

#: Raised when the meaning of a field changes; new fields and new cases do not change it.
VERSION = 1


def single(x: Number) -> str:
    """Return a binary32 number as 8 digits; every NaN as 7fc00000."""
    return BINARY32.hex(x)


def double(x: float) -> str:
    """Return a Python float, which is a binary64 number, as 16 digits."""
    return BINARY64.hex(of_float(x))


def words(bits: Iterable[int], width: int) -> str:
    """Return bit patterns of ``width`` bits, separated by blanks; the empty string for none."""
    return " ".join(f"{b:0{width // 4}x}" for b in bits)


def unwords(text: str) -> list[int]:
    """Parse the output of :func:`words`."""
    return [int(word, 16) for word in text.split()]


def canonical(bits: int, binary: Binary) -> int:
    """Return the bit pattern, or that of the quiet NaN for any NaN."""
    return binary.to_bits(binary.from_bits(bits))


def document(kind: str, about: str, cases: Sequence[dict[str, Any]]) -> str:
    """Return the text of one file."""
    head = {"$schema": "schema.json", "kind": kind, "version": VERSION, "about": about}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    body = ",\n".join(f"    {json.dumps(case)}" for case in cases)
    return "\n".join(["{", *lines, '  "cases": [', body, "  ]", "}", ""])
