"""Publishes the progress and the end of every accepted job, as soon as Redis is reachable.

One thread publishes. Of progress only the latest message counts: a message that could not be published is replaced by
the next one. The end of a job is kept until Redis has it. One transaction publishes it, stores it as the last message
and removes the job from `accepted`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from redis.exceptions import RedisError

from pool.client.filepool import FilePool
from pool.errors import PoolError, UnknownJob
from pool.gateways.redis.ends import Ends, Follow
from pool.gateways.redis.settings import Queue, Settings
from pool.gateways.redis.wire import Keys, describe, message
from pool.job import TERMINAL

_LOOK_S = 0.2  # between two reads of the progress of a job
_REFRESH_S = 5.0
_GPU_LIFE_S = 30  # so that the state of a killed gateway expires
_BATCH = 200
_REPEAT_S, _REPEAT_FOR_S = 1.0, 60.0  # an end without subscribers is published again
_VANISHED_S = 15.0
_OVER = frozenset(state.value for state in TERMINAL)


@dataclass
class Outgoing:
    """One message to publish. forget: adds commands that remove the job from Redis to the transaction. final: progress
    does not replace it. last: store it as the last message about the task. Times: seconds of the monotonic clock."""

    task_id: str
    body: bytes
    final: bool = False
    last: bool = True
    forget: Callable[[Any], object] | None = None
    since: float = field(default_factory=time.monotonic)
    not_before: float = 0.0


class Herald:
    """Publishes messages. `pause_s`, `turn` and `sign_off` belong to one thread; the rest is safe to call from any."""

    def __init__(self, pool: FilePool, settings: Settings, keys: Keys, client: Any, ends: Ends) -> None:
        self._pool, self._settings, self._keys, self._client, self._ends = pool, settings, keys, client, ends
        self._lock = threading.Lock()
        self._outgoing: dict[object, Outgoing] = {}
        self._follows: dict[str, Follow] = {}
        self._taking: set[int] = set()
        self._gpus: dict[int, str] = {}
        self._refresh_at = 0.0
        self.wake = threading.Event()  # of the loop
        self.room = threading.Event()  # of takers: a job is over

    # ---- from the takers

    def say(self, task_id: str, session_id: str, status: str, progress: float, text: str, *, last: bool = True) -> None:
        """Publish progress (0-100 %) of a task. last: store it as the last message about the task."""
        body = message(task_id, session_id, status, progress, text)
        self._put(("task", task_id), Outgoing(task_id, body, last=last))

    def refuse(self, task_id: str, session_id: str, reason: str, raw: bytes, queue: Queue, *, last: bool) -> None:
        """Publish that a task is refused, and remove it from `processing`.

        last: False when the last message about the task id belongs to another job.
        """
        body = message(task_id, session_id, "failed", 0.0, reason, error=reason)
        processing = self._keys.processing(queue.name)
        self._put(raw, Outgoing(task_id, body, True, last, lambda pipe: pipe.lrem(processing, 1, raw)))

    def refusing(self, raw: bytes) -> bool:
        """Whether the refusal of an element of `processing` is still to be published."""
        with self._lock:
            return raw in self._outgoing and self._outgoing[raw].forget is not None

    def follow(self, follow: Follow) -> None:
        """Publish messages about a job until its end is published."""
        with self._lock:
            self._follows[follow.job_id] = follow
        if follow.future is not None:
            follow.future.add_done_callback(lambda _: self.wake.set())
        self.wake.set()

    def follows(self, job_id: str) -> bool:
        """Whether the end of a job is still to come."""
        with self._lock:
            return job_id in self._follows

    def count(self, queue: Queue) -> int:
        """Number of accepted jobs of a queue that are not over."""
        with self._lock:
            return sum(1 for follow in self._follows.values() if follow.queue == queue)

    def taking(self, queue: Queue, begins: bool) -> None:
        """Note that the submit of a job of this queue begins or ends; the queue is busy in between."""
        with self._lock:
            (self._taking.add if begins else self._taking.discard)(queue.gpu_id)
        self.wake.set()

    def remind(self) -> None:
        """Write the accepted jobs and the served queues at the next turn: Redis may have lost them."""
        self._refresh_at = 0.0
        self.wake.set()

    def _put(self, key: object, outgoing: Outgoing) -> None:
        with self._lock:
            before = self._outgoing.get(key)
            if before is None or outgoing.final or not before.final:
                self._outgoing[key] = outgoing
        self.wake.set()

    # ---- the loop

    def pause_s(self) -> float:
        """How many seconds the loop may sleep when nothing wakes it."""
        with self._lock:
            return _LOOK_S / 2 if self._follows or self._outgoing else 1.0

    def turn(self) -> bool:
        """Read the progress of every job and publish what is new; whether Redis was called. Raises RedisError; then
        all messages are kept."""
        with self._lock:
            follows = list(self._follows.values())
        for follow in follows:
            self._look(follow)
        return self._publish()

    def _look(self, follow: Follow) -> None:
        if follow.future is not None and not follow.future.done():
            now = time.monotonic()
            if now - follow.looked_at >= _LOOK_S:
                follow.looked_at = now
                self._progress(follow, follow.future.id)
            return
        body = self._ends.end(follow, self.wake.set)
        if body is None:  # its files are being stored
            return
        with self._lock:
            if self._follows.get(follow.job_id) is not follow:
                return
            del self._follows[follow.job_id]
            self.room.set()
            self._outgoing.pop(("task", follow.task_id), None)
        accepted, job_id = self._keys.accepted(follow.queue.name), follow.job_id
        self._put(job_id, Outgoing(follow.task_id, body, True, True, lambda pipe: pipe.hdel(accepted, job_id)))

    def _progress(self, follow: Follow, job_id: str) -> None:
        try:
            progress = self._pool.progress_of(job_id)
        except UnknownJob:
            follow.missing_since = follow.missing_since or time.monotonic()
            if time.monotonic() - follow.missing_since > _VANISHED_S:
                follow.future = None  # its record is gone
            return
        except (PoolError, OSError):
            return  # the next turn tries again
        follow.missing_since = 0.0
        said = describe(progress)
        if progress.status not in _OVER and said != follow.said:
            follow.said = said
            self.say(follow.task_id, follow.session_id, *said)

    def _publish(self) -> bool:
        now = time.monotonic()
        with self._lock:
            due = [(key, outgoing) for key, outgoing in self._outgoing.items() if outgoing.not_before <= now][:_BATCH]
            follows = list(self._follows.values()) if now >= self._refresh_at else []
            busy = {follow.queue.gpu_id for follow in self._follows.values()} | self._taking
        gpus = {queue.gpu_id: "busy" if queue.gpu_id in busy else "idle" for queue in self._settings.queues}
        refresh = now >= self._refresh_at
        if not (due or refresh or gpus != self._gpus):
            return False
        pipe = self._client.pipeline(transaction=True)
        for gpu_id, state in gpus.items():
            pipe.set(self._keys.gpu(gpu_id), state, ex=_GPU_LIFE_S)
        for follow in follows:  # Redis may have restarted without them
            pipe.hset(self._keys.accepted(follow.queue.name), follow.job_id, follow.note())
        places = [self._add(pipe, outgoing) for _, outgoing in due]
        answers = pipe.execute(raise_on_error=False)
        self._gpus = gpus
        if refresh:
            self._refresh_at = now + _REFRESH_S
        self._sent(due, [answers[place] for place in places], now)
        return True

    def _add(self, pipe: Any, outgoing: Outgoing) -> int:
        """Add a message to the transaction; returns the index of its number of subscribers in the replies."""
        if outgoing.last and outgoing.task_id:
            pipe.set(self._keys.last(outgoing.task_id), outgoing.body, ex=int(self._settings.last_word_s))
        if outgoing.forget is not None:
            outgoing.forget(pipe)
        pipe.publish(self._settings.channel, outgoing.body)
        return len(pipe.command_stack) - 1

    def _sent(self, due: list[tuple[object, Outgoing]], answers: list[object], now: float) -> None:
        with self._lock:
            for (key, outgoing), subscribers in zip(due, answers, strict=True):
                if isinstance(subscribers, RedisError):
                    logger.warning("a message about task {} could not be published: {}", outgoing.task_id, subscribers)
                if self._outgoing.get(key) is not outgoing:
                    continue  # replaced by a newer one
                if outgoing.final and subscribers == 0 and now - outgoing.since < _REPEAT_FOR_S:
                    outgoing.forget, outgoing.last, outgoing.not_before = None, False, now + _REPEAT_S
                else:
                    del self._outgoing[key]

    def sign_off(self) -> None:
        """Publish what is left and mark the queues as not served. Raises RedisError."""
        self._publish()
        self._client.delete(*(self._keys.gpu(queue.gpu_id) for queue in self._settings.queues))
