"""Publishes the progress and the end of every accepted job, as soon as Redis is reachable.

One thread publishes. Of progress only the latest message counts: a message that could not be published is replaced by
the next one. The end of a job is kept until Redis has it. One transaction publishes it, stores it as the last message
and removes the job from `accepted`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from redis.exceptions import RedisError, WatchError

from pool.client.filepool import FilePool
from pool.errors import ClusterAway, PoolError, UnknownJob
from pool.gateways.redis.ends import Ends, Follow
from pool.gateways.redis.hosts import GPU_LIFE_S, Hosts, beat_s
from pool.gateways.redis.settings import Queue, Settings
from pool.gateways.redis.wire import Keys, describe, message, with_error
from pool.job import TERMINAL

_LOOK_S = 0.2  # between two reads of the progress of a job
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


@dataclass
class _Lost:
    """Jobs that other hosts have adopted, and what is known of them here."""

    jobs: set[str] = field(default_factory=set)
    follows: dict[str, Follow] = field(default_factory=dict)
    outgoing: dict[object, Outgoing] = field(default_factory=dict)


class Herald:
    """Publishes messages, without the paths of this machine: clients may be anywhere. `pause_s`, `turn` and `sign_off`
    belong to one thread; the rest is safe to call from any."""

    def __init__(self, pool: FilePool, settings: Settings, keys: Keys, client: Any, ends: Ends) -> None:
        self._pool, self._settings, self._keys, self._client, self._ends = pool, settings, keys, client, ends
        self._lock = threading.Lock()
        self._outgoing: dict[object, Outgoing] = {}
        self._follows: dict[str, Follow] = {}
        self._taking: set[int] = set()
        self._gpus: dict[int, str] = {}
        self._refresh_at = 0.0
        self._refresh_s = beat_s(settings.lease_s)
        self._hosts = {queue: Hosts(queue, settings, keys, client) for queue in settings.queues}
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

    def resting(self, queue: Queue) -> bool:
        """Whether other hosts serve the queue because the pool of this one cannot."""
        return self._hosts[queue].resting

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
        if b"/" in outgoing.body:
            outgoing.body = json.dumps(self._ends.paths.document(json.loads(outgoing.body))).encode()
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
        try:
            return self._publish()
        except WatchError:
            return True  # RACE: another host adopts jobs of this one; the next turn drops them

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
        except (UnknownJob, ClusterAway):
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
        if refresh:
            self._see_hosts()
        lost = _Lost()
        with self._client.pipeline(transaction=True) as pipe:
            if refresh or any(outgoing.forget for _, outgoing in due):
                lost = self._disown(pipe)
                due = [(key, outgoing) for key, outgoing in due if key not in {*lost.jobs, *lost.outgoing}]
                follows = [follow for follow in follows if follow.job_id not in lost.jobs]
            for gpu_id, state in gpus.items():
                for spool in ("", self._keys.spool):
                    pipe.set(self._keys.gpu(gpu_id, spool), state, ex=GPU_LIFE_S)
            for follow in follows:  # Redis may have restarted without them
                pipe.hset(self._keys.accepted(follow.queue.name), follow.job_id, follow.note())
            if refresh:
                for hosts in self._hosts.values():
                    hosts.beat(pipe)
            places = [self._add(pipe, outgoing) for _, outgoing in due]
            answers = pipe.execute(raise_on_error=False)
        self._forget(lost)
        self._gpus = gpus
        if refresh:
            self._refresh_at = now + self._refresh_s
        self._sent(due, [answers[place] for place in places], now)
        return True

    def _see_hosts(self) -> None:
        """Adopt what dead hosts held; rest while the pool cannot run jobs and other hosts can."""
        hopeless = self._pool.prospect(self._settings.engine).hopeless
        for queue, hosts in self._hosts.items():
            for spool in hosts.look():
                done = hosts.adopt(spool)
                text = "{}: the host of spool {} is dead; {} of its jobs are back in the list, {} failed"
                logger.warning(text, queue.name, spool, done.requeued, len(done.refused))
                for refused in done.unheard:
                    self._put(refused.task_id, Outgoing(refused.task_id, refused.body, final=True, last=False))
            resting = hopeless and hosts.others > 0
            if resting and not hosts.resting:
                logger.warning("{}: this pool cannot run jobs; other hosts get them", queue.name)
            hosts.resting = resting

    def _disown(self, pipe: Any) -> _Lost:
        """What belongs to jobs that other hosts have adopted: forgotten once `pipe`, which takes note of it, is
        executed. Until then no other host can adopt further ones; else WatchError."""
        keys = [self._keys.adopted(queue.name) for queue in self._settings.queues]
        pipe.watch(*keys)
        with self._lock:
            follows, outgoing = dict(self._follows), dict(self._outgoing)
        lost, told = _Lost(), {}
        for key in keys:
            fields = [field.decode("utf-8", "replace") for field in pipe.hkeys(key)]
            told[key] = [job_id for job_id in fields if job_id in follows or job_id in outgoing]
            lost.jobs.update(told[key])
        pipe.multi()
        lost.follows = {job_id: follows[job_id] for job_id in lost.jobs if job_id in follows}
        names = {*lost.jobs, *(("task", follow.task_id) for follow in lost.follows.values())}
        lost.outgoing = {name: outgoing[name] for name in names if name in outgoing}
        for key, job_ids in told.items():
            if job_ids:
                logger.warning("{}: other hosts have taken over {} jobs of this one", key, len(job_ids))
                pipe.hdel(key, *job_ids)
        return lost

    def _forget(self, lost: _Lost) -> None:
        """RACE: a taker may have got a job back from the list since it was seen to be lost; that one is another."""
        with self._lock:
            for job_id, follow in lost.follows.items():
                if self._follows.get(job_id) is follow:
                    del self._follows[job_id]
            for name, outgoing in lost.outgoing.items():
                if self._outgoing.get(name) is outgoing:
                    del self._outgoing[name]
        if lost.jobs:
            self.room.set()

    def _add(self, pipe: Any, outgoing: Outgoing) -> int:
        """Add a message to the transaction; returns the index of its number of subscribers in the replies."""
        if outgoing.last and outgoing.task_id:
            pipe.set(self._keys.last(outgoing.task_id), outgoing.body, ex=int(self._settings.last_word_s))
        if outgoing.forget is not None:
            outgoing.forget(pipe)
        place = len(pipe.command_stack)
        for body in with_error(outgoing.body) if outgoing.final else [outgoing.body]:
            pipe.publish(self._settings.channel, body)
        return place

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
        for queue in self._settings.queues:
            self._client.delete(self._keys.gpu(queue.gpu_id), self._keys.gpu(queue.gpu_id, self._keys.spool))
            if not self.count(queue):  # else others adopt what is left, unless the next gateway comes before
                self._client.hdel(self._keys.hosts(queue.name), self._keys.spool)
