"""One job on a node: from its message to its end on the servers.

    claim -> media -> the spool of this node -> events while it runs -> outputs up -> result (the first counts) -> ack

Each step may be repeated by the next agent: what is in the spool of the node says how far it had come.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger
from nats.js.errors import APIError, KeyWrongLastSequenceError

from pool.client.filepool import FilePool
from pool.client.follow import Event as FollowEvent
from pool.client.follow import Follower, Notice, Part, Setback
from pool.client.future import JobFuture
from pool.client.status import PoolStatus
from pool.cluster import parcels, sharedfiles, wire
from pool.cluster.carried import Carried
from pool.cluster.claims import Claims
from pool.cluster.link import AWAY, Link
from pool.cluster.local import TAG, Errand
from pool.cluster.media import MARK_S, Cache, Store
from pool.cluster.wire import End, Event, Order
from pool.config.roots import Roots
from pool.constants import MAX_JOB_BYTES, MAX_RESULT_BYTES
from pool.errors import ProtocolError, UnknownJob
from pool.format import codec
from pool.job import Failure, FailureKind, Job, JobState, Progress, Record
from pool.runfiles.schemas import Schemas, path_keys
from pool.spool import fsops, growing, lookup
from pool.stages import NO_STAGES, Stages
from pool.supervise import retention
from pool.system.clock import REAL

T = TypeVar("T")
_LEFT = ".left"  # beside the outputs of a job that is not this node's any more
_URLS = ".urls"  # beside the outputs of a job: where they go when that is not the client


class Carrier:
    """What an agent needs for each of its jobs. in_thread: runs a call that touches the disk. status: of the pool of
    this node, at most a second old."""

    def __init__(
        self,
        link: Link,
        pool: FilePool,
        store: Store,
        cache: Cache,
        *,
        node: str,
        status: Callable[[], PoolStatus],
    ) -> None:
        self.link, self.pool, self.store, self.cache, self.node = link, pool, store, cache, node
        self._status = status
        self._claims = Claims(link, pool.config.cluster, pool.spool.id, node)
        self._schemas = Schemas(pool.spool.root)
        self._done: list[Errand] = []

    # ---- begin

    async def run(self, carried: Carried, order: Order) -> None:
        """Bring the job into the spool of this node, and wait until it is over there; its media stay for so long.

        Raises CallerError when this node must not run it, SpoolFull when it cannot now, MediaError, SharedError, and
        what the servers raise."""
        sent = Job.from_map(dict(order.job))
        calls = sent.items if sent.items is not None else (sent.params,)
        keys = self._keys(sent.engine)
        shared = parcels.shared_urls(calls, **keys, shared=self._shared)
        async with contextlib.AsyncExitStack() as stack:
            paths: Mapping[wire.Blob, Path] = {}
            fetched: Mapping[str, Path] = {}
            if blobs := parcels.blobs(calls):
                paths = await stack.enter_async_context(self.cache.have(self.store, blobs))
            if shared.inputs:
                fetched = await stack.enter_async_context(sharedfiles.fetched(shared.inputs, self.cache))
            outputs = {self.outputs(carried.errand) / name: url for url, name in shared.outputs.items()}
            urls = {**fetched, **{url: path for path, url in outputs.items()}}
            carried.urls = outputs
            job = self._job(carried, sent, calls, paths, urls)
            carried.future = await in_thread(lambda: self._accept(carried, job, calls))
            self.follow(carried)
            await carried.over.wait()

    def _accept(self, carried: Carried, job: Job, calls: Sequence[Mapping[str, Any]]) -> JobFuture:
        if carried.urls or parcels.names_outputs(calls):
            _make(self.outputs(carried.errand))
        try:
            if carried.urls:
                self._keep_urls(carried)
            return self.pool.accept(job)
        except BaseException:
            self._drop_outputs(carried.errand.local_id)
            raise

    @property
    def _shared(self) -> tuple[str, ...]:
        return self.pool.config.cluster.shared

    def _keys(self, engine: str) -> dict[str, frozenset[str]]:
        """Which parameters of an engine are paths, and which of them it writes."""
        schema = (self._schemas.describe(engine) or {}).get("schema")
        found: Mapping[str, Any] = schema if isinstance(schema, dict) else {}
        return {"path_keys": path_keys(found), "output_keys": parcels.output_keys(found)}

    def _job(
        self,
        carried: Carried,
        sent: Job,
        calls: Sequence[Mapping[str, Any]],
        paths: Mapping[wire.Blob, Path],
        urls: Mapping[str, Path],
    ) -> Job:
        """The job as the spool of this node takes it."""
        errand, config = carried.errand, self.pool.config
        roots = Roots(config.media_roots) if config.media_roots else None
        keys = self._keys(sent.engine)["path_keys"]
        unpacked = [
            parcels.unpack(
                params, paths, self.outputs(errand), roots=roots, shared=self._shared, path_keys=keys, urls=urls
            )
            for params in calls
        ]
        terms = replace(
            sent.terms,
            not_before=None,
            expires=carried.expires_s,
            depends_on=(),
            labels=(),
            durable=False,  # power lost, the servers have it: the next node takes it
            tags=(TAG,),
            note=errand.note(),
        )
        return replace(
            sent,
            id=errand.local_id,
            params=sent.params if sent.items is not None else unpacked[0],
            items=None if sent.items is None else tuple(unpacked),
            terms=terms,
            reply="",
            source="cluster",
            rerun_of="",
            digest="",
        )

    def outputs(self, errand: Errand) -> Path:
        """The folder of files for which the client gave a path."""
        return self._outputs / errand.local_id

    @property
    def _outputs(self) -> Path:
        return self.pool.spool.root / "cache" / "cluster-outputs"

    async def watch(self, carried: Carried) -> None:
        """Hear of a job that is in the spool. Raises UnknownJob."""
        carried.future = await in_thread(lambda: self.pool.attach(carried.errand.local_id))
        self.follow(carried)

    async def go_on(self, carried: Carried) -> None:
        """As `run`, with a job that an agent before us brought into the spool. Raises UnknownJob."""
        await self.watch(carried)
        carried.urls = await in_thread(lambda: self.urls_of(carried.errand))
        blobs = await in_thread(lambda: self._media_of(carried.errand.local_id))
        async with self.cache.have(self.store, blobs):
            await carried.over.wait()

    def _keep_urls(self, carried: Carried) -> None:
        """For an agent after us."""
        plain = {path.name: url for path, url in carried.urls.items()}
        path = self.outputs(carried.errand) / _URLS
        fsops.put(self.pool.spool.temp(), str(path), [codec.encode(plain)], sync=False)

    def urls_of(self, errand: Errand) -> dict[Path, str]:
        """Outputs of a job that go elsewhere than to the client. Blocks."""
        folder = self.outputs(errand)
        with contextlib.suppress(OSError, ProtocolError):
            kept = codec.decode(fsops.read_bounded(folder / _URLS, MAX_JOB_BYTES), strict=True)
            return {folder / str(name): str(url) for name, url in kept.items()}
        return {}

    def leave(self, errand: Errand) -> None:
        """Cancel a job here that other nodes are to run; no agent tells this end. Blocks."""
        folder = self.outputs(errand)
        with contextlib.suppress(OSError):
            _make(folder)
            fsops.put(self.pool.spool.temp(), str(folder / _LEFT), [b""], sync=False)
        with contextlib.suppress(UnknownJob):
            self.pool.cancel(errand.local_id)

    def is_left(self, errand: Errand) -> bool:
        """Whether `leave` was called, by whichever agent. Blocks."""
        return (self.outputs(errand) / _LEFT).exists()

    def _media_of(self, local_id: str) -> list[wire.Blob]:
        """What a job in the spool uses of the cache."""
        with contextlib.suppress(UnknownJob, OSError, ProtocolError):
            place = lookup.find(self.pool.spool, local_id, local=True)
            job = Job.from_map(codec.decode(fsops.read_bounded(place.path, MAX_JOB_BYTES), arrays=False))
            return list(self.cache.inside([job.params, *(job.items or ())]))
        return []

    def follow(self, carried: Carried) -> None:
        """Hear of the job from now on."""
        assert carried.future is not None
        loop = asyncio.get_running_loop()
        carried.follower = Follower(self.pool, carried.future, self._status)

        def over(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: the next agent finds the record
                loop.call_soon_threadsafe(carried.over.set)

        carried.future.add_done_callback(over)

    # ---- while it runs

    async def tell(self, carried: Carried) -> None:
        """Send what is new about the job."""
        follower = carried.follower
        if follower is None:
            return
        async with carried.telling:
            if not carried.over.is_set():  # else its end tells the rest
                for event in await in_thread(follower.poll):
                    await self._pass_on(carried, event)

    async def _pass_on(self, carried: Carried, event: FollowEvent) -> None:
        if isinstance(event, Setback):
            carried.attempt, carried.number = event.failure.attempt + 1, 0
            failure = self._abroad(event.failure)
            await self._send(carried, "setback", body=failure.to_map(), attempt=failure.attempt)
            await carried.claimed()
            with contextlib.suppress(*AWAY, APIError):
                await self._claims.claim(carried, carried.revision)
        elif isinstance(event, Part):
            record = growing.without_path(event.record, f"it is on node {self.node}")
            await self._send(carried, "partial", body=codec.encode(record), number=carried.number)
            carried.number += 1
        elif isinstance(event, Progress) and event.attempt:
            if event.attempt > carried.attempt:
                carried.attempt, carried.number = event.attempt, 0
            await self._send(
                carried, "progress", body=[event.status, event.percent, event.message], stages=event.stages
            )
        elif isinstance(event, Notice):
            logger.warning("{}: {}", carried.key, event.text)

    async def _send(
        self,
        carried: Carried,
        kind: str,
        *,
        body: Any = None,
        number: int = 0,
        attempt: int | None = None,
        stages: Stages = NO_STAGES,
    ) -> None:
        event = Event(
            carried.key.run,
            self.node,
            carried.before + (carried.attempt if attempt is None else attempt),
            kind,
            number,
            body,
            stages.to_list() if stages else None,
            self.pool.spool.now(),
        )
        with contextlib.suppress(ProtocolError):
            data = event.pack()
            if len(data) < self.link.room:
                await self.link.client.publish(carried.key.events, data)

    # ---- the end

    async def end(self, carried: Carried) -> None:
        """Bring the end of the job to the servers, then forget it here. May be repeated."""
        errand = carried.errand
        async with carried.telling:
            raw, record, produced, news = await in_thread(lambda: self._leave(carried))
            for event in news:
                await self._pass_on(carried, event)
        if carried.urls:
            record, raw = await self._share(carried, record)
        holder = f"{errand.key}.end"  # another one than that of the inputs, which go before
        arrays = [await self.store.put(path, holder=holder) for path in produced.arrays]
        outputs = [await self.store.put(path, holder=holder) for path in produced.files]
        body = None
        if len(raw) > self.link.room // 2:
            body, raw = await self.store.put(await in_thread(lambda: self._spare(errand, raw)), holder=holder), b""
        at = REAL.wall() - max(0.0, (self.pool.spool.now() - record.finished) / 1e6)
        end = End(errand.key, self.node, errand.delivery, raw, body, tuple(arrays), tuple(outputs), carried.lost, at)
        await carried.claimed()
        await self.publish(end)
        await self.acknowledge(errand)
        self._done.append(errand)

    def _leave(self, carried: Carried) -> tuple[bytes, Record, parcels.Produced, list[FollowEvent]]:
        """What there is of a job that is over here."""
        news = carried.follower.poll() if carried.follower is not None else []
        raw, record = self._read(carried.errand.local_id)
        folder = self.pool.spool.files_dir(carried.errand.local_id)
        return raw, record, parcels.outgoing(record, folder, shared=self._shared), news

    async def tidy(self) -> None:
        """Forget the jobs whose ends the servers have."""
        done, self._done = self._done, []
        if done:
            await in_thread(lambda: self.forget(done))

    async def _share(self, carried: Carried, record: Record) -> tuple[Record, bytes]:
        """Write outputs to the URLs that the caller gave; the record that says so. Raises SharedError."""
        there = {str(file["path"]) for file in record.files}
        for path, url in carried.urls.items():
            if str(path) in there:
                await sharedfiles.send(path, url)
        record = sharedfiles.sent(record, carried.urls)
        return record, codec.encode(record.to_map())

    def _spare(self, errand: Errand, raw: bytes) -> Path:
        """A file with a record that is too long for a message."""
        folder = self.outputs(errand)
        _make(folder)
        path = folder / "record.msgpack"
        fsops.put(self.pool.spool.temp(), str(path), [raw], sync=False)
        return path

    async def refuse(self, carried: Carried, failure: Failure) -> None:
        """End a job that no worker of this node has begun."""
        errand = carried.errand
        now = self.pool.spool.now()
        record = Record(
            id=errand.local_id,
            engine=carried.engine,
            state=JobState.CANCELLED if failure.kind == FailureKind.CANCELLED.value else JobState.FAILED,
            attempt=0,
            created=now,
            started=0,
            finished=now,
            failure=replace(failure, at=now),
        )
        await self.publish(
            End(errand.key, self.node, errand.delivery, codec.encode(record.to_map()), lost=carried.lost)
        )
        await self.acknowledge(errand)

    async def publish(self, end: End) -> bool:
        """Create the result; False when there is one already, which counts."""
        data = end.pack()
        if len(data) > self.link.room:
            data = self._too_long(end).pack()

        async def create() -> bool:
            results = await self.link.bucket(wire.RESULTS)
            try:
                await results.create(str(end.key), data)
            except KeyWrongLastSequenceError:
                return False
            return True

        first = await self.link.until_done(create, f"the end of job {end.key.id}")
        if not first:
            logger.info("job {} has ended elsewhere before", end.key.id)
        return first

    def _too_long(self, end: End) -> End:
        """What becomes of an end that no message can hold."""
        now = self.pool.spool.now()
        text = f"it left {len(end.outputs) + len(end.arrays)} files, and their names do not fit into one message"
        reason = Failure(FailureKind.ENGINE.value, text, "cluster", at=now, hint="pack them into one file")
        record = Record(end.key.id, "", JobState.FAILED, 1, now, 0, now, failure=reason)
        return End(end.key, end.node, end.delivery, codec.encode(record.to_map()), lost=end.lost)

    async def acknowledge(self, errand: Errand) -> None:
        """The message of the job is done with. Lost on its way, it comes again, and finds the result."""
        with contextlib.suppress(*AWAY):
            await self.link.client.publish(errand.reply, b"+ACK")
            headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": f"{MARK_S}s"}
            await self.link.client.publish(f"$KV.{wire.CLAIMS}.{errand.key}", b"", headers=headers)

    async def give_back(self, carried: Carried, delay_s: float = 0.0) -> None:
        """Leave the job to other nodes."""
        carried.given_back = True
        await nak(self.link, carried.errand.reply, delay_s)

    def _read(self, local_id: str) -> tuple[bytes, Record]:
        raw = fsops.read_bounded(self.pool.spool.record_path(local_id), MAX_RESULT_BYTES)
        return raw, Record.from_map(codec.decode(raw, arrays=False))

    def forget(self, done: Iterable[Errand]) -> None:
        """Remove jobs whose ends the servers have, or need not know. Blocks."""
        dead_files = retention.dead_jobs(self.pool.spool)
        for errand in done:
            with contextlib.suppress(OSError):
                retention.remove(self.pool.spool, errand.local_id, dead_files)
                self._drop_outputs(errand.local_id)

    def sweep_outputs(self, known: Collection[str]) -> None:
        """Remove what an agent that was killed has left of jobs that are not here any more. known: ids of those that
        are. Blocks."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._outputs):
                if name not in known:
                    self._drop_outputs(name)

    def _drop_outputs(self, local_id: str) -> None:
        folder = self._outputs / local_id
        if folder.is_dir():
            fsops.remove_tree(str(folder))

    def _abroad(self, failure: Failure) -> Failure:
        """A failure as other machines name it."""
        return replace(failure, worker=f"{self.node}/{failure.worker}" if failure.worker else self.node, attempts=())


def _make(folder: Path) -> None:
    fsops.make_dir(str(folder.parent))
    fsops.make_dir(str(folder))


async def nak(link: Link, reply: str, delay_s: float = 0.0) -> None:
    """Give a message back to the servers, to be delivered again after so many seconds."""
    word = b"-NAK" if delay_s <= 0 else b'-NAK {"delay": %d}' % int(delay_s * 1e9)
    await link.client.publish(reply, word)


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call on a thread."""
    return await asyncio.to_thread(call)
