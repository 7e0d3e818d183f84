"""One pool and one gateway for the tests that hurt nobody; a fresh world for those that kill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scenarios.world import passing

from gateways.gateway import Gateway, configure
from gateways.worlds import fresh_world  # noqa: F401


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway on loopback, without a token."""
    with passing(tmp_path_factory.mktemp("gateway")) as its, Gateway(its) as gate:
        configure(its, max_upload_mb=4, upload_timeout_s=3)
        its.serve(ready=5)
        yield gate.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """What the gateway said belongs to the report of a failed test."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        if report.when == "call" and report.failed and isinstance(value, Gateway):
            report.sections.append(("gateway", value.log()))
    return report
