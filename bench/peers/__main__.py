"""Every peer in turn, then one table and one picture. ``python -m bench.peers --help``"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from bench.peers.peer import ROOT

NAMES = (
    "filepool",
    "filepool, durable",
    "concurrent.futures",
    "loky",
    "dask.distributed",
    "rq",
    "celery",
    "huey",
)
MODULES = {"dask.distributed": "distributed", "rq": "rq", "celery": "celery", "huey": "huey", "loky": "loky"}
DOCUMENT, PICTURE = ROOT / "docs" / "PEERS.md", ROOT / "docs" / "images" / "peers.png"
HEAD = """# Beside other tools

The same work on the same machine in the same run, two warm workers each, with the settings that their documentation
names for work that should survive a crash. Made by `pip install ".[peers]" && python -m bench.peers`.

{machine}

{table}

![round trip, jobs per second, 16 MiB results, naps that survive](images/peers.png)

* *round trip*: one no-op at a time, p50. *jobs/s*: {burst} no-ops at once, until the last result is in the caller's
  hands. *16 MiB*: float64 arrays as results, one at a time. *idle*: processor time of all processes in ten seconds
  without work.
* *worker killed*, *manager killed*: 20 naps of 0.2 s; after the third a worker, or all that hands out the work, is
  killed with -9, and the manager is started again a second later. How many were done within 60 s, by the files they
  leave, and in brackets how many right results the caller got. Nothing ran twice to its end unless it is said.
* `concurrent.futures` and `loky` live in their caller: killing the manager is killing the caller, so nobody is told.
  They are what to use when nothing needs to survive. rq and huey do not notify of results: the caller polls every half
  millisecond. What a killed celery worker held comes back after the visibility timeout of its Redis broker, by default
  an hour, for which nobody waited here.
"""


def missing(name: str) -> str:
    """The module that a peer lacks; "" when it can run."""
    module = MODULES.get(name, "")
    return module if module and importlib.util.find_spec(module) is None else ""


def run(name: str, place: Path, quick: bool) -> dict[str, Any]:
    """The figures of one peer."""
    if module := missing(name):
        return {"peer": name, "error": f"{module} is not installed: pip install '.[peers]'"}
    folder = place / name.replace(",", "").replace(" ", "-")
    command = [sys.executable, "-m", "bench.peers.measure", name, "--dir", str(folder), *(["--quick"] if quick else [])]
    folder.parent.mkdir(parents=True, exist_ok=True)
    said = folder.with_suffix(".json")
    with said.open("wb") as out:  # a file: orphans of killed callers would hold a pipe open
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, start_new_session=True)
    try:
        process.wait(300)
        found: dict[str, Any] = json.loads(said.read_text().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return {"peer": name, "error": f"{type(error).__name__}: {error}"[:200]}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return found


COLUMNS = (
    ("round trip", "round_trip_ms", "{:.2f} ms"),
    ("jobs/s", "jobs_per_s", "{:,.0f}"),
    ("16 MiB", "array_mb_per_s", "{:,.0f} MB/s"),
    ("idle", "idle_cpu_s", "{:.2f} s"),
    ("worker killed", "worker_killed", ""),
    ("manager killed", "manager_killed", ""),
)


def cell(found: dict[str, Any], key: str, form: str) -> str:
    """One figure as text; "–" when it was not measured."""
    if key not in found:
        return "–"
    if form:
        return form.format(found[key])
    twice = f", {found[key + '_twice']} twice" if found.get(key + "_twice") else ""
    return f"{found[key]} of 20 ({found[key + '_told']}{twice})"


def table(rows: list[dict[str, Any]]) -> str:
    """The figures of all peers as Markdown."""
    lines = ["| tool | set up with | " + " | ".join(title for title, *_ in COLUMNS) + " |", "|---" * 8 + "|"]
    for found in rows:
        name = f"{found['peer']} {found.get('version', '')}".strip()
        cells = [cell(found, key, form) for _, key, form in COLUMNS]
        lines.append(f"| {name} | {found.get('setting', '')} | " + " | ".join(cells) + " |")
        if "error" in found:
            lines.append(f"| | {found['error']} |" + " |" * 6)
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Four small bar charts."""
    import matplotlib as plotting

    plotting.use("Agg")
    from matplotlib import pyplot, ticker

    charts = (
        ("round trip, ms (shorter is better)", "round_trip_ms", True),
        ("jobs per second", "jobs_per_s", True),
        ("16 MiB results, MB/s", "array_mb_per_s", True),
        ("naps done after the manager was killed, of 20", "manager_killed", False),
    )
    names = [found["peer"] for found in rows]
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 0.4 * len(rows) + 1.2), sharey=True)
    for axis, (title, key, logarithmic) in zip(axes, charts, strict=True):
        values = [found.get(key, 0) for found in rows]
        colours = ["#2563eb" if name.startswith("filepool") else "#9ca3af" for name in names]
        axis.barh(names, values, color=colours)
        axis.set_title(title, fontsize=10)
        axis.invert_yaxis() if axis is axes[0] else None
        if logarithmic:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        for place, value in enumerate(values):
            axis.text(value, place, f" {value:,.3g}" if value < 1000 else f" {value:,.0f}", va="center", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.25)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> int:
    """Measure the peers named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Beside other tools.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs; nothing is written")
    parser.add_argument("--json", action="store_true", help="one last line of JSON")
    parser.add_argument("--dir", type=Path, default=Path("build"), help="on the disk to measure")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in NAMES]:
        parser.error(f"no peer {unknown[0]!r}; there are: {', '.join(NAMES)}")
    chosen.dir.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="peers-", dir=chosen.dir) as place:
        for name in chosen.names or NAMES:
            print(f"{name} …", file=sys.stderr, flush=True)
            rows.append(run(name, Path(place), chosen.quick))
    machine = (
        f"{date.today():%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end."
    )
    print(table(rows))
    if not chosen.quick and not chosen.names:
        DOCUMENT.write_text(HEAD.format(machine=machine, table=table(rows), burst="2,000"), "utf-8")
        draw(rows, PICTURE)
    if chosen.json:
        print(json.dumps({"bench": "peers", "machine": machine, "peers": rows}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
