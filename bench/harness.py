"""What all benches share: sizes, percentiles, the table, the last JSON line, a warm pool and its end."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from bench import targets

ROOT = Path(__file__).resolve().parents[1]
ECHO = "inference.fake:Echo"
FAKE = "inference.fake:Fake"
_WARM_S = 60.0
_END_S = 20.0

SizesT = TypeVar("SizesT")


@dataclass(frozen=True)
class Row:
    """A line of the table. figure: path in the JSON, when a target is held against it."""

    what: str
    measured: str
    note: str = ""
    figure: str = ""


@dataclass(frozen=True)
class Measured:
    """What a bench found. figures: becomes the JSON line."""

    bench: str
    figures: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


def main(doc: str | None, measure: Callable[[SizesT, Path], Measured], full: SizesT, quick: SizesT) -> int:
    """Command line of one bench."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    with workplace(options.dir) as place:
        measured = measure(quick if options.quick else full, place)
    show(measured)
    if options.json:
        print(json.dumps({"bench": measured.bench, **measured.figures}), flush=True)
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line's options that all benches have."""
    parser.add_argument("--json", action="store_true", help="one last line of JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--dir", type=Path, default=Path("build"), help="on the disk to measure: spools go there")


@contextlib.contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A fresh directory on the disk that is measured, removed at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=parent)).resolve()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def show(measured: Measured) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "measured", "target", "", "note", title=measured.bench, title_justify="left")
    for row in measured.rows:
        target = targets.find(measured.bench, row.figure) if row.figure else None
        mark = "" if target is None else verdict(target.reached(measured.figures))
        table.add_row(row.what, row.measured, target.words if target else "", mark, row.note)
    table.caption = machine()
    Console(width=120 if not os.isatty(1) else None).print(table)


def verdict(reached: bool) -> str:
    """Whether a target is reached, in colour."""
    return "[green]reached[/]" if reached else "[red]missed[/]"


def machine() -> str:
    """What the figures depend on."""
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, load {os.getloadavg()[0]:.1f}"


# ---- numbers


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(ordered[len(ordered) // 2] * 1e3, 4),
        "p99_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1e3, 4),
    }


def ms(value: float) -> str:
    """A time in milliseconds, as text."""
    return f"{value:.3f} ms"


def ratio(value: float, floor: float) -> float:
    """How many times the floor a value is; 0.0 without a floor."""
    return round(value / floor, 3) if floor else 0.0


def settle() -> None:
    """Let the disk finish what the last measurement left to it, so that the next one does not pay for it."""
    os.sync()
    time.sleep(0.02)


def in_turn(number: int, *steps: Callable[[], object]) -> None:
    """Measure each, from another one on in every round, each on a disk that has nothing left to do."""
    start = number % len(steps)
    for step in steps[start:] + steps[:start]:
        settle()
        step()


# ---- a pool


def write_config(place: Path, engines: Mapping[str, Mapping[str, Any]], **more: Any) -> Path:
    """config.json of a spool in `place`; engines run with the project's root on their path."""
    body = {"spool": "spool", "min_free_mb": 64, **more}
    body["engines"] = {name: {"pythonpath": [str(ROOT)], **engine} for name, engine in engines.items()}
    path = place / "config.json"
    path.write_text(json.dumps(body, indent=2))
    return path


@contextlib.contextmanager
def warm_pool(place: Path, engines: Mapping[str, Mapping[str, Any]], **more: Any) -> Iterator[Any]:
    """A FilePool whose workers are all idle; at the end no process of it is left.

    engines, more: as in config.json. Yields pool.FilePool.
    """
    from pool import FilePool

    directory = Path(tempfile.mkdtemp(prefix="pool-", dir=place))
    config = write_config(directory, engines, **more)
    try:
        pool = FilePool(config)
        try:
            wait_warm(pool.spool.root, workers_of(engines))
            yield pool
        finally:
            pool.close()
    finally:
        end_processes(directory / "spool")
        shutil.rmtree(directory, ignore_errors=True)


def workers_of(engines: Mapping[str, Mapping[str, Any]]) -> int:
    """How many workers a configuration of engines has."""
    return sum(int(engine.get("workers", 1)) for engine in engines.values())


def wait_warm(spool: Path, count: int, *, busy_too: bool = False) -> None:
    """Until `count` workers are idle. busy_too: or at a job."""
    deadline = time.monotonic() + _WARM_S
    while (warm := len(idle_workers(spool, busy_too=busy_too))) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{warm} of {count} workers warm after {_WARM_S:g} s; see {spool}/run/logs")
        time.sleep(0.02)


def idle_workers(spool: Path, *, busy_too: bool = False) -> list[int]:
    """Process ids of live workers that wait for a job. busy_too: or have one."""
    from pool.constants import SERVING, Phase
    from pool.runfiles import heartbeat

    wanted = SERVING if busy_too else {Phase.IDLE}
    found = []
    for path in (spool / "run" / "heartbeats").glob("*"):
        beat = heartbeat.read(str(path))
        if beat is not None and beat.phase in wanted and psutil.pid_exists(beat.pid):
            found.append(beat.pid)
    return found


def supervisor_pid(spool: Path) -> int | None:
    """The live supervisor of a spool."""
    from pool.runfiles.server import supervisor_identity

    identity = supervisor_identity(spool / "run" / "supervisor.json")
    return identity.pid if identity is not None and identity.alive() else None


def end_processes(spool: Path, patience: float = _END_S) -> None:
    """Drain what serves a spool; what is still there after `patience` seconds is killed."""
    deadline = time.monotonic() + patience
    asked = False
    while left := _processes(spool):
        pid = supervisor_pid(spool)
        if pid is not None and not asked:
            asked = True
            _signal(pid, signal.SIGTERM)
        if time.monotonic() > deadline or pid is None:
            for process in left:
                _signal(process, signal.SIGKILL)
        time.sleep(0.02)


def _processes(spool: Path) -> list[int]:
    from pool.errors import SpoolError
    from pool.spool import layout
    from pool.system import procs

    found = {pid} if (pid := supervisor_pid(spool)) is not None else set()
    with contextlib.suppress(SpoolError):
        found |= {member.identity.pid for member in procs.members(layout.identity(spool)) if member.worker}
    return sorted(pid for pid in found - {os.getpid()} if _running(pid))


def _running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def forget_records(spool: Path) -> None:
    """Empty out/ between rounds, so that every round finds the same directory."""
    with os.scandir(spool / "out") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
