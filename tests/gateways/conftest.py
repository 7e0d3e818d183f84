"""One pool and one gateway for the tests that hurt nobody; a fresh world for those that kill."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from scenarios.world import World

from gateways.gateway import Gateway, configure


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway on loopback, without a token."""
    world = World(tmp_path_factory.mktemp("gateway"))
    configure(world, max_upload_mb=4, upload_timeout_s=3)
    gate = Gateway(world)
    try:
        world.serve(ready=5)
        yield gate.start()
    finally:
        gate.kill()
        world.close()
        shutil.rmtree(world.folder, ignore_errors=True)


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An empty folder, ended with all its processes."""
    made = World(tmp_path_factory.mktemp("world"))
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """What the gateway said belongs to the report of a failed test."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        if report.when == "call" and report.failed and isinstance(value, Gateway):
            report.sections.append(("gateway", value.log()))
    return report
