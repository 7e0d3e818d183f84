"""What dies, one thing at a time, on real servers: no job is lost, each has one result, and says what became of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nats
import pytest
from scenarios.world import ROOT, alive, history, wait_until

from cluster.line import Line
from cluster.machines import LEASE_S, Cluster, Machine, cluster
from cluster.rig import Servers, free_ports, keys
from pool import ClusterAway, FilePool, JobFailed, UnknownJob
from pool.client.future import JobFuture
from pool.cluster import wire
from pool.cluster.overview import look
from pool.config.settings import load_config
from pool.constants import EXIT_LOCKED
from pool.job import Failure, Job, JobState, Record
from pool.spool import away, layout
from pool.spool.store import Spool

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


@pytest.mark.long
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


@pytest.mark.long
def test_the_pool_of_a_node_outlives_its_agent_for_a_lease(joined: Cluster, tmp_path: Path) -> None:
    """What runs goes on, however long the next agent takes within that; also what takes longer than a drain."""
    witness = tmp_path / "witness"
    witness.mkdir()
    engines = {"fake": {"max_concurrent_tasks": 1, "options": {"witness": str(witness)}}}
    node = joined.node("only", engines, lease_s=30.0)
    pool = joined.pool()
    joined.wait_nodes("only")
    future = pool.submit("fake", do="sleep", seconds=18.0, value=1)
    begun([future], 1)
    supervisor = node.supervisor()
    assert supervisor is not None
    node.kill_agent()
    time.sleep(3.0)  # longer than a supervisor waits for clients that have said good-bye
    node.start()
    assert future.result(LONG_S)["value"] == 1
    assert len(_begun_by(witness, future.id)) == 1
    assert supervisor.alive()


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_an_agent_that_begins_while_the_servers_are_away_keeps_its_pool(tmp_path: Path) -> None:
    """For longer than a lease, and than a drain of that pool would take."""
    witness = tmp_path / "witness"
    witness.mkdir()
    engines = {"fake": {"max_concurrent_tasks": 1, "options": {"witness": str(witness)}}}
    with Servers(tmp_path / "nats") as servers, cluster(tmp_path / "machines", servers.url) as joined:
        node = joined.node("only", engines, lease_s=8.0)
        pool = joined.pool(patience=None)
        joined.wait_nodes("only")
        future = pool.submit("fake", do="sleep", seconds=27.0, value=1)
        begun([future], 1)
        supervisor = node.supervisor()
        assert supervisor is not None
        servers.kill(0)
        node.kill_agent()
        node.start()
        time.sleep(12.0)
        servers.start(0)
        assert future.result(LONG_S)["value"] == 1
        assert len(_begun_by(witness, future.id)) == 1
        assert supervisor.alive()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_of_three_minutes_runs_once(tmp_path: Path) -> None:
    """Its lease is 5 s; its node is cut off for half of that, again and again, the server ends, and its agent ends."""
    lease_s, witness = 5.0, tmp_path / "witness"
    witness.mkdir()
    engines = {"fake": {"max_concurrent_tasks": 1, "options": {"witness": str(witness)}}}
    with (
        Servers(tmp_path / "nats", sync=True) as servers,
        cluster(tmp_path / "machines", servers.url) as joined,
        Line(servers.ports[0]) as line,
    ):
        asyncio.run(servers.ensure(lease_s=lease_s))
        first = joined.node("first", engines, servers=[line.url], lease_s=lease_s)
        pool = joined.pool(patience=None)
        joined.wait_nodes("first")
        future = pool.submit("fake", do="sleep", seconds=180.0, value=1)
        begun([future], 1)
        joined.node("second", engines, lease_s=lease_s)  # has a worker free all the time
        joined.wait_nodes("second")

        def cut() -> None:
            line.cut()
            time.sleep(lease_s / 2)
            line.join()

        away_s = [0.0]

        def restart_agent() -> None:
            lives, killed = _lives(first), time.monotonic()
            first.kill_agent()
            first.start()
            wait_until(lambda: _lives(first) > lives, "the next agent serves", LONG_S)
            away_s.append(time.monotonic() - killed)

        strikes = [cut, cut, servers.restart, cut, cut, restart_agent]
        struck = 0
        for strike in itertools.cycle(strikes):
            if future.done():
                break
            strike()
            struck += 1
            wait_until(lambda: pool.status().health.ok, "the cluster answers", LONG_S)
            joined.wait_nodes("first", "second")
            time.sleep(lease_s)
        if len(_begun_by(witness, future.id)) > 1 and max(away_s) > lease_s * 2 / 3:
            pytest.skip(f"this machine took {max(away_s):.1f} s to start an agent, whose lease was over by then")
        assert future.result(0)["attempt"] == 1
        assert future.record is not None
        assert not future.record.attempts
        assert len(_begun_by(witness, future.id)) == 1
        assert struck >= len(strikes)


def _lives(node: Machine) -> int:
    """How many agents of a node have come to serve."""
    return (node.folder / "agent.log").read_text(errors="replace").count("serves the cluster at")


@pytest.mark.long
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


@pytest.mark.long
def test_poison_is_bounded(joined: Cluster) -> None:
    """A job that is lost with node after node ends with one reason for each."""
    pool = joined.pool()
    names = ["a", "b"]
    future: JobFuture | None = None
    for name in names:
        node = joined.node(name, ENGINES, deliveries=2)
        joined.wait_nodes(name)
        future = future or pool.submit("fake", do="sleep", seconds=600)
        # a node that is lost before its claim is known has not begun it
        wait_until(lambda name=name, job=future: _claims(joined, job) == [name], f"{name} has it")  # type: ignore[misc]
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


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize(("grace_s", "node"), [(2.0, "second"), (60.0, "first")])
def test_a_drained_node_ends_a_job_before_another_one_begins_it(
    joined: Cluster, tmp_path: Path, grace_s: float, node: str
) -> None:
    """Also one that does not listen; and one that completes all the same is not begun again."""
    witness = tmp_path / "witness"
    witness.mkdir()
    engines = {"fake": {"max_concurrent_tasks": 1, "cancel_grace_s": grace_s, "options": {"witness": str(witness)}}}
    first = Machine(joined.folder / "first", "first", joined.url)
    joined.machines.append(first)
    settings = {"servers": [joined.url], "name": "first", "lease_s": LEASE_S, "cold_after_s": 0.0}
    first.configure(engines, cluster=settings, drain_grace_s=0.2)
    first.start()
    pool = joined.pool()
    joined.wait_nodes("first")
    future = pool.submit("fake", do="deaf", seconds=12.0, value=1)
    begun([future], 1)
    _, before = first.worker_of(f"{future.id}-g1")
    joined.node("second", engines)
    joined.wait_nodes("second")
    assert first.agent is not None
    first.agent.terminate()
    if node == "second":
        wait_until(lambda: len(_begun_by(witness, future.id)) == 2, "the second node has begun it", LONG_S)
        assert not alive(before)
    assert future.result(LONG_S)["value"] == 1
    assert future.record is not None
    assert future.record.worker.startswith(f"{node}/")
    assert len(_begun_by(witness, future.id)) == (2 if node == "second" else 1)
    assert first.agent.wait(30) in (0, 10), first.said()


def _begun_by(witness: Path, job_id: str) -> list[int]:
    """The workers that have begun a job, in order."""
    return [pid for _, pid, what, job, *_ in history(witness) if what == "start" and job.startswith(f"{job_id}-")]


@pytest.mark.long
def test_a_node_that_is_drained_while_the_servers_are_away(tmp_path: Path) -> None:
    """It ends; what it had is done elsewhere."""
    with Servers(tmp_path / "nats") as servers, cluster(tmp_path / "machines", servers.url) as joined:
        asyncio.run(servers.ensure())
        first = Machine(joined.folder / "first", "first", joined.url)
        joined.machines.append(first)
        settings = {"servers": [joined.url], "name": "first", "lease_s": LEASE_S, "cold_after_s": 0.0}
        first.configure(ENGINES, cluster=settings, drain_grace_s=0.2)
        first.start()
        pool = joined.pool(patience=None)
        joined.wait_nodes("first")
        future = pool.submit("fake", do="sleep", seconds=12.0, value=1)
        begun([future], 1)
        servers.kill(0)
        assert first.agent is not None
        first.agent.terminate()
        assert first.agent.wait(LONG_S) in (0, 10), first.said()
        servers.start(0)
        joined.node("second", ENGINES)
        assert future.result(LONG_S)["value"] == 1
        assert future.record is not None
        assert future.record.worker.startswith("second/")


@pytest.mark.long
def test_a_node_whose_workers_cannot_run_a_job_gives_it_back(joined: Cluster) -> None:
    """It took the job while they loaded. No node was lost, and nothing of the job stays here to be run later."""
    broken = {"load_s": 2.0, "fail_load": "error"}
    first = joined.node("first", {"fake": {"max_concurrent_tasks": 1, "start_limit": 4, "options": broken}})
    pool = joined.pool(patience=None)
    joined.wait_nodes("first", serving=False)
    future = pool.submit("fake", value=1)
    wait_until(first.held, "the first node has it", LONG_S)
    joined.node("second", ENGINES)
    assert future.result(LONG_S)["value"] == 1
    assert future.record is not None
    assert future.record.worker.startswith("second/")
    assert not future.record.attempts
    wait_until(lambda: not first.held(), "the first node has ended it", LONG_S)


@pytest.mark.long
def test_two_nodes_of_one_name(joined: Cluster) -> None:
    joined.node("twin", ENGINES)
    pool = joined.pool()
    joined.wait_nodes("twin")
    other = Machine(joined.folder / "other", "twin", joined.url)
    joined.machines.append(other)
    other.configure(ENGINES, cluster={"servers": [joined.url], "name": "twin", "lease_s": LEASE_S})
    other.start()
    assert other.agent is not None
    assert other.agent.wait(60) == 4, other.said()
    assert "'twin' is the name of another node" in other.said()
    assert pool.submit("fake", value=1).result(LONG_S)["value"] == 1


@pytest.mark.long
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


def test_a_job_that_cannot_be_sent_ends_for_who_waits_elsewhere(joined: Cluster, tmp_path: Path) -> None:
    """Its id is known to the cluster, and nothing but its end will ever be."""
    joined.node("only", ENGINES)
    mine, other = joined.pool("mine"), joined.pool("other")
    joined.wait_nodes("only", client="mine")
    joined.wait_nodes("only", client="other")
    refused = mine.submit("fake", id="too-late", output=str(tmp_path / "missing" / "film.mp4"))
    assert isinstance(refused.exception(LONG_S), JobFailed)
    error = other.attach("too-late").exception(LONG_S)
    assert isinstance(error, JobFailed)
    assert error.failure.stage == "send"
    assert "does not exist" in error.failure.message
    (tmp_path / "missing").mkdir()
    mine.retry("too-late")
    assert mine.attach("too-late").result(LONG_S)["attempt"] == 1


@pytest.mark.long
def test_who_asks_for_a_job_of_another_client_starts_the_port_that_died(joined: Cluster) -> None:
    joined.node("only", {"fake": {"max_concurrent_tasks": 6}})
    mine, other = joined.pool("mine"), joined.pool("other")
    joined.wait_nodes("only", client="mine")
    joined.wait_nodes("only", client="other")
    looks: dict[str, Callable[[str], bool]] = {
        "attach": lambda there: not other.attach(there).done(),
        "state": lambda there: not other.state(there).terminal,
        "origin": lambda there: other.origin(there).engine == "fake",
        "depends": lambda there: other.state(other.submit("fake", depends_on=[there]).id) is JobState.HELD,
        "cancel": lambda there: other.cancel(there),
        "cancel-many": lambda there: other.cancel_many(iter([there])) == [there],
    }
    for name, asked in looks.items():
        runs = mine.submit("fake", do="sleep", seconds=600, id=f"for-{name}")
        begun([runs], 1)
        os.kill(joined.port("other"), signal.SIGKILL)
        assert asked(runs.id), name
        assert mine.cancel(runs.id)
        wait_until(runs.done, f"{name}: it is cancelled", LONG_S)


@pytest.mark.long
def test_a_job_of_another_client_while_the_servers_are_away(tmp_path: Path) -> None:
    """Nobody can know whether it exists: the error says that, and why."""
    with Servers(tmp_path / "nats") as servers, cluster(tmp_path / "machines", servers.url) as joined:
        joined.node("only", ENGINES)
        mine, other = joined.pool("mine"), joined.pool("other")
        joined.wait_nodes("only", client="mine")
        joined.wait_nodes("only", client="other")
        mine.submit("fake", value=1, id="from-mine").result(LONG_S)
        with pytest.raises(UnknownJob):
            other.attach("nobody")
        servers.kill()
        wait_until(lambda: other.status().cluster is not None and not other.status().cluster.connected, "an outage")  # type: ignore[union-attr]
        fresh = joined.pool("fresh")  # whose port has never reached them
        for pool in (other, fresh):
            for job_id in ("from-mine", "nobody"):
                with pytest.raises(ClusterAway, match=rf"{job_id}.*{servers.url}"):
                    pool.attach(job_id)
        servers.start()
        wait_until(lambda: other.status().cluster.connected, "it is back")  # type: ignore[union-attr]
        assert other.attach("from-mine").result(LONG_S)["value"] == 1
        with pytest.raises(UnknownJob):
            other.attach("nobody")


@pytest.mark.long
def test_what_a_port_had_ended_and_not_tidied_is_not_sent(joined: Cluster) -> None:
    """It was killed between the two: a job that was cancelled does not run."""
    config = load_config(joined.branch(), engines=False)
    layout.prepare(config.spool)
    spool = Spool(config.spool)
    job = Job("ended", "fake", {"do": "sleep", "seconds": 600}, created=spool.now())
    item = away.send(spool, "fake", spool.submit(job))
    assert item is not None
    now = spool.now()
    reason = Failure("cancelled", "cancelled by request before it started", "queued", at=now)
    spool.publish(Record(job.id, "fake", JobState.CANCELLED, 0, now, now, now, failure=reason), "", False)
    joined.pool()
    wait_until(lambda: not away.waiting(spool), "the next port has tidied it")
    assert asyncio.run(look(config.cluster, patience_s=20.0)).waiting == 0


@pytest.mark.long
def test_a_job_of_another_client_that_the_cluster_has_forgotten(joined: Cluster, tmp_path: Path) -> None:
    """Its id is too old, and the port of the client that follows it begins anew: it is not sent as a job of its own."""
    witness = tmp_path / "witness"
    witness.mkdir()
    joined.node("only", {"fake": {"options": {"witness": str(witness)}}})
    mine, other = joined.pool("mine"), joined.pool("other")
    joined.wait_nodes("only", client="mine")
    joined.wait_nodes("only", client="other")
    runs = mine.submit("fake", do="sleep", seconds=600)
    begun([runs], 1)
    there = other.attach(runs.id)

    async def forget() -> None:
        client = await nats.connect(joined.url)
        try:
            await (await client.jetstream().key_value(wire.IDS)).purge(runs.id)
        finally:
            await client.close()

    os.kill(joined.port("other"), signal.SIGKILL)
    asyncio.run(forget())
    error = there.exception(LONG_S)
    assert isinstance(error, JobFailed)
    assert "knows it no longer" in error.failure.message
    assert mine.state(runs.id) is JobState.RUNNING
    runs.cancel()
    wait_until(runs.done, "it is over", LONG_S)
    assert len(_begun_by(witness, runs.id)) == 1


@pytest.mark.long
def test_a_node_that_starts_while_the_servers_have_no_quorum(tmp_path: Path) -> None:
    """It waits for them, as one that was there before."""
    with Servers(tmp_path / "nats", 3) as servers, cluster(tmp_path / "machines", servers.url) as joined:
        asyncio.run(servers.ensure())
        servers.kill(1, 2)
        node = joined.node("early", ENGINES)
        said = ("cannot be looked at", "waits for the cluster")
        wait_until(lambda: any(one in node.said() for one in said), "it says what is wrong", LONG_S)
        servers.start(1, 2)
        pool = joined.pool(patience=None)
        joined.wait_nodes("early")
        assert pool.submit("fake", value=1).result(LONG_S)["value"] == 1
        assert node.agent is not None
        assert node.agent.poll() is None


@pytest.mark.long
def test_a_node_that_is_asked_to_end_before_it_has_found_a_server(tmp_path: Path) -> None:
    with cluster(tmp_path, f"nats://127.0.0.1:{free_ports(1)[0]}") as joined:
        node = joined.node("alone", ENGINES)
        wait_until(lambda: "does not answer" in node.said(), "it looks for a server")
        assert node.agent is not None
        node.agent.terminate()
        assert node.agent.wait(LONG_S) == 0


@pytest.mark.long
def test_a_job_that_is_another_nodes_now_is_not_told_as_cancelled(joined: Cluster) -> None:
    """Its first node stops it, is killed, and finds a cancelled job in its spool."""
    first = joined.node("first", ENGINES)
    pool = joined.pool()
    joined.wait_nodes("first")
    future = pool.submit("fake", do="sleep", seconds=20.0, value=1)
    begun([future], 1)
    first.kill_agent()
    joined.node("second", ENGINES)
    wait_until(lambda: "second" in _runs_on(pool), "it runs on the second node", LONG_S)
    here = f"{future.id}-g1"
    for _ in range(2):
        first.start()
        wait_until(lambda: first.state(here) in (JobState.CANCELLED, None), "the first node has stopped it", LONG_S)
        first.kill_agent()
    first.start()
    assert future.result(LONG_S)["value"] == 1
    wait_until(lambda: first.state(here) is None, "the first node has forgotten it", LONG_S)


@pytest.mark.long
def test_each_attempt_on_a_node_that_was_lost_has_its_reason(joined: Cluster) -> None:
    first = joined.node("first", ENGINES)
    pool = joined.pool()
    joined.wait_nodes("first")
    future = pool.submit("fake", do="sleep", seconds=6.0, value=1)
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: pool.progress_of(future.id).attempt == attempt, "it has begun")  # type: ignore[misc]
        if attempt == 1:
            os.kill(first.worker_of(f"{future.id}-g1")[1], signal.SIGKILL)
    wait_until(lambda: _told_attempts(joined, future) == 2, "the servers know of the second attempt")
    first.lose()
    joined.node("second", ENGINES)
    assert future.result(LONG_S)["value"] == 1
    assert future.record is not None
    assert [one.attempt for one in future.record.attempts] == [1, 2]
    assert "lost" not in future.record.attempts[0].message
    assert "first was lost" in future.record.attempts[1].message


def _told_attempts(joined: Cluster, future: JobFuture) -> int:
    """Attempts in the claim of a job."""
    return max(hold.attempts for hold in _holds(joined, future))


def _claims(joined: Cluster, future: JobFuture) -> list[str]:
    """The node that has a job, if any."""
    return [hold.node for hold in _holds(joined, future)]


def _holds(joined: Cluster, future: JobFuture) -> list[wire.Hold]:
    async def look() -> list[wire.Hold]:
        client = await nats.connect(joined.url)
        try:
            claims = await client.jetstream().key_value(wire.CLAIMS)
            names = [key for key in await keys(client.jetstream(), wire.CLAIMS) if f".{future.id}." in key]
            return [wire.Hold.unpack((await claims.get(name)).value or b"") for name in names]
        finally:
            await client.close()

    return asyncio.run(look())


@pytest.mark.long
def test_a_job_that_the_servers_take_long_to_agree_on(tmp_path: Path) -> None:
    """Sent again, it meets itself; it is not refused for that."""
    with Servers(tmp_path / "nats", 3) as servers, cluster(tmp_path / "machines", servers.url) as joined:
        asyncio.run(servers.ensure())
        joined.node("only", ENGINES)
        pool = joined.pool(patience=None)
        joined.wait_nodes("only")
        assert pool.submit("fake", value=0).result(LONG_S)["value"] == 0
        others = {0, 1, 2} - {servers.leader("FILEPOOL_JOBS")}
        servers.stop(*others)
        future = pool.submit("fake", value=1)
        log = joined.branch().parent / "spool" / "run" / "logs" / "supervisor.log"
        wait_until(lambda: future.done() or f"job {future.id} waits" in log.read_text(), "it is sent again", LONG_S)
        servers.go_on(*others)
        assert future.result(LONG_S)["value"] == 1


@pytest.mark.long
def test_a_fresh_branch_while_the_servers_have_no_quorum(tmp_path: Path) -> None:
    """It takes jobs: nobody knows yet which engines there are."""
    with Servers(tmp_path / "nats", 3) as servers, cluster(tmp_path / "machines", servers.url) as joined:
        asyncio.run(servers.ensure())
        servers.kill(1, 2)
        pool = joined.pool(patience=None)
        future = pool.submit("fake", value=1)
        servers.start(1, 2)
        joined.node("late", ENGINES)
        assert future.result(LONG_S)["value"] == 1


@pytest.mark.long
def test_a_second_port_leaves_the_branch_to_the_first(joined: Cluster) -> None:
    """Clients that start one at the same time: the one that comes too late has touched nothing."""
    pool = joined.pool()
    first, config = joined.port(), joined.branch()
    place = config.parent / "spool" / "run" / "cluster" / "port.json"
    wait_until(place.exists, "the port serves")
    for _ in range(3):
        second = subprocess.run([sys.executable, "-m", "pool.cluster", "port", "--config", str(config)], cwd=ROOT)
        assert second.returncode == EXIT_LOCKED
        assert json.loads(place.read_text())["identity"]["pid"] == first
    joined.node("only", ENGINES)
    joined.wait_nodes("only")
    assert pool.submit("fake", value=1).result(LONG_S)["value"] == 1
