"""Which node gets which job, when, and what a client is told when none can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
from scenarios.world import wait_until

from cluster.machines import Cluster, cluster
from cluster.rig import Servers
from pool.cluster.overview import look
from pool.config.settings import ClusterConfig
from pool.errors import EngineUnavailable, SpoolFull

LONG_S = 90.0
ONE = {"fake": {"max_concurrent_tasks": 1}}


@pytest.fixture
def joined(server: Servers, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, server.url) as joined:
        yield joined


def test_labels(joined: Cluster) -> None:
    """A job goes only to a node that has all that it wants."""
    joined.node("plain", ONE)
    joined.node("big", ONE, labels=["gpu24g", "a100", "nvme"])
    pool = joined.pool(patience=0.0)
    joined.wait_nodes("plain", "big")
    wants = [["gpu24g"], ["a100", "gpu24g"], ["nvme"]] * 3
    futures = [pool.submit("fake", value=n, labels=labels) for n, labels in enumerate(wants)]
    for future in futures:
        future.result(LONG_S)
        assert future.record is not None
        assert future.record.worker.startswith("big/")
    with pytest.raises(EngineUnavailable, match="no node has"):
        pool.submit("fake", labels=["tpu"]).result(LONG_S)


@pytest.mark.long
def test_urgent_jobs_first(joined: Cluster) -> None:
    joined.node("only", ONE)
    pool = joined.pool()
    joined.wait_nodes("only")
    first = pool.submit_many("fake", [{"do": "sleep", "seconds": 600}] * 2)  # one runs, one waits at the node
    wait_until(lambda: _waiting(joined) == 0 and any(future.running() for future in first), "the node is busy")
    low = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.3}] * 3, priority=-10)
    normal = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.3}] * 3)
    high = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.3}] * 3, priority=10)
    # what a pull of before brings may be at the node already, where it stands behind nothing
    wait_until(lambda: _waiting(joined) >= 7, "the jobs are on the servers")
    pool.cancel_many(first)
    wait([*low, *normal, *high], LONG_S)

    def began(futures: list[object]) -> list[int]:
        return [future.record.started for future in futures]  # type: ignore[attr-defined]

    assert max(began([*high])) < min(began([*normal]))
    assert sorted(began([*normal]))[1] < sorted(began([*low]))[1]


def _waiting(joined: Cluster) -> int:
    """Jobs that no node has."""
    return asyncio.run(look(ClusterConfig(servers=(joined.url,)), patience_s=20.0)).waiting


@pytest.mark.long
def test_a_stream_at_its_limit(tmp_path: Path) -> None:
    """Submits are refused with the reason until there is room; what was accepted is done."""
    with Servers(tmp_path / "nats") as servers, cluster(tmp_path / "machines", servers.url) as joined:
        asyncio.run(servers.ensure(max_waiting=5))
        node = joined.node("only", ONE)
        pool = joined.pool()
        joined.wait_nodes("only")
        node.close()
        wait_until(lambda: not pool.status().nodes, "the node has gone")
        accepted = []
        deadline = time.monotonic() + LONG_S
        refusal = ""
        while not refusal and time.monotonic() < deadline:
            try:
                accepted.append(pool.submit("fake", value=len(accepted)))
            except SpoolFull as full:
                refusal = str(full)
            time.sleep(0.02)
        assert "takes no more jobs" in refusal
        assert len(accepted) >= 5
        node.start()
        assert [future.result(LONG_S)["value"] for future in accepted] == list(range(len(accepted)))
        wait_until(lambda: not pool.status().cluster.full, "there is room again")  # type: ignore[union-attr]
        assert pool.submit("fake", value="after").result(LONG_S)["value"] == "after"


@pytest.mark.long
def test_no_node_at_all(joined: Cluster) -> None:
    """An engine that was there and is gone: a wait ends with the reason, and the job runs once a node is back."""
    node = joined.node("only", ONE)
    pool = joined.pool(patience=0.5)
    joined.wait_nodes("only")
    pool.submit("fake", value=1).result(LONG_S)
    node.close()
    wait_until(lambda: not pool.status().nodes, "the node has gone")
    future = pool.submit("fake", value=2)
    with pytest.raises(EngineUnavailable, match="no node of the cluster offers fake"):
        future.result(LONG_S)
    node.start()
    joined.wait_nodes("only")
    assert pool.attach(future.id).result(LONG_S)["value"] == 2


@pytest.mark.long
def test_two_of_three_servers_are_lost(tmp_path: Path) -> None:
    """Nothing is acknowledged that they could lose: what is submitted meanwhile waits here, and says why."""
    with Servers(tmp_path / "nats", 3, sync=True) as servers, cluster(tmp_path / "machines", servers.url) as joined:
        asyncio.run(servers.ensure())
        joined.node("only", ONE, replicas=3)
        pool = joined.pool(patience=20.0)
        joined.wait_nodes("only")
        before = pool.submit_many("fake", [{"value": n} for n in range(5)])
        wait(before, LONG_S)
        running = pool.submit_many("fake", [{"do": "sleep", "seconds": 1.0, "value": n} for n in range(3)])
        wait_until(lambda: any(future.running() for future in running), "one runs")
        servers.kill(0, 1)
        meanwhile = [pool.submit("fake", value=f"meanwhile {n}") for n in range(5)]
        wait_until(lambda: "does not answer" in " ".join(pool.status().health.reasons), "the status says so")
        servers.start(0, 1)
        ends = [pool.attach(future.id).result(LONG_S)["value"] for future in meanwhile]
        assert ends == [f"meanwhile {n}" for n in range(5)]
        assert [future.result(0)["value"] for future in before] == list(range(5))
        assert [pool.attach(future.id).result(LONG_S)["value"] for future in running] == list(range(3))
