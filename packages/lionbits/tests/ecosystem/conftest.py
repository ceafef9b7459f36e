"""The two optimizers that everybody's tools are tried with."""

from __future__ import annotations

import pytest

from lionbits import Lion, Lion8bit, PagedLion8bit


@pytest.fixture(params=[Lion8bit, PagedLion8bit])
def optimizer_class(request: pytest.FixtureRequest) -> type[Lion]:
    """8-bit Lion, resident and paged."""
    chosen: type[Lion] = request.param
    return chosen
