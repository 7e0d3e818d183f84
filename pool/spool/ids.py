"""Ids given by callers: reserved by a hard link to the job file, so submitting twice is submitting once.

run/ids/<id> and the job file are one inode. Its link count tells whether the job still lives: more than one, it is
somewhere between tmp/ and work/ or dead/; one, it is decided (its record exists) or its submitter died before the
job was accepted, and then the id is free. A job file that is still in tmp/ is moved on by the process that finds it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pool.constants import MAX_JOB_BYTES
from pool.errors import JobConflict
from pool.format import codec
from pool.format.names import SUFFIX
from pool.job import Job
from pool.spool import fsops, reuse

if TYPE_CHECKING:
    from filelock import FileLock

    Place = Callable[[str, Job], None]  # moves a file to where its job waits


class Ids:
    """The reservations of one spool."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = f"{root}/run/ids"
        self._records = f"{root}/out"
        self._temps = f"{root}/tmp"

    def accept(self, job: Job, temp: str, place: Place, *, sync: bool) -> None:
        """Take the id for the job written at `temp` and make it wait, or drop `temp` when the same job is here already.

        place: moves a file to where its job waits; FileNotFoundError when the file is gone. JobConflict: the id belongs
        to another job.
        """
        kept = f"{self._folder}/{job.id}"
        while True:
            with contextlib.suppress(FileExistsError):
                fsops.link(temp, kept)
                break
            try:
                other = Job.from_map(codec.decode(fsops.read_bounded(kept, MAX_JOB_BYTES), arrays=False))
                if not self._decided(job.id) and not self._repair(kept, other, place):
                    continue
            except FileNotFoundError:
                continue  # RACE: it was freed between link and look
            fsops.unlink(temp, missing_ok=True)
            if other.digest != job.digest:
                raise JobConflict(job.id)
            if sync:
                fsops.sync_file(kept)
            return
        if sync:
            fsops.sync_dir(self._folder)
        with contextlib.suppress(FileNotFoundError):  # RACE: another submitter has moved it for us
            place(temp, job)

    def _repair(self, kept: str, other: Job, place: Place) -> bool:
        """Whether the job of a reservation is accepted. If its submitter is not done, or was killed, finish the
        submit for it: a reserved id must belong to a job that will run."""
        info = os.stat(kept)
        if info.st_nlink == 1:
            self.free(other.id)
            return False
        with os.scandir(self._temps) as temps:
            stray = next((entry.path for entry in temps if entry.inode() == info.st_ino), None)
        if stray is not None:
            place(stray, other)
        return os.stat(kept).st_nlink > 1  # RACE: else its owner gave up while we looked

    def free(self, job_id: str) -> None:
        """Drop the reservation of an id that no job holds, waiting, running or decided."""
        place = f"{self._folder}/{job_id}"
        if not os.path.lexists(place):
            return
        with self.lock():  # RACE: every removal holds it, so what was looked at is what is removed
            try:
                idle = os.stat(place).st_nlink == 1
            except FileNotFoundError:
                return
            if idle and not self._decided(job_id):
                reuse.mark(self._root, job_id)
                fsops.unlink(place, missing_ok=True)

    def lock(self) -> FileLock:
        """Held by one process at a time; the system releases it when that process dies."""
        from filelock import FileLock  # rarely needed, and a twentieth of the import time of FilePool

        return FileLock(f"{self._folder}.lock", mode=0o600)

    def _decided(self, job_id: str) -> bool:
        return os.path.lexists(f"{self._records}/{job_id}{SUFFIX}")
