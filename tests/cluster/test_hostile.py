"""Whoever may write on the servers and means no good: agents and ports go on, good jobs are done, files stay theirs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
from fuzz.mutate import mutations
from scenarios.world import below, wait_until

from cluster.machines import LEASE_S, Cluster, Machine, cluster
from cluster.rig import Servers
from pool import FilePool, JobFailed
from pool.client.future import JobFuture
from pool.cluster import wire
from pool.cluster.link import Link
from pool.cluster.media import open_store
from pool.cluster.wire import Blob, End, EngineState, Event, Hold, Identity, JobKey, Lost, NodeState, Order
from pool.config.settings import ClusterConfig
from pool.format import codec
from pool.job import Job, Record
from pool.job.states import JobState
from pool.runfiles.schemas import Schemas

LONG_S = 60.0
ENGINES = {"fake": {"max_concurrent_tasks": 2}}
STRANGER = "e" * 32  # the spool of a client that there is not
JOBS = wire.subject("fake", (), "normal")
Message = tuple[str, bytes]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node with media roots, and a client; all tests of this module are done to them."""
    folder = tmp_path_factory.mktemp("hostile")
    with Servers(folder / "nats") as servers, cluster(folder / "machines", servers.url) as joined:
        joined.servers = servers  # type: ignore[attr-defined]
        (folder / "roots").mkdir()
        node = Machine(joined.folder / "only", "only", joined.url)
        joined.machines.append(node)
        settings = {"servers": [joined.url], "name": "only", "lease_s": LEASE_S, "cold_after_s": 0.0}
        node.configure(ENGINES, cluster=settings, media_roots=[str(folder / "roots")])
        node.start()
        joined.pool()
        joined.wait_nodes("only")
        yield joined


@pytest.fixture
def pool(joined: Cluster) -> Iterator[FilePool]:
    """A client. Afterwards the same processes serve, and do a job."""
    node = joined.machines[0]
    agent, port = node.agent, joined.port()
    assert agent is not None
    with FilePool(joined.branch()) as pool:
        yield pool
        assert pool.submit("fake", value="still there").result(LONG_S)["value"] == "still there", joined.logs()
    assert agent.poll() is None, joined.logs()
    assert joined.port() == port, joined.logs()


def send(joined: Cluster, messages: list[Message], user: str = "") -> None:
    """Publish these."""

    async def publish() -> None:
        async with joined.servers.connected(user) as client:  # type: ignore[attr-defined]
            for number, (subject, data) in enumerate(messages):
                await client.publish(subject, data)
                if number % 100 == 99:
                    await client.flush()
            await client.flush()

    asyncio.run(publish())


def ends(joined: Cluster, keys: list[JobKey]) -> dict[str, Record]:
    """The records of these jobs, by id, once they have all ended."""

    async def look() -> dict[str, Record]:
        async with joined.servers.connected() as client:  # type: ignore[attr-defined]
            bucket = await client.jetstream().key_value(wire.RESULTS)
            found: dict[str, Record] = {}
            until = time.monotonic() + LONG_S
            while len(found) < len(keys) and time.monotonic() < until:
                for key in keys:
                    with contextlib.suppress(Exception):
                        entry = await bucket.get(str(key))
                        found[key.id] = Record.from_map(codec.decode(End.unpack(entry.value).record))
                await asyncio.sleep(0.1)
            return found

    found = asyncio.run(look())
    assert sorted(found) == sorted(key.id for key in keys), joined.logs()
    return found


def left(joined: Cluster) -> int:
    """Jobs in the stream."""

    async def look() -> int:
        async with joined.servers.connected() as client:  # type: ignore[attr-defined]
            return int((await client.jetstream().stream_info(wire.JOBS)).state.messages)

    return asyncio.run(look())


def order(job_id: str, *, origin: str = STRANGER, run: int = 0, **changes: Any) -> bytes:
    """A job as it is sent, with changes of its map. labels: of the order."""
    labels = changes.pop("labels", [])
    job = {**Job(job_id, "fake", {"value": job_id}, created=1).to_map(), **changes}
    return packed(
        {"v": 1, "key": f"{origin}.{job_id}.{run}", "labels": labels, "expires_s": None, "again": False, "job": job}
    )


def packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# ---- jobs


def test_a_hostile_job_ends_with_a_reason(joined: Cluster, pool: FilePool, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (tmp_path.parent / "secret").write_text("secret")
    roots = joined.folder.parent / "roots"
    (roots / "link").unlink(missing_ok=True)
    (roots / "link").symlink_to(outside)
    gone = {"$media": {"sha256": "0" * 64, "size": 5, "name": "../../x"}}
    hostile: dict[str, dict[str, Any]] = {
        "another-engine": {"engine": "echo"},
        "no-protocol": {"protocol": None},
        "another-protocol": {"protocol": 99},
        "priority": {"priority": 10**6},
        "priority-text": {"priority": "high"},
        "timeout-nan": {"timeout_s": float("nan")},
        "retries": {"retry_times": 2**62},
        "retry-on": {"retry_on": ["nothing", 5]},
        "tags": {"tags": ["x" * 10_000]},
        "note": {"note": 5},
        "created": {"created": "now"},
        "unknown-parameter": {"params": {"valu": 1}},
        "file": {"params": {"audio": str(outside / "secret")}},
        "file-link": {"params": {"audio": str(roots / "link" / "secret")}},
        "file-dots": {"params": {"audio": f"{roots}/../{outside.relative_to(roots.parent.parent)}/secret"}},
        "file-relative": {"params": {"audio": "../secret"}},
        "file-url": {"params": {"audio": "file:///etc/passwd"}},
        "output": {"params": {"do": "write", "output": str(outside / "evil")}},
        "output-link": {"params": {"do": "write", "output": str(roots / "link" / "evil")}},
        "output-climbs": {"params": {"do": "write", "output": {"$output": "../../../climbed.bin"}}},
        "output-elsewhere": {"params": {"do": "write", "output": {"$output": str(outside / "climbed.bin")}}},
        "output-dots": {"params": {"do": "write", "output": {"$output": ".."}}},
        "output-number": {"params": {"do": "write", "output": {"$output": 5}}},
        "media-gone": {"params": {"audio": gone}},
        "media-none": {"params": {"audio": {"$media": {"sha256": "../../etc/passwd", "size": 1}}}},
        "media-size": {"params": {"audio": {"$media": {"sha256": "0" * 64, "size": 2**62}}}},
        "media-more": {"params": {"audio": {**gone, "more": 1}}},
        "items": {"items": [{"valu": 1}]},
        "items-none": {"items": [1, 2]},
        "depends": {"depends_on": "x"},
        "labels": {"labels": ["elsewhere"]},
    }
    there = left(joined)
    send(joined, [(JOBS, order(job_id, **changes)) for job_id, changes in hostile.items()])
    found = ends(joined, [JobKey(STRANGER, job_id) for job_id in hostile])
    for job_id, record in found.items():
        assert record.state is JobState.FAILED, (job_id, record)
        assert record.failure is not None
        assert record.failure.message, job_id
        assert "secret" not in str(record.value)
        if job_id != "media-gone" and job_id != "media-size":
            assert record.failure.kind == "input", (job_id, record.failure)
    assert os.listdir(outside) == ["secret"]
    assert not [path for path in below(joined.folder) if "climbed" in path.name]
    wait_until(lambda: left(joined) <= there, "nothing of it comes again")


def test_what_is_strange_and_harmless(joined: Cluster, pool: FilePool) -> None:
    harmless: dict[str, dict[str, Any]] = {
        "deep": {"params": {"value": deep(50)}},
        "long": {"params": {"value": "x" * 3_000_000}},
        "many": {"items": [{"value": number} for number in range(20_000)]},
        "created-late": {"created": 2**63},
        "moments": {"not_before": 10**15, "expires": 10**15},
        "dependent": {"depends_on": ["nothing"]},
        "webhook": {"reply": "json", "source": "../../x", "digest": "d", "rerun_of": "../x"},
    }
    send(joined, [(JOBS, order(job_id, **changes)) for job_id, changes in harmless.items()])
    found = ends(joined, [JobKey(STRANGER, job_id, 0) for job_id in harmless])
    for job_id, record in found.items():
        assert record.state is JobState.COMPLETED, (job_id, record)


def test_the_last_run_there_can_be(joined: Cluster, pool: FilePool) -> None:
    send(joined, [(JOBS, order("run", run=9999))])
    assert ends(joined, [JobKey(STRANGER, "run", 9999)])["run"].state is JobState.COMPLETED


def test_a_job_of_the_same_id_from_elsewhere(joined: Cluster, pool: FilePool) -> None:
    """Each ends as itself."""
    mine = pool.submit("fake", do="sleep", seconds=1.0, value="mine")
    wait_until(mine.running, "it runs")
    send(joined, [(JOBS, order(mine.id, params={"value": "theirs"}))])
    assert mine.result(LONG_S)["value"] == "mine"
    assert mine.record is not None
    assert not mine.record.attempts
    theirs = ends(joined, [JobKey(STRANGER, mine.id)])[mine.id]
    assert theirs.value["value"] == "theirs" if theirs.state is JobState.COMPLETED else theirs.failure is not None


@pytest.mark.long
def test_a_job_that_is_sent_once_more_by_somebody_else(joined: Cluster, pool: FilePool) -> None:
    there = left(joined)
    mine = pool.submit("fake", do="sleep", seconds=1.0, value="mine")
    wait_until(mine.running, "it runs")
    again = order(mine.id, origin=pool.spool.id, params={"value": "theirs"})
    send(joined, [(JOBS, again)] * 20)
    assert mine.result(LONG_S)["value"] == "mine"
    wait_until(lambda: left(joined) <= there, "nothing of it comes again")


def test_a_claim_that_is_none(joined: Cluster, pool: FilePool) -> None:
    """A job that comes again, and nobody can say who had it."""
    keys = [JobKey(STRANGER, f"claimed-{number}") for number in range(4)]
    claims = [b"", b"nonsense", Hold("n", "x\r\nPUB a 0\r\n", 1, "r").pack(), Hold("other", "f" * 32, 1, "r").pack()]
    messages = [(f"$KV.{wire.CLAIMS}.{key}", claim) for key, claim in zip(keys, claims, strict=True)]
    job = [Order(key, Job(key.id, "fake", {"value": 1}, created=1).to_map(), again=True).pack() for key in keys]
    send(joined, messages + [(JOBS, one) for one in job])
    for record in ends(joined, keys).values():
        assert record.state is JobState.COMPLETED, record


# ---- results


def waiting(pool: FilePool, count: int = 1) -> list[JobFuture]:
    """Jobs that no node takes, because they want another one."""
    return [pool.submit("fake", value=number, labels=["nowhere"]) for number in range(count)]


def record_of(job_id: str, **changes: Any) -> bytes:
    whole = Record(job_id, "fake", JobState.COMPLETED, 1, 1, 2, 3, "fake-0", {"value": "forged"}).to_map()
    return packed({**whole, **changes})


def test_results_that_are_none(joined: Cluster, pool: FilePool) -> None:
    """Whoever waits is told; the same key cannot be used again."""
    origin = pool.spool.id

    def end(job_id: str, record: bytes, **how: Any) -> bytes:
        return End(JobKey(origin, job_id), "liar", 1, record, **how).pack()

    failure = {"kind": "x", "message": 5, "attempts": [[]]}
    file = {"path": "/etc/passwd", "size": 1, "sha256": "0" * 64}
    kinds: dict[str, Any] = {
        "nonsense": lambda job_id: b"nonsense",
        "another job": lambda job_id: End(JobKey(STRANGER, "x"), "liar", 1, record_of("x")).pack(),
        "no record": lambda job_id: end(job_id, b""),
        "cut": lambda job_id: end(job_id, record_of(job_id)[:-9]),
        "texts for numbers": lambda job_id: end(job_id, record_of(job_id, attempt="1", created="x", finished=None)),
        "large numbers": lambda job_id: end(job_id, record_of(job_id, attempt=2**62, started=-(2**62), finished=2**62)),
        "another state": lambda job_id: end(job_id, record_of(job_id, state="running")),
        "no reason": lambda job_id: end(job_id, record_of(job_id, state="failed")),
        "strange failure": lambda job_id: end(job_id, record_of(job_id, state="failed", failure=failure)),
        "files of texts": lambda job_id: end(job_id, record_of(job_id, files=["x"])),
        "files of numbers": lambda job_id: end(job_id, record_of(job_id, files=5)),
        "deep": lambda job_id: end(job_id, record_of(job_id, value=deep(400))),
        "body that is gone": lambda job_id: end(job_id, b"", body=Blob("1" * 64, 9)),
        "outputs that are gone": lambda job_id: end(
            job_id, record_of(job_id, files=[{**file, "sha256": "2" * 64}]), outputs=(Blob("2" * 64, 1, "../../x"),)
        ),
        "an array that is gone": lambda job_id: end(
            job_id, record_of(job_id), arrays=(Blob("3" * 64, 1, "array-1.npy"),)
        ),
    }
    futures = dict(zip(kinds, waiting(pool, len(kinds)), strict=True))
    wait_until(lambda: left(joined) >= len(kinds), "they are in the cluster")
    messages = [
        (f"$KV.{wire.RESULTS}.{origin}.{futures[kind].id}.0", make(futures[kind].id)) for kind, make in kinds.items()
    ]
    send(joined, messages)
    for kind, future in futures.items():
        future.exception(LONG_S)
        record = future.record
        assert record is not None, kind
        assert record.id == future.id
        assert isinstance(record.attempt, int), kind
        if kind not in ("large numbers", "deep"):
            assert record.state is JobState.FAILED, (kind, record)
            assert record.failure is not None
            assert record.failure.message


def test_a_result_whose_files_climb(joined: Cluster, pool: FilePool, tmp_path: Path) -> None:
    """They land beside the record, whatever they are called, or not at all."""
    (future,) = waiting(pool)
    wait_until(lambda: left(joined) >= 1, "it is in the cluster")
    names = ["../../climbed.bin", "/climbed.bin", "..", ".", "", "a/../../climbed", "x\0y", "n" * 300, "array-1.npy"]
    content = b"climb"

    async def store() -> list[Blob]:
        config = ClusterConfig(servers=(joined.url,))
        link = await Link(config, "hostile").open()
        try:
            media = await open_store(link, config)
            (tmp_path / "climb").write_bytes(content)
            blob = await media.put(tmp_path / "climb", holder="hostile")
        finally:
            await link.close()
        return [Blob(blob.sha256, blob.size, name) for name in names]

    blobs = asyncio.run(store())
    files = [{"path": f"/etc/{name}", "size": len(content), "sha256": blobs[0].sha256} for name in names]
    whole = {
        **codec.decode(End(JobKey(pool.spool.id, future.id), "liar", 1, record_of(future.id, files=files)).pack()),
        "outputs": [blob.to_map() for blob in blobs],
        "arrays": [blob.to_map() for blob in blobs],
    }
    before = set(tmp_path.parent.iterdir())
    send(joined, [(f"$KV.{wire.RESULTS}.{pool.spool.id}.{future.id}.0", msgpack.packb(whole))])
    assert future.result(LONG_S) == {"value": "forged"}
    assert future.record is not None
    folder = pool.spool.files_dir(future.id)
    for file in future.record.files:
        assert Path(file["path"]).parent == folder
        assert Path(file["path"]).read_bytes() == content
    assert set(tmp_path.parent.iterdir()) == before
    assert not [path for path in below(joined.folder) if "climbed" in path.name and folder not in path.parents]


# ---- events


def test_events_that_are_none(joined: Cluster, pool: FilePool) -> None:
    future = pool.submit("fake", do="partials", value=5, seconds=0.2)
    runs = pool.submit("fake", do="sleep", seconds=2.0, value="mine")
    wait_until(runs.running, "it runs")
    key = JobKey(pool.spool.id, runs.id)
    nan, most = float("nan"), 2**64 - 1
    bodies: list[Any] = [
        None,
        [],
        ["inference"],
        [["inference"], 1, 2],
        ["inference", nan, ""],
        ["inference", most, "x" * 100_000],
    ]
    bodies += [["inference", "x", None], ["inference", float("inf"), ""], {}, b"\xc1", "x", ["inference", -5, {"a": 1}]]
    events = [
        Event(run, "liar", attempt, kind, number, body)
        for kind in wire.EVENT_KINDS
        for body in bodies
        for run, attempt, number in ((0, 1, 0), (1, 1, 0), (0, 0, 5), (0, 98, 2**31 - 1))
    ]
    messages = [(key.events, event.pack()) for event in events]
    messages += [(f"filepool.events.{pool.spool.id}.nothing", events[0].pack())]
    messages += [(f"filepool.events.{pool.spool.id}.a.b.c", events[0].pack())]
    messages += [(key.events, data) for data in mutations([event.pack() for event in events], 3, 500)]
    send(joined, messages)
    assert runs.result(LONG_S)["value"] == "mine"
    assert future.result(LONG_S)
    assert runs.record is not None
    assert runs.record.attempt == 1


# ---- ids


def test_an_id_that_somebody_has_spoilt(joined: Cluster, pool: FilePool) -> None:
    spoilt = {
        "spoilt": b"nonsense",
        "climbs": msgpack.packb({**codec.decode(Identity(STRANGER, "fake").pack()), "engine": "../../x"}),
        "last": Identity(pool.spool.id, "fake", 9999).pack(),
        "stranger": Identity(STRANGER, "fake").pack(),
    }
    send(joined, [(f"$KV.{wire.IDS}.{job_id}", data) for job_id, data in spoilt.items()])
    for job_id in ("spoilt", "climbs"):
        future = pool.submit("fake", id=job_id, value=1)
        assert isinstance(future.exception(LONG_S), JobFailed)
    last = pool.submit("fake", id="last", do="input")
    assert isinstance(last.exception(LONG_S), JobFailed)
    pool.retry("last")
    assert isinstance(pool.attach("last").exception(LONG_S), JobFailed)
    assert isinstance(pool.submit("fake", id="stranger", value=1).exception(LONG_S), JobFailed)
    for job_id in ("spoilt-2", "climbs-2"):
        send(joined, [(f"$KV.{wire.IDS}.{job_id}", spoilt[job_id.partition("-")[0]])])
        with pytest.raises(Exception, match=job_id):
            pool.attach(job_id)


# ---- nodes and engines


def test_nodes_and_engines_that_are_none(joined: Cluster, pool: FilePool) -> None:
    long = "x" * 500_000
    state = NodeState(
        "liar",
        STRANGER,
        long,
        long,
        3600.0,
        (),
        False,
        10**14,
        {"fake": EngineState(10**9, 0, 0, 0, long)},
        ({long: long},),
    )
    engines: dict[str, Any] = {
        "fake": {"engine": "fake", "schema": {"properties": 5}},
        "bytes": {"engine": "x", "schema": b"bytes", "doc": b"x"},
        "deep": {"engine": "x", "schema": deep(60)},
        "none": 5,
        "regex": {"engine": "x", "schema": {"properties": {"a": {"pattern": "(a+)+$"}, "b": [], "c": {"anyOf": 5}}}},
        "Not_An_Engine": {"engine": "x"},
    }
    before = asyncio.run(_engine(joined))
    messages = [(f"$KV.{wire.ENGINES}.{name}", msgpack.packb(about)) for name, about in engines.items()]
    messages += [(f"$KV.{wire.NODES}.liar", state.pack()), (f"$KV.{wire.NODES}.another", state.pack())]
    messages += [(f"$KV.{wire.NODES}.a.b", b"x"), (f"$KV.{wire.ENGINES}.a.b", b"x")]
    messages += [(f"$KV.{wire.NODES}.n{n}", data) for n, data in enumerate(mutations([state.pack()[:5000]], 4, 200))]
    send(joined, messages)
    time.sleep(1.0)
    try:
        assert pool.submit("fake", value=1).exception(LONG_S) is None
        assert len((pool.spool.root / "run" / "nodes.json").read_bytes()) < 1_000_000
        assert pool.status()
    finally:
        send(joined, [(f"$KV.{wire.ENGINES}.fake", before)])
    wait_until(lambda: "until_attempt" in str(Schemas(pool.spool.root).describe("fake")), "it is whole again")


async def _engine(joined: Cluster) -> bytes:
    async with joined.servers.connected() as client:  # type: ignore[attr-defined]
        bucket = await client.jetstream().key_value(wire.ENGINES)
        return bytes((await bucket.get("fake")).value)


# ---- all at once


def seeds(origin: str) -> Mapping[str, list[bytes]]:
    """Valid messages of each kind."""
    key, lost = JobKey(origin, "seed"), Lost("first", 1, 1.5)
    media = {"audio": {"$media": {"sha256": "0" * 64, "size": 3, "name": "a.wav"}}}
    jobs = [order("seed", origin=origin), order("media", params=media), order("map", items=[{"value": 1}] * 3)]
    blob = Blob("1" * 64, 3, "a")
    return {
        "jobs": jobs,
        "events": [Event(0, "n", 1, "progress", 0, ["inference", 50.0, "text"]).pack()],
        wire.IDS: [Identity(origin, "fake").pack()],
        wire.CLAIMS: [Hold("n", STRANGER, 2, "r", (lost,)).pack()],
        wire.RESULTS: [End(key, "n", 2, record_of("seed"), None, (blob,), (blob,), (lost,)).pack()],
        wire.CANCEL: [b"cancel"],
        wire.NODES: [NodeState("n", STRANGER, "h", "1", 2.0, (), False, 1, {"fake": EngineState(1, 1, 0)}).pack()],
        wire.ENGINES: [codec.encode({"engine": "fake", "schema": {"properties": {}}, "doc": ""})],
    }


@pytest.mark.parametrize(
    "count", [pytest.param(1200, id="some"), pytest.param(20_000, marks=pytest.mark.slow, id="many")]
)
def test_a_flood_of_mutated_messages(joined: Cluster, pool: FilePool, count: int) -> None:
    """While good jobs run: all of those complete, nothing grows, and the log has a few lines of it."""
    origin, agent = pool.spool.id, joined.machines[0].agent
    assert agent is not None
    processes = [psutil.Process(agent.pid), psutil.Process(joined.port())]
    logs = [joined.machines[0].folder / "agent.log", pool.spool.root / "run" / "logs" / "supervisor.log"]
    futures = pool.submit_many("fake", [{"value": number} for number in range(20)])
    assert [future.result(LONG_S)["value"] for future in futures] == list(range(20))
    there = left(joined)  # those that want another node
    rss = [process.memory_info().rss for process in processes]
    sizes = [log.stat().st_size for log in logs]
    messages: list[Message] = []
    for which, some in seeds(origin).items():
        for number, data in enumerate(mutations(some, 7, count // 8)):
            where = {
                "jobs": wire.subject("fake", (), wire.URGENCIES[number % 3]),
                "events": f"filepool.events.{origin}.{futures[number % 20].id}",
                wire.NODES: f"$KV.{wire.NODES}.flood{number % 50}",
                wire.ENGINES: f"$KV.{wire.ENGINES}.flood{number % 50}",
                wire.IDS: f"$KV.{wire.IDS}.flood{number}",
            }.get(which, f"$KV.{which}.{origin}.flood{number}.0")
            messages.append((where, data))
    more = pool.submit_many("fake", [{"value": number, "do": "sleep", "seconds": 0.05} for number in range(60)])
    half = len(messages) // 2
    send(joined, messages[::2][:half])
    send(joined, messages[1::2])
    assert [future.result(LONG_S)["value"] for future in more] == list(range(60))
    wait_until(lambda: left(joined) <= there, "all of it is dropped or done", LONG_S)
    for process, before in zip(processes, rss, strict=True):
        assert process.memory_info().rss < before + (40 << 20), (process.cmdline(), before)
    for log, size in zip(logs, sizes, strict=True):
        grown = log.stat().st_size - size
        assert grown < 60_000, log.read_text(errors="replace")[-3000:]
