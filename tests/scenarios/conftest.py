"""A world per test, ended with all its processes even when the test fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from scenarios.world import World, passing


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty folder; `configure` and `serve` make a pool of it."""
    with closing(World(tmp_path)) as made:
        yield made


@pytest.fixture(scope="module")
def make_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], World]]:
    """Worlds that the tests of one module share, for what hurts nobody."""
    with ExitStack() as made:
        yield lambda name: made.enter_context(passing(tmp_path_factory.mktemp(name)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What the supervisor said belongs to the report of a failed test."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        if report.when == "call" and report.failed and isinstance(value, World):
            report.sections.append(("supervisor", value.log()))
    return report
