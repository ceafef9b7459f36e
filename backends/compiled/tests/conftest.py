"""What several test files of this backend ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lionbits_compiled import functions, packing


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    """Have everything compiled within the test, and nothing of that used after it."""
    makers = [
        *(functions.advance, functions.advance_codes, functions.encode),
        *(functions.store, functions.load, functions.count),
        *(packing._spread, packing._join),
    ]
    for turn in range(2):
        for maker in makers:
            maker.cache_clear()
        if turn == 0:
            yield
