"""A minute and a half of storm over a cluster with a network, half a minute without; `make chaos-cluster` is longer.

FILEPOOL_STORM_SEED repeats one, FILEPOOL_STORM_S is its length. Afterwards nothing is lost, has two results, or ran
twice at a time without a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cluster.rig import Servers
from nats.js.errors import APIError, KeyWrongLastSequenceError

from pool.cluster import wire
from pool.cluster.link import AWAY

from .checker import _at_once, _explained, _Run, values
from .machines import LEASE_S, free
from .network import Loopback, Namespaces, Network, missing
from .storm import Blow, Plan, Storm

SECONDS = float(os.environ.get("FILEPOOL_STORM_S", "90"))
SHORT_S = min(SECONDS, 30.0)
S = 10**9
T = TypeVar("T")


def passes(folder: Path, network: Callable[[], Network], plan: Plan, seconds: float) -> None:
    seed = int(os.environ.get("FILEPOOL_STORM_SEED", str(random.randrange(10**6))))
    print(f"FILEPOOL_STORM_SEED={seed}")
    folder.mkdir()
    storm = Storm(folder, network(), seed, plan)
    try:
        storm.start()
        storm.run(seconds)
        findings = storm.settle()
    finally:
        storm.close()
    print(storm.summary(findings))
    assert findings.sentences() == []
    assert storm.wrong == []
    assert findings.jobs > seconds / 2
    free(folder)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 1.2 + 500)
@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_storm_with_a_network(tmp_path: Path) -> None:
    passes(tmp_path / "storm", Namespaces, Plan(), SECONDS)


@pytest.mark.long
@pytest.mark.timeout(SHORT_S * 1.2 + 400)
def test_storm_without_a_network(tmp_path: Path) -> None:
    """Kills and stops of processes that share one machine."""
    plan = Plan(nodes=2, servers=3, branches=2, clients=1, sync=False, disks=False)
    passes(tmp_path / "storm", Loopback, plan, SHORT_S)


# ---- how the checker reads the servers


@pytest.mark.long
def test_what_servers_hold_is_read_whole_as_soon_as_they_serve(tmp_path: Path) -> None:
    """What they have acknowledged is there after all of them were killed, also without a sync."""
    with Servers(tmp_path / "nats", 3) as servers:
        asyncio.run(servers.ensure())
        told = set[str]()
        for life in range(6):
            told |= asyncio.run(_put(servers, [f"{life}-{number}" for number in range(40)]))
            servers.restart()
            for _ in range(4):
                assert asyncio.run(_held(servers)) == told


async def _put(servers: Servers, keys: list[str]) -> set[str]:
    async with servers.connected() as client:
        js = client.jetstream(timeout=2)
        for key in keys:
            await _answered(lambda key=key: _create(js, key))  # type: ignore[misc]
    return set(keys)


async def _create(js: Any, key: str) -> None:
    with contextlib.suppress(KeyWrongLastSequenceError):  # an answer that was lost
        await (await js.key_value(wire.RESULTS)).create(key, b"x" * 300)


async def _held(servers: Servers) -> set[str]:
    async def look(js: Any) -> set[str]:
        return {key async for key, _ in values(js, wire.RESULTS)}

    async with servers.connected() as client:
        return await _answered(lambda: look(client.jetstream(timeout=2)))


async def _answered(call: Callable[[], Awaitable[T]]) -> T:
    """What a call returns once the servers have a leader."""
    while True:
        try:
            return await call()
        except (*AWAY, APIError):
            await asyncio.sleep(0.02)


# ---- what the checker calls explained


def run(node: str, begin_s: float, end_s: float, pid: int = 1) -> _Run:
    return _Run(node, pid, int(begin_s * S), int(end_s * S), 1)


def test_runs_that_overlap() -> None:
    first, second, third = run("n0", 1, 5), run("n1", 4, 6), run("n2", 5.5, 7)
    assert list(_at_once([third, first, second])) == [(first, second), (second, third)]
    assert list(_at_once([run("n0", 1, 1), run("n1", 1.5, 2)])) == []  # the first one was cut short


@pytest.mark.parametrize(
    ("blow", "cause"),
    [
        (Blow(0, "cut node", ("n0",), 18 * S), "cut node"),
        (Blow(0, "cut node", ("n1",), 18 * S), ""),
        (Blow(19 * S, "kill agent", ("n1",), 21 * S), "kill agent"),  # its pool begins what it has
        (Blow(0, "jump node (+5 s)", ("n0",), 18 * S), ""),
        (Blow(30 * S, "cut node", ("n0",), 38 * S), ""),
        (Blow(0, "stop server", ("s1",), int(18 * S)), "stop server"),
        (Blow(10 * S, "stop server", ("s1",), int((10 + LEASE_S / 4) * S)), ""),
        (Blow(10 * S, "cut node one way (out)", ("n0",)), "cut node one way"),
    ],
)
def test_what_explains_that_a_job_ran_twice_at_a_time(blow: Blow, cause: str) -> None:
    first, second = run("n0", 1, 25), run("n1", 20, 26)
    assert _explained([blow], ["s0", "s1"], first, second) == cause
