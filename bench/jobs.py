"""Lists of jobs over a hundred thousand of them. `python -m bench.jobs`

Records of jobs that ended, in out/: the first page of all, which builds the index; a page when nothing has changed,
while the directory changes, and after a thousand more records. Then as many jobs that wait: a page of those while
nothing and while something changes. Beside each stands what the bare listing of the directory costs, which no list can
go below once something has changed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import harness
from bench.backlog import SMALL, fill
from bench.harness import Measured, Row

_STILL_S = 2.6  # after which an unchanged directory is believed


@dataclass(frozen=True)
class Sizes:
    """How many records lie there, are added, and wait."""

    records: int = 100_000
    more: int = 1000
    waiting: int = 100_000
    rounds: int = 9
    still_s: float = _STILL_S


QUICK = Sizes(records=300, more=20, waiting=200, rounds=2, still_s=0.0)


def write_records(spool: Any, count: int) -> None:
    """Records as workers leave them: one in ten failed, one in a hundred has a tag."""
    from pool.format import codec
    from pool.format.names import new_id
    from pool.job import Failure, JobState, Record
    from pool.job.kept import Kept

    for number in range(count):
        born = spool.now()
        failure = Failure("engine", "it broke", "run", 1) if number % 10 == 0 else None
        kept = Kept(("some",) if number % 100 == 0 else (), "", {}, {"audio": "/data/speech.wav"})
        record = Record(
            new_id(born),
            SMALL,
            JobState.FAILED if failure else JobState.COMPLETED,
            1,
            born,
            born + 10,
            born + 500,
            f"{SMALL}-0.1",
            None if failure else {"text": "x" * 200},
            failure,
            kept=kept,
        )
        with open(spool.record_path(record.id), "wb") as file:
            file.write(codec.encode(record.to_map()))


def timed(call: Callable[[], Any], rounds: int = 1) -> float:
    """The median in ms."""
    costs = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        costs.append(time.perf_counter() - begun)
    return round(statistics.median(costs) * 1e3, 2)


def beside(rounds: int, change: Callable[[], Any], look: Callable[[], Any], folder: Path) -> tuple[float, float]:
    """Medians in ms of a look after each change, and of the bare listing of the folder, in turn."""
    looks, listings = [], []
    for _ in range(rounds):
        change()
        looks.append(timed(look))
        listings.append(timed(lambda: os.listdir(folder)))
    return round(statistics.median(looks), 2), round(statistics.median(listings), 2)


def measure(sizes: Sizes, place: Path) -> Measured:
    """Milliseconds of a page of the list of jobs."""
    from pool.client import browse
    from pool.spool.store import Spool

    def page(spool: Spool, *, limit: int = 50, after: str = "", **wanted: str) -> browse.JobPage:
        return browse.page(spool, browse.Filter(**wanted), limit=limit, after=after)

    root = Path(tempfile.mkdtemp(prefix="jobs-", dir=place)) / "spool"
    spool = Spool.create(root, durable=False)
    write_records(spool, sizes.records)
    figures: dict[str, Any] = {"build_ms": timed(lambda: page(spool))}
    page(spool)
    time.sleep(sizes.still_s)
    page(spool)
    figures["page_ms"] = timed(lambda: page(spool), sizes.rounds)
    figures["filtered_ms"] = timed(lambda: page(spool, state="failed", tag="some"), sizes.rounds)
    after = page(spool, limit=min(1000, sizes.records // 2)).next
    figures["later_ms"] = timed(lambda: page(spool, after=after), sizes.rounds)
    figures["text_ms"] = timed(lambda: page(spool, text="Broke"), sizes.rounds)
    figures["no_text_ms"] = timed(lambda: page(spool, text="nowhere"), sizes.rounds)
    moving = beside(sizes.rounds, lambda: write_records(spool, 1), lambda: page(spool), root / "out")
    figures["moving_ms"], figures["bare_ms"] = moving
    figures["moving_ratio"] = harness.ratio(*moving)
    write_records(spool, sizes.more)
    figures["more_ms"] = timed(lambda: page(spool))
    fill(spool, SMALL, sizes.waiting)
    page(spool)
    time.sleep(sizes.still_s)
    page(spool)
    figures["waiting_ms"] = timed(lambda: page(spool, state="queued"), sizes.rounds)
    queue = Path(spool.ready_dir(SMALL))
    arriving = beside(sizes.rounds, lambda: fill(spool, SMALL, 1), lambda: page(spool, state="queued"), queue)
    figures["arriving_ms"], figures["waiting_bare_ms"] = arriving
    figures["arriving_ratio"] = harness.ratio(*arriving)
    figures["tags_first_ms"] = timed(lambda: page(spool, state="queued", tag="some"))
    figures["tags_ms"] = timed(lambda: page(spool, state="queued", tag="some"), max(1, sizes.rounds // 3))
    figures["index_bytes"] = os.path.getsize(root / "run" / "jobs.sqlite")
    rows = [
        Row(f"first page of {sizes.records:,} records", harness.ms(figures["build_ms"]), "reads them all"),
        Row("a page of 50", harness.ms(figures["page_ms"]), figure="page_ms"),
        Row("  of one state and tag", harness.ms(figures["filtered_ms"]), figure="filtered_ms"),
        Row("  further down", harness.ms(figures["later_ms"]), figure="later_ms"),
        Row("  with a text in one of ten", harness.ms(figures["text_ms"]), figure="text_ms"),
        Row("  with a text in none", harness.ms(figures["no_text_ms"]), "compares all of them", "no_text_ms"),
        Row("  one record later", harness.ms(figures["moving_ms"]), f"out/ lists in {figures['bare_ms']:.1f} ms"),
        Row("    × the bare listing", f"{figures['moving_ratio']:.2f}", figure="moving_ratio"),
        Row(f"  {sizes.more:,} records later", harness.ms(figures["more_ms"])),
        Row(f"a page of {sizes.waiting:,} that wait", harness.ms(figures["waiting_ms"]), figure="waiting_ms"),
        Row(
            "  one submit later",
            harness.ms(figures["arriving_ms"]),
            f"ready/ lists in {figures['waiting_bare_ms']:.1f} ms",
        ),
        Row("    × the bare listing", f"{figures['arriving_ratio']:.2f}", figure="arriving_ratio"),
        Row("  with a tag, first and then", f"{figures['tags_first_ms']:.0f} and {figures['tags_ms']:.0f} ms"),
        Row("index", f"{figures['index_bytes'] / 1e6:.1f} MB"),
    ]
    return Measured("jobs", figures, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
