"""What nodes tell of jobs on the way, into the files where the client of a branch looks: progress, partial results,
failed attempts."""

from __future__ import annotations

from dataclasses import replace

from loguru import logger
from nats.aio.msg import Msg

from pool.cluster.traffic import Sent, Traffic
from pool.cluster.wire import Event
from pool.constants import STATUSES
from pool.errors import ProtocolError
from pool.format import codec
from pool.format.names import MAX_ATTEMPTS
from pool.job import Progress, decode_failure
from pool.spool import attempts, away, fsops
from pool.spool.store import NO_SPACE
from pool.stages import NO_STAGES, Stages


class Events:
    """Of one branch."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic, self._spool, self._sent = traffic, traffic.spool, traffic.sent

    async def take(self, message: Msg) -> None:
        """One message of a node; one that is no good is dropped, and that is told."""
        parts = message.subject.split(".")
        sent = self._sent.get(parts[3]) if len(parts) == 4 else None
        if sent is None or sent.landing:
            return
        try:
            event = Event.unpack(message.data)
            if event.run == sent.key.run:
                self._tell(sent, event)
        except (ProtocolError, TypeError, ValueError, ArithmeticError) as error:
            self._traffic.dropped(f"an event at {message.subject}", error)
        except OSError as error:
            if error.errno not in NO_SPACE:
                logger.debug("progress of job {}: {}", sent.job.id, error)

    def _tell(self, sent: Sent, event: Event) -> None:
        spool, job_id = self._spool, sent.job.id
        attempt = min(MAX_ATTEMPTS, event.attempt)
        if event.kind in ("progress", "partial"):
            sent.item = away.begin(spool, sent.item, attempt)
        if event.kind == "progress":
            status, percent, text = event.body
            if status in STATUSES:
                now = spool.now()
                told = Stages.from_list(event.stages) if event.stages else NO_STAGES
                told = told.moved(now - event.at)  # the clock of the node is another one
                percent = min(100.0, max(0.0, float(percent)))
                word = Progress(str(status), percent, str(text)[:500], attempt, now, told)
                fsops.put(spool.temp(), spool.progress_path(job_id), [word.to_bytes()], sync=False)
        elif event.kind == "partial":
            path = attempts.partial_path(spool, job_id, attempt)
            if attempt not in sent.frames:
                sent.frames[attempt] = len(attempts.read_partials(path, 0)[0])
            if event.number >= sent.frames[attempt] and isinstance(event.body, bytes):
                codec.decode(event.body, strict=True)  # hostile bytes never reach a reader
                fsops.append(path, attempts.frame(event.body))
                sent.frames[attempt] += 1
        elif event.kind == "setback":
            failure = decode_failure(event.body)
            here = failure.moved(spool.now() - failure.at)  # the clock of the node is another one
            spool.note(job_id, replace(here, attempt=attempt, at=spool.now()))
