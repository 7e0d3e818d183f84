"""The fixture that the tests of the gateways and of the console share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scenarios.world import World, passing


@pytest.fixture(name="world")
def fresh_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An empty folder, ended with all its processes."""
    with passing(tmp_path_factory.mktemp("world")) as made:
        yield made
