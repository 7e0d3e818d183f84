"""The way back: results from the servers into the spool of a branch, files first, then the record.

Messages are hints: what is away is looked for among the results now and then, as the directories of a spool are listed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nats.aio.msg import Msg
from nats.js.errors import APIError

from pool.cluster import parcels, wire
from pool.cluster.link import AWAY, get_entry
from pool.cluster.media import MediaError, MediaGone
from pool.cluster.revoking import Revoking
from pool.cluster.traffic import IMPORTED, Sent, Traffic
from pool.cluster.wire import End, JobKey
from pool.constants import MAX_RESULT_BYTES
from pool.errors import JobRefused, ProtocolError
from pool.format import codec
from pool.format.names import MAX_ATTEMPTS
from pool.job import Failure, FailureKind, JobState, Record
from pool.spool import attempts, away, fsops
from pool.spool.redaction import Redactor
from pool.system.clock import REAL

_LOOK_S = 5.0  # after which a job that is away is looked for among the results
_FOREIGN_LOOK_S = 0.5
_LOOKS = 100  # of those, at a time

#: What a result raises that is not what it should be, whoever has written it.
UNFIT = (ProtocolError, JobRefused, MediaGone, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


class Receiving:
    """Of one branch."""

    def __init__(self, traffic: Traffic, revoking: Revoking) -> None:
        self._traffic, self._spool, self._link, self._sent = traffic, traffic.spool, traffic.link, traffic.sent
        self._revoking = revoking

    async def take(self, message: Msg) -> None:
        """One result, just stored."""
        if not message.data:
            return
        try:
            key = JobKey.parse(message.subject.removeprefix(f"$KV.{wire.RESULTS}."))
        except ProtocolError as error:
            self._traffic.dropped(f"a result at {message.subject}", error)
            return
        if key.id in self._sent:
            self._land_soon(self._end(key, message.data))

    def _land_soon(self, end: End) -> None:
        sent = self._sent.get(end.key.id)
        if sent is not None and sent.key == end.key and sent.ends():
            self._traffic.tasks.spawn(self.land(sent, end))

    def look_anew(self) -> None:
        """Some may have been missed: look for all soon."""
        for sent in self._sent.values():
            sent.looked_at = 0.0

    async def mind_away(self) -> None:
        """Look for results that were not heard of."""
        while True:
            await asyncio.sleep(min(_FOREIGN_LOOK_S, self._traffic.config.rescan_s))
            now = time.monotonic()
            due = [
                sent
                for sent in self._sent.values()
                if sent.published
                and not sent.landing
                and now - sent.looked_at > (_LOOK_S if self._traffic.is_ours(sent) else _FOREIGN_LOOK_S)
            ]
            with contextlib.suppress(*AWAY, APIError, ProtocolError):
                for sent in sorted(due, key=lambda one: one.looked_at)[:_LOOKS]:
                    await self.look_for(sent)

    async def keep_media(self) -> None:
        """Say now and then that the media of waiting jobs are needed still."""
        while True:
            await asyncio.sleep(min(3600.0, self._traffic.config.cluster.result_hours * 900))
            for sent in [one for one in self._sent.values() if self._traffic.is_ours(one)]:
                with contextlib.suppress(*AWAY, APIError, MediaError):
                    await self._traffic.store.hold(str(sent.key), await self._traffic.store.held(str(sent.key)))

    async def look_for(self, sent: Sent) -> bool:
        """Whether the job has ended; then it is landed."""
        sent.looked_at = time.monotonic()
        found = await self._link.until_done(lambda: self.result(sent.key), f"job {sent.job.id}")
        if found is not None:
            self._land_soon(found)
        return found is not None

    async def result(self, key: JobKey) -> End | None:
        """The end of a job that the servers have, None when it has none yet."""
        entry = await get_entry(await self._link.bucket(wire.RESULTS), str(key))
        return self._end(key, entry.value) if entry is not None and entry.value else None

    def _end(self, key: JobKey, data: bytes) -> End:
        """The result that is stored under a key. One that cannot be read stays there: it becomes a failure."""
        try:
            end = End.unpack(data)
            if end.key != key:
                raise ProtocolError("it is the result of another job")
        except ProtocolError as error:
            self._traffic.dropped(f"the result of job {key.id}", error)
            return End(key, "", 0, codec.encode(self._unreadable(key.id, error).to_map()))
        return end

    def _unreadable(self, job_id: str, why: object) -> Record:
        now = self._spool.now()
        text = f"the result that the cluster has cannot be used: {why}"
        reason = Failure(FailureKind.INFRASTRUCTURE.value, text[:1000], "cluster", at=now)
        return Record(job_id, "", JobState.FAILED, 0, now, 0, now, failure=reason)

    async def land(self, sent: Sent, end: End) -> None:
        """Bring the end of a job into the spool: files first, then the record."""
        try:
            async with self._traffic.at_once:
                try:
                    record = await self._record(sent, end)
                    # RACE: before the record is out, for it may be run again at once
                    self._traffic.retried.discard(sent.job.id)
                    await asyncio.to_thread(self._finish, sent, record)
                except UNFIT as error:
                    self._traffic.dropped(f"the result of job {sent.job.id}", f"{type(error).__name__}: {error}")
                    await self._revoking.fail(sent.item, sent.job, _unfit(end, error))
        except (MediaError, OSError, *AWAY) as error:
            text = f"the result of job {sent.job.id} is there and cannot be fetched yet: {error}"
            self._link.complain(f"fetch: {error}", text)
            sent.landing, sent.looked_at = False, time.monotonic()
            return
        self._traffic.forget(sent)
        with contextlib.suppress(*AWAY, APIError, MediaError):
            await self._traffic.store.let_go(str(sent.key))

    async def _record(self, sent: Sent, end: End) -> Record:
        """The record of the end, with its files on this machine."""
        job, spool = sent.job, self._spool
        folder = spool.files_dir(job.id)
        raw = end.record
        if end.body is not None:
            path = Path(spool.temp())
            await self._traffic.store.get(end.body, path)
            raw = await asyncio.to_thread(fsops.read_bounded, path, MAX_RESULT_BYTES)
            fsops.unlink(str(path), missing_ok=True)
        record = Record.from_map(codec.decode(raw, arrays=False))
        shared = self._traffic.config.cluster.shared
        _, schema = self._traffic.keys(job.engine)
        wishes = parcels.outputs_of(job.params, schema=schema, shared=shared, items=job.items)
        if end.arrays or end.outputs:
            await asyncio.to_thread(spool.make_files_dir, job.id, sync=spool.durable)
        record = await parcels.land(
            record,
            end.outputs,
            self._traffic.store,
            wishes=wishes,
            folder=folder,
            arrays=end.arrays,
            shared=shared,
            params=job.params if job.items is None else list(job.items),
        )
        return self._ours(sent, end, record)

    def _ours(self, sent: Sent, end: End, record: Record) -> Record:
        """The record as of a job of this spool: its id, times and attempts here."""
        job = sent.job
        ago_s = max(0.0, REAL.wall() - end.at) if end.at else 0.0  # as far as the clocks of both machines agree
        finished = max(job.created, self._spool.now() - int(1e6 * ago_s))
        worker = f"{end.node}/{record.worker}" if end.node and record.worker else end.node
        shift, later = sum(one.attempts for one in end.lost), finished - record.finished
        before = (*self._lost(job.id, end.lost), *(_shifted(one, end.node, shift, later) for one in record.attempts))
        attempt = min(MAX_ATTEMPTS, record.attempt + shift)
        failure = record.failure
        if failure is not None:
            failure = replace(_shifted(failure, end.node, shift, later), attempts=())
            failure = replace(failure, attempts=(*before, failure))
        return replace(
            record,
            id=job.id,
            engine=job.engine,
            attempt=attempt,
            created=job.created,
            started=max(job.created, finished - max(0, record.finished - record.started)) if record.started else 0,
            finished=finished,
            worker=worker,
            failure=failure,
            attempts=before,
            source=job.source if job.source != IMPORTED else "",
            kept=Redactor.of_spool(self._spool.root, job.engine).keep(job),
            stages=record.stages.moved(later),
        )

    def _lost(self, job_id: str, lost: Sequence[wire.Lost]) -> Iterator[Failure]:
        """A reason for each attempt on nodes that were lost: what the node has told of it, else that it was lost."""
        told = {one.attempt: one for one in self._spool.notes(job_id, sum(one.attempts for one in lost))}
        before = 0
        for one in lost:
            last = before + one.attempts
            yield from (told.get(attempt) or _lost_failure(one, attempt) for attempt in range(before + 1, last))
            yield _lost_failure(one, last)
            before = last

    def _finish(self, sent: Sent, record: Record) -> None:
        away.finish(self._spool, sent.item, record, reply=sent.job.reply, durable=sent.job.durable)
        fsops.unlink(attempts.cancel_path(self._spool, sent.job.id), missing_ok=True)


def _unfit(end: End, error: Exception) -> Failure:
    what = "has lost a file" if isinstance(error, MediaGone) else "cannot be read"
    text = f"it ended on {end.node or 'a client'}, and its result {what}: {error}"[:1000]
    return Failure(FailureKind.INFRASTRUCTURE.value, text, "fetch")


def _lost_failure(lost: wire.Lost, attempt: int) -> Failure:
    who = f"node {lost.node}" if lost.node else "an unknown node"
    return Failure(
        FailureKind.INFRASTRUCTURE.value, f"{who} was lost with the job: its lease ran out", "cluster", attempt
    )


def _shifted(failure: Failure, node: str, by: int, later: int) -> Failure:
    """A failure on a node, as of a job of this spool: `by` attempts and `later` µs after what the node says."""
    worker = f"{node}/{failure.worker}" if node and failure.worker and "/" not in failure.worker else failure.worker
    return replace(failure.moved(later), attempt=min(MAX_ATTEMPTS, failure.attempt + by), worker=worker)
