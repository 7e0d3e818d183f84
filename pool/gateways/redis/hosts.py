"""The hosts that take from one queue: the heartbeat of this one, and what to do with the jobs of dead ones.

A gateway writes a new mark for its spool every `beat_s` seconds. A host is dead when its mark has not changed for
`lease_s` of the observer's own looking: no clocks are compared, and time in which the observer did not look (it was
suspended, or Redis was away) counts as one look. Adoption is one transaction: what the dead host had taken goes back
to the head of the list, and `adopted` tells that host, should it return, not to speak of these tasks again.
"""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger
from redis.exceptions import WatchError

from pool.errors import JobRefused
from pool.gateways.redis.settings import Queue, Settings
from pool.gateways.redis.wire import BadJob, Keys, message, read_job, with_error

GPU_LIFE_S = 30  # so that the state of a killed gateway expires
BEATS = 6  # in one lease
_BEAT_MOST_S = 5.0
_LOST_MOST = 3  # hosts that died with a task before it fails: it may be what kills them


@dataclass(frozen=True)
class Refused:
    """A task of a dead host that no other host can run, and its last message, which is published."""

    task_id: str
    body: bytes


@dataclass(frozen=True)
class Adopted:
    """What one adoption did. requeued: tasks that went back to the list. unheard: of the refused ones, those whose
    last message nobody was subscribed to."""

    requeued: int
    refused: tuple[Refused, ...]
    unheard: tuple[Refused, ...] = ()


class Hosts:
    """The hosts of one queue. `look` belongs to one thread."""

    def __init__(self, queue: Queue, settings: Settings, keys: Keys, client: Any) -> None:
        self._queue, self._keys, self._client = queue, keys, client
        self._engine, self._lease_s, self._last_word_s = settings.engine, settings.lease_s, settings.last_word_s
        self._looked_at = 0.0
        self._silent: dict[str, tuple[bytes, float]] = {}  # spool -> (its mark, seconds since it changed)
        self.others = 0  # living hosts beside this one
        self.resting = False  # this one takes nothing and gives up what it holds: its pool cannot run it

    def beat(self, pipe: Any) -> None:
        """Add the heartbeat of this host to a transaction, unless it rests."""
        if not self.resting:
            mark = {"host": socket.gethostname(), "gpu_id": self._queue.gpu_id, "mark": uuid.uuid4().hex}
            pipe.hset(self._keys.hosts(self._queue.name), self._keys.spool, json.dumps(mark))

    def look(self) -> list[str]:
        """The spools of dead hosts; called once per beat. Raises RedisError."""
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, 2 * beat_s(self._lease_s)), now
        marks = self._client.hgetall(self._keys.hosts(self._queue.name))
        marks.pop(self._keys.spool.encode(), None)
        before = self._silent
        self._silent = {}
        for field, mark in marks.items():
            spool = field.decode("utf-8", "replace")
            old, silent_s = before.get(spool, (b"", 0.0))
            self._silent[spool] = (mark, silent_s + passed if mark == old else 0.0)
        dead = [spool for spool, (_, silent_s) in self._silent.items() if silent_s > self._lease_s]
        self.others = len(self._silent) - len(dead)
        return dead

    def adopt(self, spool: str) -> Adopted:
        """Give back to the list what a host held, or refuse it; a host that reports meanwhile keeps it.

        Raises RedisError.
        """
        queue, keys = self._queue.name, self._keys
        hosts, processing, accepted = keys.hosts(queue), f"{queue}:processing:{spool}", f"{queue}:accepted:{spool}"
        seen = self._silent.get(spool)

        def move(pipe: Any) -> Adopted | None:
            pipe.watch(hosts, processing, accepted)
            mark = pipe.hget(hosts, spool)
            if seen is not None and mark != seen[0]:
                return None  # RACE: it is back, or another host has adopted it
            taken, notes = pipe.lrange(processing, 0, -1), pipe.hgetall(accepted)
            lost = {job_id: int(pipe.get(self._lost(job_id)) or 0) for job_id in map(_text, notes)}
            pipe.multi()
            self._remove(pipe, spool, mark)
            for raw in reversed(taken):
                pipe.lpush(queue, raw)
            refused = tuple(filter(None, [self._give(pipe, *note, lost) for note in _texts(notes)]))
            gone = {*lost, *filter(None, map(self._job_of, taken))}
            if gone:
                pipe.hset(keys.adopted(queue, spool), mapping=dict.fromkeys(gone, keys.spool))
                pipe.expire(keys.adopted(queue, spool), int(self._last_word_s))
            pipe.delete(processing, accepted)
            places = [self._publish(pipe, each) for each in refused]  # here: an observer that dies now has told it
            answers = pipe.execute()
            unheard = tuple(each for each, place in zip(refused, places, strict=True) if not answers[place])
            return Adopted(len(taken) + len(notes) - len(refused), refused, unheard)

        done = None
        with self._client.pipeline(transaction=True) as pipe:
            while True:
                try:
                    done = move(pipe)
                    break
                except WatchError:
                    continue
        self._silent.pop(spool, None)
        return done or Adopted(0, ())

    def _publish(self, pipe: Any, refused: Refused) -> int:
        """Add the last message of a task; returns the index of its number of subscribers in the replies."""
        place = len(pipe.command_stack)
        for body in with_error(refused.body):
            pipe.publish(self._keys.channel, body)
        return place

    def _give(self, pipe: Any, job_id: str, note: str, lost: Mapping[str, int]) -> Refused | None:
        """Put the payload of a note back into the list; a refusal when it has none, or has lost too many hosts."""
        try:
            known = json.loads(note)
            task_id, session_id = str(known["task_id"]), str(known["session_id"])
            payload = known.get("payload")
        except (ValueError, KeyError, TypeError, AttributeError):
            task_id, session_id, payload = job_id, "", None
        if isinstance(payload, str) and lost[job_id] + 1 < _LOST_MOST:
            pipe.set(self._lost(job_id), lost[job_id] + 1, ex=int(self._last_word_s))
            pipe.lpush(self._queue.name, payload)
            return None
        reason = "the host that had taken it is dead, and its note does not hold the task: push it again"
        if isinstance(payload, str):
            reason = f"{_LOST_MOST} hosts died while they had it"
        body = message(task_id, session_id, "failed", 0.0, reason, error=reason)
        pipe.set(self._keys.last(task_id), body, ex=int(self._last_word_s))
        return Refused(task_id, body)

    def _remove(self, pipe: Any, spool: str, mark: bytes | None) -> None:
        """Remove a dead host from the hosts, and say of its GPU that it is dead."""
        pipe.hdel(self._keys.hosts(self._queue.name), spool)
        try:
            gpu_id = int(json.loads(mark or b"{}")["gpu_id"])
        except (ValueError, KeyError, TypeError):
            gpu_id = self._queue.gpu_id
        pipe.set(self._keys.gpu(gpu_id, spool), "dead", ex=int(self._last_word_s))

    def _lost(self, job_id: str) -> str:
        """Key of the number of hosts that died with a job."""
        return f"{self._queue.name}:lost:{job_id}"

    def _job_of(self, raw: bytes) -> str:
        """The id of the job of an element, "" when it is not a valid job."""
        try:
            return read_job(raw, self._engine).job_id
        except (BadJob, JobRefused):
            return ""


