"""What became of the jobs: the spool as it lies there, held against what clients were told.

Four words of Jepsen's queues, and what a pool of workers needs besides:

    lost         accepted, and without a terminal record (undrained: nowhere at all)
    unexpected   in the spool although nobody offered it
    duplicated   in two places, waiting although it is decided, or run again after its record
    recovered    offered, its client never heard the answer, and it is there: allowed, and counted
    partial      visible and not whole: a file that does not decode, a record whose media are missing or changed
    overlapping  two runs of one job at a time
    miscounted   attempts that went back, were skipped, or were begun twice
    unexplained  failed or cancelled without a reason for every attempt, or cancelled though nobody asked
    untidy       remains of jobs that are over; in quarantine a thing without its reason, or a reason without its thing

It reads directories and files by itself, not through the code it checks; names and bytes it takes from
`pool.format.names` and `pool.format.codec`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from scenarios.world import history as witnessed
from scenarios.world import overlaps

from pool.errors import PoolError
from pool.format import codec
from pool.format.names import parse_aside, parse_dead, parse_deferred, parse_job, parse_record
from pool.job import FailureKind, Job, JobState, Record

FAULTS = ("lost", "unexpected", "duplicated", "partial", "overlapping", "miscounted", "unexplained", "untidy")
KINDS = frozenset(kind.value for kind in FailureKind)
Found = Iterator[tuple[str, str]]  # one of FAULTS, or "recovered", and a sentence that begins with the id


@dataclass
class Told:
    """What clients did and heard. offered, accepted: ids; values: `value` of jobs whose id nobody knew before the
    answer; dropped: jobs that had their name in in/; refused: what is no job and had one; cancelled, removed, requeued:
    asked for, answered or not; stands: a request whose call returned; bad: whose attempts fail by what they do; read:
    id -> sha256 of a record that was seen."""

    offered: set[str] = field(default_factory=set)
    values: set[Any] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    requeued: set[str] = field(default_factory=set)
    stands: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    read: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sighting:
    """A job file. attempts: as its name says; job: None when it does not decode."""

    id: str
    place: str
    path: Path
    attempts: int
    job: Job | None


@dataclass
class Report:
    """jobs, done: how many are there, and have their record; recovered: ids; found: sentences by kind of fault."""

    jobs: int
    done: int
    recovered: list[str] = field(default_factory=list)
    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in FAULTS})

    def faults(self) -> dict[str, list[str]]:
        return {kind: sentences for kind, sentences in self.found.items() if sentences}


class Spoolview:
    """The tree as it lies there now."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.held: dict[str, list[Sighting]] = defaultdict(list)
        self.dead: dict[str, Sighting] = {}
        self.records: dict[str, Record | None] = {}
        asides = map(parse_aside, os.listdir(root / "dead"))
        self.asides = {aside[0] for aside in asides if aside is not None}  # records of jobs that are run again
        for sighting in self._job_files():
            if sighting.place == "dead":
                self.dead[sighting.id] = sighting
            else:
                self.held[sighting.id].append(sighting)
        for name in os.listdir(root / "out"):
            job_id = parse_record(name)
            if job_id is not None:
                self.records[job_id] = self._record(job_id)

    def known(self) -> set[str]:
        return set(self.held) | set(self.records) | set(self.dead)

    def _job_files(self) -> Iterator[Sighting]:
        for place in ("ready", "work"):
            for folder in sorted((self.root / place).iterdir()):
                for path in sorted(folder.iterdir()):
                    name = parse_job(path.name)
                    if name is not None:
                        yield self._sighting(name.id, place, path, name.attempts)
        for path in sorted((self.root / "deferred").iterdir()):
            waiting = parse_deferred(path.name)
            if waiting is not None:
                yield self._sighting(waiting[2].id, "deferred", path, waiting[2].attempts)
        for place in ("held", "away"):
            for path in sorted((self.root / place).iterdir()):
                held = parse_dead(path.name)
                if held is not None:
                    yield self._sighting(held[1].id, place, path, held[1].attempts)
        for path in sorted((self.root / "dead").iterdir()):
            found = parse_dead(path.name)
            if found is not None:
                yield self._sighting(found[1].id, "dead", path, 0)

    @staticmethod
    def _sighting(job_id: str, place: str, path: Path, attempts: int) -> Sighting:
        try:
            job = Job.from_map(codec.decode(path.read_bytes(), arrays=False))
        except PoolError:
            return Sighting(job_id, place, path, attempts, None)
        return Sighting(job_id, place, path, attempts, job if job.id == job_id else None)

    def _record(self, job_id: str) -> Record | None:
        data = (self.root / "out" / f"{job_id}.msgpack").read_bytes()
        try:
            record = Record.from_map(codec.decode(data, directory=self.root / "out" / job_id))
        except PoolError:
            return None
        return record if record.id == job_id else None


