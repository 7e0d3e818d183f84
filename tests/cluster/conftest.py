"""One server per module for the tests that hurt nobody; others start their own `Servers`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cluster.machines import Cluster
from cluster.rig import Servers


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A server of this module, with streams and buckets. Use `server` to have it empty."""
    with Servers(tmp_path_factory.mktemp("nats")) as servers:
        asyncio.run(servers.ensure())
        yield servers


@pytest.fixture
def server(one_server: Servers) -> Servers:
    """The server of this module, with nothing stored."""
    asyncio.run(one_server.purge())
    return one_server


@pytest.fixture
def three_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A cluster of three, of its own, with streams and buckets in three replicas."""
    with Servers(tmp_path_factory.mktemp("nats"), 3) as servers:
        asyncio.run(servers.ensure())
        yield servers


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """What the servers said belongs to the report of a failed test."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(value, Servers):
            report.sections.append(("nats-server", value.log()))
        if report.failed and isinstance(value, Cluster):
            report.sections.append(("machines", value.logs()))
    return report
