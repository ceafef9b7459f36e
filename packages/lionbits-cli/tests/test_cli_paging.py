"""``lionbits train --paged`` tells what moved."""

from __future__ import annotations

from lionbits_cli.results import paged


def test_what_moved_is_reported() -> None:
    moved = {"bytes_in": 3 << 30, "bytes_out": 3 << 30, "pages_in": 192, "resident_bytes": 1 << 30}
    assert paged("paged-lion8", moved).startswith("paged-lion8 copied 3.22 GB to the device in 192 pages")
    assert "moved nothing" in paged("paged-lion8", {**moved, "bytes_in": 0})
