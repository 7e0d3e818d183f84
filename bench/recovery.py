"""What a kill -9 costs. `python -m bench.recovery --json`

A busy worker is killed while another is idle: ms from the kill until the engine runs the job again, both by the
boot clock (the engine logs its starts). Several times; the median counts, the worst is shown.

The supervisor is killed with 100 jobs queued, and started again by this bench: how many complete, how often a
model was loaded again, how many results a new process reads. The same with the submitting process killed too,
and with a supervisor that the FilePool itself started and must start again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import Measured, Row

_PATIENCE_S = 60.0

_SUBMITTER = """
import json, sys
from pool import FilePool
pool = FilePool(sys.argv[1], start=False)
jobs = pool.submit_many("fake", [{"do": "sleep", "seconds": float(sys.argv[3]), "value": n}
                                 for n in range(int(sys.argv[2]))])
print(json.dumps([job.id for job in jobs]), flush=True)
for job in jobs:
    job.result()
"""

_READER = """
import json, sys
from pool import FilePool
ids = json.load(sys.stdin)
with FilePool(sys.argv[1], start=False) as pool:
    print(sum(pool.attach(job).result(60)["value"] == n for n, job in enumerate(ids)))
"""


@dataclass(frozen=True)
class Sizes:
    """How often something is killed, and the jobs meanwhile."""

    kills: int = 9
    jobs: int = 100
    job_s: float = 0.02
    down_s: float = 0.3  # how long there is no supervisor
    own: bool = True  # also the supervisor that a FilePool started


QUICK = Sizes(kills=1, jobs=6, job_s=0.01, down_s=0.05, own=False)


class Site:
    """A spool with two workers of an engine that logs its loads and its starts."""

    def __init__(self, place: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pool-", dir=place))
        self.witness = self.directory / "witness"
        self.witness.mkdir()
        self.loads = self.directory / "loads"
        engine = {
            "engine": harness.FAKE,
            "workers": 2,
            "options": {"witness": str(self.witness), "loads": str(self.loads)},
            "backoff_s": 0.1,
            "start_limit": 1000,
        }
        self.config = harness.write_config(self.directory, {"fake": engine})
        self.spool = self.directory / "spool"

    def count_loads(self) -> int:
        """How often an engine was loaded."""
        return len(self.loads.read_text().splitlines())

    def starts(self, job_id: str) -> list[tuple[int, int, int]]:
        """(boot clock ns, attempt, pid) of every time the engine began this job."""
        found = []
        for log in self.witness.glob("*.log"):
            for line in log.read_text().splitlines():
                at, what, job, *rest = line.split()
                if what == "start" and job == job_id:
                    found.append((int(at), int(rest[0]), int(log.stem)))
        return sorted(found)

    def serve(self) -> subprocess.Popen[bytes]:
        """A supervisor that stays, as `python -m pool serve` starts it."""
        log = open(self.directory / "serve.log", "ab")  # noqa: SIM115 - the child's own
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "pool", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=harness.ROOT,
                start_new_session=True,
            )

    def script(self, text: str, *arguments: object) -> list[str]:
        """The command that runs a text of Python with the configuration and more arguments."""
        return [sys.executable, "-c", text, str(self.config), *map(str, arguments)]

    def read_in_new_process(self, ids: list[str]) -> int:
        """How many results a process that never saw the jobs reads, each the right one."""
        result = subprocess.run(
            self.script(_READER),
            input=json.dumps(ids),
            text=True,
            cwd=harness.ROOT,
            check=True,
            capture_output=True,
            timeout=2 * _PATIENCE_S,
        )
        return int(result.stdout)


@contextlib.contextmanager
def site(place: Path) -> Iterator[Site]:
    """A pool with its files, for the time of the ``with`` block."""
    made = Site(place)
    try:
        yield made
    finally:
        harness.end_processes(made.spool)
        shutil.rmtree(made.directory, ignore_errors=True)


def until(what: str, reached: Any) -> Any:
    """The first true answer of `reached`, asked every 5 ms."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (answer := reached()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {_PATIENCE_S:g} s still not: {what}")
        time.sleep(0.005)
    return answer


def kill_worker(pool: Any, made: Site) -> float:
    """ms from the kill of a busy worker until its job runs again."""
    harness.wait_warm(made.spool, 2)
    future = pool.submit("fake", do="sleep", seconds=0.5)
    first = until("the job began", lambda: made.starts(future.id))
    time.sleep(0.1)
    killed = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    os.kill(first[0][2], signal.SIGKILL)
    again = until("the job began again", lambda: made.starts(future.id)[1:])
    assert again[0][1] == 2
    future.result(_PATIENCE_S)
    for _ in range(10):  # a slot whose jobs end well is no sick slot
        pool.submit("fake", durable=False).result(_PATIENCE_S)
    return float((again[0][0] - killed) / 1e6)


