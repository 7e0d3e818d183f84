"""Runs every bench, each in a process of its own, and holds the figures against their targets.

python -m bench [--json] [--quick] [--dir DIR] [NAME …]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from bench import harness, targets

NAMES = ("floor", "roundtrip", "throughput", "payload", "idle", "recovery", "poison", "backlog", "jobs", "footprint")


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one bench; {"error": …} when it failed."""
    command = [sys.executable, "-m", f"bench.{name}", "--json", "--dir", str(options.dir)]
    if options.quick:
        command.append("--quick")
    result = subprocess.run(command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True)
    lines = result.stdout.splitlines()
    print("\n".join(lines[:-1]) if result.returncode == 0 else result.stdout, flush=True)
    if result.returncode:
        return {"bench": name, "error": f"exit code {result.returncode}"}
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def show(found: dict[str, dict[str, Any]], seconds: float) -> None:
    """Print a table of the figures and how they stand to their targets, in colour."""
    from rich.console import Console
    from rich.table import Table

    table = Table("bench", "figure", "measured", "target", "", title="targets", title_justify="left")
    for target in targets.TARGETS:
        figures = found.get(target.bench)
        if figures is None:
            continue
        value = target.value(figures)
        measured = figures.get("error", "?") if value is None else f"{value:,.5g}"
        table.add_row(target.bench, target.figure, measured, target.words, harness.verdict(target.reached(figures)))
    table.caption = f"{harness.machine()}, {seconds:.0f} s"
    Console(width=120 if not os.isatty(1) else None).print(table)


def main() -> int:
    """Run the benches named on the command line; 0 when every target is reached."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_options(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"no bench {unknown[0]!r}; there are: {', '.join(NAMES)}")
    options.dir = options.dir.resolve()
    begun = time.monotonic()
    found = {name: run(name, options) for name in options.names or NAMES}
    show(found, time.monotonic() - begun)
    missed = [f"{t.bench}.{t.figure}" for t in targets.TARGETS if t.bench in found and not t.reached(found[t.bench])]
    if options.json:
        print(json.dumps({"bench": "all", **found, "missed": missed}), flush=True)
    return 1 if any("error" in figures for figures in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
