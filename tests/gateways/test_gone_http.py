"""The spool of a gateway goes: every route says so, also when there is another one at its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.world import World, kill, passing, remove, wait_until

from gateways.gateway import Gateway, configure

pytestmark = pytest.mark.long


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with passing(tmp_path) as world:
        yield from _in(world)


def _in(world: World) -> Iterator[Gateway]:
    configure(world)
    world.serve(ready=1)
    old = [*world.processes(), *(process.pid for process in world.serving)]
    with Gateway(world) as gate:
        yield gate.start()
    for pid in old:
        kill(pid)


def said(gateway: Gateway, path: str) -> str:
    answer = gateway.session.get(f"{gateway.base}{path}")
    return answer.text if answer.status_code == 503 else ""


@pytest.mark.parametrize("path", ["/health", "/status", "/jobs", "/jobs/none"])
def test_removed(gateway: Gateway, path: str) -> None:
    remove(gateway.world.spool)
    wait_until(lambda: "is gone: removed" in said(gateway, path), "the reason")
    assert "restart this gateway" in said(gateway, path) or path == "/health"  # that of a client with a token
    assert "Traceback" not in gateway.log()


def test_made_anew(gateway: Gateway) -> None:
    os.rename(gateway.world.spool, gateway.world.folder / "aside")
    gateway.world.serve(ready=1)
    wait_until(lambda: "made anew" in said(gateway, "/health"), "the reason")
