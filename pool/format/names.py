"""The grammar of ids and file names: the only place that builds or takes apart a name.

    job id      [A-Za-z0-9][A-Za-z0-9_-]{0,99}          no dot, no slash, no leading dash
    engine      [a-z][a-z0-9_]{0,31}
    slot        <engine>-<index>
    worker      <slot>.<generation>                     one process; also its directory in work/
    job file    <rank>.<born>.<id>.<attempts>.msgpack
                rank      3 digits, 500 - priority: smaller runs first; 300 more for a job that has ended a worker:
                          it waits behind those that have not
                born      16 digits, microseconds of the spool clock at submit: age
                attempts  2 digits: attempts begun so far; the claim rename raises it
    deferred    <due>.<engine>.<job file>               due: 16 digits, µs of the spool clock
    held, away, dead
                <engine>.<job file>                     in away/, attempts are those begun on other machines, too
    aside       <id>.<owner>.<number>.record            record of a job that its owner, a process, runs again
    temp        <owner>.<number>                        half-written; see `pool.spool.owner`
    note        <id>.<attempt>.msgpack                  why that attempt failed
    proof       <id>.<attempt>.proof                    that note, once the job has completed in another slot
    record      <id>.msgpack
    expiry      <due>.<id>                              in run/expiry/: when a job expires, as in `deferred`

Names sort in the order in which jobs are to run. Anything that does not parse is not ours and is not touched.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from pool.errors import JobRefused

PRIORITY_LOWEST, PRIORITY_HIGHEST = -100, 100
MAX_ATTEMPTS = 99
_BEHIND = 300
FIRST_BEHIND = "700"  # names of jobs that have ended a worker begin here
SUFFIX = ".msgpack"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")
_ENGINE = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
_WORKER = re.compile(r"([a-z][a-z0-9_]{0,31})-([0-9]{1,4})\.([0-9]{1,10})\Z")
_JOB = re.compile(r"([0-9]{3})\.([0-9]{16})\.([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.([0-9]{2})\.msgpack\Z")
_DEFERRED = re.compile(r"([0-9]{16})\.([a-z][a-z0-9_]{0,31})\.(.+)", re.DOTALL)
_DEAD = re.compile(r"([a-z][a-z0-9_]{0,31})\.(.+)", re.DOTALL)
_EXPIRY = re.compile(r"([0-9]{16})\.([A-Za-z0-9][A-Za-z0-9_-]{0,99})\Z")
_NOTE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.([0-9]{2})\.msgpack\Z")
_PROOF = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.([0-9]{2})\.proof\Z")
_ASIDE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.([A-Za-z0-9-]+)(?:\.[a-z0-9-]+)?\.record\Z")
_RECORD = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.msgpack\Z")

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: sorts like the number, no look-alikes
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]


class JobName(NamedTuple):
    """A job file's name, taken apart.

    born: µs of the spool clock; attempts: begun so far (in work/ the current one is counted).
    """

    rank: int
    born: int
    id: str
    attempts: int

    @property
    def priority(self) -> int:
        """-100 … 100, as submitted."""
        return 500 - self._first_rank

    @property
    def waits_behind(self) -> bool:
        """Whether an attempt of the job has ended a worker, so that others go first."""
        return self.rank >= int(FIRST_BEHIND)

    @property
    def _first_rank(self) -> int:
        return self.rank - _BEHIND if self.waits_behind else self.rank

    def __str__(self) -> str:
        return f"{self.rank:03d}.{self.born:016d}.{self.id}.{self.attempts:02d}{SUFFIX}"

    def claimed(self) -> JobName:
        """The name under which a worker claims it: one more attempt."""
        return JobName(self.rank, self.born, self.id, min(self.attempts + 1, MAX_ATTEMPTS))

    def released(self) -> JobName:
        """The name of a claim that is given back: the attempt is not counted."""
        return JobName(self.rank, self.born, self.id, max(self.attempts - 1, 0))

    def behind(self) -> JobName:
        """The name of a job that runs after those that did nothing wrong."""
        return JobName(self._first_rank + _BEHIND, self.born, self.id, self.attempts)

    def fresh(self) -> JobName:
        """The name of a job that starts again with all its attempts."""
        return JobName(self._first_rank, self.born, self.id, 0)


@dataclass(frozen=True)
class WorkerName:
    """One process in a slot. engine and index make the slot; generation is never used twice in a spool."""

    engine: str
    index: int
    generation: int

    @property
    def slot(self) -> str:
        """<engine>-<index>, without the generation."""
        return f"{self.engine}-{self.index}"

    def __str__(self) -> str:
        return f"{self.engine}-{self.index}.{self.generation}"


def job_name(priority: int, born: int, job_id: str) -> JobName:
    """Name of a new job. priority: -100 … 100, higher runs first."""
    if not PRIORITY_LOWEST <= priority <= PRIORITY_HIGHEST:
        raise JobRefused(f"{priority} is not between {PRIORITY_LOWEST} and {PRIORITY_HIGHEST}", "priority")
    return JobName(500 - priority, born, check_id(job_id), 0)


def parse_job(name: str) -> JobName | None:
    """The parts of a job file's name, None when it is not one."""
    match = _JOB.match(name)
    if match is None:
        return None
    return JobName(int(match[1]), int(match[2]), match[3], int(match[4]))


