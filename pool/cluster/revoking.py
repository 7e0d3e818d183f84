"""The end of jobs that no node has begun: cancelled, expired, or refused on their way out."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from dataclasses import replace

from nats.js.errors import APIError, KeyWrongLastSequenceError

from pool.cluster import wire
from pool.cluster.link import AWAY, get_entry
from pool.cluster.media import MediaError
from pool.cluster.tasks import changes
from pool.cluster.traffic import Sent, Traffic
from pool.cluster.wire import End, JobKey
from pool.format import codec
from pool.format.names import parse_expiry
from pool.job import Failure, FailureKind, Job, JobState, Record, earlier
from pool.job.kept import NOTHING
from pool.spool import attempts, away, fsops
from pool.spool.away import Away
from pool.spool.redaction import Redactor

_EXPIRY_S = 0.5
_ASK_AGAIN_S = 5.0  # after which a cancel that stands is asked for once more


class Revoking:
    """Of one branch."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic, self._spool, self._link, self._sent = traffic, traffic.spool, traffic.link, traffic.sent

    async def refuse(self, sent: Sent, failure: Failure) -> None:
        """End a job that no node has begun, for clients of other branches, too; one that has another end keeps it."""
        if not sent.ends():
            return
        record = replace(self.failed(sent.item, sent.job, failure), kept=NOTHING)
        what = f"the end of job {sent.job.id}"
        try:
            # until it is known to be there: its next run must not meet it
            first = await self._link.until_done(lambda: self._tell(sent.key, record), what)
        except APIError as error:
            self._link.complain(f"end: {error}", f"{what} is not told to clients of other branches: {error}")
            first = True
        if first:
            self._traffic.forget(sent)  # whoever sends it is busy with it still
            await self.fail(sent.item, sent.job, failure)
        else:  # it is landed as any other
            sent.landing, sent.published, sent.looked_at = False, True, 0.0

    async def fail(self, item: Away, job: Job, failure: Failure) -> None:
        """End a job here, and nowhere else."""
        await asyncio.to_thread(away.finish, self._spool, item, self.failed(item, job, failure), reply=job.reply)
        fsops.unlink(attempts.cancel_path(self._spool, job.id), missing_ok=True)

    async def forget(self, sent: Sent) -> None:
        """Tidy what an earlier port has left of a job that it had ended."""
        self._traffic.forget(sent)
        await asyncio.to_thread(away.tidy, self._spool, sent.item)
        fsops.unlink(attempts.cancel_path(self._spool, sent.job.id), missing_ok=True)
        with contextlib.suppress(*AWAY, APIError, MediaError):
            await self._traffic.store.let_go(str(sent.key))

    def failed(self, item: Away, job: Job | None, failure: Failure) -> Record:
        """The record of such an end. job: None when its file cannot be read."""
        now, begun = self._spool.now(), item.name.attempts
        reason = replace(failure, at=now, attempt=begun)
        before = earlier(self._spool.notes(item.name.id, begun), begun + 1)
        return Record(
            id=item.name.id,
            engine=item.engine,
            state=JobState.CANCELLED if failure.kind == FailureKind.CANCELLED.value else JobState.FAILED,
            attempt=begun,
            created=job.created if job else item.name.born,
            started=0,
            finished=now,
            failure=replace(reason, attempts=(*before, reason)),
            attempts=before,
            source=job.source if job else "",
            kept=Redactor.of_spool(self._spool.root, item.engine).keep(job) if job else NOTHING,
        )

    async def mind_cancels(self) -> None:
        """Cancel what clients ask to cancel."""
        folder = self._spool.root / "run" / "control"
        asked: dict[str, float] = {}
        while True:
            async for _ in changes({"control": folder}, asyncio.Event(), self._traffic.config.rescan_s):
                ids = {name.removesuffix(".cancel") for name in os.listdir(folder) if name.endswith(".cancel")}
                asked = {job_id: at for job_id, at in asked.items() if job_id in ids}
                for job_id in ids:
                    sent = self._sent.get(job_id)
                    if sent is None or not sent.published:
                        continue  # whoever sends it looks for this
                    if time.monotonic() - asked.get(job_id, -math.inf) > _ASK_AGAIN_S:
                        asked[job_id] = time.monotonic()
                        self._traffic.tasks.spawn(self.cancel(sent))

    async def cancel(self, sent: Sent) -> None:
        """Ask the node that has the job to stop it; what no node has ends at once."""

        async def ask() -> None:
            cancel = await self._link.bucket(wire.CANCEL)
            await cancel.put(str(sent.key), b"cancel")

        await self._link.until_done(ask, f"cancel of job {sent.job.id}")
        reason = Failure(FailureKind.CANCELLED.value, "cancelled by request before it started", "queued")
        await self._end_waiting(sent, reason)

    async def _end_waiting(self, sent: Sent, reason: Failure) -> None:
        """End a job here that no node has; when one has begun it meanwhile, the first end counts."""
        claims = await self._link.bucket(wire.CLAIMS)
        if await get_entry(claims, str(sent.key)) is not None:
            return
        now = self._spool.now()
        state = JobState.CANCELLED if reason.kind == FailureKind.CANCELLED.value else JobState.FAILED
        record = Record(
            sent.job.id, sent.job.engine, state, 0, sent.job.created, 0, now, failure=replace(reason, at=now)
        )
        await self._tell(sent.key, record)

    async def _tell(self, key: JobKey, record: Record) -> bool:
        """The end of a job that no node has begun; False when it has one: the first end counts."""
        results = await self._link.bucket(wire.RESULTS)
        try:
            await results.create(str(key), End(key, "", 0, codec.encode(record.to_map())).pack())
        except KeyWrongLastSequenceError:
            return False
        return True

    async def mind_expiry(self) -> None:
        """End what has waited for longer than it is worth."""
        while True:
            await asyncio.sleep(min(_EXPIRY_S, self._traffic.config.rescan_s))
            with contextlib.suppress(*AWAY, APIError):
                await self._expire()

    async def _expire(self) -> None:
        now = self._spool.now()
        for entry in os.listdir(self._spool.root / "run" / "expiry"):
            parsed = parse_expiry(entry)
            sent = self._sent.get(parsed[1]) if parsed is not None and parsed[0] <= now else None
            if sent is not None and not sent.landing and not sent.item.name.attempts:
                waited_s = (sent.job.expires - sent.job.created) / 1e6
                text = f"it expired before a worker began it, {waited_s:.0f} s after it was submitted"
                hint = "more nodes, a higher priority, or a later `expires`"
                await self._end_waiting(sent, Failure(FailureKind.EXPIRED.value, text, "queued", hint=hint))
