"""Keeping the spool small: records past their time, remains of dead processes, directories that grew.

A file is swept only when its owner is proven dead or its job is decided; never by the age of the file alone. Times
are those inside the records (spool clock), so a wall clock that jumps expires nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from pool import fsops, layout, lookup, procs
from pool.config import Config
from pool.context import partial_path
from pool.errors import ProtocolError, UnknownJob
from pool.host import boot_id
from pool.job import TERMINAL, JobState
from pool.names import parse_dead, parse_note
from pool.spool import Spool

_BLOATED = 64 * 1024  # bytes of a directory that once held very many names
_READS_PER_TURN = 2000  # records opened per sweep: the loop goes on
CACHE_LIMIT_BYTES = 10 << 30


class Retention:
    """Sweeps one spool, in the supervisor."""

    def __init__(self, spool: Spool, config: Config) -> None:
        self._spool, self._config = spool, config
        self._finished: dict[str, int] = {}  # record id -> µs when it was finished

    def sweep(self) -> None:
        """One round; bounded work."""
        self.expire()
        sweep_tmp(self._spool)
        sweep_remains(self._spool)
        trim_cache(self._spool, CACHE_LIMIT_BYTES)

    def expire(self) -> int:
        """Remove records past their retention; how many."""
        there = set(lookup.records(self._spool))
        self._finished = {job_id: at for job_id, at in self._finished.items() if job_id in there}
        for job_id in list(there - self._finished.keys())[:_READS_PER_TURN]:
            try:
                self._finished[job_id] = self._spool.read_record(job_id).finished
            except (OSError, ProtocolError):
                self._finished[job_id] = self._spool.now()
        limit = self._spool.now() - int(self._config.retention_s * 1e6)
        old = [job_id for job_id, at in self._finished.items() if at < limit]
        for job_id in old:
            remove(self._spool, job_id)
            del self._finished[job_id]
        return len(old)

    def renew_directories(self) -> None:
        """Replace ready directories that once were huge, when they are empty."""
        for engine in os.listdir(f"{self._spool.root}/ready"):
            path = self._spool.ready_dir(engine)
            try:
                if os.stat(path).st_size >= _BLOATED and not os.listdir(path):
                    fsops.renew_dir(path, self._spool.temp())
            except OSError:
                continue


def purge(spool: Spool, *, older_than_s: float = 0.0, states: Collection[JobState] = TERMINAL) -> int:
    """Remove terminal records, with their files and dead jobs, that finished at least `older_than_s` ago."""
    limit, count = spool.now() - int(older_than_s * 1e6), 0
    for job_id in list(lookup.records(spool)):
        try:
            record = spool.read_record(job_id)
        except (OSError, ProtocolError):
            continue
        if record.state in states and record.finished <= limit:
            remove(spool, job_id)
            count += 1
    return count


def remove(spool: Spool, job_id: str) -> None:
    """Forget a decided job: dead file first, record last, so that a crash leaves a job that is still decided."""
    root = str(spool.root)
    try:
        entry, _, _ = lookup.find_dead(spool, job_id)
        fsops.unlink(f"{root}/dead/{entry}", missing_ok=True)
    except UnknownJob:
        pass
    if spool.files_dir(job_id).is_dir():
        fsops.remove_tree(str(spool.files_dir(job_id)))
    for attempt in range(1, 100):
        if not fsops.unlink(partial_path(spool, job_id, attempt), missing_ok=True):
            break
    fsops.unlink(f"{root}/progress/{job_id}", missing_ok=True)
    fsops.unlink(f"{root}/out/{job_id}.json", missing_ok=True)
    spool.ids.free(job_id, decided=True)
    fsops.unlink(spool.record_path(job_id), missing_ok=True)


def sweep_tmp(spool: Spool) -> int:
    """Remove half-written files whose owner is dead; how many. Files of the living stay, whatever their times."""
    alive: dict[str, bool] = {}
    swept = 0
    for entry in os.scandir(spool.root / "tmp"):
        owner = entry.name.split(".", 1)[0]
        if owner not in alive:
            alive[owner] = _owner_alive(owner)
        if not alive[owner]:
            swept += 1
            if entry.is_dir(follow_symlinks=False):
                fsops.remove_tree(entry.path)
            else:
                fsops.unlink(entry.path, missing_ok=True)
    return swept


def _owner_alive(owner: str) -> bool:
    pid, _, rest = owner.partition("-")
    start, _, boot = rest.partition("-")
    if not pid.isdigit() or not boot:
        return True  # not one of our names: not ours to remove
    return boot == layout.boot_tag() and procs.Identity(int(pid), start, boot_id()).alive()


def sweep_remains(spool: Spool) -> None:
    """Notes, progress, partial results and scratch of jobs that are no more."""
    live = {
        place.name.id for source in (lookup.waiting, lookup.running) for place in source(spool) if place.name
    }
    known = live | set(lookup.records(spool))
    root = spool.root
    for entry in os.listdir(root / "run" / "attempts"):
        note = parse_note(entry)
        if note is not None and note[0] not in live and _gone(spool, note[0]):
            fsops.unlink(f"{root}/run/attempts/{entry}", missing_ok=True)
    for entry in os.listdir(root / "progress"):
        job_id = entry.split(".", 1)[0]
        if job_id not in known and _gone(spool, job_id):
            fsops.unlink(f"{root}/progress/{entry}", missing_ok=True)
    for entry in os.listdir(root / "run" / "scratch"):
        job_id = entry.split(".", 1)[0]
        if job_id not in live and _gone(spool, job_id):
            fsops.remove_tree(f"{root}/run/scratch/{entry}")
    for folder in os.scandir(root / "out"):
        if folder.is_dir(follow_symlinks=False) and folder.name not in known and _gone(spool, folder.name):
            fsops.remove_tree(folder.path)
    buried = os.listdir(root / "dead")
    for entry in buried:
        parsed = parse_dead(entry)
        # RACE: in the middle of a requeue the record lies beside the job file
        requeued = parsed is not None and os.path.lexists(root / "dead" / f"{parsed[1].id}.record")
        if (
            parsed is not None
            and parsed[1].id not in known
            and not requeued
            and not spool.decided(parsed[1].id)
        ):
            fsops.unlink(f"{root}/dead/{entry}", missing_ok=True)


def _gone(spool: Spool, job_id: str) -> bool:
    """One empty pass is no evidence: the job may have moved back while we read."""
    try:
        lookup.find(spool, job_id)
    except (UnknownJob, ProtocolError):
        return True
    return False


def trim_cache(spool: Spool, limit: int) -> None:
    """Remove the least recently used results beyond `limit` bytes."""
    folder = spool.root / "cache" / "results"
    if not folder.is_dir():
        return
    entries: list[tuple[float, int, Path]] = []
    for entry in os.scandir(folder):
        if entry.name.endswith(".msgpack"):
            info = entry.stat()
            files = folder / entry.name[: -len(".msgpack")]
            size = (
                info.st_size + sum(f.stat().st_size for f in os.scandir(files))
                if files.is_dir()
                else info.st_size
            )
            entries.append((info.st_mtime, size, Path(entry.path)))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        fsops.unlink(str(path), missing_ok=True)
        fsops.remove_tree(str(path.with_suffix("")))
        total -= size
