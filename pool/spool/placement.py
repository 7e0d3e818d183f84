"""Where a job waits, and how it comes there: held/ for others, deferred/ for its time, ready/ for a worker.

Each move is one rename, and so a transition of the spool.
"""

from __future__ import annotations

import os

from pool.format.names import parse_dead, parse_deferred
from pool.job import Job
from pool.spool import fsops
from pool.spool.tree import Claim, Tree


def place(spool: Tree, source: str, job: Job, *, held: bool = True) -> None:
    """The rename that makes a job wait: in held/ for others, in deferred/ for its time, else in ready/.

    held: False when those others have completed. FileNotFoundError when `source` is gone."""
    if held and job.depends_on:
        fsops.rename(source, f"{spool.root}/held/{job.engine}.{job.file_name}")
    elif job.not_before > spool.now():
        fsops.rename(source, f"{spool.root}/deferred/{job.not_before:016d}.{job.engine}.{job.file_name}")
    else:
        spool.into_ready(source, job.engine, str(job.file_name))


def put_back(spool: Tree, claim: Claim, job: Job) -> None:
    """Return a job that was claimed and not begun to where it waited; one that was begun before, to ready/."""
    if claim.name.attempts:
        spool.into_ready(claim.path, claim.worker.engine, str(claim.name))
    else:
        place(spool, claim.path, job)


def hold(spool: Tree, claim: Claim) -> None:
    """Give a job that was taken and not begun back to where it waits for others. claim: named as it waited."""
    fsops.rename(claim.path, f"{spool.root}/held/{claim.worker.engine}.{claim.name}")


def let_go(spool: Tree, entry: str, job: Job) -> None:
    """A job in held/ may run. FileNotFoundError when it is not there any more."""
    parsed = parse_dead(entry)
    if parsed is not None and parsed[1].attempts:
        spool.into_ready(f"{spool.root}/held/{entry}", job.engine, str(parsed[1]))
    else:
        place(spool, f"{spool.root}/held/{entry}", job, held=False)


def count_later(spool: Tree, engine: str) -> int:
    """How many jobs of an engine wait for their time, or for others."""
    due = [parsed[1] for parsed in map(parse_deferred, os.listdir(f"{spool.root}/deferred")) if parsed]
    held = [parsed[0] for parsed in map(parse_dead, spool.list_held()) if parsed]
    return due.count(engine) + held.count(engine)


def waiting_folders(spool: Tree, job: Job) -> list[str]:
    """Where a job may be that was just placed, and when it expires; to be synced."""
    ready = spool.ready_dir(job.engine)
    if not (job.not_before or job.expires or job.depends_on):
        return [ready]
    # RACE: it may have been due at once, or be due by now
    others = {"held": job.depends_on, "deferred": job.not_before, "run/expiry": job.expires}
    found = [f"{spool.root}/{name}" for name, used in others.items() if used]
    return [*found, ready] if os.path.isdir(ready) else found
