"""Where a job is, and how many are where: reading the spool without changing it.

Directories are read in the order in which jobs flow, so a job that moves on while we look is met later, never
missed; only a job given back (recovery, retry, from away/) can slip through, so an empty pass is repeated.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from pool.constants import MAX_JOB_BYTES, STATUSES
from pool.errors import ProtocolError, UnknownJob
from pool.format import codec
from pool.format.names import (
    JobName,
    WorkerName,
    parse_aside,
    parse_dead,
    parse_deferred,
    parse_job,
    parse_record,
    parse_worker,
)
from pool.job import TERMINAL, Job, JobState, Progress
from pool.spool import away, elsewhere, fsops
from pool.spool.store import Spool

_PASSES = 3
_REAP_S = 5.0


@dataclass(frozen=True)
class Location:
    """A job file or record. path: the file; worker: who holds it (work/ only); due: µs (deferred/ only); away: another
    machine has it (away/ only)."""

    state: JobState
    engine: str
    path: str
    name: JobName | None = None
    worker: WorkerName | None = None
    due: int = 0
    away: bool = False


def waiting(spool: Spool) -> Iterator[Location]:
    """Everything in held/, deferred/ and ready/, in no order."""
    root = str(spool.root)
    for entry in spool.list_held():
        held = parse_dead(entry)
        if held is not None:
            yield Location(JobState.HELD, held[0], f"{root}/held/{entry}", held[1])
    for entry in os.listdir(f"{root}/deferred"):
        parsed = parse_deferred(entry)
        if parsed is not None:
            due, engine, name = parsed
            yield Location(JobState.DEFERRED, engine, f"{root}/deferred/{entry}", name, due=due)
    for engine in _directories(f"{root}/ready"):
        for entry in _names(f"{root}/ready/{engine}"):
            job = parse_job(entry)
            if job is not None:
                yield Location(JobState.QUEUED, engine, f"{root}/ready/{engine}/{entry}", job)


def running(spool: Spool) -> Iterator[Location]:
    """Everything in work/."""
    root = str(spool.root)
    for directory in _directories(f"{root}/work"):
        worker = parse_worker(directory)
        if worker is None:
            continue
        for claim in spool.claims(worker):
            yield Location(JobState.RUNNING, worker.engine, claim.path, claim.name, worker)


def sent(spool: Spool) -> Iterator[Location]:
    """Everything in away/: queued until it has begun there, and between two attempts."""
    # RACE: listed when it is asked for the first one, not before; what waited a moment ago may have come here
    for one in away.waiting(spool):
        yield _sent(spool, one)


def _sent(spool: Spool, one: away.Away) -> Location:
    word = progress(spool, one.name.id) if one.name.attempts else None
    waits = not one.name.attempts or (word is not None and word.status == "queued")
    return Location(JobState.QUEUED if waits else JobState.RUNNING, one.engine, one.path, one.name, away=True)


def undecided(spool: Spool) -> Iterator[Location]:
    """Everything that waits, runs or is away, in the order in which jobs flow."""
    return chain(waiting(spool), running(spool), sent(spool))


def find(spool: Spool, job_id: str, *, local: bool = False) -> Location:
    """Where the job is. UnknownJob after three empty passes, and when other machines do not know it either; ClusterAway
    when they cannot be asked.

    local: do not ask them. The process that serves the spool must set it, because it is the one that answers."""
    place = _find(spool, job_id)
    if place is None and not local and elsewhere.ask(spool, job_id):
        place = _find(spool, job_id)
    if place is None:
        raise UnknownJob(job_id)
    return place


def _find(spool: Spool, job_id: str) -> Location | None:
    for number in range(_PASSES):
        if number:
            time.sleep(0.01)
        held: Location | None = None
        if not spool.decided(job_id):
            for source in (waiting, running):
                held = next((place for place in source(spool) if place.name and place.name.id == job_id), held)
            sent_one = away.find(spool, job_id)
            held = _sent(spool, sent_one) if sent_one is not None else held
        try:
            record = spool.read_record(job_id, arrays=False)
            return Location(record.state, record.engine, spool.record_path(job_id))
        except FileNotFoundError:
            if held is not None:
                return held
        except ProtocolError:  # damaged, but decided
            return Location(JobState.FAILED, held.engine if held else "", spool.record_path(job_id))
        aside = _set_aside(spool, job_id)
        if aside is not None:
            return aside
    return None


def _set_aside(spool: Spool, job_id: str) -> Location | None:
    """RACE: a failed job on its way from dead/ back to ready/; a caller killed there leaves it to the next recovery."""
    entries = _names(f"{spool.root}/dead")
    if not any(aside[0] == job_id for aside in map(parse_aside, entries) if aside is not None):
        return None
    for entry in entries:
        dead = parse_dead(entry)
        if dead is not None and dead[1].id == job_id:
            return Location(JobState.QUEUED, dead[0], f"{spool.root}/dead/{entry}", dead[1])
    return None


def find_dead(spool: Spool, job_id: str) -> tuple[str, str, JobName]:
    """(file name in dead/, engine, job name) of a failed job. UnknownJob when there is none."""
    for entry in _names(f"{spool.root}/dead"):
        parsed = parse_dead(entry)
        if parsed is not None and parsed[1].id == job_id:
            return entry, parsed[0], parsed[1]
    raise UnknownJob(job_id)


def await_dead(spool: Spool, job_id: str) -> tuple[str, str, JobName]:
    """As find_dead. RACE: a record that says failed is seen a moment before its job file is in dead/, and later still
    when its worker was killed in between."""
    deadline = time.monotonic() + _REAP_S
    while True:
        try:
            return find_dead(spool, job_id)
        except UnknownJob:
            if time.monotonic() >= deadline or find(spool, job_id).state is not JobState.FAILED:
                raise
        time.sleep(0.005)


def progress(spool: Spool, job_id: str) -> Progress | None:
    """The latest progress of a running job, or None."""
    try:
        word = Progress.from_bytes(fsops.read_bounded(f"{spool.root}/progress/{job_id}", 65536))
    except (OSError, ProtocolError):
        return None
    return word if word.status in STATUSES else None


def progress_now(spool: Spool, job_id: str) -> Progress:
    """Progress as a caller sees it, whatever the job's state. UnknownJob."""
    for _ in range(_PASSES):
        with contextlib.suppress(FileNotFoundError):  # RACE: the record was removed between look and read
            return _progress_once(spool, job_id)
    raise UnknownJob(job_id)