def check(
    root: Path,
    told: Told,
    witness: Path | None = None,
    *,
    drained: bool = True,
    counted: bool = True,
    forgetful: bool = False,
) -> Report:
    """The report. drained: everything that waited has run, and recovery and sweeping are done. counted: nothing gave
    attempts back (a drain does), so each is begun exactly once. forgetful: the disk has lost names that were not
    synced, so a job may wait that is decided."""
    view = Spoolview(root)
    report = Report(len(view.known()), len(view.records))
    looks = [_presence(view, told, drained, forgetful), _content(view, told), _reasons(view, told)]
    if witness is not None:
        looks += [_overlaps(witness), _attempts(view, told, witness, counted)]
    if drained:
        looks += [_remains(view, told)]
    for kind, sentence in chain.from_iterable(looks):
        (report.recovered if kind == "recovered" else report.found[kind]).append(sentence)
    return report


def _presence(view: Spoolview, told: Told, drained: bool, forgetful: bool) -> Found:
    accepted = told.accepted | told.dropped if drained else told.accepted
    for job_id in sorted(accepted - told.removed):
        if job_id not in view.records and (drained or job_id not in view.held.keys() | view.asides):
            where = [sighting.place for sighting in view.held.get(job_id, ())]
            yield "lost", f"{job_id} was accepted and is {'in ' + where[0] if where else 'nowhere'}"
    for job_id in sorted(view.known() - told.accepted - told.dropped):
        if job_id in told.offered or _value(view, job_id) in told.values:
            yield "recovered", job_id
        elif job_id not in told.removed:
            yield "unexpected", f"{job_id} was offered by nobody"
    for job_id, sightings in view.held.items():
        places = [sighting.place for sighting in sightings]
        if len(places) > 1:
            yield "duplicated", f"{job_id} is in {' and '.join(places)}"
        if job_id in view.records and not forgetful and (drained or places not in (["work"], ["away"])):
            yield "duplicated", f"{job_id} is decided and in {places[0]}"
    for job_id in sorted(view.dead):
        if job_id in view.held and drained:
            yield "duplicated", f"{job_id} is in dead/ and in {view.held[job_id][0].place}"


def _value(view: Spoolview, job_id: str) -> Any:
    files = [*view.held.get(job_id, ()), *([view.dead[job_id]] if job_id in view.dead else [])]
    for sighting in files:
        if sighting.job is not None:
            return sighting.job.params.get("value")
    record = view.records.get(job_id)
    return record.value.get("value") if record is not None and isinstance(record.value, dict) else None


def _content(view: Spoolview, told: Told) -> Found:
    for sighting in chain(*view.held.values(), view.dead.values()):
        if sighting.job is None:
            yield "partial", f"{sighting.id}: the file in {sighting.place} is not its job"
    for job_id, record in view.records.items():
        if record is None:
            yield "partial", f"{job_id}: its record does not decode"
            continue
        for file in record.files if job_id not in told.removed else ():
            path = Path(str(file["path"]))
            if not path.is_file():
                yield "partial", f"{job_id}: {path.name} is named and missing"
            elif _sha256(path) != file["sha256"]:
                yield "partial", f"{job_id}: {path.name} is not what its record says"
    for job_id, digest in told.read.items():
        if job_id in told.removed | told.requeued:
            continue
        path = view.root / "out" / f"{job_id}.msgpack"
        if not path.exists():
            yield "lost", f"{job_id}: its record was read, and is gone"
        elif _sha256(path) != digest:
            yield "duplicated", f"{job_id}: its record was read, and is another one now"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _reasons(view: Spoolview, told: Told) -> Found:
    for record in view.records.values():
        if record is not None:
            for sentence in _unexplained(record, told):
                yield "unexplained", f"{record.id}{sentence}"


