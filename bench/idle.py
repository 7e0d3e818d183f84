"""What a pool costs that has nothing to do. `python -m bench.idle --json`

Two workers, the supervisor and the client, all warm and after a few jobs: processor seconds of all of them
over the pause, by psutil, and finer from the scheduler's own account where the kernel keeps one.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import harness
from bench.harness import Measured, Row
from bench.roundtrip import ENGINES, trips

_SETTLE_S = 3.0  # after the last job, so that what follows one is not counted as idling


@dataclass(frozen=True)
class Sizes:
    """Seconds that are watched, and seconds to settle before."""

    seconds: float = 20.0
    settle_s: float = _SETTLE_S


QUICK = Sizes(seconds=0.2, settle_s=0.0)


@dataclass(frozen=True)
class Account:
    """cpu_s: by psutil (ticks of 10 ms); exact_s: by the scheduler, else the same; wakes: how often it woke."""

    cpu_s: float
    exact_s: float
    wakes: int

    def since(self, before: Account) -> Account:
        """What was used since an earlier account."""
        return Account(self.cpu_s - before.cpu_s, self.exact_s - before.exact_s, self.wakes - before.wakes)


def account(process: psutil.Process) -> Account:
    """Of all threads of a process."""
    times = process.cpu_times()
    ticks, exact, wakes = times.user + times.system, 0.0, 0
    for task in Path(f"/proc/{process.pid}/task").glob("*"):
        try:
            exact += int((task / "schedstat").read_text().split()[0]) / 1e9
            status = (task / "status").read_text()
        except (OSError, IndexError, ValueError):
            continue
        wakes += int(status.partition("voluntary_ctxt_switches:")[2].split()[0])
    return Account(ticks, exact or ticks, wakes)


def measure(sizes: Sizes, place: Path) -> Measured:
    """Processor time and wake-ups per second of a pool that has nothing to do."""
    with harness.warm_pool(place, ENGINES) as pool:
        trips(pool, 20, durable=False)
        supervisor = harness.supervisor_pid(pool.spool.root)
        assert supervisor is not None
        processes = {"client": psutil.Process(os.getpid()), "supervisor": psutil.Process(supervisor)}
        for number, child in enumerate(processes["supervisor"].children(recursive=True)):
            processes[f"worker {number}"] = child
        time.sleep(sizes.settle_s)
        before = {name: account(process) for name, process in processes.items()}
        time.sleep(sizes.seconds)
        spent = {name: account(process).since(before[name]) for name, process in processes.items()}
    figures = {
        "cpu_s": round(sum(each.cpu_s for each in spent.values()), 3),
        "exact_cpu_s": round(sum(each.exact_s for each in spent.values()), 4),
        "seconds": sizes.seconds,
        "processes": {name: {"cpu_s": round(each.exact_s, 4), "wakes": each.wakes} for name, each in spent.items()},
    }
    rows = [
        Row(
            f"all processes, {sizes.seconds:g} s",
            f"{figures['cpu_s']:.2f} CPU s",
            f"{figures['exact_cpu_s']:.4f} s by the scheduler",
            "cpu_s",
        ),
    ]
    for name, each in spent.items():
        rows.append(Row(f"  {name}", f"{each.exact_s:.4f} CPU s", f"woken {each.wakes} times"))
    return Measured("idle", figures, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
