"""What clients hear: the progress of every job that is followed, and its end, as soon as Redis is there to tell it.

One thread. Of progress only the latest word counts: what could not be said is replaced by what is true now. An end is
kept until Redis has it; saying it, keeping it as the last word and forgetting the job are one transaction.
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
from pool.gateways.redis.wire import Keys, in_words, message
from pool.job import TERMINAL

_LOOK_S = 0.2  # between two looks at the progress of a job
_REFRESH_S = 5.0
_GPU_LIFE_S = 30  # a gateway that was killed is not idle for ever
_BATCH = 200
_REPEAT_S, _REPEAT_FOR_S = 1.0, 60.0  # an end that nobody heard is said again
_VANISHED_S = 15.0
_OVER = frozenset(state.value for state in TERMINAL)


@dataclass
class Word:
    """One message on its way. forget: adds to the transaction what is no longer to be remembered. final: not to be
    replaced by progress. last: kept as the last word about the task."""

    task_id: str
    body: bytes
    final: bool = False
    last: bool = True
    forget: Callable[[Any], object] | None = None
    since: float = field(default_factory=time.monotonic)
    not_before: float = 0.0


class Herald:
    """say, finish, follow and busy may be called from any thread; `turn` belongs to one."""

    def __init__(self, pool: FilePool, settings: Settings, keys: Keys, client: Any, ends: Ends) -> None:
        self._pool, self._settings, self._keys, self._client, self._ends = pool, settings, keys, client, ends
        self._lock = threading.Lock()
        self._words: dict[object, Word] = {}
        self._follows: dict[str, Follow] = {}
        self._taking: set[int] = set()
        self._gpus: dict[int, str] = {}
        self._refresh_at = 0.0
        self.wake = threading.Event()  # of the loop
        self.room = threading.Event()  # of takers: a job is over

    # ---- from the takers

    def say(self, task_id: str, session_id: str, status: str, progress: float, text: str, *, last: bool = True) -> None:
        """Progress of a task. last: False before it is certain that the task is this one."""
        body = message(task_id, session_id, status, progress, text)
        self._put(("task", task_id), Word(task_id, body, last=last))

    def refuse(self, task_id: str, session_id: str, reason: str, raw: bytes, queue: Queue, *, last: bool) -> None:
        """A task that will not be done. last: False when the task's last word belongs to another job."""
        body = message(task_id, session_id, "failed", 0.0, reason, error=reason)
        processing = self._keys.processing(queue.name)
        self._put(raw, Word(task_id, body, True, last, lambda pipe: pipe.lrem(processing, 1, raw)))

    def refusing(self, raw: bytes) -> bool:
        """Whether an element that lies in `processing` is being refused at this moment."""
        with self._lock:
            return raw in self._words and self._words[raw].forget is not None

    def follow(self, follow: Follow) -> None:
        """Tell about a job until its end is told."""
        with self._lock:
            self._follows[follow.job_id] = follow
        if follow.future is not None:
            follow.future.add_done_callback(lambda _: self.wake.set())
        self.wake.set()

    def follows(self, job_id: str) -> bool:
        with self._lock:
            return job_id in self._follows

    def count(self, queue: Queue) -> int:
        """Jobs of a queue that are not over."""
        with self._lock:
            return sum(1 for follow in self._follows.values() if follow.queue == queue)

    def taking(self, queue: Queue, at_it: bool) -> None:
        """A job of this queue is on its way into the spool, or no longer."""
        with self._lock:
            (self._taking.add if at_it else self._taking.discard)(queue.gpu_id)
        self.wake.set()

    def remind(self) -> None:
        """Redis is there (again): tell it at once who is followed and which queues are served."""
        self._refresh_at = 0.0
        self.wake.set()

    def _put(self, key: object, word: Word) -> None:
        with self._lock:
            before = self._words.get(key)
            if before is None or word.final or not before.final:
                self._words[key] = word
        self.wake.set()

    # ---- the loop

    def pause_s(self) -> float:
        """How long the loop may sleep when nothing wakes it."""
        with self._lock:
            return _LOOK_S / 2 if self._follows or self._words else 1.0

    def turn(self) -> bool:
        """Look at every job, then tell what is new; whether Redis was asked. Raises RedisError, and has forgotten
        nothing then."""
        with self._lock:
            follows = list(self._follows.values())
        for follow in follows:
            self._look(follow)
        return self._tell()

    def _look(self, follow: Follow) -> None:
        if follow.future is not None and not follow.future.done():
            now = time.monotonic()
            if now - follow.looked_at >= _LOOK_S:
                follow.looked_at = now
                self._progress(follow, follow.future.id)
            return
        body = self._ends.end(follow, self.wake.set)
        if body is None:  # its files are being kept
            return
        with self._lock:
            if self._follows.get(follow.job_id) is not follow:
                return
            del self._follows[follow.job_id]
            self.room.set()
            self._words.pop(("task", follow.task_id), None)
        accepted, job_id = self._keys.accepted(follow.queue.name), follow.job_id
        self._put(job_id, Word(follow.task_id, body, True, True, lambda pipe: pipe.hdel(accepted, job_id)))

    def _progress(self, follow: Follow, job_id: str) -> None:
        try:
            word = self._pool.progress_of(job_id)
        except UnknownJob:
            follow.missing_since = follow.missing_since or time.monotonic()
            if time.monotonic() - follow.missing_since > _VANISHED_S:
                follow.future = None  # no record will ever come
            return
        except (PoolError, OSError):
            return  # the next look may do better
        follow.missing_since = 0.0
        said = in_words(word)
        if word.status not in _OVER and said != follow.said:
            follow.said = said
            self.say(follow.task_id, follow.session_id, *said)

    def _tell(self) -> bool:
        now = time.monotonic()
        with self._lock:
            due = [(key, word) for key, word in self._words.items() if word.not_before <= now][:_BATCH]
            follows = list(self._follows.values()) if now >= self._refresh_at else []
            busy = {follow.queue.gpu_id for follow in self._follows.values()} | self._taking
        gpus = {queue.gpu_id: "busy" if queue.gpu_id in busy else "idle" for queue in self._settings.queues}
        refresh = now >= self._refresh_at
        if not (due or refresh or gpus != self._gpus):
            return False
        pipe = self._client.pipeline(transaction=True)
        for gpu_id, state in gpus.items():
            pipe.set(self._keys.gpu(gpu_id), state, ex=_GPU_LIFE_S)
        for follow in follows:  # Redis may have come back without them
            pipe.hset(self._keys.accepted(follow.queue.name), follow.job_id, follow.note())
        places = [self._add(pipe, word) for _, word in due]
        answers = pipe.execute(raise_on_error=False)
        self._gpus = gpus
        if refresh:
            self._refresh_at = now + _REFRESH_S
        self._sent(due, [answers[place] for place in places], now)
        return True

    def _add(self, pipe: Any, word: Word) -> int:
        """Add a message to the transaction; the place of its count of listeners among the answers."""
        if word.last and word.task_id:
            pipe.set(self._keys.last(word.task_id), word.body, ex=int(self._settings.last_word_s))
        if word.forget is not None:
            word.forget(pipe)
        pipe.publish(self._settings.channel, word.body)
        return len(pipe.command_stack) - 1

    def _sent(self, due: list[tuple[object, Word]], answers: list[object], now: float) -> None:
        with self._lock:
            for (key, word), heard in zip(due, answers, strict=True):
                if isinstance(heard, RedisError):
                    logger.warning("a message about task {} could not be told: {}", word.task_id, heard)
                if self._words.get(key) is not word:
                    continue  # there is a newer one
                if word.final and heard == 0 and now - word.since < _REPEAT_FOR_S:
                    word.forget, word.last, word.not_before = None, False, now + _REPEAT_S
                else:
                    del self._words[key]

    def farewell(self) -> None:
        """What is known is told, no job is looked at any more, and these queues have no gateway."""
        self._tell()
        self._client.delete(*(self._keys.gpu(queue.gpu_id) for queue in self._settings.queues))
