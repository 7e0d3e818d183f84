"""Status and engines as tables on a terminal; times and sizes as text.

Text from jobs, engines and logs is never interpreted as markup, and control characters are removed from it: a message
must not be able to control the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pool.cli.text import one_line, plain, seconds, size
from pool.client.status import (
    DEGRADED,
    DOWN,
    OK,
    ClusterStatus,
    ConfigurationStatus,
    EngineStatus,
    NodeStatus,
    PoolStatus,
    SlotStatus,
)
from pool.runfiles.server import OnDisk
from pool.system.clock import moment

_WIDE = 200  # columns of a table that goes to a file or a pipe
_COLOURS = {OK: "green", DEGRADED: "yellow", DOWN: "red"}


def make_console(*, stderr: bool = False) -> Console:
    """A console for stdout or stderr without highlighting and markup; outside a terminal it cuts no lines."""
    stream = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=wide)


# --- status


def status_view(status: PoolStatus) -> RenderableType:
    """The whole status, as `python -m pool status` shows it."""
    colour = _COLOURS[status.health.verdict]
    head = Text.assemble((f"● {status.health.verdict}", f"bold {colour}"))
    if len(status.health.reasons) < 2:
        head.append(f"  {plain(status.health.sentence)}")
    parts: list[RenderableType] = [head]
    if len(status.health.reasons) > 1:
        parts += [Text(f"  - {one_line(reason)}", style=colour) for reason in status.health.reasons]
    parts += [Text(f"  ! {one_line(note)}", style="yellow") for note in status.health.notes]
    parts += [Text(line, style="dim") for line in _facts(status)]
    parts += [Text(), _engine_table(status.engines)]
    if status.nodes:
        parts += [Text(), _node_table(status.nodes)]
    if status.slots:
        parts += [Text(), _slot_table(status.slots)]
    return Group(*parts)


def _facts(status: PoolStatus) -> list[str]:
    supervisor = status.supervisor
    if supervisor is None:
        served = "none"
    else:
        up = seconds(max(0.0, (status.at - supervisor.started) / 1e6))
        tied = ", ends with its clients" if supervisor.tied else ""
        served = f"pid {supervisor.pid}, up {up}{tied}"
    watching = status.watching.mode or "-"
    if status.watching.reason:
        watching += f" ({plain(status.watching.reason)})"
    return [
        f"spool       {plain(status.spool)}",
        f"supervisor  {served}",
        *_configuration(status.configuration),
        *(_cluster(status, status.cluster) if status.cluster else ()),
        f"watching    {watching}",
        f"disk        {size(status.free_bytes)} free of {size(status.total_bytes)}",
        f"files       {status.dropped} dropped, {status.quarantined} in quarantine, {status.records} results kept",
    ]


def _cluster(status: PoolStatus, cluster: ClusterStatus) -> list[str]:
    state = "connected" if cluster.connected and not cluster.trouble else "not connected"
    nodes = f"{len(status.nodes)} node{'' if len(status.nodes) == 1 else 's'}"
    sent = f"{cluster.waiting} job{'' if cluster.waiting == 1 else 's'} sent and not begun"
    return [f"cluster     {plain(', '.join(cluster.servers))}, {state}, {nodes}, {sent}"]


def _configuration(about: ConfigurationStatus) -> list[str]:
    if about.file is None:
        return []
    changed = "; the file has changed: `python -m pool reload` loads it" if about.disk == OnDisk.CHANGED.value else ""
    return [f"config      {plain(about.file)}, read {moment(about.loaded)}{changed}"]


def _engine_table(engines: Sequence[EngineStatus]) -> Table:
    table = _table("engine", "ready", "busy", "queued", "held", "deferred", "running", "failed", "longest wait")
    for column in table.columns[1:]:
        column.justify = "right"
    for engine in engines:
        short = engine.configured and engine.serving < engine.workers
        table.add_row(
            Text(engine.name + ("" if engine.configured else " (not configured)")),
            Text(f"{engine.serving}/{engine.workers}", style="yellow" if short else ""),
            str(engine.busy),
            str(engine.queued),
            str(engine.held),
            str(engine.deferred),
            str(engine.running),
            Text(str(engine.dead), style="red" if engine.dead else ""),
            seconds(engine.oldest_wait_s),
        )
    return table


def _node_table(nodes: Sequence[NodeStatus]) -> Table:
    table = _table("node", "host", "state", "engines (busy/ready/slots)", "jobs", "labels", "trouble")
    table.columns[4].justify = "right"
    for node in nodes:
        engines = [f"{name} {a['busy']}/{a['serving']}/{a['slots']}" for name, a in sorted(node.engines.items())]
        troubles = [f"{name}: {one_line(a['trouble'])}" for name, a in sorted(node.engines.items()) if a["trouble"]]
        state = Text("draining", style="yellow") if node.draining else Text("works", style="green")
        table.add_row(
            Text(plain(node.name), no_wrap=True),
            Text(plain(node.host)),
            state.append(f" seen {seconds(node.seen_s)} ago", style="dim"),
            Text("\n".join(engines)),
            str(node.jobs),
            Text(plain(", ".join(node.labels))),
            Text("\n".join(troubles), style="yellow"),
        )
    return table


def _slot_table(slots: Sequence[SlotStatus]) -> Table:
    table = _table("slot", "state", "memory", "jobs", "restarts", "what")
    for column in table.columns[2:5]:
        column.justify = "right"
    for slot in slots:
        memory = size(slot.rss_bytes) if slot.rss_bytes else ""
        if slot.gpu_bytes:
            memory += f"\n{size(slot.gpu_bytes)} GPU"
        table.add_row(
            Text(plain(slot.slot), no_wrap=True),
            _state(slot),
            memory,
            str(slot.jobs_done),
            str(slot.restarts),
            _what(slot),
        )
    return table


def _state(slot: SlotStatus) -> Text:
    if slot.seat in ("benched", "off"):
        return Text(slot.seat, style="red")
    if not slot.phase:
        return Text(slot.seat or "starting", style="yellow")
    label = "spare" if slot.spare and slot.phase == "idle" else slot.phase
    style = "yellow" if slot.trouble else {"idle": "green", "busy": "cyan", "spare": "green"}.get(label, "yellow")
    text = Text(label, style=style)
    return text.append(f" {seconds(slot.phase_s)}", style="dim")


def _what(slot: SlotStatus) -> Text:
    """The slot's job with its progress, and its trouble."""
    lines = []
    if slot.job:
        percent = "" if slot.percent is None else f" {slot.percent:.0f} %"
        lines.append(Text(f"{slot.job}\n{slot.stage}{percent} {one_line(slot.message)}".rstrip()))
    if slot.trouble or slot.why:
        trouble = one_line(slot.trouble or slot.why).removeprefix("benched: ")
        lines.append(Text(trouble, style="yellow" if slot.trouble else "dim"))
    return Text("\n").join(lines)