def kill_supervisor(made: Site, sizes: Sizes, *, submitter_too: bool) -> dict[str, int]:
    """completed: of the jobs queued; readable: from a new process; reloads: of the model."""
    server = made.serve()
    killed = [server]
    try:
        until("the supervisor serves", lambda: harness.supervisor_pid(made.spool))
        harness.wait_warm(made.spool, 2)
        before = made.count_loads()
        submitter = subprocess.Popen(
            made.script(_SUBMITTER, sizes.jobs, sizes.job_s), stdout=subprocess.PIPE, cwd=harness.ROOT
        )
        killed.append(submitter)
        assert submitter.stdout is not None
        ids = json.loads(submitter.stdout.readline())
        until("the first are done", lambda: count_done(made, ids) >= min(5, sizes.jobs // 2))
        server.kill()
        if submitter_too:
            submitter.kill()
        server.wait()
        time.sleep(sizes.down_s)
        killed.append(made.serve())
        until("all are done", lambda: count_done(made, ids) == len(ids))
        if not submitter_too:
            assert submitter.wait(_PATIENCE_S) == 0  # it saw every result itself
        harness.wait_warm(made.spool, 2)
        readable = made.read_in_new_process(ids)
        reloads = made.count_loads() - before
    finally:
        harness.end_processes(made.spool)
        for process in killed:
            process.kill()
            process.communicate()
    return {"completed": readable, "of": sizes.jobs, "reloads": reloads}


def count_done(made: Site, ids: list[str]) -> int:
    """How many of the jobs have a result."""
    return sum((made.spool / "out" / f"{job}.msgpack").exists() for job in ids)


def kill_own_supervisor(made: Site, sizes: Sizes) -> dict[str, int]:
    """The same for a FilePool that looks after its supervisor itself."""
    from pool import FilePool

    with FilePool(made.config) as pool:
        harness.wait_warm(made.spool, 2)
        before = made.count_loads()
        calls = [{"do": "sleep", "seconds": sizes.job_s, "value": n} for n in range(sizes.jobs)]
        futures = pool.submit_many("fake", calls)
        futures[min(5, sizes.jobs // 2)].result(_PATIENCE_S)
        old = harness.supervisor_pid(made.spool)
        assert old is not None
        os.kill(old, signal.SIGKILL)
        completed = sum(future.result(_PATIENCE_S)["value"] == n for n, future in enumerate(futures))
        pool.submit("fake", do="sleep", seconds=2.0).result(_PATIENCE_S)  # long enough to miss it
        until("another supervisor serves", lambda: harness.supervisor_pid(made.spool) not in (None, old))
        return {"completed": completed, "of": sizes.jobs, "reloads": made.count_loads() - before}


def measure(sizes: Sizes, place: Path) -> Measured:
    """Milliseconds until work goes on after a kill, and how many jobs were lost."""
    from pool import FilePool

    with site(place) as made, FilePool(made.config) as pool:
        reruns = [kill_worker(pool, made) for _ in range(sizes.kills)]
    with site(place) as made:
        supervisor = kill_supervisor(made, sizes, submitter_too=False)
    with site(place) as made:
        submitter = kill_supervisor(made, sizes, submitter_too=True)
    own = None
    if sizes.own:
        with site(place) as made:
            own = kill_own_supervisor(made, sizes)
    figures: dict[str, Any] = {
        "rerun_ms": round(statistics.median(reruns), 2),
        "rerun_worst_ms": round(max(reruns), 2),
        "supervisor_completed": supervisor["completed"],
        "supervisor_reloads": supervisor["reloads"],
        "of": sizes.jobs,
        "submitter": submitter,
    }
    if own:
        figures["own_supervisor"] = own
    rows = [
        Row(
            "busy worker killed, job runs again",
            harness.ms(figures["rerun_ms"]),
            f"worst of {sizes.kills}: {figures['rerun_worst_ms']:.1f} ms",
            "rerun_ms",
        ),
        *_rows("supervisor killed", supervisor, "supervisor_completed", "supervisor_reloads"),
        *_rows("supervisor and submitter killed", submitter, "submitter.completed", "submitter.reloads"),
    ]
    if own:
        rows += _rows("a FilePool's own supervisor killed", own, "", "")
    return Measured("recovery", figures, rows)


def _rows(what: str, found: dict[str, int], completed: str, reloads: str) -> list[Row]:
    return [
        Row(
            what,
            f"{found['completed']} of {found['of']}",
            "results read by a new process" if completed else "",
            completed,
        ),
        Row("  models loaded again", str(found["reloads"]), figure=reloads),
    ]


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
