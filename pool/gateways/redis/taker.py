"""From the list into the spool: one thread per queue.

BLMOVE moves a job from the list to `processing`; once it is in the spool, one transaction moves it from there to
`accepted`. At the start and after each outage the taker handles all elements of `processing` again: the job's id is
derived from the task's id, so a second submit gives the same job.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from loguru import logger
from redis.exceptions import RedisError

from pool.client.filepool import FilePool
from pool.client.future import JobFuture
from pool.errors import ClusterAway, JobConflict, JobRefused, OperatorError, SpoolFull, UnknownEngine, UnknownJob
from pool.gateways.redis.ends import Follow
from pool.gateways.redis.files import Files
from pool.gateways.redis.herald import Herald
from pool.gateways.redis.hosts import warn_of_strangers
from pool.gateways.redis.link import Outage
from pool.gateways.redis.remote import ServiceAway
from pool.gateways.redis.settings import Queue
from pool.gateways.redis.wire import BadJob, Keys, Order, read_job

_BLOCK_S = 1.0  # how long BLMOVE blocks on an empty list, and so how long a stop may take
_FULL_S = 0.1
_ROOM_S = 1.0
_FIRST_S, _LAST_S = 0.1, 2.0  # pauses while Redis is unreachable


@dataclass(frozen=True)
class Shared:
    """What the takers of one gateway share. engine: for jobs that name none. stop: set at shutdown."""

    pool: FilePool
    engine: str
    keys: Keys
    client: Any
    files: Files
    herald: Herald
    outage: Outage
    stop: threading.Event


class Taker:
    """Takes jobs of one queue until `stop` is set."""

    def __init__(self, queue: Queue, shared: Shared) -> None:
        self._thread = threading.Thread(target=self._run, name=f"filepool-redis-{queue.gpu_id}", daemon=True)
        self._queue, self._pool, self._engine, self._client = queue, shared.pool, shared.engine, shared.client
        self._files, self._herald, self._outage = shared.files, shared.herald, shared.outage
        self._stop = shared.stop
        self._processing, self._accepted = shared.keys.processing(queue.name), shared.keys.accepted(queue.name)
        self._adopted = shared.keys.adopted(queue.name)

    def start(self) -> None:
        """Begin to take jobs, in a thread of its own."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended after `stop`, for `timeout_s` seconds at most."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        """Take jobs until `stop` is set; errors are logged, and the thread goes on."""
        pause = _FIRST_S
        while not self._stop.is_set():
            try:
                self._resume_all()
                self._outage.over()
                self._herald.remind()
                pause = _FIRST_S
                while not self._stop.is_set():
                    self._take()
            except RedisError as error:
                self._outage.begins(error)
                self._stop.wait(pause)
                pause = min(2 * pause, _LAST_S)
            except ClusterAway as away:
                logger.warning("queue {} waits: {}", self._queue.name, away)
                self._stop.wait(_LAST_S)
            except Exception:
                logger.exception("queue {}: unexpected error; continuing", self._queue.name)
                self._stop.wait(_LAST_S)

    def _resume_all(self) -> None:
        """Resume the jobs in `accepted`, handle the elements of `processing` that were left before."""
        warn_of_strangers(self._client, self._queue.name, self._pool.spool.id)
        for field, note in self._client.hgetall(self._accepted).items():
            job_id = field.decode("utf-8", "replace")
            if not self._herald.follows(job_id):
                self._resume(job_id, note)
        for raw in self._client.lrange(self._processing, 0, -1):
            if not self._stop.is_set() and not self._herald.refusing(raw):
                self._handle(raw, again=True)

    def _resume(self, job_id: str, note: bytes) -> None:
        future: JobFuture | None = None
        try:
            future = self._pool.attach(job_id)
        except UnknownJob:
            pass
        except JobRefused:
            self._client.hdel(self._accepted, job_id)
            return
        try:
            self._herald.follow(Follow.from_note(self._queue, job_id, note, future))
        except (ValueError, KeyError, TypeError):
            logger.warning("{}: removed a malformed entry of job {}: {!r:.100}", self._accepted, job_id, note)
            self._client.hdel(self._accepted, job_id)

    def _take(self) -> None:
        if self._herald.resting(self._queue) or self._herald.count(self._queue) >= self._queue.limit:
            self._herald.room.wait(_FULL_S)
            self._herald.room.clear()
            return
        raw = self._client.blmove(self._queue.name, self._processing, _BLOCK_S, "LEFT", "RIGHT")
        if raw is not None:
            self._handle(raw, again=False)

    def _handle(self, raw: bytes, *, again: bool) -> None:
        self._herald.taking(self._queue, True)
        try:
            self._into_spool(raw, again)
        finally:
            self._herald.taking(self._queue, False)

    def _into_spool(self, raw: bytes, again: bool) -> None:
        try:
            order = read_job(raw, self._engine)
        except BadJob as bad:
            logger.warning("{}: refused: {} ({!r:.200})", self._queue.name, bad, raw)
            self._herald.refuse(bad.task_id, bad.session_id, str(bad), raw, self._queue, last=bool(bad.task_id))
            return
        try:
            submitted = self._submit(order, again)
        except (JobRefused, JobConflict) as error:
            reason, ours = order.reason(error), not isinstance(error, JobConflict)
            logger.warning("{}: task {} refused: {}", self._queue.name, order.task_id, reason)
            self._herald.refuse(order.task_id, order.session_id, reason, raw, self._queue, last=ours)
            return
        if submitted is None:
            return  # shutdown; the element stays in `processing`
        future, remote = submitted
        known = (order.task_id, order.session_id, order.named, remote, future, raw.decode())
        follow = Follow(self._queue, future.id, *known)
        ours = True
        try:
            ours = self._note(follow, raw)
        finally:  # even when Redis has failed: the job is in the spool
            if ours:
                self._herald.follow(follow)

    def _note(self, follow: Follow, raw: bytes) -> bool:
        """Move a job from `processing` to `accepted`; False when another host has adopted it meanwhile."""

        def move(pipe: Any) -> bool:
            held = raw in pipe.lrange(self._processing, 0, -1)
            if not held and pipe.hexists(self._adopted, follow.job_id):
                return False
            pipe.multi()
            pipe.lrem(self._processing, 1, raw)
            pipe.hdel(self._adopted, follow.job_id)
            pipe.hset(self._accepted, follow.job_id, follow.note())
            return True

        ours: bool = self._client.transaction(move, self._processing, self._adopted, value_from_callable=True)
        if not ours:
            logger.warning("{}: another host has taken over task {}", self._queue.name, follow.task_id)
        return ours

    def _submit(self, order: Order, again: bool) -> tuple[JobFuture, bool] | None:
        """Submit as soon as there is room; None when the gateway shuts down first. Raises JobRefused, JobConflict."""

        def report(text: str, status: str = "processing") -> None:
            self._herald.say(order.task_id, order.session_id, status, 0.0, text, last=False)

        config = self._pool.config
        if order.engine not in config.engines and not config.is_branch:  # checked before its files are downloaded
            raise UnknownEngine(f"there is no engine {order.engine!r} in this pool", "engine")
        report("taken")
        while True:
            try:
                params, remote = self._files.params(order, lambda text: report(text, "downloading"))
                return self._pool.submit(order.engine, id=order.job_id, params=params), remote
            except JobRefused:
                if again and (known := self._known(order)) is not None:
                    return known, False  # submitted before; its inputs may be gone by now
                raise
            except ServiceAway:
                return None
            except (SpoolFull, OperatorError, OSError) as error:
                logger.warning("{}: task {} waits: {}", self._queue.name, order.task_id, error)
                report(f"waits for room: {error}" if isinstance(error, SpoolFull) else f"waits: {error}")
            if self._stop.wait(_ROOM_S):
                return None

    def _known(self, order: Order) -> JobFuture | None:
        try:
            return self._pool.attach(order.job_id)
        except UnknownJob:
            return None
