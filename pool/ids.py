"""Ids given by callers: reserved by a hard link to the job file, so submitting twice is submitting once.

run/ids/<id> and the job file are one inode. Its link count tells whether the job still lives: more than one, it is
somewhere between tmp/ and work/ or dead/; one, it is decided (its record exists) or its submitter died before the
job was accepted, and then the id is free.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from pool import codec, fsops
from pool.constants import MAX_JOB_BYTES
from pool.errors import JobConflict
from pool.job import Job
from pool.names import SUFFIX


class Ids:
    """The reservations of one spool."""

    def __init__(self, root: Path) -> None:
        self._folder = f"{root}/run/ids"
        self._records = f"{root}/out"

    def reserve(self, job: Job, temp: str, *, sync: bool) -> bool:
        """Take the id for the job written at `temp`. False: the same job is here already. JobConflict: another is."""
        place = f"{self._folder}/{job.id}"
        while True:
            try:
                fsops.link(temp, place)
                if sync:
                    fsops.sync_dir(self._folder)
                return True
            except FileExistsError:
                pass
            try:
                links = os.stat(place).st_nlink
                other = Job.from_map(codec.decode(fsops.read_bounded(place, MAX_JOB_BYTES), arrays=False))
            except FileNotFoundError:
                continue  # RACE: it was freed between link and look
            if other.digest != job.digest:
                raise JobConflict(job.id)
            if links > 1 or self._decided(job.id):
                return False
            self.free(job.id)

    def free(self, job_id: str, *, decided: bool = False) -> None:
        """Drop the reservation of an id that no live job holds. decided: also when its record still exists."""
        place = f"{self._folder}/{job_id}"
        if not os.path.lexists(place):
            return
        # RACE: every removal holds this lock, so what was looked at is what is removed.
        with FileLock(f"{self._folder}.lock", mode=0o600):
            try:
                idle = os.stat(place).st_nlink == 1
            except FileNotFoundError:
                return
            if idle and (decided or not self._decided(job_id)):
                fsops.unlink(place, missing_ok=True)

    def _decided(self, job_id: str) -> bool:
        return os.path.lexists(f"{self._records}/{job_id}{SUFFIX}")
