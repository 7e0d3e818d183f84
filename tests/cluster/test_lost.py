"""What dies, one thing at a time, on real servers: no job is lost, each has one result, and says what became of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.world import wait_until

from cluster.machines import LEASE_S, Cluster, cluster
from cluster.rig import Servers
from pool import FilePool, JobFailed
from pool.client.future import JobFuture
from pool.job import JobState

LONG_S = 90.0
ENGINES = {"fake": {"max_concurrent_tasks": 2}}


@pytest.fixture
def joined(server: Servers, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, server.url) as joined:
        yield joined


def begun(futures: list[JobFuture], count: int) -> None:
    """Until so many of the jobs run."""
    wait_until(lambda: sum(future.running() for future in futures) >= count, f"{count} jobs run")


def test_a_node_that_is_lost_with_its_jobs(joined: Cluster) -> None:
    """Another one takes them, after the lease; the record names the node that was lost."""
    first = joined.node("first", ENGINES)
    pool = joined.pool()
    joined.wait_nodes("first")
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 1.0, "value": n} for n in range(4)])
    begun(futures, 2)
    first.lose()
    joined.node("second", ENGINES)
    assert [future.result(LONG_S)["value"] for future in futures] == list(range(4))
    records = [future.record for future in futures]
    assert all(record is not None and record.worker.startswith("second/") for record in records)
    lost = [record for record in records if record is not None and record.attempts]
    assert lost, "two of them were begun on the node that was lost"
    for record in lost:
        assert record.attempts[0].kind == "infrastructure"
        assert "first was lost" in record.attempts[0].message


def test_a_killed_agent_goes_on_with_its_jobs(joined: Cluster) -> None:
    """Its pool runs them meanwhile; none begins again."""
    node = joined.node("only", ENGINES)
    pool = joined.pool()
    joined.wait_nodes("only")
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 1.5, "value": n} for n in range(6)])
    begun(futures, 2)
    node.kill_agent()
    node.start()
    assert [future.result(LONG_S)["value"] for future in futures] == list(range(6))
    assert all(future.record is not None and future.record.attempt == 1 for future in futures)


def test_a_killed_port(joined: Cluster) -> None:
    """The next one finds what is away; a client that waits starts it."""
    joined.node("only", ENGINES)
    pool = joined.pool()
    joined.wait_nodes("only")
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.5, "value": n} for n in range(8)])
    begun(futures, 2)
    os.kill(joined.port(), signal.SIGKILL)
    assert [future.result(LONG_S)["value"] for future in futures] == list(range(8))
    assert all(future.record is not None and future.record.attempt == 1 for future in futures)


def test_a_long_job_keeps_its_lease(joined: Cluster) -> None:
    """Four leases long: it runs once."""
    joined.node("one", ENGINES)
    joined.node("two", ENGINES)
    pool = joined.pool()
    joined.wait_nodes("one", "two")
    future = pool.submit("fake", do="sleep", seconds=4 * LEASE_S, value=1)
    assert future.result(LONG_S)["attempt"] == 1
    assert future.record is not None
    assert not future.record.attempts


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """What runs goes on, what was submitted meanwhile is done afterwards, nothing begins twice."""
    with Servers(tmp_path / "nats", sync=True) as servers, cluster(tmp_path / "machines", servers.url) as joined:
        joined.node("only", ENGINES)
        pool = joined.pool()
        joined.wait_nodes("only")
        futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 1.0, "value": n} for n in range(4)])
        begun(futures, 2)
        servers.kill(0)
        meanwhile = [pool.submit("fake", value=n) for n in range(4, 8)]
        wait_until(lambda: not pool.status().health.ok, "the status says that the cluster does not answer")
        time.sleep(LEASE_S)
        servers.start(0)
        everything = [*futures, *meanwhile]
        assert [future.result(LONG_S)["value"] for future in everything] == list(range(8))
        assert all(future.record is not None and future.record.attempt == 1 for future in everything)


def test_poison_is_bounded(joined: Cluster) -> None:
    """A job that is lost with node after node ends with one reason for each."""
    pool = joined.pool()
    names = ["a", "b"]
    future: JobFuture | None = None
    for name in names:
        node = joined.node(name, ENGINES, deliveries=2)
        joined.wait_nodes(name)
        future = future or pool.submit("fake", do="sleep", seconds=600)
        wait_until(lambda name=name: f"{name}" in _runs_on(pool), f"it runs on {name}")  # type: ignore[misc]
        node.lose()
    joined.node("c", ENGINES, deliveries=2)
    assert future is not None
    error = future.exception(LONG_S)
    assert isinstance(error, JobFailed)
    assert "lost" in error.failure.message
    assert [f"node {name} was lost" in one.message for name, one in zip(names, error.failure.attempts, strict=False)]


def _runs_on(pool: FilePool) -> set[str]:
    """Names of the nodes that are at work."""
    return {node.name for node in pool.status().nodes if node.jobs}


def test_drain_gives_back_what_no_worker_has_begun(joined: Cluster) -> None:
    first = joined.node("first", {"fake": {"max_concurrent_tasks": 1}})
    pool = joined.pool()
    joined.wait_nodes("first")
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 1.5, "value": n} for n in range(3)])
    begun(futures, 1)
    assert first.agent is not None
    first.agent.terminate()
    joined.node("second", ENGINES)
    assert [future.result(LONG_S)["value"] for future in futures] == [0, 1, 2]
    assert all(future.record is not None and not future.record.attempts for future in futures)
    assert first.agent.wait(30) in (0, 10), first.said()


def test_two_nodes_of_one_name(joined: Cluster) -> None:
    joined.node("twin", ENGINES)
    pool = joined.pool()
    joined.wait_nodes("twin")
    from cluster.machines import Machine

    other = Machine(joined.folder / "other", "twin", joined.url)
    joined.machines.append(other)
    other.configure(ENGINES, cluster={"servers": [joined.url], "name": "twin", "lease_s": LEASE_S})
    other.start()
    assert other.agent is not None
    assert other.agent.wait(60) == 4, other.said()
    assert "'twin' is the name of another node" in other.said()
    assert pool.submit("fake", value=1).result(LONG_S)["value"] == 1


def test_jobs_of_another_client(joined: Cluster, tmp_path: Path) -> None:
    """Found by their id from any machine: their state, result, files, and their cancel."""
    joined.node("only", ENGINES)
    mine, other = joined.pool("mine"), joined.pool("other")
    joined.wait_nodes("only", client="mine")
    joined.wait_nodes("only", client="other")
    done = mine.submit("fake", do="write", mb=1, id="from-mine")
    done.result(LONG_S)
    there = other.attach("from-mine")
    assert there.result(LONG_S) == done.result()
    assert there.record is not None
    (file,) = there.record.files
    assert Path(file["path"]).stat().st_size == 1 << 20
    assert str(tmp_path / "branches-other") in file["path"]
    runs = mine.submit("fake", do="sleep", seconds=600)
    begun([runs], 1)
    assert other.cancel(runs.id)
    wait_until(lambda: runs.cancelled() or runs.done(), "cancelled by the other client", LONG_S)
    assert mine.state(runs.id) is JobState.CANCELLED
