"""How a job comes into the spool: written, named, synced; then it is accepted, and survives every crash.

    tmp/ -> [marks in run/expiry/, run/dependants/] -> [link in run/ids/] -> held/, deferred/ or ready/

The marks of a waiting job are written before it has its name, so no crash leaves a job without them. A mark holds the
name of the half-written file: while that file is in tmp/, the job is still being submitted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pool.errors import SpoolFull
from pool.format.names import JobName
from pool.job import Job, packed
from pool.spool import fsops
from pool.spool.placement import place, waiting_folders
from pool.spool.tree import Tree

if TYPE_CHECKING:
    from pool.spool.ids import Place


def accept(spool: Tree, jobs: Sequence[Job]) -> list[JobName]:
    """Accept a batch with one sync of each directory; none is acknowledged before all are safe, nor written before all
    are found to be storable."""
    encoded = [packed(job, f"jobs[{n}]." if len(jobs) > 1 else "") for n, job in enumerate(jobs)]

    def put(source: str, job: Job) -> None:
        place(spool, source, job)

    names = [_stage(spool, job, data, put) for job, data in zip(jobs, encoded)]  # noqa: B905 - old interpreters
    if spool.durable:
        for folder in {folder for job in jobs if job.durable for folder in waiting_folders(spool, job)}:
            fsops.sync_dir(folder)
    return names


def bring(spool: Tree, job: Job, put: Place) -> None:
    """Write a job that another machine accepted; that one handles its times and dependencies. Reserve the id when the
    caller gave it; move the file with `put`. JobConflict, SpoolFull, JobRefused."""
    _stage(spool, job, packed(job), put, marked=False)


def in_flight(spool: Tree, mark: str) -> bool:
    """Whether the job of a mark is not accepted yet, and may still be."""
    try:
        temp = fsops.read_bounded(mark, 4096).decode("ascii", "replace")
    except OSError:
        return False
    return bool(temp) and os.path.basename(temp) == temp and os.path.lexists(f"{spool.root}/tmp/{temp}")


def _stage(spool: Tree, job: Job, data: bytes, put: Place, *, marked: bool = True) -> JobName:
    name = job.file_name
    sync = spool.durable and job.durable
    temp = spool.temp()
    marks: list[str] = []
    try:
        fsops.write_new(temp, [data], sync=sync)
        if marked:
            _mark(spool, job, os.path.basename(temp), marks)
        if job.digest:
            spool.ids.accept(job, temp, put, sync=sync)
        else:
            put(temp, job)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fsops.unlink(temp, missing_ok=True)
            if job.digest:
                spool.ids.free(job.id)
            else:  # under an id of the caller's, the marks may be those of the job that is there
                for mark in marks:
                    fsops.unlink(mark, missing_ok=True)
        if isinstance(error, OSError) and error.errno in fsops.NO_SPACE:
            raise SpoolFull(
                f"the disk of the spool {spool.root} is full ({error.strerror}): free space, then submit again"
            ) from error
        raise
    return name


def _mark(spool: Tree, job: Job, temp: str, made: list[str]) -> None:
    if job.expires:
        made.append(f"{spool.root}/run/expiry/{job.expires:016d}.{job.id}")
        fsops.put(spool.temp(), made[-1], [temp.encode()], sync=False)
    made.extend(keep_for(spool, dependency, job.id, temp) for dependency in job.depends_on)


def keep_for(spool: Tree, dependency: str, job_id: str, temp: str = "") -> str:
    """Mark the result of a dependency as needed by a job; the path of the mark."""
    folder = f"{spool.root}/run/dependants/{dependency}"
    path = f"{folder}/{job_id}"
    while True:
        fsops.make_dir(folder)
        with contextlib.suppress(FileNotFoundError):  # RACE: another process removed the folder while it was empty
            fsops.put(spool.temp(), path, [temp.encode()], sync=False)
            return path
