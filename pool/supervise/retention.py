"""Keeping the spool small: records past their time, remains of dead processes, directories that grew.

A file is swept only when its owner is proven dead or its job is decided; never by the age of the file alone. Times
are those inside the records (spool clock), so a wall clock that jumps expires nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from pool.config.settings import Config
from pool.constants import TURN_S
from pool.errors import ProtocolError
from pool.format.names import parse_aside, parse_dead, parse_expiry, parse_note, parse_proof
from pool.job import TERMINAL, JobState
from pool.runfiles import waits
from pool.spool import fsops, lookup, owner
from pool.spool.acceptance import in_flight
from pool.spool.attempts import partial_path
from pool.spool.dependencies import needed
from pool.spool.store import Spool

_BLOATED = 64 * 1024  # bytes of a directory that once held very many names
_PASSES = 3  # one empty pass is no evidence: a job may move back while we look
CACHE_LIMIT_BYTES = 10 << 30


class Retention:
    """Sweeps one spool, in the supervisor. turn_s: seconds after which a round leaves the rest to the next one."""

    def __init__(self, spool: Spool, config: Config, *, turn_s: float = TURN_S) -> None:
        self._spool, self.config, self._turn_s = spool, config, turn_s
        self._finished: dict[str, int] = {}  # record id -> µs when it was finished

    def sweep(self) -> bool:
        """One round; whether there is so much to remove that another should follow soon."""
        if self.expire():
            return True
        sweep_tmp(self._spool)
        sweep_remains(self._spool)
        waits.sweep(self._spool)
        trim_cache(self._spool, CACHE_LIMIT_BYTES)
        return False

    def expire(self) -> bool:
        """Remove records past their retention; whether some are left for another turn."""
        until, now = time.monotonic() + self._turn_s, self._spool.now()
        there = set(lookup.records(self._spool))
        self._finished = {job_id: at for job_id, at in self._finished.items() if job_id in there}
        for job_id in there - self._finished.keys():
            if time.monotonic() > until:
                return True
            self._finished[job_id] = min(now, self._finish_of(job_id))
        limit = now - int(self.config.retention_s * 1e6)
        old = [job_id for job_id, at in self._finished.items() if at < limit]
        dead_files = dead_jobs(self._spool) if old else {}
        kept = needed(self._spool) if old else frozenset()
        for job_id in old:
            if time.monotonic() > until:
                return True
            if job_id in kept:
                continue
            remove(self._spool, job_id, dead_files)
            del self._finished[job_id]
        return False

    def _finish_of(self, job_id: str) -> int:
        try:
            return self._spool.read_record(job_id, arrays=False).finished
        except (OSError, ProtocolError):
            return self._spool.now()

    def renew_directories(self) -> None:
        """Replace ready directories that once were huge, when they are empty."""
        for engine in os.listdir(f"{self._spool.root}/ready"):
            path = self._spool.ready_dir(engine)
            try:
                if os.stat(path).st_size < _BLOATED or os.listdir(path):
                    continue
                if fsops.renew_dir(path, self._spool.temp()) and self._spool.durable:
                    fsops.sync_dir(os.path.dirname(path))
            except OSError:
                continue


def purge(spool: Spool, *, older_than_s: float = 0.0, states: Collection[JobState] = TERMINAL) -> int:
    """Remove terminal records, with their files and dead jobs, that finished at least `older_than_s` ago. Those stay
    whose results others wait for."""
    limit, count, dead_files, kept = spool.now() - int(older_than_s * 1e6), 0, dead_jobs(spool), needed(spool)
    for job_id in list(lookup.records(spool)):
        try:
            record = spool.read_record(job_id, arrays=False)
        except (OSError, ProtocolError):
            continue
        if record.state in states and record.finished <= limit and job_id not in kept:
            remove(spool, job_id, dead_files)
            count += 1
    return count


def dead_jobs(spool: Spool) -> dict[str, str]:
    """Id -> file name of everything in dead/."""
    parsed = {entry: parse_dead(entry) for entry in os.listdir(spool.root / "dead")}
    return {dead[1].id: entry for entry, dead in parsed.items() if dead is not None}


def remove(spool: Spool, job_id: str, dead_files: dict[str, str] | None = None) -> None:
    """Forget a decided job: dead file first, record and id last, so that a crash leaves a job that is still decided.

    dead_files: what `dead_jobs` said, when many are removed.
    """
    root = str(spool.root)
    entry = (dead_jobs(spool) if dead_files is None else dead_files).get(job_id)
    if entry is not None:
        fsops.unlink(f"{root}/dead/{entry}", missing_ok=True)
    if spool.files_dir(job_id).is_dir():
        fsops.remove_tree(str(spool.files_dir(job_id)))
    for attempt in range(1, 100):
        if not fsops.unlink(partial_path(spool, job_id, attempt), missing_ok=True):
            break
    fsops.unlink(f"{root}/progress/{job_id}", missing_ok=True)
    fsops.unlink(f"{root}/out/{job_id}.json", missing_ok=True)
    fsops.unlink(spool.record_path(job_id), missing_ok=True)
    spool.ids.free(job_id)


def sweep_tmp(spool: Spool) -> int:
    """Remove half-written files whose owner is dead; how many. Files of the living stay, whatever their times."""
    alive: dict[str, bool] = {}
    swept = 0
    for entry in os.scandir(spool.root / "tmp"):
        name = entry.name.split(".", 1)[0]
        if name not in alive:
            alive[name] = owner.alive(name)
        if not alive[name]:
            swept += 1
            if entry.is_dir(follow_symlinks=False):
                fsops.remove_tree(entry.path)
            else:
                fsops.unlink(entry.path, missing_ok=True)
    return swept


def sweep_remains(spool: Spool) -> int:
    """Remove what jobs left that are no more: notes, progress, partial results, scratch, checkpoints, files, ids.

    Returns how many.
    """
    found = list(_remains(spool))
    for number in range(_PASSES):
        if number:
            time.sleep(0.01)
        live = {place.name.id for place in lookup.undecided(spool) if place.name}
        live |= {aside[0] for aside in map(parse_aside, os.listdir(spool.root / "dead")) if aside is not None}
        known = live | set(lookup.records(spool))
        found = [item for item in found if item[1] not in (known if item[2] else live)]
        if not found:
            return 0
    for path, job_id, _ in found:
        if path.parent.name == "ids":
            spool.ids.free(job_id)
        elif path.is_dir():
            fsops.remove_tree(str(path))
        else:
            fsops.unlink(str(path), missing_ok=True)
    return len(found)


def _remains(spool: Spool) -> Iterator[tuple[Path, str, bool]]:
    """(path, job id, whether it stays as long as the job has a record) of all that belongs to a job."""
    root = spool.root
    for path, job_id in itertools.chain(_notes(root), _expiry_marks(spool), _dependant_marks(spool)):
        yield path, job_id, False
    for folder, stays in (("run/scratch", False), ("run/checkpoints", False), ("progress", True), ("run/ids", True)):
        for entry in os.listdir(root / folder):
            yield root / folder / entry, entry.split(".", 1)[0], stays
    for item in os.scandir(root / "out"):
        if item.is_dir(follow_symlinks=False):
            yield Path(item.path), item.name, True
    for job_id, entry in dead_jobs(spool).items():
        yield root / "dead" / entry, job_id, True


def _notes(root: Path) -> Iterator[tuple[Path, str]]:
    """Reasons of failed attempts, and proofs."""
    for entry in os.listdir(root / "run" / "attempts"):
        note = parse_note(entry) or parse_proof(entry)
        if note is not None:
            yield root / "run" / "attempts" / entry, note[0]


def _expiry_marks(spool: Spool) -> Iterator[tuple[Path, str]]:
    folder = spool.root / "run" / "expiry"
    for entry in os.listdir(folder):
        due = parse_expiry(entry)
        if due is not None and not in_flight(spool, str(folder / entry)):
            yield folder / entry, due[1]


def _dependant_marks(spool: Spool) -> Iterator[tuple[Path, str]]:
    """Marks of jobs that need the result of another; an empty folder of marks is removed."""
    for dependency in os.listdir(spool.root / "run" / "dependants"):
        folder = spool.root / "run" / "dependants" / dependency
        marks = os.listdir(folder)
        if not marks:
            fsops.remove_dir(str(folder))
        for job_id in marks:
            if not in_flight(spool, str(folder / job_id)):
                yield folder / job_id, job_id


def trim_cache(spool: Spool, limit: int) -> None:
    """Remove the least recently used results beyond `limit` bytes."""
    folder = spool.root / "cache" / "results"
    if not folder.is_dir():
        return
    entries: list[tuple[float, int, Path]] = []
    for entry in os.scandir(folder):
        if not entry.name.endswith(".msgpack"):
            continue
        with contextlib.suppress(FileNotFoundError):  # RACE: a worker replaces it
            info, files = entry.stat(), folder / entry.name[: -len(".msgpack")]
            copies = sum(file.stat().st_size for file in os.scandir(files)) if files.is_dir() else 0
            entries.append((info.st_mtime, info.st_size + copies, Path(entry.path)))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        fsops.unlink(str(path), missing_ok=True)
        fsops.remove_tree(str(path.with_suffix("")))
        total -= size
