"""Jobs that another machine has: away/<engine>.<job file>, from ready/ until they come back or their record is here.

Only the port, one process per spool, moves what is in away/. Each function is one commit point; what stands around it
is done before, so that a port that was killed finds the file and does it again.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import NamedTuple

from pool.format.names import MAX_ATTEMPTS, JobName, parse_dead
from pool.job import Job, JobState, Record
from pool.spool import fsops
from pool.spool.acceptance import bring
from pool.spool.store import Spool


class Away(NamedTuple):
    """A job file in away/. name.attempts: begun so far, the current one included; 0: it waits in the cluster."""

    path: str
    engine: str
    name: JobName


def waiting(spool: Spool) -> list[Away]:
    """All that is away, in the order of the queue of each engine."""
    return [_at(spool, *found) for found in map(parse_dead, sorted(spool.list_away())) if found is not None]


def find(spool: Spool, job_id: str) -> Away | None:
    """The job, when it is away."""
    parsed = (parse_dead(entry) for entry in spool.list_away() if f".{job_id}." in entry)
    return next((_at(spool, *found) for found in parsed if found is not None and found[1].id == job_id), None)


def read(spool: Spool, away: Away) -> Job:
    """The job. ProtocolError when its file is not one of ours, FileNotFoundError when it is gone."""
    return spool.read_file(away.path, away.name)


def send(spool: Spool, engine: str, name: JobName) -> Away | None:
    """ready/ -> away/: take a waiting job for the cluster; None when another was faster. Its attempts stay."""
    away = _at(spool, engine, name)
    try:
        fsops.rename(f"{spool.ready_dir(engine)}/{name}", away.path)
    except FileNotFoundError:
        return None
    return away


def begin(spool: Spool, away: Away, attempt: int) -> Away:
    """Attempt `attempt` (1 …) has begun on another machine; one that is not higher than the last changes nothing.
    FileNotFoundError: it is not there any more."""
    attempts = min(attempt, MAX_ATTEMPTS)
    if attempts <= away.name.attempts:
        return away
    begun = _at(spool, away.engine, away.name._replace(attempts=attempts))
    fsops.rename(away.path, begun.path)
    return begun


def come_back(spool: Spool, away: Away) -> None:
    """away/ -> ready/, unharmed: the cluster could not take it. Its attempts stay. FileNotFoundError: it is gone."""
    fsops.unlink(spool.progress_path(away.name.id), missing_ok=True)
    spool.into_ready(away.path, away.engine, str(away.name))


def finish(spool: Spool, away: Away, record: Record, *, reply: str = "", durable: bool = True) -> bool:
    """Publish the terminal record, then tidy. False when the job was decided before: the first one wins.

    Files that the record names must be in place already. OSError (no space) leaves the job away.
    """
    published = spool.publish(record, reply, spool.durable and durable)
    attempts = max(away.name.attempts, record.attempt)
    tidy(spool, away, record.state if published else None, attempts=attempts)
    return published


def tidy(spool: Spool, away: Away, state: JobState | None = None, *, attempts: int = 0) -> None:
    """Remove what a decided job has in away/, or move it to dead/ when its record says failed. state None: look it up.
    Its partial results stay."""
    fsops.unlink(spool.progress_path(away.name.id), missing_ok=True)
    spool.forget_notes(away.name.id, max(attempts, away.name.attempts))
    with contextlib.suppress(FileNotFoundError):  # it was tidied before
        spool.reap(away.path, away.engine, away.name, state)


def import_job(spool: Spool, job: Job) -> Away | None:
    """Place a job of another client's machine in away/, known here from now on; None when it is here already and not
    away. JobConflict: its id is that of another job here; SpoolFull, JobRefused."""
    found = find(spool, job.id)
    if found is not None or spool.decided(job.id):
        return found
    job = replace(job, created=min(job.created, spool.now()))  # its clock is another one, ours must not follow it

    def put(source: str, which: Job) -> None:
        fsops.rename(source, _at(spool, which.engine, which.file_name).path)

    bring(spool, job, put)
    if spool.durable:
        fsops.sync_dir(f"{spool.root}/away")
    return find(spool, job.id)


def _at(spool: Spool, engine: str, name: JobName) -> Away:
    return Away(f"{spool.root}/away/{engine}.{name}", engine, name)
