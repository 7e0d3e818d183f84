"""Running a job again as a new one, with changes: what it was, and what it is to be now.

The parameters come from the job's file while there is one (it waits, runs or failed), else from its record. What is
secret is never taken over, and what the record was too small for cannot be: both must be given again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pool.constants import MAX_JOB_BYTES
from pool.errors import JobRefused, ProtocolError, UnknownJob
from pool.format import codec
from pool.format.names import check_id
from pool.job import Job, JobState
from pool.job.terms import KEYS, MOMENTS, Terms
from pool.spool import fsops, lookup
from pool.spool.redaction import Redactor
from pool.spool.store import Spool

#: Terms that say nothing about the new job; results are asked for by params.
_OF_ITS_TIME = (*MOMENTS, "depends_on", "traceparent", "tracestate")


@dataclass(frozen=True)
class Origin:
    """A job as far as it is still known. left_out: parameter -> why its value is not here; "" stands for all.

    items: of a map job, None when only how many there are, `items_count`, is known.
    """

    id: str
    engine: str
    state: JobState
    params: Mapping[str, Any]
    left_out: Mapping[str, str]
    terms: Terms
    items: tuple[Mapping[str, Any], ...] | None = None
    items_count: int | None = None
    rerun_of: str = ""

    def changed(self, changes: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, Any]:
        """The parameters of the new job. JobRefused naming one that must be given again, or is not there."""
        dropped = list(without)
        if self.items_count is not None and (self.items is None or changes or dropped):
            what = "they cannot be changed" if self.items is not None else "they were not kept, or are secret"
            raise JobRefused(f"job {self.id} has the parameters of {self.items_count} calls: {what}", "params")
        if "" in self.left_out and not changes:
            raise JobRefused(f"job {self.id}: {self.left_out['']}: give them all again", "params")
        params = {**self.params, **changes}
        for key in dropped:
            if key not in params and key not in self.left_out:
                raise JobRefused(f"job {self.id} has no such parameter", f"params.{key}")
            params.pop(key, None)
        missing = [key for key in self.left_out if key and key not in changes and key not in dropped]
        if missing:
            reasons = "; ".join(f"{key} ({self.left_out[key]})" for key in missing)
            raise JobRefused(f"give it again: job {self.id} was not kept whole: {reasons}", f"params.{missing[0]}")
        return params

    def to_map(self) -> dict[str, Any]:
        """For people and programs; nothing secret is in it."""
        params = {str(key): value for key, value in self.params.items()}
        terms = self.terms.to_map()
        if "max_attempts" in terms:
            terms["retry_times"] = terms.pop("max_attempts") - 1
        full: dict[str, Any] = {"params": params, "left_out": dict(self.left_out), "terms": terms}
        if self.items_count is not None:
            full["items"] = self.items_count
        if self.rerun_of:
            full["rerun_of"] = self.rerun_of
        return full


def origin(spool: Spool, job_id: str) -> Origin:
    """What is known of a job. UnknownJob; JobRefused when its record cannot be read."""
    place = lookup.find(spool, check_id(job_id))
    if place.state.terminal:
        job = _dead_job(spool, job_id) if place.state is JobState.FAILED else None
        return _of_record(spool, job_id) if job is None else _of_job(spool, job, place.state)
    job = _read(place.path) or _elsewhere(spool, job_id)
    return _of_job(spool, job, place.state) if job is not None else _of_record(spool, job_id)


def split(changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes of terms, and of parameters."""
    terms = {key: value for key, value in changes.items() if key in KEYS}
    return terms, {key: value for key, value in changes.items() if key not in KEYS}


def renewed(terms: Terms, changes: Mapping[str, Any]) -> Terms:
    """Terms with changes; None leaves a term as it was. JobRefused."""
    said = {key: value for key, value in changes.items() if value is not None}
    return Terms.of({**{key: getattr(terms, key) for key in KEYS if key not in _OF_ITS_TIME}, **said})


def _of_job(spool: Spool, job: Job, state: JobState) -> Origin:
    redactor = Redactor.of_spool(spool.root, job.engine)
    params, left_out = redactor.open_part(job.params)
    items = job.items
    if items is not None and not all(redactor.is_open(key) for item in items for key in item):
        items = None
    count = None if job.items is None else len(job.items)
    return Origin(job.id, job.engine, state, params, left_out, job.terms, items, count, job.rerun_of)


def _of_record(spool: Spool, job_id: str) -> Origin:
    try:
        record = spool.read_record(job_id)
        kept = record.kept
        terms = Terms.from_map({**kept.terms, "tags": kept.tags, "note": kept.note})
    except FileNotFoundError:
        raise UnknownJob(job_id) from None  # RACE: consumed just now
    except ProtocolError as error:
        raise JobRefused(f"the record of job {job_id} cannot be read: {error}", "id") from None
    left_out = kept.left_out
    if kept.params is None and kept.items is None:
        left_out = {"": "its record keeps no parameters, because another version wrote it or its file was damaged"}
    return Origin(
        record.id, record.engine, record.state, kept.params or {}, left_out, terms, None, kept.items, kept.rerun_of
    )


def _dead_job(spool: Spool, job_id: str) -> Job | None:
    try:
        entry, _, _ = lookup.find_dead(spool, job_id)
    except UnknownJob:
        return None
    return _read(f"{spool.root}/dead/{entry}")


def _elsewhere(spool: Spool, job_id: str) -> Job | None:
    """RACE: the file of a job that moved on after it was found; None: it has ended."""
    try:
        place = lookup.find(spool, job_id)
    except UnknownJob:
        return None
    return None if place.state.terminal else _read(place.path)


def _read(path: str) -> Job | None:
    try:
        return Job.from_map(codec.decode(fsops.read_bounded(path, MAX_JOB_BYTES)))
    except (FileNotFoundError, ProtocolError):
        return None