def parse_worker(name: str) -> WorkerName | None:
    """The parts of a worker's name, None when it is not one."""
    match = _WORKER.match(name)
    return WorkerName(match[1], int(match[2]), int(match[3])) if match else None


def parse_note(name: str) -> tuple[str, int] | None:
    """(id, attempt) of a failure note."""
    match = _NOTE.match(name)
    return (match[1], int(match[2])) if match else None


def parse_proof(name: str) -> tuple[str, int] | None:
    """(id, attempt) of a proof."""
    match = _PROOF.match(name)
    return (match[1], int(match[2])) if match else None


def parse_deferred(entry: str) -> tuple[int, str, JobName] | None:
    """(due µs, engine, job name) of a file in deferred/."""
    match = _DEFERRED.match(entry)
    name = parse_job(match[3]) if match else None
    return (int(match[1]), match[2], name) if match and name else None


def parse_expiry(entry: str) -> tuple[int, str] | None:
    """(due µs, id) of a file in run/expiry/."""
    match = _EXPIRY.match(entry)
    return (int(match[1]), match[2]) if match else None


def parse_dead(entry: str) -> tuple[str, JobName] | None:
    """(engine, job name) of a file in dead/, held/ or away/."""
    match = _DEAD.match(entry)
    name = parse_job(match[2]) if match else None
    return (match[1], name) if match and name else None


def parse_aside(entry: str) -> tuple[str, str] | None:
    """(id, owner) of a record that was set aside in dead/."""
    match = _ASIDE.match(entry)
    return (match[1], match[2]) if match else None


def parse_record(name: str) -> str | None:
    """The id of a file named <id>.msgpack."""
    match = _RECORD.match(name)
    return match[1] if match else None


def is_id(text: object) -> bool:
    """Whether this can be the id of a job."""
    return isinstance(text, str) and _ID.match(text) is not None


def check_id(job_id: object) -> str:
    """The id itself, or JobRefused: every path is built from a checked id."""
    if not isinstance(job_id, str) or _ID.match(job_id) is None:
        raise JobRefused(
            f"{ascii(job_id)[:120]} is not an id: 1 to 100 letters, digits, '_' or '-', "
            "beginning with a letter or digit",
            "id",
        )
    return job_id


def is_engine(text: object) -> bool:
    """Whether a text may be the name of an engine."""
    return isinstance(text, str) and _ENGINE.match(text) is not None


def check_engine(engine: object) -> str:
    """The name itself. Raises JobRefused."""
    if not isinstance(engine, str) or not is_engine(engine):
        raise JobRefused(f"{ascii(engine)[:120]} is not the name of an engine", "engine")
    return engine


def base32(number: int, digits: int) -> str:
    """A number as `digits` letters of Crockford's base 32, most significant first."""
    pairs = [_PAIRS[number >> shift & 1023] for shift in range(digits // 2 * 10 - 10, -1, -10)]
    first = _ALPHABET[number >> digits * 5 - 5 & 31] if digits % 2 else ""
    return first + "".join(pairs)


def new_id(born: int) -> str:
    """A fresh id, 25 characters: 11 of time (sortable) and 14 random ones (70 bits)."""
    return base32(born, 11) + base32(int.from_bytes(os.urandom(9), "big"), 14)


def id_from_stem(stem: str) -> str:
    """What of a dropped file's name may serve as an id, or '' when nothing can."""
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:80]
    return cleaned if _ID.match(cleaned) else ""
