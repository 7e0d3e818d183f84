"""The way out: jobs that wait in the spool of a branch, to the stream.

ready/ -> away/ -> id -> media -> stream
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from nats.js.errors import APIError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from pool.cluster import parcels, wire
from pool.cluster.link import FULL, get_entry
from pool.cluster.media import MediaError, MediaUnreachable
from pool.cluster.receiving import Receiving
from pool.cluster.revoking import Revoking
from pool.cluster.tasks import changes
from pool.cluster.traffic import IMPORTED, Sent, Traffic
from pool.cluster.wire import Identity, JobKey, Order
from pool.errors import JobConflict, JobRefused, ProtocolError
from pool.format.names import JobName, parse_job
from pool.job import Failure, FailureKind, Job, references
from pool.spool import away, dependencies, reuse
from pool.spool.away import Away

_AHEAD = 256  # jobs of each engine that wait for one of the ways out
_AGAIN_S = 0.5
_IN_PROCESS = 10158  # error code of JetStream


class Sending:
    """Of one branch."""

    def __init__(self, traffic: Traffic, receiving: Receiving, revoking: Revoking) -> None:
        self._traffic, self._spool, self._link, self._sent = traffic, traffic.spool, traffic.link, traffic.sent
        self._receiving, self._revoking = receiving, revoking
        self._busy: set[str] = set()  # ids on their way out
        self._marks = 0

    async def mind_ready(self) -> None:
        """Jobs that wait in ready/ go out, in their order, while the cluster has room."""
        while True:
            queues = self._queues()
            async with aclosing(changes(queues, self._traffic.stirred, self._traffic.config.rescan_s)) as looks:
                async for _ in looks:
                    if self._link.connected and not self._traffic.full:
                        await self._send_ready()
                    if self._queues() != queues:
                        break

    async def mind_astray(self) -> None:
        """Take up again what a fault has left halfway."""
        while True:
            await self._traffic.astray.wait()
            self._traffic.astray.clear()
            await asyncio.sleep(_AGAIN_S)
            await self.take_up()

    async def take_up(self) -> None:
        """Go on with all that is away and that nobody looks after: an earlier port had begun it."""
        for item in await asyncio.to_thread(away.waiting, self._spool):
            if item.name.id not in self._sent and item.name.id not in self._busy:
                self._send(item.engine, item.name, item)

    async def _send_ready(self) -> None:
        for engine, names in (await asyncio.to_thread(self._ready)).items():
            for name in names:
                if name.id not in self._busy:
                    self._send(engine, name)

    def _send(self, engine: str, name: JobName, item: Away | None = None) -> None:
        self._busy.add(name.id)
        self._traffic.tasks.spawn(self._out(engine, name, item))

    def _queues(self) -> dict[str, Path]:
        root = self._spool.root / "ready"
        return {"": root, **{name: root / name for name in os.listdir(root)}}

    def _ready(self) -> dict[str, list[JobName]]:
        """What waits, in its order, as far as there is room on the way."""
        found = {}
        for engine in os.listdir(self._spool.root / "ready"):
            parsed = (parse_job(name) for name in self._spool.list_ready(engine)[:_AHEAD])
            found[engine] = [name for name in parsed if name is not None]
        self._read_marks()  # RACE: last, for a job is marked before it waits again
        return found

    def _read_marks(self) -> None:
        """Jobs that were run again after they had failed: they have another run in the cluster."""
        try:
            again, self._marks = reuse.marked(self._spool.root, self._marks)
        except ValueError:
            again, self._marks = reuse.marked(self._spool.root, 0)
        self._traffic.retried.update(again)

    async def _out(self, engine: str, name: JobName, item: Away | None = None) -> None:
        """Bring one job to the cluster. item: it is away already; an earlier port had begun this."""
        try:
            async with self._traffic.at_once:
                await self._carry_out(engine, name, item)
        except FileNotFoundError:
            pass  # RACE: cancelled or expired meanwhile
        finally:
            self._busy.discard(name.id)
            if not self._busy:
                self._traffic.stirred.set()  # the next ones

    async def _carry_out(self, engine: str, name: JobName, item: Away | None) -> None:
        again = item is not None
        key, conflict = JobKey(self._spool.id, name.id), ""
        job, item = await asyncio.to_thread(self._begin, engine, name, item, identified=False)
        if job is not None and item is None:
            # before it is away: an id that is taken, and the run that it gets, must be known to whoever finds it there
            key, conflict = await self._identify(job, again=False)
            job, item = await asyncio.to_thread(self._begin, engine, name, item, identified=True)
        if job is None or item is None:
            return
        named = bool(job.digest) or again or job.id in self._traffic.retried
        if again:
            key, conflict = await self._identify(job, again=True)
        if conflict:
            failure = Failure(FailureKind.INPUT.value, conflict, "submit", hint="choose another id")
            await self._revoking.fail(item, job, failure)
            return
        sent = self._sent[job.id] = Sent(item, job, key)
        if not self._traffic.is_ours(sent):
            sent.published = True  # another client's: we only follow it
            return
        if again and await self._receiving.look_for(sent):
            return
        if again and await asyncio.to_thread(self._spool.decided, job.id):  # here, before it was sent
            await self._revoking.forget(sent)
            return
        if named:
            await self._publish(sent, again=again)
        else:  # its id is its own: nobody else can have taken it
            await asyncio.gather(self._publish(sent, again=again), self._identify(job, again=False))

    def _begin(
        self, engine: str, name: JobName, item: Away | None, *, identified: bool
    ) -> tuple[Job | None, Away | None]:
        """The job, and where it is once it is away; no place: it is to be identified first. None, None: another was
        faster, or its file cannot be read, and it has ended."""
        path = item.path if item is not None else f"{self._spool.ready_dir(engine)}/{name}"
        job: Job | None = None
        failure: Failure | None = None
        try:
            job = self._spool.read_file(path, name)
        except ProtocolError as error:
            failure = Failure(FailureKind.INFRASTRUCTURE.value, f"the job file cannot be read: {error}", "read")
        if item is None:
            if job is not None and not identified and (job.digest or job.id in self._traffic.retried):
                return job, None
            item = away.send(self._spool, engine, name)
        if item is not None and failure is not None:
            away.finish(self._spool, item, self._revoking.failed(item, None, failure))
        return (job, item) if item is not None and job is not None else (None, None)

    async def _identify(self, job: Job, *, again: bool) -> tuple[JobKey, str]:
        """The key of a job in the cluster; why its id cannot be used, "" when it can.

        again: it went away before, under the run that the servers know."""
        mine = self._spool.id
        identity = Identity(mine, job.engine, 0, job.digest)

        async def claim() -> Identity:
            ids = await self._link.bucket(wire.IDS)
            if job.source == IMPORTED:
                return await self._known(ids, job.id)
            try:
                await ids.create(job.id, identity.pack())
            except KeyWrongLastSequenceError:
                entry = await get_entry(ids, job.id)
                if entry is None:
                    raise TimeoutError from None  # RACE: it expired just now
                there = Identity.unpack(entry.value or b"")
                if again or there.origin != mine or job.id not in self._traffic.retried:
                    return there
                if await self._receiving.result(JobKey(mine, job.id, there.run)) is None:
                    return there  # that run was never begun
                there = replace(there, run=there.run + 1)
                Identity.unpack(there.pack())  # there is a last run
                await ids.update(job.id, there.pack(), last=entry.revision)
                return there
            return identity

        try:
            found = await self._link.until_done(claim, f"job {job.id}")
        except ProtocolError as error:
            return JobKey(mine, job.id), f"the id {job.id} cannot be used in the cluster: {error}"
        conflict = found.origin != mine and not (job.digest and found.digest == job.digest)
        if conflict and job.source != IMPORTED:
            return JobKey(found.origin, job.id, found.run), str(JobConflict(job.id))
        return JobKey(found.origin, job.id, found.run), ""

    @staticmethod
    async def _known(ids: KeyValue, job_id: str) -> Identity:
        """Whose job of another client this is. Raises ProtocolError when the servers do not say."""
        entry = await get_entry(ids, job_id)
        if entry is None:
            raise ProtocolError("it is a job of another client, and the cluster knows it no longer")
        return Identity.unpack(entry.value or b"")

    async def _publish(self, sent: Sent, *, again: bool) -> None:
        job, key = sent.job, sent.key
        try:
            filled = await asyncio.to_thread(dependencies.hand_on, self._spool, job) if job.depends_on else job
            order = await self._pack(key, filled, again=again)
            data = order.pack()
            if len(data) > self._link.room:
                raise JobRefused(
                    f"{len(data)} bytes are more than the servers take in a message ({self._link.room}): pass media by "
                    "path, or raise their max_payload",
                    "params",
                )
        except MediaUnreachable as error:
            self._link.complain(f"media: {error}", f"the media of job {job.id} cannot be sent yet: {error}")
            await self._take_back(sent)
            return
        except (JobRefused, references.MissingPart, ProtocolError, MediaError) as error:
            kind = FailureKind.INPUT if isinstance(error, JobRefused) else FailureKind.INFRASTRUCTURE
            await self._revoking.refuse(sent, Failure(kind.value, str(error), "send"))
            return
        where = wire.subject(job.engine, order.labels, wire.urgency(job.priority))
        if not again and self._traffic.is_to_stop(job.id):
            reason = Failure(FailureKind.CANCELLED.value, "cancelled by request before it started", "queued")
            await self._revoking.refuse(sent, reason)
            return
        try:
            await self._link.until_done(lambda: self._store_order(where, data, key), f"job {job.id}")
        except APIError as error:
            if error.err_code in FULL:
                self._traffic.is_full(f"the cluster takes no more jobs for now: {error.description}; try again")
                await self._take_back(sent)
                return
            reason = Failure(FailureKind.INFRASTRUCTURE.value, f"the cluster refuses it: {error}", "send")
            await self._revoking.refuse(sent, reason)
            return
        self._traffic.is_open()
        sent.published = True
        sent.looked_at = time.monotonic()
        if self._traffic.is_to_stop(job.id):  # RACE: asked for while it was sent
            await self._revoking.cancel(sent)

    async def _take_back(self, sent: Sent) -> None:
        """Let a job that could not be sent wait here."""
        if sent.ends():
            self._traffic.forget(sent)
            await asyncio.to_thread(away.come_back, self._spool, sent.item)

    async def _store_order(self, where: str, data: bytes, key: JobKey) -> None:
        try:
            await self._link.js.publish(where, data, headers={"Nats-Msg-Id": str(key)})
        except APIError as error:
            if error.err_code == _IN_PROCESS:  # our own, sent before: the servers have not agreed on it yet
                raise TimeoutError(error.description) from None
            raise

    async def _pack(self, key: JobKey, job: Job, *, again: bool) -> Order:
        """The job with its media in the store. Raises JobRefused, MediaError."""
        keys, schema = self._traffic.keys(job.engine)
        shared = self._traffic.config.cluster.shared
        output_keys = parcels.output_keys(schema)
        wanted: dict[str, Any] = {"path_keys": keys, "output_keys": output_keys, "shared": shared, "items": job.items}
        blobs: dict[Path, wire.Blob] = {}
        packed = job
        if job.items is not None or _may_name_files(job.params, keys | output_keys):
            for path in await asyncio.to_thread(lambda: parcels.find(job.params, **wanted)):
                blobs[path] = await self._traffic.store.put(path, holder=str(key))
            sent = await asyncio.to_thread(lambda: parcels.pack(job.params, describe=blobs.get, **wanted))
            packed = replace(job, params=sent.params, items=sent.items)
        left_s = None if not job.expires else max(0.0, (job.expires - self._spool.now()) / 1e6)
        return Order(key, packed.to_map(), tuple(job.terms.labels), left_s, again)


def _may_name_files(params: Mapping[str, Any], keys: frozenset[str]) -> bool:
    """False when no parameter can be a path."""
    texts = (value for value in params.values() if isinstance(value, str))
    return not (references.are_plain(params) and keys.isdisjoint(params)) or any(map(os.path.isabs, texts))
