"""Jobs that wait for others, and get their results: the state of those others, and which results are passed on.

A job with dependencies waits in held/ until all of them have completed. The supervisor then releases it; the worker
that begins it checks again, and fills in the results. When one of them failed, was cancelled or is gone, the job
fails at once and says so; so do those that wait for it. A mark run/dependants/<dependency>/<job> keeps the record
of a dependency, and the files it names, until the job is decided.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pool.errors import ProtocolError, UnknownJob
from pool.job import Failure, FailureKind, Job, JobState, references
from pool.spool import lookup
from pool.spool.acceptance import in_flight
from pool.spool.store import Spool

_PASSES = 3


@dataclass(frozen=True)
class Standing:
    """failure: why the job will never run. waits: for these. Neither: it may run."""

    failure: Failure | None = None
    waits: tuple[str, ...] = ()


def check(spool: Spool, ids: Iterable[str], *, local: bool = False) -> None:
    """Raise UnknownJob when a job is named that is not there. local: nor here."""
    for job_id in ids:
        if not spool.decided(job_id):
            lookup.find(spool, job_id, local=local)


def look(spool: Spool, ids: Iterable[str], *, known: Iterable[str] = ()) -> Standing:
    """How the dependencies stand now. known: those that were seen completed."""
    known, waits = frozenset(known), []
    for job_id in ids:
        if not spool.decided(job_id):
            waits.append(job_id)
        elif job_id not in known and (failure := _verdict_on(spool, job_id)) is not None:
            return Standing(failure)
    return Standing(None, tuple(waits))


def gone(spool: Spool, ids: Iterable[str]) -> Failure | None:
    """Why a job that waits for these will never run: one of them is not there any more."""
    for job_id in ids:
        try:
            lookup.find(spool, job_id, local=True)
        except UnknownJob:
            return _failure(f"job {job_id}, whose result it needs, is gone: removed before its result was used")
    return None


def hand_on(spool: Spool, job: Job) -> Job:
    """The job with the results that it asked for. Raises references.MissingPart, FileNotFoundError, ProtocolError."""
    read: dict[str, Any] = {}

    def result(job_id: str) -> Any:
        if job_id not in job.depends_on:
            raise references.MissingPart(job_id, f"job {job_id} is named in the parameters and not in depends_on")
        if job_id not in read:
            read[job_id] = spool.read_record(job_id).value
        return read[job_id]

    return replace(job, params=references.fill(job.params, result))


def missing(error: Exception) -> Failure:
    """The failure of a job whose results cannot be passed on."""
    return _failure(str(error), "name a part of the result that there is")


def _verdict_on(spool: Spool, job_id: str) -> Failure | None:
    try:
        record = spool.read_record(job_id, arrays=False)
    except FileNotFoundError:
        return None  # RACE: removed just now; the next look finds it gone
    except ProtocolError as error:
        return _failure(f"the record of job {job_id}, whose result it needs, cannot be read: {error}")
    if record.state is JobState.COMPLETED:
        return None
    reason = record.failure
    if reason is not None and reason.kind == FailureKind.DEPENDENCY.value:  # say what was first
        return _failure(reason.message, f"by way of job {job_id}")
    if record.state is JobState.CANCELLED:
        return _failure(f"job {job_id} ({record.engine}), whose result it needs, was cancelled")
    return _failure(
        f"job {job_id} ({record.engine}), whose result it needs, failed: {reason.describe() if reason else 'unknown'}"
    )


def _failure(message: str, hint: str = "") -> Failure:
    return Failure(FailureKind.DEPENDENCY.value, message, "queued", hint=hint)


# ---- records that are needed


def is_needed(spool: Spool, job_id: str) -> bool:
    """Whether a job that is not decided waits for the result of this one."""
    return any(not spool.decided(other) for other in _names(f"{spool.root}/run/dependants/{job_id}"))


def needed(spool: Spool) -> frozenset[str]:
    """Jobs whose results are needed by others that wait or run."""
    folder = f"{spool.root}/run/dependants"
    found: set[str] = set()
    dependencies = _names(folder)
    for number in range(_PASSES if dependencies else 0):  # one empty pass proves nothing: a job may be given back
        live = {place.name.id for place in lookup.undecided(spool) if place.name and not spool.decided(place.name.id)}
        for dependency in set(dependencies) - found:
            for other in _names(f"{folder}/{dependency}"):
                if other in live or (number == 0 and in_flight(spool, f"{folder}/{dependency}/{other}")):
                    found.add(dependency)
    return frozenset(found)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
