"""One world for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .world import World


@pytest.fixture(scope="session")
def worlds() -> Iterator[list[World]]:
    """The world that stands, if one does."""
    made: list[World] = []
    yield made
    for world in made:
        world.close()


@pytest.fixture
def world(worlds: list[World], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four ranks."""
    if not worlds or not worlds[-1].stands:
        worlds.append(World(request.config.rootpath, tmp_path_factory.mktemp("world") / "rendezvous"))
    return worlds[-1]
