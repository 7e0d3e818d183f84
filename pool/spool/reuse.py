"""Ids whose records may be replaced: of a job that runs again, of a reservation that is given up.

A record never changes under its name but for these, so the index of jobs (pool.index) reads only names that are new,
and those that are marked here before the old record goes.
"""

from __future__ import annotations

import os
from pathlib import Path

from pool.spool import fsops


def place(root: Path | str) -> str:
    """The file in which such ids are listed."""
    return f"{root}/run/jobs.again"


def mark(root: Path | str, job_id: str) -> None:
    """Note that the record of this job may be replaced."""
    try:
        fsops.append(place(root), f"{job_id}\n".encode())
    except OSError:  # the disk is full: the index must be rebuilt
        fsops.unlink(f"{root}/run/jobs.sqlite", missing_ok=True)


def marked(root: Path | str, since: int) -> tuple[list[str], int]:
    """Ids marked behind the byte `since`, and where the marks end now; ValueError: not the same file any more."""
    try:
        with open(place(root), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < since:
                raise ValueError("the marks were removed")
            stream.seek(since)
            data = stream.read()
    except FileNotFoundError:
        if since:
            raise ValueError("the marks were removed") from None
        return [], 0
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("ascii", "replace").split(), since + len(whole)