# --- engines


def engines_view(entries: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Engines with their parameters; an entry is {"name", "engine", "workers", "doc", "schema"}."""
    parts: list[RenderableType] = []
    for entry in entries:
        head = Text.assemble((str(entry["name"]), "bold"), (f"  {entry['engine']}", "dim"))
        head.append(f"  {entry['workers']} worker{'' if entry['workers'] == 1 else 's'}", style="dim")
        parts.append(head)
        about = one_line(str(entry.get("doc") or "").partition("\n\n")[0]).partition(" See :")[0]
        if about:
            parts.append(Text(f"  {about}"))
        if entry.get("problem"):
            parts.append(Text(f"  does not load: {plain(str(entry['problem']))}", style="red"))
        parts += [_parameters(entry), Text()]
    return Group(*parts[:-1])


def _parameters(entry: Mapping[str, Any]) -> RenderableType:
    schema = entry.get("schema")
    if not schema:
        known = (
            "any; the engine checks them itself"
            if entry.get("described")
            else ("unknown until a worker has started once: python -m pool serve")
        )
        return Text(f"  parameters: {known}", style="dim")
    table = _table("parameter", "type", "default", "")
    table.pad_edge = True
    required = schema.get("required", [])
    for name, about in schema.get("properties", {}).items():
        default = "required" if name in required else _shown(about.get("default"))
        table.add_row(
            Text(name, style="bold" if name in required else ""),
            Text(type_of(about, schema)),
            Text(default, style="" if name in required else "dim"),
            Text(one_line(about.get("description", ""))),
        )
    return table


def type_of(about: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """The type of one parameter as short text, from its JSON schema. schema: the whole one, for references."""
    if "$ref" in about:
        name = str(about["$ref"]).rpartition("/")[2]
        return type_of(schema.get("$defs", {}).get(name, {}), schema)
    branches = about.get("anyOf") or about.get("oneOf")
    if branches:
        kinds = [type_of(branch, schema) for branch in branches if branch.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in about:
        return " | ".join(str(item) for item in about["enum"])
    if about.get("format") in ("path", "file-path", "directory-path"):
        return "path"
    kind = about.get("type", "any")
    words = {"string": "text", "array": "list", "object": "map"}
    return " or ".join(words.get(one, one) for one in (kind if isinstance(kind, list) else [str(kind)]))


def _shown(default: Any) -> str:
    return "" if default is None else str(default)


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for header in headers:
        table.add_column(header, overflow="fold")
    return table