def _unexplained(record: Record, told: Told) -> Iterator[str]:
    """What goes on after the id of the record."""
    reasons, failure = record.attempts, record.failure
    if record.state is JobState.COMPLETED:
        expected = record.attempt - 1
    elif failure is None or not failure.message.strip() or failure.kind not in KINDS:
        yield f" is {record.state.value} and says {failure}"
        return
    else:
        expected = len(failure.attempts) - 1
        if [one.message for one in failure.attempts[-1:]] != [failure.message]:
            yield ": its last reason is not its failure"
    told_of = [reason.attempt for reason in reasons]
    if told_of != list(range(1, expected + 1)):
        yield f": attempt {record.attempt}, reasons of {told_of}"
    if any(not reason.message.strip() for reason in reasons):
        yield ": an attempt without a reason"
    if record.state is JobState.CANCELLED and record.id not in told.cancelled:
        yield " was cancelled by nobody"


def _overlaps(witness: Path) -> Found:
    return (("overlapping", sentence) for sentence in overlaps(witness))


def _attempts(view: Spoolview, told: Told, witness: Path, counted: bool) -> Found:
    begun: dict[str, list[int]] = defaultdict(list)
    for _, _, what, job_id, attempt, _ in witnessed(witness):
        if what == "start":
            begun[job_id].append(attempt)
    for job_id, attempts in begun.items():
        if job_id in told.requeued:
            continue
        record, last = view.records.get(job_id), max(attempts)
        if record is not None and last > record.attempt:
            yield "duplicated", f"{job_id}: decided in attempt {record.attempt}, run in {last}"
        if not counted:
            continue
        twice = [attempt for attempt, times in Counter(attempts).items() if times > 1]
        if twice:
            yield "miscounted", f"{job_id}: attempt {twice[0]} was begun {attempts.count(twice[0])} times"
        if attempts != sorted(attempts):
            yield "miscounted", f"{job_id}: attempts went back: {attempts}"
        for sighting in view.held.get(job_id, ()):
            if sighting.attempts < last:
                yield "miscounted", f"{job_id}: run {last} times, its name says {sighting.attempts}"
        if record is not None and record.state is JobState.COMPLETED and record.attempt != last:
            yield "miscounted", f"{job_id}: attempt {record.attempt} in its record, run in {last}"


def _remains(view: Spoolview, told: Told) -> Found:
    return (("untidy", sentence) for sentence in _untidy(view, told))


def _untidy(view: Spoolview, told: Told) -> Iterator[str]:
    root = view.root
    works = sorted(f"work/{folder.name}" for folder in (root / "work").iterdir())
    marks = ("run/scratch", "run/attempts", "run/control", "run/expiry", "run/dependants")
    for folder in ("tmp", *marks, "held", "deferred", "away", *works):
        for name in sorted(os.listdir(root / folder)):
            yield f"{name} is left in {folder}/"
    known = view.known()
    for name in os.listdir(root / "run/ids"):
        if name not in known:
            yield f"{name}: reserved, and not there"
    for entry in (root / "out").iterdir():
        if entry.is_dir() and entry.name not in view.records:
            yield f"{entry.name}: files in out/ without a record"
    for name in os.listdir(root / "dead"):
        if name.endswith(".record"):
            yield f"{name} is left in dead/"
    quarantine = os.listdir(root / "quarantine")
    for job_id in sorted(told.refused):
        if f"{job_id}.json" not in quarantine:
            yield f"{job_id} was dropped, is no job, and is not in quarantine/"
    for name in _unpaired(quarantine):
        yield f"{name} is alone in quarantine/"
    for job_id, record in view.records.items():
        if job_id in told.removed or record is None:
            continue
        if (record.state is JobState.FAILED) != (job_id in view.dead):
            yield f"{job_id} is {record.state.value} and {'' if job_id in view.dead else 'not '}in dead/"
    for job_id in view.dead:
        if job_id not in view.records:
            yield f"{job_id} is in dead/ and has no record"


def _unpaired(names: list[str]) -> list[str]:
    """Things without a reason, and reasons without a thing."""
    things = {name for name in names if not name.endswith(".reason.txt")}
    return sorted(things ^ {name[: -len(".reason.txt")] for name in set(names) - things})
