"""The spool of a node is removed, moved away or made anew under its agent: it says so and ends, and its jobs go on
elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.world import PATIENCE_S, alive, remove, wait_until

from cluster.machines import Cluster, Machine, cluster
from cluster.rig import Servers, free_ports
from pool import FilePool
from pool.cluster.agent import Agent
from pool.cluster.presence import Presence
from pool.cluster.processes import agent_of
from pool.config.settings import parse_config
from pool.spool import layout

LONG_S = 90.0
ENGINES = {"fake": {"max_concurrent_tasks": 1}}


@pytest.fixture
def joined(server: Servers, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, server.url) as joined:
        yield joined


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Machine]:
    """A node whose servers are away."""
    machine = Machine(tmp_path / "alone", "alone", f"nats://127.0.0.1:{free_ports(1)[0]}").start()
    wait_until(lambda: "does not answer" in machine.said(), "it waits for its servers")
    yield machine
    machine.close()


def ended(machine: Machine) -> str:
    """What the agent has said, once it has ended."""
    assert machine.agent is not None
    assert machine.agent.wait(PATIENCE_S) == 1, machine.said()
    said = machine.said()
    assert "Traceback" not in said
    return said


@pytest.mark.long
def test_removed(joined: Cluster) -> None:
    first, client = joined.node("first", ENGINES), joined.pool()
    joined.wait_nodes("first")
    future = client.submit("fake", do="sleep", seconds=2.0, value="done")
    wait_until(future.running, "it runs")
    before = first.processes()
    remove(first.spool)
    said = ended(first)
    assert f"spool {first.spool} is gone: removed, moved or unmounted" in said
    wait_until(lambda: not any(map(alive, before)), "the end of its workers")
    joined.node("second", ENGINES)
    assert future.result(LONG_S)["value"] == "done"
    assert future.record is not None
    assert future.record.worker.startswith("second/")


def test_removed_while_the_servers_are_away(alone: Machine) -> None:
    remove(alone.spool)
    assert f"spool {alone.spool} is gone: removed, moved or unmounted" in ended(alone)


def test_made_anew(alone: Machine) -> None:
    """The next agent is the one that `drain` finds, also when the old one has ended."""
    old = alone.agent
    os.rename(alone.spool, alone.folder / "aside")
    alone.start()
    new = alone.agent
    assert old is not None
    assert new is not None
    assert old.wait(PATIENCE_S) == 1

    def told() -> bool:
        identity = agent_of(alone.spool)
        return identity is not None and identity.pid == new.pid

    wait_until(told, "the new one is found")


def test_it_drains_whatever_happens(server: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a signal would be answered with "draining", and nothing more."""
    engines = {"fake": {"engine": "inference.fake:Fake"}}
    document = {"spool": "spool", "engines": engines, "cluster": {"servers": [server.url], "name": "odd"}}
    config = parse_config(document, tmp_path)
    layout.prepare(config.spool)

    async def odd(_: Presence) -> None:
        raise RuntimeError("something odd")

    async def serve() -> None:
        with FilePool(config, start=False) as pool:
            agent = Agent(config, pool)
            running = asyncio.create_task(agent.run())
            await agent.opened.wait()
            monkeypatch.setattr(Presence, "say_state", odd)
            await agent.drain(0.0)
            await asyncio.wait_for(running, PATIENCE_S)

    asyncio.run(serve())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_servers_are_away(alone: Machine, number: signal.Signals) -> None:
    assert alone.agent is not None
    alone.agent.send_signal(number)
    assert alone.agent.wait(PATIENCE_S) == 0, alone.said()
