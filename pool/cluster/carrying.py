"""One job on a node: from its message to its end on the servers.

    claim -> media -> the spool of this node -> events while it runs -> outputs up -> result (the first counts) -> ack

Each step may be repeated by the next agent: what is in the spool of the node says how far it had come.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger
from nats.js.errors import KeyWrongLastSequenceError

from pool.client.filepool import FilePool
from pool.client.follow import Follower, Notice, Part, Setback
from pool.client.status import PoolStatus
from pool.cluster import parcels, wire
from pool.cluster.carried import Carried
from pool.cluster.claims import Claims
from pool.cluster.link import AWAY, Link
from pool.cluster.local import TAG, Errand
from pool.cluster.media import Cache, Store
from pool.cluster.wire import End, Event, Order
from pool.config.roots import Roots
from pool.constants import MAX_RESULT_BYTES
from pool.errors import ProtocolError
from pool.format import codec
from pool.job import Failure, FailureKind, Job, JobState, Progress, Record
from pool.runfiles.schemas import Schemas, path_keys
from pool.spool import fsops
from pool.supervise import retention

T = TypeVar("T")


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

    # ---- begin

    async def run(self, carried: Carried, order: Order) -> None:
        """Bring the job into the spool of this node, and wait until it is over there; its media stay for so long.

        Raises CallerError when this node must not run it, SpoolFull when it cannot now, and what the servers raise."""
        sent = Job.from_map(dict(order.job))
        calls = sent.items if sent.items is not None else (sent.params,)
        async with self.cache.have(self.store, parcels.blobs(calls)) as paths:
            job = await in_thread(lambda: self._job(carried, sent, calls, paths))
            carried.future = await in_thread(lambda: self.pool.accept(job))
            self.follow(carried)
            await carried.over.wait()

    def _job(
        self, carried: Carried, sent: Job, calls: Sequence[Mapping[str, Any]], paths: Mapping[wire.Blob, Path]
    ) -> Job:
        """The job as the spool of this node takes it."""
        errand, config = carried.errand, self.pool.config
        folder = self.outputs(errand)
        roots = Roots(config.media_roots) if config.media_roots else None
        about = self._schemas.describe(sent.engine) or {}
        schema = about.get("schema")
        keys = path_keys(schema) if isinstance(schema, dict) else frozenset[str]()
        unpacked = [
            parcels.unpack(params, paths, folder, roots=roots, shared=config.cluster.shared, path_keys=keys)
            for params in calls
        ]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        return self.pool.spool.root / "cache" / "cluster-outputs" / errand.local_id

    def resume(self, carried: Carried) -> None:
        """Go on with a job that an agent before us brought into the spool. Raises UnknownJob. Blocks."""
        carried.future = self.pool.attach(carried.errand.local_id)

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
        for event in await in_thread(follower.poll):
            if isinstance(event, Setback):
                carried.attempt, carried.number = event.failure.attempt + 1, 0
                await self._send(
                    carried, "setback", body=self._abroad(event.failure).to_map(), attempt=carried.attempt - 1
                )
            elif isinstance(event, Part):
                await self._send(carried, "partial", body=codec.encode(event.record), number=carried.number)
                carried.number += 1
            elif isinstance(event, Progress) and event.attempt:
                if event.attempt > carried.attempt:
                    carried.attempt, carried.number = event.attempt, 0
                await self._send(carried, "progress", body=[event.status, event.percent, event.message])
            elif isinstance(event, Notice):
                logger.warning("{}: {}", carried.key, event.text)

    async def _send(
        self, carried: Carried, kind: str, *, body: Any = None, number: int = 0, attempt: int | None = None
    ) -> None:
        event = Event(
            carried.key.run,
            self.node,
            carried.before + (carried.attempt if attempt is None else attempt),
            kind,
            number,
            body,
        )
        with contextlib.suppress(ProtocolError):
            data = event.pack()
            if len(data) < self.link.room:
                await self.link.client.publish(carried.key.events, data)

    # ---- the end

    async def end(self, carried: Carried) -> None:
        """Bring the end of the job to the servers, then forget it here. May be repeated."""
        errand = carried.errand
        raw, record = await in_thread(lambda: self._read(errand.local_id))
        produced = parcels.outgoing(record, self.pool.spool.files_dir(errand.local_id))
        arrays = [await self.store.put(path, holder=str(errand.key)) for path in produced.arrays]
        outputs = [await self.store.put(path, holder=str(errand.key)) for path in produced.files]
        body = None
        if len(raw) > self.link.room // 2:
            body, raw = await self.store.put(self._record_path(errand), holder=str(errand.key)), b""
        end = End(errand.key, self.node, errand.delivery, raw, body, tuple(arrays), tuple(outputs), carried.lost)
        await self.publish(end)
        await self.acknowledge(errand)
        await in_thread(lambda: self.forget(errand))

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
            started=now,
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

    async def acknowledge(self, errand: Errand) -> None:
        """The message of the job is done with. Lost on its way, it comes again, and finds the result."""
        with contextlib.suppress(*AWAY):
            await self.link.client.publish(errand.reply, b"+ACK")
            headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
            await self.link.client.publish(f"$KV.{wire.CLAIMS}.{errand.key}", b"", headers=headers)

    async def give_back(self, carried: Carried, delay_s: float = 0.0) -> None:
        """Leave the job to other nodes."""
        carried.given_back = True
        await nak(self.link, carried.errand.reply, delay_s)

    def _read(self, local_id: str) -> tuple[bytes, Record]:
        raw = fsops.read_bounded(self.pool.spool.record_path(local_id), MAX_RESULT_BYTES)
        return raw, Record.from_map(codec.decode(raw, arrays=False))

    def _record_path(self, errand: Errand) -> Path:
        return Path(self.pool.spool.record_path(errand.local_id))

    def forget(self, errand: Errand) -> None:
        """Remove a job whose end the servers have. Blocks."""
        with contextlib.suppress(OSError):
            retention.remove(self.pool.spool, errand.local_id)
            folder = self.outputs(errand)
            if folder.is_dir():
                fsops.remove_tree(str(folder))

    def _abroad(self, failure: Failure) -> Failure:
        """A failure as other machines name it."""
        return replace(failure, worker=f"{self.node}/{failure.worker}" if failure.worker else self.node, attempts=())


async def nak(link: Link, reply: str, delay_s: float = 0.0) -> None:
    """Give a message back to the servers, to be delivered again after so many seconds."""
    word = b"-NAK" if delay_s <= 0 else b'-NAK {"delay": %d}' % int(delay_s * 1e9)
    await link.client.publish(reply, word)


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call on a thread."""
    return await asyncio.to_thread(call)
