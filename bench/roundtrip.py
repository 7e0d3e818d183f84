"""One no-op job at a time, from submit to result in the caller's hand. `python -m bench.roundtrip --json`

Two warm workers; FilePool.submit(…).result() and, in turns, two bare processes that answer each other by files.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import floor, harness
from bench.harness import Measured, Row

ENGINES = {"echo": {"engine": harness.ECHO, "workers": 2}}


@dataclass(frozen=True)
class Sizes:
    """How many rounds and jobs."""

    rounds: int = 12
    jobs: int = 150  # per round
    durable_jobs: int = 50
    warmup: int = 100


QUICK = Sizes(rounds=1, jobs=20, durable_jobs=5, warmup=5)


def trips(pool: Any, count: int, *, durable: bool) -> list[float]:
    """Seconds of each submit(…).result()."""
    seconds = []
    for number in range(count):
        begun = time.perf_counter()
        value = pool.submit("echo", durable=durable, n=number).result(60)
        seconds.append(time.perf_counter() - begun)
        assert value == {"n": number}
    return seconds


def measure(sizes: Sizes, place: Path) -> Measured:
    """Milliseconds per round trip of a job, and how many times the floor that is."""
    found: dict[bool, tuple[list[float], list[float]]] = {False: ([], []), True: ([], [])}
    with harness.warm_pool(place, ENGINES) as pool, floor.ping_pong(place) as game:
        trips(pool, sizes.warmup, durable=False)
        game.round(sizes.warmup, durable=False)
        few, many = sizes.durable_jobs, sizes.jobs
        for number in range(sizes.rounds):
            harness.in_turn(
                number,
                lambda: found[False][0].extend(trips(pool, many, durable=False)),
                lambda: found[False][1].extend(game.round(many, durable=False)),
                lambda: found[True][0].extend(trips(pool, few, durable=True)),
                lambda: found[True][1].extend(game.round(few, durable=True)),
            )
    plain, durable_figures = (_figures(*found[durable]) for durable in (False, True))
    rows = [*_rows("round trip", "", plain), *_rows("round trip, durable", "durable.", durable_figures)]
    return Measured("roundtrip", {**plain, "durable": durable_figures}, rows)


def _figures(pool: list[float], bare: list[float]) -> dict[str, float]:
    ours, theirs = harness.percentiles(pool), harness.percentiles(bare)
    return {
        **ours,
        "floor_p50_ms": theirs["p50_ms"],
        "floor_p99_ms": theirs["p99_ms"],
        "ratio": harness.ratio(ours["p50_ms"], theirs["p50_ms"]),
    }


def _rows(what: str, prefix: str, figures: dict[str, float]) -> list[Row]:
    ms = harness.ms
    return [
        Row(f"{what}, p50", ms(figures["p50_ms"]), f"floor {ms(figures['floor_p50_ms'])}"),
        Row("  × floor", f"{figures['ratio']:.2f}", figure=f"{prefix}ratio"),
        Row("  p99", ms(figures["p99_ms"]), f"floor {ms(figures['floor_p99_ms'])}", f"{prefix}p99_ms"),
    ]


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
