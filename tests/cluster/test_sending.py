"""What a port finds that waits for its way out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from nats.js.kv import KeyValue
from steps import JobMaker, claim_next, record_of, seat

from cluster.rig import Servers, keys
from pool.cluster import wire
from pool.cluster.port import Port
from pool.cluster.receiving import Receiving
from pool.cluster.revoking import Revoking
from pool.cluster.sending import Sending
from pool.cluster.traffic import Sent, Traffic
from pool.cluster.wire import End, JobKey
from pool.config.settings import Config, parse_config
from pool.errors import UnknownJob
from pool.format import codec
from pool.job import JobState, Record
from pool.spool import reuse
from pool.spool.lookup import find_dead
from pool.spool.store import Spool

PATIENCE_S = 60.0


@pytest.mark.parametrize("moment", range(4))
def test_a_job_that_is_run_again_at_any_moment_is_known_to_be(
    moment: int, spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller asks for that before or after one of the looks at the disk: sent under its old run, it would end with
    the result of that."""
    job = make_job(id="again")
    spool.submit(job)
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim, JobState.FAILED))
    config = parse_config({"spool": str(spool.root), "cluster": {"servers": ["nats://127.0.0.1:1"]}}, spool.root.parent)
    traffic = Traffic(config, spool)
    revoking = Revoking(traffic)
    sending = Sending(traffic, Receiving(traffic, revoking), revoking)
    passed: list[str] = []

    def passing(look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*given: Any) -> Any:
            step()
            found = look(*given)
            step()
            return found

        return looked

    def step() -> None:
        if len(passed) == moment:
            spool.requeue(*find_dead(spool, job.id))
        passed.append("")

    monkeypatch.setattr(reuse, "marked", passing(reuse.marked))
    monkeypatch.setattr(spool, "list_ready", passing(spool.list_ready))
    found = [name.id for names in sending._ready().values() for name in names]
    assert len(passed) == 4
    assert job.id in traffic.retried or not found
    assert [name.id for names in sending._ready().values() for name in names] == [job.id]
    assert job.id in traffic.retried


@pytest.fixture
def branch(server: Servers, spool: Spool) -> Config:
    """Of the spool."""
    document = {"spool": str(spool.root), "cluster": {"servers": [server.url]}}
    return parse_config(document, spool.root.parent)


@contextlib.asynccontextmanager
async def port_of(config: Config, spool: Spool) -> AsyncIterator[Traffic]:
    """A port at work, and what it has sent."""
    port = Port(config, spool)
    running = asyncio.create_task(port.run())
    try:
        yield port._traffic
    finally:
        port.stop.set()
        await running


async def until(met: Callable[[], object], what: str) -> None:
    """Wait for something, and let the port work."""
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


async def hears(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until the port hears of results."""
    take, heard = Receiving.take, list[str]()

    async def noted(receiving: Receiving, message: Msg) -> None:
        heard.append(message.subject)
        await take(receiving, message)

    monkeypatch.setattr(Receiving, "take", noted)
    await until(lambda: traffic.up, "the servers")
    results = await traffic.link.bucket(wire.RESULTS)
    for number in itertools.count():
        await results.put(f"{traffic.spool.id}.probe.{number}", b"nothing")
        await asyncio.sleep(0.01)
        if heard:
            return


def dead(spool: Spool, job_id: str) -> bool:
    """Whether the job may be run again."""
    try:
        return bool(find_dead(spool, job_id))
    except UnknownJob:
        return False


def test_a_job_that_is_refused_ends_once(
    branch: Config, spool: Spool, make_job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port hears its own word of that end, maybe before it knows that it was taken, and may be slow to write it: that
    would be the end of the next run."""
    again, heard = threading.Event(), list[str]()
    finish, create = Receiving._finish, KeyValue.create

    async def slow(bucket: KeyValue, *given: Any, **named: Any) -> int:
        revision = await create(bucket, *given, **named)
        if bucket._name == wire.RESULTS:
            await asyncio.sleep(0.3)
        return revision

    def late(receiving: Receiving, sent: Sent, record: Record) -> None:
        heard.append(record.id)
        again.wait(PATIENCE_S)
        finish(receiving, sent, record)

    monkeypatch.setattr(Receiving, "_finish", late)
    monkeypatch.setattr(KeyValue, "create", slow)
    wanted = tmp_path / "missing" / "film.mp4"
    job = make_job(params={"output": str(wanted)})

    async def run() -> tuple[bool, int]:
        async with port_of(branch, spool) as traffic:
            await hears(traffic, monkeypatch)
            spool.submit(job)
            await until(lambda: spool.decided(job.id), "it is refused")
            assert spool.read_record(job.id).failure.stage == "send"  # type: ignore[union-attr]
            wanted.parent.mkdir()
            await until(lambda: dead(spool, job.id), "it is dead")
            spool.requeue(*find_dead(spool, job.id))
            await until(lambda: job.id in traffic.sent and traffic.sent[job.id].published, "it is sent again")
            again.set()
            await until(lambda: not traffic.tasks._running, "all that was heard is done")
            return spool.decided(job.id), traffic.sent[job.id].key.run

    assert asyncio.run(run()) == (False, 1)
    assert not heard


@pytest.mark.parametrize("stored", [False, True])
def test_the_end_of_a_refused_job_is_told_until_it_is_known_to_be_there(
    stored: bool,
    branch: Config,
    spool: Spool,
    make_job: JobMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The servers are away just then; or their answer is."""
    create, cut = KeyValue.create, list[str]()

    async def interrupted(bucket: KeyValue, key: str, value: bytes, *more: Any, **named: Any) -> int:
        if bucket._name != wire.RESULTS or cut:
            return await create(bucket, key, value, *more, **named)
        cut.append(key)
        if stored:
            await create(bucket, key, value, *more, **named)
        raise NatsTimeout

    monkeypatch.setattr(KeyValue, "create", interrupted)
    job = make_job(params={"output": str(tmp_path / "missing" / "film.mp4")})

    async def run() -> list[str]:
        async with port_of(branch, spool) as traffic:
            spool.submit(job)
            await until(lambda: spool.decided(job.id), "it has ended")
            return await keys(traffic.link.js, wire.RESULTS)

    assert asyncio.run(run()) == cut
    record = spool.read_record(job.id)
    assert record.failure is not None
    assert record.failure.stage == "send"


def test_a_job_that_has_another_end_keeps_it(branch: Config, spool: Spool, make_job: JobMaker, tmp_path: Path) -> None:
    """It was begun on its first way out, and cannot go out once more."""
    job = make_job(params={"output": str(tmp_path / "missing" / "film.mp4")})
    there = Record(
        job.id, job.engine, JobState.COMPLETED, 1, job.created, job.created, job.created, value={"of": "a node"}
    )
    key = JobKey(spool.id, job.id)

    async def run() -> None:
        async with port_of(branch, spool) as traffic:
            await until(lambda: traffic.up, "the servers")
            results = await traffic.link.bucket(wire.RESULTS)
            await results.create(str(key), End(key, "node", 0, codec.encode(there.to_map())).pack())
            spool.submit(job)
            await until(lambda: spool.decided(job.id), "it has ended")

    asyncio.run(run())
    record = spool.read_record(job.id)
    assert (record.state, record.value) == (JobState.COMPLETED, {"of": "a node"})
