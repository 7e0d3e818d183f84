"""The figures as a table, against their targets, as a page and as a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import targets
from bench.cluster.ours import LEASE_S
from bench.cluster.system import MEDIA_BYTES
from bench.peers.peer import ROOT

DOCUMENT, PICTURE = ROOT / "docs" / "CLUSTER_BENCH.md", ROOT / "docs" / "images" / "cluster_bench.png"
TITLES = {
    "one": "filepool, 1 server",
    "three": "filepool, 3 servers",
    "celery": "celery",
    "dask": "dask.distributed",
}
OURS = ("one", "three")
NODES = ("1", "2", "3")
Found = Mapping[str, Mapping[str, Any]]

HEAD = """# Several machines, in figures

The [cluster](CLUSTER.md) beside celery and dask.distributed: the same work, the same run, all processes on one
machine. Made by `pip install ".[cluster,peers]" && python -m bench.cluster`, which takes some minutes and writes this
page.

{machine}

{table}

![round trip, no-ops a second over 1 to 3 nodes, 5 MB in and out, takeover](images/cluster_bench.png)

## What each figure means

A node is what one machine would run, with two workers: an agent, a supervisor and workers on a spool of their own; a
worker of celery with two processes; a `dask worker` with two workers of one thread. Servers, nodes and client share
the {cores} cores and the disk here, so three nodes are not faster than one when the processor is what limits. On
machines of their own they have a processor each, but a network between them, which loopback is not.

* *round trip*: one no-op at a time, p50. *no-ops a second*: 1,000 handed out at once (`submit_many`, a group, `map`),
  until the last result is in the caller's hands; the median of three at most. *processor time*: of one of those, all
  processes together.
* *5 MB in*, *out*: a job that reads, and one that returns, 5 MB which nobody has seen before, p50 of five. filepool
  gets a path and delivers a file where the caller wants it: the content goes into the object store of the servers and
  from there to the disk of the other side. celery and dask carry bytes from memory to memory.
* *takeover*: every process of the node that runs a job gets `kill -9`; seconds until the job runs on another node,
  the longer of two. filepool with `lease_s: {lease:g}`, whose default is 30: the lease counts from its last renewal,
  which is at most a third of it ago. celery gives a job back after the visibility timeout of its broker, by default
  an hour, also when it still runs. dask notices that connections close, which the kernel sees to here; when a machine
  loses its power or network nothing closes them, and its scheduler waits for the timeout of TCP, by default 30 s. A
  lease does not ask how a node was lost.
* *memory*: resident, the largest process of each kind with three nodes, after the bursts; pages that processes share
  are counted in each. celery's beat is for tasks at fixed times, and does not run here.
* */dev/shm*: files there that any process maps or holds open.
* What is safe when a call returns differs. filepool: the job is synced in the branch of the client, then on most of
  the servers; the result on most of the servers and in the branch. celery: Redis appends to a file that is synced
  once a second. dask: nothing; its scheduler keeps all in memory, and what it knew is gone with it
  ([PEERS.md](PEERS.md)).

## Where the processor time goes

Milliseconds of processor time of one no-op, with three nodes:

{costs}

## Targets