def _progress_once(spool: Spool, job_id: str) -> Progress:
    word = None if spool.decided(job_id) else progress(spool, job_id)
    if word is not None:
        return word  # without looking through a long queue
    place = find(spool, job_id)
    if place.state in TERMINAL:
        record = spool.read_record(job_id, arrays=False)
        reason = record.failure.describe() if record.failure else ""
        percent = 100.0 if place.state is JobState.COMPLETED else 0.0
        return Progress(place.state.value, percent, reason, record.attempt, record.finished)
    attempt = place.name.attempts if place.name else 0
    if place.state is JobState.RUNNING:
        return Progress("processing", 0.0, "", attempt, spool.now())
    if place.state is JobState.HELD:
        return Progress("queued", 0.0, held_sentence(spool, place), attempt)
    if place.state is JobState.DEFERRED:
        return Progress("queued", 0.0, due_sentence(spool, place), attempt)
    if place.away:
        return Progress("queued", 0.0, sent_sentence(spool, place), attempt)
    rank = sum(1 for name in spool.list_ready(place.engine) if name < str(place.name))
    return Progress("queued", 0.0, f"{rank} ahead in the queue" if rank else "next in the queue", attempt)


def due_sentence(spool: Spool, place: Location) -> str:
    """What a job in deferred/ waits for."""
    attempt = place.name.attempts if place.name else 0
    left = duration(max(0.0, (place.due - spool.now()) / 1e6))
    return f"attempt {attempt} failed; the next one in {left}" if attempt else f"waits for its time, in {left}"


def sent_sentence(spool: Spool, place: Location) -> str:
    """What a job in away/ that is queued waits for: in the words of its port, if it has any."""
    word = progress(spool, place.name.id) if place.name else None
    return word.message if word is not None and word.message else "waits in the cluster"


def held_sentence(spool: Spool, place: Location) -> str:
    """What a job in held/ waits for."""
    try:
        job = Job.from_map(codec.decode(fsops.read_bounded(place.path, MAX_JOB_BYTES), arrays=False))
    except (OSError, ProtocolError):  # RACE: it was just let go
        return "waits for other jobs"
    waits = [job_id for job_id in job.depends_on if not spool.decided(job_id)]
    more = f" and {len(waits) - 1} more" if len(waits) > 1 else ""
    return f"waits for job {waits[0]}{more}" if waits else "is let go"


def duration(seconds: float) -> str:
    """For people, in the largest unit that fits: "40 s", "2.5 h"."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}".replace(".0 ", " ")
    return f"{seconds:.0f} s"


def counts(spool: Spool) -> dict[str, Counter[str]]:
    """Jobs per engine: held, deferred, queued, running, dead."""
    table: dict[str, Counter[str]] = {}
    for place in undecided(spool):
        table.setdefault(place.engine, Counter())[place.state.value] += 1
    for entry in _names(f"{spool.root}/dead"):
        parsed = parse_dead(entry)
        if parsed is not None:
            table.setdefault(parsed[0], Counter())["dead"] += 1
    return table


def records(spool: Spool) -> Iterator[str]:
    """Ids of all terminal records."""
    for entry in _names(f"{spool.root}/out"):
        job_id = parse_record(entry)
        if job_id is not None:
            yield job_id


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
