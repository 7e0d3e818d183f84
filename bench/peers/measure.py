"""What is measured of one peer, in a process of its own.

    python -m bench.peers.measure rq --dir build/x [--quick]        # one line of JSON

    start_s            until two workers are warm
    round_trip_ms      p50 of one no-op at a time
    jobs_per_s         no-ops submitted at once, until the last result is in the caller's hands
    array_mb_per_s     16 MiB float64 arrays, one at a time, every page read
    idle_cpu_s         processor time of all processes over ten seconds without work, the caller included
    worker_killed      of 20 naps of 0.2 s: those done within 60 s when the process of one is killed (-9) …
    manager_killed     … when all that hands out the work is, and is started again after a second
    twice              naps of the two that were done more than once

A nap counts as done by the file it leaves, whatever the caller is told; ``told`` counts the right results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench.peers import local, served
from bench.peers.peer import ROOT, Peer, kill, until

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        local.FilePoolPeer,
        local.DurablePeer,
        local.Spawn,
        local.Loky,
        served.Dask,
        served.Rq,
        served.Celery,
        served.Huey,
    )
}
NAPS, NAP_S, PATIENCE_S = 20, 0.2, 60.0


def round_trip(peer: Peer, count: int) -> float:
    """Milliseconds, p50."""
    seconds = []
    for number in range(count):
        begun = time.perf_counter()
        assert peer.submit("echo", number).result(60) == number
        seconds.append(time.perf_counter() - begun)
    return 1e3 * sorted(seconds)[count // 2]


def throughput(peer: Peer, count: int) -> float:
    """Jobs per second."""
    begun = time.perf_counter()
    handles = [peer.submit("echo", number) for number in range(count)]
    assert [handle.result(300) for handle in handles] == list(range(count))
    return count / (time.perf_counter() - begun)


def arrays(peer: Peer, count: int) -> float:
    """Megabytes per second."""
    begun = time.perf_counter()
    for number in range(count):
        found = peer.submit("array", number).result(60)
        assert float(found[::512].sum()) == number * len(found[::512])
    return count * int(found.nbytes) / 1e6 / (time.perf_counter() - begun)


def idle(peer: Peer, seconds: float) -> float:
    """Seconds of processor time."""
    processes = [psutil.Process(pid) for pid in peer.processes()]
    before = {process.pid: sum(process.cpu_times()[:2]) for process in processes}
    time.sleep(seconds)
    return float(sum(sum(each.cpu_times()[:2]) - before[each.pid] for each in processes if each.is_running()))


class Witness:
    """What naps leave: n.pid.begun, then n.pid.done."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def done(self) -> set[int]:
        """Numbers of the naps that were finished."""
        return {int(path.name.split(".")[0]) for path in self.folder.glob("*.done")}

    def twice(self) -> int:
        """How many naps were done more than once."""
        return len(list(self.folder.glob("*.done"))) - len(self.done())

    def workers(self) -> list[int]:
        """Processes that are at a nap now."""
        return [int(path.name.split(".")[1]) for path in self.folder.glob("*.begun")]


def naps(peer: Peer, witness: Witness) -> list[Any]:
    """Hand out all naps and wait for the first."""
    handles = [peer.submit("nap", number, NAP_S, str(witness.folder)) for number in range(NAPS)]
    until(lambda: len(witness.done()) >= 3 and witness.workers(), "the first naps")
    return handles


def outcome(witness: Witness, handles: list[Any], name: str) -> dict[str, int]:
    """Wait until all is done, or nothing more happens; then ask every handle."""
    deadline = time.monotonic() + PATIENCE_S
    while len(witness.done()) < NAPS and time.monotonic() < deadline:
        time.sleep(0.1)
    told = 0
    for number, handle in enumerate(handles):
        try:
            told += handle.result(5 if len(witness.done()) == NAPS else 0.5) == number
        except BaseException:  # each peer has its own words for a lost job
            continue
    return {name: len(witness.done()), f"{name}_told": told, f"{name}_twice": witness.twice()}


def worker_killed(peer: Peer, place: Path) -> dict[str, int | str]:
    """What became of the naps when a worker was killed."""
    witness = Witness(place / "worker")
    try:
        handles = naps(peer, witness)
        kill(witness.workers()[:1])
    except BaseException as error:
        done = len(witness.done())
        told: dict[str, int | str] = {"worker_killed": done, "worker_killed_told": 0, "worker_killed_twice": 0}
        return told | {"worker_error": repr(error)[:200]}
    return {**outcome(witness, handles, "worker_killed")}


def manager_killed(peer: Peer, place: Path) -> dict[str, int]:
    """What became of the naps when what hands out the work was killed."""
    witness = Witness(place / "manager")
    handles = naps(peer, witness)
    kill(peer.manager())
    time.sleep(1)
    peer.restart()
    return outcome(witness, handles, "manager_killed")


def caller_killed(name: str, place: Path) -> dict[str, int]:
    """For pools that live in their caller: another caller, killed; what is done afterwards is done by orphans."""
    witness = Witness(place / "manager")
    code = (
        "from pathlib import Path; from bench.peers import measure as m\n"
        f"if __name__ == '__main__':\n"
        f"    peer = m.PEERS[{name!r}](Path({str(place)!r})); peer.start()\n"
        f"    [peer.submit('nap', n, {NAP_S}, {str(witness.folder)!r}) for n in range({NAPS})]\n"
        "    __import__('time').sleep(60)\n"
    )
    script = place / "caller.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    until(lambda: len(witness.done()) >= 3 and witness.workers(), "the first naps")
    process.kill()
    process.wait()
    time.sleep(10)
    done = len(witness.done())
    return {"manager_killed": done, "manager_killed_told": 0, "manager_killed_twice": witness.twice()}


def _version(package: str) -> str:
    if package == "filepool":
        from pool import __version__

        return __version__
    return sys.version.split()[0] if package == "python" else version(package)


def measure(name: str, place: Path, quick: bool) -> dict[str, Any]:
    """All figures of one peer; what it could not do is said under ``error``."""
    chosen = PEERS[name]
    place.mkdir(parents=True)
    peer = chosen(place)
    begun = time.perf_counter()
    found: dict[str, Any] = {
        "peer": name,
        "version": _version(chosen.package),
        "setting": chosen.setting,
    }
    try:
        peer.start()
        found["start_s"] = time.perf_counter() - begun
        round_trip(peer, 20)
        found["round_trip_ms"] = round_trip(peer, 50 if quick else 500)
        throughput(peer, 50)
        found["jobs_per_s"] = throughput(peer, 100 if quick else 2000)
        found["array_mb_per_s"] = arrays(peer, 2 if quick else 10)
        found["idle_cpu_s"] = idle(peer, 1 if quick else 10)
        if chosen.caller_is_manager:
            found |= caller_killed(name, place)
        else:
            found |= manager_killed(peer, place)
        found |= worker_killed(peer, place)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"[:300]
    finally:
        peer.stop()
    return found


def main() -> None:
    """Measure one peer and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen.peer, chosen.dir.resolve(), chosen.quick)), flush=True)
    os._exit(0)  # some pools wait for ever at the end of an interpreter whose workers were killed


if __name__ == "__main__":
    main()
