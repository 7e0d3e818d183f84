"""What is measured of one system, in a process of its own.

python -m bench.cluster.measure three --dir build/x [--quick]        # one line of JSON

start_s            until a node has started and can work, the mean of all
round_trip_ms      p50 of one no-op at a time, by the number of nodes
jobs_per_s         no-ops handed out at once, until the last result is in the caller's hands, by the number of nodes
burst_cpu_ms       processor time of one of those, all processes together, by the number of nodes
burst_kinds_ms     the same at the most nodes, by kind of process; trip_kinds_ms: of one no-op at a time
in_s, out_s        a job that reads, and one that returns, 5 MB, p50
memory_mb          resident memory of the largest process of each kind at the most nodes
node_mb, all_mb    of one node, and of everything but the client
shm_bytes          files in /dev/shm that any of the processes maps or holds open
takeovers_s        from kill -9 of a node until its job runs on another one, each time; takeover_s: the longest,
                   absent when it did not within takeover_waited_s
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.cluster.others import CeleryCluster, DaskCluster
from bench.cluster.ours import OneServer, ThreeServers, imported_mb
from bench.cluster.system import LONG_S, MEDIA_BYTES, System, processor_s, resident_mb
from bench.footprint import shared_memory
from bench.peers.peer import until

SYSTEMS: dict[str, type[System]] = {
    system.key: system for system in (OneServer, ThreeServers, CeleryCluster, DaskCluster)
}
NODES = 3
NAP_S = 600.0  # longer than anybody waits


@dataclass(frozen=True)
class Sizes:
    """How much is measured. bursts_s: after so many seconds there is no other burst. patience_s: how long a takeover is
    waited for."""

    trips: int = 200
    burst: int = 1000
    bursts: int = 3
    bursts_s: float = 15.0
    media: int = 5
    takeovers: int = 2
    patience_s: float = 60.0


QUICK = Sizes(trips=10, burst=40, bursts=1, media=1, takeovers=1, patience_s=10.0)


@dataclass(frozen=True)
class Cost:
    """Processor time, ms, by kind of process."""

    kinds: dict[str, float]

    def of(self, jobs: int) -> Cost:
        """The same for one of so many jobs."""
        return Cost({kind: round(spent / jobs, 3) for kind, spent in self.kinds.items()})

    @property
    def all(self) -> float:
        """Of all processes together."""
        return round(sum(self.kinds.values()), 3)


def costing(system: System, work: Callable[[], None]) -> Cost:
    """Do the work; what it cost."""
    kinds = system.kinds()
    before = processor_s(pid for pids in kinds.values() for pid in pids)
    work()
    after = processor_s(before)
    spent = {kind: sum(after[pid] - before[pid] for pid in pids if pid in after) for kind, pids in kinds.items()}
    return Cost({kind: 1e3 * seconds for kind, seconds in spent.items()})


def trips(system: System, count: int) -> tuple[float, Cost]:
    """(ms, p50, what one costs)."""
    seconds: list[float] = []

    def work() -> None:
        for number in range(count):
            begun = time.perf_counter()
            assert system.submit("echo", number).result(LONG_S) == number
            seconds.append(time.perf_counter() - begun)

    cost = costing(system, work).of(count)
    return round(1e3 * statistics.median(seconds), 3), cost


def bursts(system: System, sizes: Sizes) -> tuple[float, Cost]:
    """(jobs per second, the median, what one costs)."""
    rates: list[float] = []

    def work() -> None:
        last = time.perf_counter() + sizes.bursts_s
        while len(rates) < sizes.bursts and (not rates or time.perf_counter() < last):
            begun = time.perf_counter()
            assert system.burst(sizes.burst) == list(range(sizes.burst))
            rates.append(sizes.burst / (time.perf_counter() - begun))

    cost = costing(system, work)
    return round(statistics.median(rates), 1), cost.of(sizes.burst * len(rates))


def grown(system: System, sizes: Sizes) -> dict[str, Any]:
    """The figures that change with the number of nodes."""
    found: dict[str, Any] = {"round_trip_ms": {}, "jobs_per_s": {}, "burst_cpu_ms": {}}
    started = []
    for count in map(str, range(1, NODES + 1)):
        begun = time.perf_counter()
        system.add_node()
        started.append(time.perf_counter() - begun)
        system.burst(20)
        trips(system, 5)
        found["round_trip_ms"][count], trip = trips(system, sizes.trips)
        found["jobs_per_s"][count], burst = bursts(system, sizes)
        found["burst_cpu_ms"][count] = burst.all
        found |= {"trip_kinds_ms": trip.kinds, "burst_kinds_ms": burst.kinds}
    return {"start_s": round(statistics.mean(started), 2), **found}


def media(system: System, count: int) -> dict[str, float]:
    """Seconds, p50; each content is another one."""
    there = statistics.median(system.bring_in(os.urandom(MEDIA_BYTES)) for _ in range(count))
    back = statistics.median(system.bring_out(number) for number in range(count))
    return {"in_s": round(there, 4), "out_s": round(back, 4)}


def memory(system: System) -> dict[str, Any]:
    """Resident memory, and what lies in /dev/shm."""
    kinds = system.kinds()
    each = {kind: [resident_mb(pid) for pid in pids] for kind, pids in kinds.items()}
    nodes = [sum(map(resident_mb, node)) for node in system.nodes()]
    return {
        "memory_mb": {kind: round(max(sizes, default=0.0), 1) for kind, sizes in each.items()},
        "node_mb": round(statistics.mean(nodes), 1),
        "all_mb": round(sum(sum(sizes) for kind, sizes in each.items() if kind != "client"), 1),
        "shm_bytes": shared_memory(pid for pids in kinds.values() for pid in pids),
    }


def begun(folder: Path) -> dict[int, float]:
    """The processes that have begun the nap, and when."""
    return {int(path.name.split(".")[1]): path.stat().st_mtime for path in folder.glob("*.begun")}


def takeovers(system: System, sizes: Sizes) -> dict[str, Any]:
    """Kill the node that runs a job, and the one that took it over."""
    folder = system.witness()
    job = system.submit("nap", 1, NAP_S, str(folder))  # kept: dask forgets a job that nobody holds
    known: set[int] = set()
    seconds: list[float] = []
    try:
        until(lambda: begun(folder), "a nap that runs")
    except TimeoutError:
        job.result(1)  # raises why, when it has failed
        raise
    for _ in range(sizes.takeovers):
        (pid,) = begun(folder).keys() - known
        known.add(pid)
        index = next(number for number, node in enumerate(system.nodes()) if pid in node)
        killed = time.time()
        system.lose(index)
        try:
            until(lambda: begun(folder).keys() - known, "another node", sizes.patience_s)
        except TimeoutError:
            break
        (pid,) = begun(folder).keys() - known
        seconds.append(round(begun(folder)[pid] - killed, 3))
    del job
    found: dict[str, Any] = {"takeovers_s": seconds, "takeover_waited_s": sizes.patience_s}
    return found | ({"takeover_s": max(seconds)} if len(seconds) == sizes.takeovers else {})


def _version(package: str) -> str:
    if package == "filepool":
        from pool import __version__

        return __version__
    return version(package)


def measure(name: str, place: Path, sizes: Sizes) -> dict[str, Any]:
    """All figures of one system; what it could not do is said under ``error``."""
    place.mkdir(parents=True)
    system = SYSTEMS[name](place)
    found: dict[str, Any] = {
        "title": system.title,
        "version": _version(system.package),
        "setting": system.setting,
        "media": system.media,
    }
    try:
        system.start()
        found |= grown(system, sizes)
        found |= media(system, sizes.media)
        found |= memory(system)
        found |= takeovers(system, sizes)
        if system.package == "filepool":
            found["imported_mb"] = round(imported_mb(), 1)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"[:300]
    finally:
        system.stop()
    return found


def main() -> None:
    """Measure one system and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    found = measure(chosen.system, chosen.dir.resolve(), QUICK if chosen.quick else Sizes())
    print(json.dumps(found), flush=True)
    os._exit(0)  # a client of dask whose workers were killed may wait for ever at the end


if __name__ == "__main__":
    main()
