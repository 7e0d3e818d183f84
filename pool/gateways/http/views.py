"""JobView and Outcome of a job, from the directory of the spool that holds it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from pool.client import browse
from pool.client.browse import JobInfo, running_s
from pool.errors import ProtocolError, UnknownJob
from pool.format.names import check_id
from pool.gateways.http.ledger import Entry, Ledger
from pool.gateways.http.shapes import JobList, JobView, Outcome, StageView, Tried
from pool.job import TERMINAL, Failure, JobState, Record, heads
from pool.job.heads import first_line
from pool.spool import lookup
from pool.spool.lookup import Location
from pool.spool.store import Spool
from pool.stages import NO_STAGES, Stages

PAGE_S = 1.0  # for which a list may read files of jobs
_OVER = frozenset(state.value for state in TERMINAL)


def look(spool: Spool, job_id: str) -> JobView:
    """The state of a job. Raises UnknownJob, JobRefused."""
    check_id(job_id)
    try:
        if spool.decided(job_id):
            return of_record(spool.read_record(job_id, arrays=False))
        place = lookup.find(spool, job_id)
        if not place.state.terminal:
            return _of_place(spool, job_id, place, detail=True)
        return of_record(spool.read_record(job_id, arrays=False))
    except FileNotFoundError:
        raise UnknownJob(job_id) from None  # RACE: consumed or retried at this moment
    except ProtocolError as error:
        reason = Failure("infrastructure", f"its record is damaged: {error}", "read")
        state: Any = JobState.FAILED.value
        return JobView(
            id=job_id,
            engine="",
            state=state,
            status=state,
            percent=0.0,
            message=reason.describe(),
            attempt=0,
            kind=reason.kind,
            reason=reason.message,
            failure=reason.to_map(),
        )


def of_record(record: Record) -> JobView:
    """The view of a job that has ended, without its value."""
    state: Any = record.state.value
    stages = record.failure.stages if record.failure else record.stages
    return JobView(
        id=record.id,
        engine=record.engine,
        state=state,
        status=state,
        percent=100.0 if record.state is JobState.COMPLETED else 0.0,
        message=record.failure.describe() if record.failure else "",
        attempt=record.attempt,
        created=_seconds(record.created),
        started=_seconds(record.started),
        finished=_seconds(record.finished),
        kind=record.failure.kind if record.failure else "",
        reason=first_line(record.failure.message) if record.failure else "",
        failure=record.failure.to_map() if record.failure else None,
        stages=stages_of(stages),
        stages_left_out=stages.left_out,
        tried=_tried((*record.attempts, *_last(record))),
        tags=list(record.kept.tags),
        note=record.kept.note,
        rerun_of=record.kept.rerun_of,
    )


def of_info(spool: Spool, info: JobInfo) -> JobView:
    """The view of a job on a page of jobs."""
    state: Any = info.state.value
    kind, reason = info.kind, info.reason
    if not info.state.terminal:
        kind, reason = _last_setback(spool, info.id, info.attempt - (info.state is JobState.RUNNING))
    status, message = state, info.message or info.reason
    if info.state is JobState.RUNNING:
        status = "processing"
    elif not info.state.terminal:
        status = "queued"
    return JobView(
        id=info.id,
        engine=info.engine,
        state=state,
        status=status,
        percent=100.0 if info.state is JobState.COMPLETED else info.percent or 0.0,
        message=message,
        attempt=info.attempt,
        created=_seconds(info.created),
        started=_seconds(info.started),
        finished=_seconds(info.finished),
        kind=kind,
        reason=reason,
        tags=list(info.tags),
        note=info.note,
        rerun_of=info.rerun_of,
    )


def outcome(record: Record, prefix: str, save_as: Mapping[str, str]) -> Outcome:
    """A job that has ended, with its value and the URLs of its files. prefix: of all paths of the gateway. save_as: the
    name for its client of each file, by its path."""
    files = []
    for file in record.files:
        path = str(file.get("path", ""))
        if name := path.rpartition("/")[2]:
            url = f"{prefix}/jobs/{record.id}/files/{name}"
            files.append({**file, "name": name, "save_as": save_as.get(path, name), "url": url})
    return Outcome(**dict(of_record(record)), value=record.value, files=files, cached=record.cached)


def stages_of(stages: Stages) -> list[StageView]:
    """The statuses of an attempt as clients see them."""
    return [StageView(status=one.status, at=one.at / 1e6) for one in stages.changes]


def listed(spool: Spool, ledger: Ledger, *, states: Collection[str], engine: str | None, limit: int) -> JobList:
    """At most `limit` jobs, of some states (empty: all) and one engine when given."""
    places: list[Location] = []
    if not states or not _OVER.issuperset(states):
        places = sorted(lookup.undecided(spool), key=_order)
    seen: set[str] = set()
    views: list[JobView] = []
    for place in places:
        if place.name is None or place.name.id in seen or not _fits(place.state.value, place.engine, states, engine):
            continue
        seen.add(place.name.id)
        if len(views) < limit:
            views.append(_of_place(spool, place.name.id, place, detail=False))
    for view in _ended(spool, ledger, states, engine, limit):
        if len(views) >= limit:
            break
        if view.id not in seen:
            views.append(view)
    unread = 0 if states and _OVER.isdisjoint(states) else ledger.unread
    return JobList(jobs=views, total=len(seen) + ledger.count(states, engine, seen), unread=unread)


def _ended(spool: Spool, ledger: Ledger, states: Collection[str], engine: str | None, limit: int) -> Iterator[JobView]:
    """Jobs that are over, the latest first; those submitted last while the ledger still reads old records."""
    entries = ledger.newest()
    over = [state for state in _OVER if not states or state in states]
    if not over:
        return
    if not ledger.unread:
        yield from (_of_entry(entry) for entry in entries if _fits(entry.state, entry.engine, states, engine))
    else:
        for info in browse.page(spool, browse.Filter(engine or (), over), limit=limit, within_s=PAGE_S):
            yield of_info(spool, info)


def _fits(state: str, engine: str, states: Collection[str], wanted_engine: str | None) -> bool:
    return (not states or state in states) and wanted_engine in (None, engine)


def _order(place: Location) -> tuple[int, str]:
    """What runs, in no order; what waits for a worker or in the cluster; the rest."""
    if place.state is JobState.RUNNING:
        return 0, ""
    return 1 if place.state is JobState.QUEUED else 2, str(place.name)


def _of_place(spool: Spool, job_id: str, place: Location, *, detail: bool) -> JobView:
    attempt = place.name.attempts if place.name else 0
    status, percent, message, ahead, started, stages = "queued", 0.0, "", None, 0, NO_STAGES
    if place.state is JobState.RUNNING:
        progress = lookup.progress(spool, job_id)
        status = "processing"
        took = running_s(spool, job_id, str(place.worker)) if place.worker else None
        started = 0 if took is None else spool.now() - int(took * 1e6)
        if progress is not None and progress.attempt == attempt:
            status, percent, message = progress.status, progress.percent, progress.message
            stages = progress.stages if detail else NO_STAGES
    elif place.state is JobState.HELD:
        message = lookup.held_sentence(spool, place) if detail else ""
    elif place.state is JobState.DEFERRED:
        message = lookup.due_sentence(spool, place)
    elif place.away:
        message = lookup.sent_sentence(spool, place)
    elif detail:
        ahead = sum(1 for name in spool.list_ready(place.engine) if name < str(place.name))
        message = f"{ahead} ahead in the queue" if ahead else "next in the queue"
    failed = attempt - (place.state is JobState.RUNNING)
    kind, reason = _last_setback(spool, job_id, failed)
    tags, note, rerun_of = list[str](), "", ""
    if detail:
        with contextlib.suppress(OSError, ProtocolError):  # RACE: the job has moved; the next request finds them
            head = heads.read_job(place.path, place.state, attempt)
            tags, note, rerun_of = list(head.tags), head.note, head.rerun_of
    state: Any = place.state.value
    return JobView(
        id=job_id,
        engine=place.engine,
        state=state,
        status=status,
        percent=percent,
        message=message,
        attempt=attempt,
        created=_seconds(place.name.born) if place.name else None,
        started=_seconds(started),
        ahead=ahead,
        kind=kind,
        reason=reason,
        stages=stages_of(stages),
        stages_left_out=stages.left_out,
        tried=_tried(spool.notes(job_id, failed)) if detail and failed > 0 else [],
        tags=tags,
        note=note,
        rerun_of=rerun_of,
    )


def _of_entry(entry: Entry) -> JobView:
    state: Any = entry.state
    return JobView(
        id=entry.id,
        engine=entry.engine,
        state=state,
        status=state,
        percent=100.0 if entry.state == "completed" else 0.0,
        message=entry.message,
        attempt=entry.attempt,
        created=_seconds(entry.created),
        started=_seconds(entry.started),
        finished=_seconds(entry.finished),
        kind=entry.kind,
        reason=entry.reason,
    )


def _last_setback(spool: Spool, job_id: str, failed: int) -> tuple[str, str]:
    """(kind, reason) of the last of `failed` attempts, "" when none is on record."""
    notes = spool.notes(job_id, failed, first=failed) if failed > 0 else ()
    return (notes[-1].kind, first_line(notes[-1].message)) if notes else ("", "")


def _last(record: Record) -> tuple[Failure, ...]:
    """The attempt that ended a job without a result; none when it ended while it waited."""
    return (record.failure,) if record.failure is not None and record.started and record.failure.attempt else ()


def _tried(failures: Iterable[Failure]) -> list[Tried]:
    return [
        Tried(
            attempt=one.attempt,
            kind=one.kind,
            stage=one.stage,
            message=first_line(one.message),
            worker=one.worker,
            started=_seconds(one.started),
            at=_seconds(one.at),
            stages=stages_of(one.stages),
            stages_left_out=one.stages.left_out,
        )
        for one in failures
    ]


def _seconds(microseconds: int) -> float | None:
    return microseconds / 1e6 if microseconds else None
