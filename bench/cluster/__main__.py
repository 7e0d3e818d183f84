"""Every system in turn, then one table, the targets, and a page with a picture. `python -m bench.cluster --help`"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from bench import harness
from bench.cluster import report
from bench.peers.peer import ROOT

NAMES = ("one", "three", "celery", "dask")
MODULES = {"one": ("nats",), "three": ("nats",), "celery": ("celery", "redis"), "dask": ("distributed",)}
LIMIT_S = 300.0  # of one system


def missing(name: str) -> str:
    """The modules that a system lacks; "" when it can run."""
    return ", ".join(module for module in MODULES[name] if importlib.util.find_spec(module) is None)


def run(name: str, place: Path, quick: bool) -> dict[str, Any]:
    """The figures of one system."""
    if modules := missing(name):
        title = report.TITLES[name]
        return {"title": title, "error": f"skipped: {modules} not installed, pip install '.[cluster,peers]'"}
    folder, said = place / name, place / f"{name}.json"
    command = [sys.executable, "-m", "bench.cluster.measure", name, "--dir", str(folder)]
    with said.open("wb") as out:  # a file: what is left of killed nodes would hold a pipe open
        process = subprocess.Popen(
            [*command, *(["--quick"] if quick else [])], cwd=ROOT, stdout=out, start_new_session=True
        )
    try:
        process.wait(LIMIT_S)
        found: dict[str, Any] = json.loads(said.read_text().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        found = {"title": report.TITLES[name], "error": f"{type(error).__name__}: {error}"[:200]}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for spool in [*folder.glob("node*/spool"), *folder.glob("branches/*/spool")]:
            harness.end_processes(spool, patience=0)
    return found


def synced_ms(place: Path, count: int = 50) -> float:
    """What one small file costs whose content is on the disk, the median in ms."""
    seconds = []
    for number in range(count):
        begun = time.perf_counter()
        fd = os.open(place / f"synced-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, b"x" * 300)
        os.fsync(fd)
        os.close(fd)
        seconds.append(time.perf_counter() - begun)
    return round(1e3 * sorted(seconds)[count // 2], 3)


def main() -> int:
    """Measure the systems named on the command line, or all; 1 when one of ours failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.cluster", description="Several machines, beside celery and dask.distributed."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    harness.add_options(parser)
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in NAMES]:
        parser.error(f"no system {unknown[0]!r}; there are: {', '.join(NAMES)}")
    begun = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    with harness.workplace(chosen.dir) as place:
        disk_ms = synced_ms(place)
        for name in chosen.names or NAMES:
            print(f"{name} …", file=sys.stderr, flush=True)
            found[name] = run(name, place, chosen.quick)
    machine = f"{date.today():%Y-%m-%d}, {harness.machine()} at the end, a synced file costs {disk_ms:g} ms, "
    machine += f"{time.monotonic() - begun:.0f} s"
    print(f"cluster: {machine}\n\n{report.table(found)}\n\n{report.against_targets(found)}", flush=True)
    if not chosen.quick and not chosen.names:
        report.write(found, machine, disk_ms)
    if chosen.json:
        said = {"bench": "cluster", "machine": machine, "synced_ms": disk_ms, **found}
        print(json.dumps({**said, "missed": report.missed(found)}), flush=True)
    return 1 if any("error" in found[name] for name in ("one", "three") if name in found) else 0


if __name__ == "__main__":
    sys.exit(main())
