"""Jobs on a terminal: a table of many, one in detail."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pool.cli.text import one_line, plain, seconds
from pool.client.browse import JobInfo
from pool.client.rerun import Origin
from pool.format.codec import to_json
from pool.job import JobState

_COLOURS = {
    JobState.QUEUED: "",
    JobState.DEFERRED: "yellow",
    JobState.RUNNING: "cyan",
    JobState.COMPLETED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
}
_NOTE_CHARS, _REASON_CHARS = 40, 100


def jobs_view(jobs: Sequence[JobInfo]) -> RenderableType:
    """A table with one row per job, without columns that are empty in all rows."""
    rows = [_row(job) for job in jobs]
    heads = ("id", "engine", "state", "age", "took", "attempt", "worker", "tags", "note", "")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    shown = [at for at in range(len(heads)) if at < 4 or any(row[at].plain for row in rows)]
    for at in shown:
        right = heads[at] in ("age", "took", "attempt")
        table.add_column(heads[at], overflow="fold", no_wrap=at < 5, justify="right" if right else "left")
    for row in rows:
        table.add_row(*(row[at] for at in shown))
    return table


def _row(job: JobInfo) -> list[Text]:
    last = _cut(job.reason, _REASON_CHARS)
    if not last and job.state is JobState.RUNNING and job.percent is not None:
        last = f"{job.percent:.0f} % {one_line(job.message)}".strip()
    items = f" × {job.items}" if job.items else ""
    return [
        Text(job.id),
        Text(f"{plain(job.engine)}{items}"),
        Text(job.state.value, style=_COLOURS[job.state]),
        Text(seconds(job.age_s)),
        Text(seconds(job.took_s)),
        Text(str(job.attempt) if job.attempt > 1 else ""),
        Text(job.worker, style="dim"),
        Text(", ".join(map(one_line, job.tags)), style="cyan"),
        Text(_cut(job.note, _NOTE_CHARS)),
        Text(last, style="red" if job.reason else "dim"),
    ]


def job_view(job: JobInfo, origin: Origin) -> RenderableType:
    """All about one job except its result."""
    facts: list[tuple[str, str]] = [("engine", job.engine), ("submitted", f"{seconds(job.age_s)} ago")]
    if job.took_s is not None:
        facts.append(("took", seconds(job.took_s)))
    facts += [("attempt", str(job.attempt or "")), ("worker", job.worker), ("tags", ", ".join(job.tags))]
    facts += [("note", job.note), ("rerun of", job.rerun_of), ("calls", str(job.items or ""))]
    if job.kind or job.reason:
        facts.append(("failure", f"{job.kind}: {job.reason}" if job.kind else job.reason))
    terms = {key: value for key, value in origin.to_map()["terms"].items() if key not in ("tags", "note")}
    facts += [(key, str(value)) for key, value in terms.items()]
    head = Text.assemble((job.id, "bold"), "  ", (job.state.value, _COLOURS[job.state]))
    lines = [head, *(Text(f"  {key:<11} {plain(value)}") for key, value in facts if value)]
    lines.append(Text("  parameters"))
    for key, value in origin.params.items():
        text = value if isinstance(value, str) else to_json(value)
        lines.append(Text(f"    {plain(key)} = {one_line(text)}"))
    lines += [Text(f"    {plain(key) or 'all'}: {why}", style="yellow") for key, why in origin.left_out.items()]
    if not origin.params and not origin.left_out:
        lines.append(Text("    none", style="dim"))
    return Group(*lines)


def _cut(text: str, chars: int) -> str:
    line = one_line(text)
    return line if len(line) <= chars else f"{line[: chars - 1]}…"