def beat_s(lease_s: float) -> float:
    """Seconds between two heartbeats."""
    return min(_BEAT_MOST_S, lease_s / BEATS)


@dataclass(frozen=True)
class State:
    """One line about a queue or a host, for people."""

    key: str
    text: str
    good: bool


def states(client: Any, queue: Queue) -> list[State]:
    """How a queue and the hosts that hold jobs of it stand. Walks over all keys. Raises RedisError."""
    key = f"gpu_status:{queue.gpu_id}"
    status = client.get(key)
    found = [State(key, _text(status) if status else "no gateway", bool(status))]
    held = _held(client, queue.name)
    for spool in sorted({*map(_text, client.hkeys(f"{queue.name}:hosts")), *held}):
        state = _text(client.get(f"{key}:{spool}") or b"")
        good = state not in ("", "dead")
        found.append(State(f"{key}:{spool}", f"{state or 'no sign of life'}, has {held.get(spool, 0)} jobs", good))
    return found


def warn_of_strangers(client: Any, queue: str, own: str) -> None:
    """Log which hosts hold jobs but have no heartbeat, because their gateways are older or Redis has lost it: nobody
    adopts these jobs by itself. Walks over all keys. Raises RedisError."""
    known = {own, *map(_text, client.hkeys(f"{queue}:hosts"))}
    for spool, count in _held(client, queue).items():
        if spool not in known:
            command = f"python -m pool.gateways.redis --adopt {spool}"
            logger.warning("{}: {} jobs of spool {}, which gives no sign of life: {}", queue, count, spool, command)


def _held(client: Any, queue: str) -> dict[str, int]:
    """Spool -> number of jobs that it has taken and that are not over."""
    held: dict[str, int] = {}
    for kind, count in (("processing", client.llen), ("accepted", client.hlen)):
        prefix = f"{queue}:{kind}:"
        for key in map(_text, client.scan_iter(match=f"{_literal(prefix)}*", count=1000)):
            spool = key.removeprefix(prefix)
            held[spool] = held.get(spool, 0) + int(count(key))
    return held


def _literal(text: str) -> str:
    """A pattern of SCAN that matches `text` alone."""
    return "".join(f"\\{char}" if char in "*?[]^\\" else char for char in text)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _texts(notes: Mapping[bytes, bytes]) -> list[tuple[str, str]]:
    return [(_text(job_id), _text(note)) for job_id, note in notes.items()]
