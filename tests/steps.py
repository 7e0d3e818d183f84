"""What a worker does with a job, step by step and without one, and how to stop in the middle of a step."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from pool.format.names import WorkerName, parse_dead, parse_deferred, parse_job, parse_record
from pool.job import Failure, Job, JobState, Record
from pool.spool import fsops, lookup
from pool.spool.store import Claim, Spool

JobMaker = Callable[..., Job]  # the fixture make_job


def seat(spool: Spool, generation: int = 1, engine: str = "echo", index: int = 0) -> WorkerName:
    """A worker's name, with its directory in work/."""
    worker = WorkerName(engine, index, generation)
    fsops.make_dir(spool.work_dir(worker))
    return worker


def claim_next(spool: Spool, worker: WorkerName) -> Claim:
    """The claim of the first waiting job."""
    name = parse_job(spool.list_ready(worker.engine)[0])
    assert name is not None
    claim = spool.claim(worker.engine, name, worker)
    assert claim is not None
    return claim


def record_of(claim: Claim, state: JobState = JobState.COMPLETED, value: Any = None, **more: Any) -> Record:
    """A terminal record for a claim."""
    failure = None
    if state is not JobState.COMPLETED:
        failure = Failure("engine", "it broke", "run", claim.name.attempts, worker=str(claim.worker))
    fields = {"created": claim.name.born, "started": claim.name.born + 1, "finished": claim.name.born + 2, **more}
    return Record(
        claim.name.id,
        claim.worker.engine,
        state,
        claim.name.attempts,
        worker=str(claim.worker),
        value=value,
        failure=failure,
        **fields,
    )


def places(spool: Spool) -> dict[str, list[str]]:
    """Ids by the directory that holds them; tmp/ by file name."""
    root = str(spool.root)
    found: dict[str, list[str]] = {"tmp": os.listdir(f"{root}/tmp")}
    for state in ("ready", "work"):
        entries = [name for folder in os.listdir(f"{root}/{state}") for name in os.listdir(f"{root}/{state}/{folder}")]
        found[state] = [name.id for name in map(parse_job, entries) if name]
    found["deferred"] = [entry[2].id for entry in map(parse_deferred, os.listdir(f"{root}/deferred")) if entry]
    found["held"] = [entry[1].id for entry in map(parse_dead, os.listdir(f"{root}/held")) if entry]
    found["away"] = [entry[1].id for entry in map(parse_dead, os.listdir(f"{root}/away")) if entry]
    found["dead"] = [entry[1].id for entry in map(parse_dead, os.listdir(f"{root}/dead")) if entry]
    found["out"] = [name for name in map(parse_record, os.listdir(f"{root}/out")) if name]
    found["ids"] = os.listdir(f"{root}/run/ids")
    return {place: sorted(names) for place, names in found.items() if names}


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a process of its own that leaves nothing behind but files; its exit code, 1 when it raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying(number: int) -> None:
    """End this process, with code 99, when it comes to its n-th durable operation from now (from 1)."""
    left = itertools.count(number - 1, -1)

    def hook(operation: str, path: str) -> None:
        if next(left) == 0:
            os._exit(99)

    fsops.hook = hook


def failing(number: int, error: Callable[[str], BaseException]) -> Counter[str]:
    """Make the n-th durable operation (from 1) fail with `error(path)` instead of being done; what was seen so far."""
    seen: Counter[str] = Counter()

    def hook(operation: str, path: str) -> None:
        if operation == "rmtree":  # never fails
            return
        seen[operation] += 1
        if sum(seen.values()) == number:
            raise error(path)

    fsops.hook = hook
    return seen


def watch_moves(spool: Spool, argv: list[str], env: dict[str, str]) -> Counter[JobState]:
    """How often the job that the link `current` beside the spool names was seen in each state, while a program moves
    one after the other. Raises UnknownJob when it is nowhere. argv: the program's text and arguments; it prints how
    many it has moved."""
    current = spool.root.parent / "current"
    seen: Counter[JobState] = Counter()
    with subprocess.Popen([sys.executable, "-c", *argv], env=env, stdout=subprocess.PIPE, text=True) as child:
        while not current.is_symlink():
            assert child.poll() is None
            time.sleep(0.001)
        while child.poll() is None:
            seen[lookup.find(spool, os.readlink(current)).state] += 1
        assert child.returncode == 0
        assert child.stdout is not None
        assert int(child.stdout.read()) > 50
    return seen