{targets}
{why}"""


# ---- the table


def table(found: Found) -> str:
    """The figures of all systems as Markdown."""
    systems = list(found.values())
    lines = [_line("", *(f"{one['title']} {one.get('version', '')}".strip() for one in systems))]
    lines.append("|---" * (len(systems) + 1) + "|")
    for title, cell in ROWS:
        lines.append(_line(title, *(_cell(one, cell) for one in systems)))
    if any("error" in one for one in systems):
        lines.append(_line("not measured", *(str(one.get("error", "")).replace("|", "/") for one in systems)))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(one: Mapping[str, Any], cell: Callable[[Mapping[str, Any]], str]) -> str:
    try:
        return cell(one)
    except KeyError:
        return "–"


def _takeover(one: Mapping[str, Any]) -> str:
    if "takeover_s" in one:
        return f"{one['takeover_s']:.1f} s"
    return f"not within {one['takeover_waited_s']:g} s"


def _memory(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{kind} {size:.0f}" for kind, size in one["memory_mb"].items() if kind != "client")


ROWS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("set up with", lambda one: str(one["setting"])),
    ("round trip, 1 node", lambda one: f"{one['round_trip_ms']['1']:.1f} ms"),
    ("round trip, 3 nodes", lambda one: f"{one['round_trip_ms']['3']:.1f} ms"),
    *(
        (
            f"no-ops a second, {count} {'node' if count == '1' else 'nodes'}",
            lambda one, count=count: f"{one['jobs_per_s'][count]:,.0f}",
        )
        for count in NODES
    ),
    ("processor time of one, 3 nodes", lambda one: f"{one['burst_cpu_ms']['3']:.2f} ms"),
    ("5 MB go as", lambda one: str(one["media"])),
    ("5 MB in", lambda one: f"{one['in_s']:.3f} s"),
    ("5 MB out", lambda one: f"{one['out_s']:.3f} s"),
    ("takeover", _takeover),
    ("memory of each, MB", _memory),
    ("memory of a node, MB", lambda one: f"{one['node_mb']:.0f}"),
    ("memory of all but the client, MB", lambda one: f"{one['all_mb']:.0f}"),
    ("/dev/shm", lambda one: f"{one['shm_bytes']} bytes"),
    ("start of a node", lambda one: f"{one['start_s']:.1f} s"),
)


def costs(found: Found) -> str:
    """Processor time of one no-op by kind of process."""
    lines = [
        _line("", "work", "all", "of these"),
        "|---|---|---|---|",
    ]
    for one in found.values():
        for what, key in (("at once", "burst_kinds_ms"), ("one at a time", "trip_kinds_ms")):
            if key in one:
                kinds = one[key]
                lines.append(_line(one["title"], what, f"{sum(kinds.values()):.2f}", _by_kind(kinds)))
    return "\n".join(lines)


def _by_kind(kinds: Mapping[str, float]) -> str:
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {spent:.2f}" for kind, spent in ordered if spent >= 0.005)


# ---- targets

_WHAT = {
    "round_trip_ms": "no-op round trip, 3 nodes",
    "jobs_per_s": "no-ops a second over 3 nodes",
    "takeover_s": f"takeover, lease of {LEASE_S:g} s",
    "memory_mb": "memory of the agent",
    "shm_bytes": "/dev/shm",
}


def against_targets(found: Found) -> str:
    """How the figures of ours stand to their targets, as Markdown."""
    ours = [key for key in OURS if key in found]
    lines = [_line("", "target", *(TITLES[key] for key in ours)), "|---" * (len(ours) + 2) + "|"]
    for target in targets.of("cluster"):
        system, _, figure = target.figure.partition(".")
        if ours and system == ours[0]:
            same = [_target(key, figure) for key in ours]
            lines.append(_line(_WHAT[figure.split(".")[0]], target.words, *(_verdict(one, found) for one in same)))
    return "\n".join(lines)


def _target(system: str, figure: str) -> targets.Target:
    found = targets.find("cluster", f"{system}.{figure}")
    assert found is not None
    return found


def _verdict(target: targets.Target, found: Found) -> str:
    value = target.value(found)
    measured = "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
    return f"{measured}, {'reached' if target.reached(found) else '**missed**'}"


def missed(found: Found) -> list[str]:
    """The targets that are not reached, of the systems that were measured."""
    mine = [target for target in targets.of("cluster") if target.figure.split(".")[0] in found]
    return [target.figure for target in mine if not target.reached(found)]


def why(found: Found, disk_ms: float) -> str:
    """A reason for each missed target, from what was measured; "" when all are reached."""
    lines = []
    for name in missed(found):
        system, figure = name.split(".")[:2]
        one = found[system]
        reason = one["error"] if "error" in one else _REASONS[figure](one, disk_ms)
        lines.append(f"* {_WHAT[figure]}, {TITLES[system]}: {reason}")
    return "\nWhy they are missed:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _why_trip(one: Mapping[str, Any], disk_ms: float) -> str:
    kinds, cores = one["trip_kinds_ms"], os.cpu_count()
    return (
        f"one costs {sum(kinds.values()):.1f} ms of processor time ({_by_kind(kinds)}) on {cores} cores. Most of it is "
        "on the way of the result; what is tidied up after it, and servers that only follow, work beside. The rest of "
        f"its {one['round_trip_ms']['3']:.1f} ms is waiting, for each other and for the disk: a synced file costs "
        f"{disk_ms:g} ms here, and job, claim and result are synced in the branch, at each server and on the node."
    )


def _why_rate(one: Mapping[str, Any], _disk_ms: float) -> str:
    kinds, cores = one["burst_kinds_ms"], os.cpu_count() or 1
    spent = sum(kinds.values())
    had = one["jobs_per_s"]["3"] * spent / 1e3 / cores
    port = kinds.get("port")
    bound = f" On machines of their own the port of one client can carry {1e3 / port:,.0f} a second." if port else ""
    return (
        f"a no-op costs {spent:.2f} ms of processor time ({_by_kind(kinds)}), and everything shares {cores} cores "
        f"here, which is at most {1e3 * cores / spent:,.0f} a second; {had:.0%} of their time went into it, the rest "
        f"into waiting for the disk and other programs.{bound}"
    )


def _why_takeover(one: Mapping[str, Any], _disk_ms: float) -> str:
    if "takeover_s" not in one:
        return f"not within {one['takeover_waited_s']:g} s ({len(one['takeovers_s'])} before)."
    return (
        f"{', '.join(f'{seconds:.1f}' for seconds in one['takeovers_s'])} s. The lease ends {LEASE_S * 2 / 3:.1f} to "
        f"{LEASE_S:g} s after the kill; the rest is what the node that takes over needs to ask whether the last owner "
        "lives, and to begin."
    )


def _why_memory(one: Mapping[str, Any], _disk_ms: float) -> str:
    return (
        f"{one['memory_mb']['agent']:.0f} MB; an interpreter that has imported what the agent needs and done nothing "
        f"has {one['imported_mb']:.0f} MB."
    )


_REASONS: dict[str, Callable[[Mapping[str, Any], float], str]] = {
    "round_trip_ms": _why_trip,
    "jobs_per_s": _why_rate,
    "takeover_s": _why_takeover,
    "memory_mb": _why_memory,
    "shm_bytes": lambda one, _disk_ms: f"{one['shm_bytes']} bytes are in use.",
}


# ---- page and picture


def write(found: Found, machine: str, disk_ms: float) -> None:
    """Write docs/CLUSTER_BENCH.md and its picture."""
    draw(found, PICTURE)
    DOCUMENT.write_text(
        HEAD.format(
            machine=machine,
            table=table(found),
            costs=costs(found),
            targets=against_targets(found),
            why=why(found, disk_ms),
            cores=os.cpu_count(),
            lease=LEASE_S,
        ),
        "utf-8",
    )


_COLOURS = {"one": "#60a5fa", "three": "#2563eb", "celery": "#84cc16", "dask": "#f59e0b"}


def draw(found: Found, path: Path) -> None:
    """Four small charts."""
    import matplotlib as plotting

    plotting.use("Agg")
    from matplotlib import pyplot

    figure, (trip, rate, files, lost) = pyplot.subplots(1, 4, figsize=(15, 3.4))
    _bars(trip, found, lambda one: one["round_trip_ms"]["3"], 12)
    trip.set_title("round trip, 3 nodes, ms (target: 12)", fontsize=10)
    for key, one in found.items():
        if "jobs_per_s" in one:
            points = sorted(one["jobs_per_s"].items())
            rate.plot(*zip(*points, strict=True), marker="o", color=_COLOURS[key], label=TITLES[key])
    rate.axhline(1000, color="#6b7280", linestyle="--", linewidth=1)
    rate.set_ylim(bottom=0)
    rate.set_xlabel("nodes", fontsize=8)
    rate.set_title("no-ops a second (target: 1,000)", fontsize=10)
    rate.legend(fontsize=7)
    _pairs(files, found)
    files.set_title(f"{MEDIA_BYTES / 1e6:g} MB in (full) and out (pale), s", fontsize=10)
    _bars(lost, found, lambda one: one.get("takeover_s", one["takeover_waited_s"]), LEASE_S + 1, _beyond)
    lost.set_title(f"takeover, s (target: {LEASE_S + 1:g})", fontsize=10)
    for axis in (trip, rate, files, lost):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _beyond(one: Mapping[str, Any]) -> str:
    return "" if "takeover_s" in one else "more than "


def _bars(
    axis: Any,
    found: Found,
    value: Callable[[Mapping[str, Any]], float],
    target: float,
    before: Callable[[Mapping[str, Any]], str] = lambda one: "",
) -> None:
    """A bar for each system that has the figure, and a line for the target."""
    for place, (key, one) in enumerate(found.items()):
        try:
            measured = value(one)
        except KeyError:
            continue
        axis.bar(place, measured, color=_COLOURS[key])
        axis.text(place, measured, f"{before(one)}{measured:.3g}", ha="center", va="bottom", fontsize=8)
    axis.axhline(target, color="#6b7280", linestyle="--", linewidth=1)
    _names(axis, found)


def _pairs(axis: Any, found: Found) -> None:
    for place, (key, one) in enumerate(found.items()):
        for shift, figure, alpha in ((-0.2, "in_s", 1.0), (0.2, "out_s", 0.5)):
            if figure in one:
                axis.bar(place + shift, one[figure], 0.4, color=_COLOURS[key], alpha=alpha)
                axis.text(place + shift, one[figure], f"{one[figure]:.2g}", ha="center", va="bottom", fontsize=8)
    _names(axis, found)


def _names(axis: Any, found: Found) -> None:
    axis.set_xticks(range(len(found)), [TITLES[key].replace("filepool, ", "filepool\n") for key in found])
    axis.margins(y=0.15)
