"""The command stats: how many jobs ended, how long they waited and ran."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.command import load, open_spool, print_json, say
from pool.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from rich.table import Table

    from pool.client.stats import Sums

_HEADS = ("from", "engine", "completed", "failed", "cancelled", "wait", "longest", "run", "longest")


def stats(
    since: Annotated[str, typer.Option(metavar="TIME", help="How far back: 90m, 24h, 7d; at most 14d.")] = "24h",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print how many jobs ended, and how long they waited and ran: mean and longest, of each engine.

    In stretches of 10 minutes (up to 6 h), 1 h (up to 2 d) or 6 h, by the moment at which jobs ended. Counted are the
    records that the spool still has; `GET /stats` of the HTTP gateway remembers those that have expired, too.
    """
    from pool.client.durations import span
    from pool.client.stats import of_records, stretches, window

    spool = open_spool(load(config))
    chosen = window(spool.now(), span(since, "since"))
    found = list(stretches(of_records(spool, chosen), chosen))
    if as_json:
        told = [{"engine": engine, "at": at, **sums.to_map()} for engine, at, sums in found]
        print_json({"begin": chosen.begin_s, "step_s": chosen.step_s, "stretches": told})
    elif not found:
        say("no job ended in that time, of those whose records are still there", "dim")
    else:
        from pool.cli.terminal import make_console

        make_console().print(_table(found))


def _table(found: Sequence[tuple[str, int, Sums]]) -> Table:
    from rich import box
    from rich.table import Table

    from pool.cli.text import plain, seconds

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for at, head in enumerate(_HEADS):
        table.add_column(head, no_wrap=True, justify="left" if at < 2 else "right")
    shown = ""
    for engine, begin, sums in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(begin))
        its = sums.to_map()
        counts = [str(its[key] or "") for key in ("completed", "failed", "cancelled")]
        times = [seconds(its[key]) if sums.ran else "" for key in ("wait_s", "wait_most_s", "run_s", "run_most_s")]
        table.add_row("" if when == shown else when, plain(engine), *counts, *times)
        shown = when
    return table
