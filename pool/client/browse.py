"""Lists of jobs, newest first, page by page: those that wait and run from the spool, those that ended from an index.

The order is that of age (when it was submitted, then the id), which never changes, whatever becomes of a job. A cursor
names the last job of a page, so a walk lists every job that exists throughout exactly once: directories are read in
the order in which jobs flow, the index last, and what has moved against the flow meanwhile is looked for.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pool.client.durations import span
from pool.client.index import Index, Wanted
from pool.client.live import Live
from pool.client.tagged import marked
from pool.config.checks import nearest
from pool.errors import JobRefused, UnknownJob
from pool.format.names import check_engine, check_id, parse_job
from pool.job import TERMINAL, JobState, heads
from pool.job.heads import Head
from pool.job.terms import tag as check_tag
from pool.job.terms import whole
from pool.runfiles import heartbeat
from pool.spool import lookup
from pool.spool.store import Spool
from pool.system.clock import boot_ns

LIMIT_MOST = 1000
_CURSOR = "j1."
_TRIES = 3
_STATES = {state.value: state for state in JobState}
_WAITS, _RUNS = JobState.QUEUED.value, JobState.RUNNING.value
_OVER = frozenset(state.value for state in TERMINAL)


@dataclass(frozen=True)
class JobInfo:
    """One job in a list. Times in µs of the spool clock, 0: not yet.

    Attributes:
        took_s: Of the attempt that decided it, or that runs; None when it ended while it waited.
        kind: Of a failure.
        reason: Of a failure, in one line.
        percent: The engine's latest, while it runs.
        message: The same.
        items: Calls of a map job, 0 of others.
        rerun_of: The job that it repeats.
    """

    id: str
    engine: str
    state: JobState
    created: int
    started: int = 0
    finished: int = 0
    age_s: float = 0.0
    took_s: float | None = None
    attempt: int = 0
    worker: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""
    kind: str = ""
    reason: str = ""
    percent: float | None = None
    message: str = ""
    items: int = 0
    rerun_of: str = ""

    def to_map(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {**vars(self), "state": self.state.value, "tags": list(self.tags)}


@dataclass(frozen=True)
class JobPage:
    """Jobs, newest first.

    Attributes:
        next: The cursor of the following page, "" when this was the last.
        at: µs of the spool clock.
        trouble: Why the index could not be used, "" when it could.
        unread: How many jobs could not be looked at in the time that was given: they may be missing here and behind
            the end. A walk that lists every job begins at a page that has 0.
    """

    jobs: tuple[JobInfo, ...]
    next: str
    at: int
    trouble: str = ""
    unread: int = 0

    def __iter__(self) -> Iterator[JobInfo]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    def to_map(self) -> dict[str, Any]:
        """Plain values, for --json."""
        jobs = [job.to_map() for job in self.jobs]
        return {"jobs": jobs, "next": self.next, "at": self.at, "trouble": self.trouble, "unread": self.unread}


@dataclass(frozen=True)
class Filter:
    """Which jobs, as a caller says it. engine, state: any of these; tag: all of these. text: in the id, a tag, the note
    or the reason; Latin letters in any case. since: submitted within so many seconds, or "2h"."""

    engine: str | Iterable[str] = ()
    state: str | JobState | Iterable[str | JobState] = ()
    tag: str | Iterable[str] = ()
    since: float | str | timedelta | None = None
    text: str = ""

    def checked(self, now: int, after: str) -> Wanted:
        """The question to the index. JobRefused with the key that is wrong."""
        return Wanted(
            engines=tuple(map(check_engine, _several(self.engine))),
            states=tuple(_state(one) for one in _several(self.state)),
            tags=tuple(check_tag(one, "tag") for one in _several(self.tag)),
            since=0 if self.since is None else max(0, now - int(_seconds(self.since) * 1e6)),
            before=key_of(after),
            text=self.text,
        )


_ALL = Filter()


def page(
    spool: Spool, chosen: Filter = _ALL, *, limit: int = 50, after: str = "", within_s: float | None = None
) -> JobPage:
    """One page of a list. JobRefused with the key that is wrong.

    limit: 1 … 1000. after: `next` of the page before. within_s: read files of jobs for about so long at most, the
    newest first, and say how many are `unread`; asked again, it goes on. None: read all.
    """
    wanted = chosen.checked(spool.now(), after)
    limit = whole(1, LIMIT_MOST)(limit, "limit")
    index = Index(spool, within_s)
    try:
        found = _choose(spool, index, wanted, limit + 1)
    finally:
        index.close()
    now = spool.now()
    shown = found[:limit]
    following = cursor_of(shown[-1].key) if len(found) > limit else ""
    jobs = tuple(info_of(spool, head, now) for head in shown)
    return JobPage(jobs, following, now, index.trouble, index.unread + index.unseen)


def one(spool: Spool, job_id: str) -> JobInfo:
    """One job, wherever it is. UnknownJob."""
    for _ in range(_TRIES):
        place = lookup.find(spool, check_id(job_id))
        with contextlib.suppress(FileNotFoundError):  # RACE: it has moved on meanwhile
            if place.state.terminal:
                head = heads.read_record(place.path, job_id)
            else:
                assert place.name is not None
                worker = str(place.worker) if place.worker else ""
                head = heads.read_job(place.path, place.state, place.name.attempts, worker)
            return info_of(spool, head, spool.now())
    raise UnknownJob(job_id)


def merge(waiting: Iterable[Head], ended: Iterable[Head], limit: int) -> list[Head]:
    """The newest of both, newest first, each job once: that it has ended counts."""
    jobs = {head.key: head for head in waiting}
    jobs.update((head.key, head) for head in ended)
    return heapq.nlargest(limit, jobs.values(), key=lambda head: head.key)


def _choose(spool: Spool, index: Index, wanted: Wanted, count: int) -> list[Head]:
    states = frozenset(wanted.states) or frozenset(_STATES)
    live = None
    if waits := states - _OVER:
        live = Live(index, wanted.engines, {_STATES[state] for state in waits})
    found: list[Head] = []
    for _ in range(2):
        index.refresh()
        waiting: list[Head] = []
        if live is not None:
            if back := index.returned():
                live.look_again(back)
            waiting = [head for head in _waiting(live, index, wanted, count) if head.state in states]
        ended = index.page(wanted, count) if states & _OVER else []
        found = merge(waiting, ended, count)
        wrong = [head.id for head in found if head.state in _OVER and _differs(spool, head)]
        if not wrong:
            break
        index.refresh(wrong)  # RACE: consumed or run again just now; or another program changed it
    return found


def _waiting(live: Live, index: Index, wanted: Wanted, count: int) -> list[Head]:
    """The newest jobs that have not ended, and fit."""
    least = heads.key_of(wanted.since, "") if wanted.since else ""
    chosen: Sequence[str] | None = None
    if wanted.tags or wanted.text:
        fit = marked(index, live.keys(), wanted.tags, wanted.text, live.head)
        chosen = sorted((key for key in fit if not wanted.before or key < wanted.before), reverse=True)
    found: list[Head] = []
    before, at = wanted.before, 0
    while len(found) < count:
        keys = live.newest(before, count) if chosen is None else chosen[at : at + count]
        if not keys:
            break
        before, at = keys[-1], at + count
        parsed = {key: name.id for key in keys if key >= least and (name := parse_job(f"500.{key}00.msgpack"))}
        over = index.among(list(parsed.values()))  # decided: its claim is only not tidied yet
        fresh = (live.head(key) for key, job_id in parsed.items() if job_id not in over)
        found += [head for head in fresh if head is not None and wanted.mentioned(head)]
        if before < least:
            break
    return found[:count]


def _differs(spool: Spool, head: Head) -> bool:
    try:
        return heads.stamp_of(spool.record_path(head.id)) != head.stamp
    except FileNotFoundError:
        return True


def running_s(spool: Spool, job_id: str, worker: str) -> float | None:
    """Seconds for which a worker has run a job; None when it does not, or a node of the cluster runs it."""
    beat = heartbeat.read(f"{spool.root}/run/heartbeats/{worker}") if worker else None
    if beat is None or beat.job != job_id:
        return None
    return max(0.0, (boot_ns() - beat.phase_ns) / 1e9)


def info_of(spool: Spool, head: Head, now: int) -> JobInfo:
    """A head with what only the moment knows."""
    took = (head.finished - head.started) / 1e6 if head.finished and head.started else None
    started, percent, message = head.started, None, ""
    if head.state in (_WAITS, _RUNS):  # in the cluster, a job that waits may say why
        if (took := running_s(spool, head.id, head.worker)) is not None:
            started = now - int(took * 1e6)
        word = lookup.progress(spool, head.id)
        if word is not None and word.attempt == head.attempt and (head.state == word.status or head.state == _RUNS):
            percent, message = word.percent, word.message
    return JobInfo(
        id=head.id,
        engine=head.engine,
        state=_STATES[head.state],
        created=head.created,
        started=started,
        finished=head.finished,
        age_s=max(0.0, (now - head.created) / 1e6),
        took_s=took,
        attempt=head.attempt,
        worker=head.worker,
        tags=head.tags,
        note=head.note,
        kind=head.kind,
        reason=head.reason,
        percent=percent,
        message=message,
        items=head.items,
        rerun_of=head.rerun_of,
    )


# ---- what is asked for


def _several(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (str, JobState)):
        return (value,)
    return () if value is None else tuple(value)


def _state(value: object) -> str:
    text = value.value if isinstance(value, JobState) else str(value)
    if text not in _STATES:
        near = nearest(text, list(_STATES))
        raise JobRefused(f"no state {text!r:.60}{near}; there are: {', '.join(_STATES)}", "state")
    return text


def _seconds(since: float | str | timedelta) -> float:
    if isinstance(since, timedelta):
        return since.total_seconds()
    if isinstance(since, str):
        return span(since, "since")
    if isinstance(since, bool) or not isinstance(since, (int, float)) or not 0 <= since < 1e12:
        raise JobRefused(f"{since!r:.60} is not a number of seconds", "since")
    return float(since)


def cursor_of(key: str) -> str:
    """The cursor of a page that begins behind this key."""
    return _CURSOR + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def key_of(cursor: str) -> str:
    """The key in a cursor. JobRefused: it is none."""
    if cursor == "":
        return ""
    body = str(cursor).removeprefix(_CURSOR)
    try:
        key = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        key = ""
    if not str(cursor).startswith(_CURSOR) or parse_job(f"500.{key}00.msgpack") is None:
        raise JobRefused(f"{str(cursor)!r:.60} is no cursor: give `next` of the page before", "after")
    return key
