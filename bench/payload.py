"""Large parameters and large results, not durable. `python -m bench.payload --json`

64 KiB: bytes go in as a parameter and come back as the result; submit_many to the last result.
16 MiB: the engine makes a float64 array, the caller opens it and reads one number of every page, so that all
of it has been in the caller's memory. Counted are the bytes of the arrays, from submit to the last page read.
The floor: two bare processes that write and rename files of the same sizes, and nobody who reads them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import floor, harness
from bench.harness import Measured, Row

ENGINES = {"echo": {"engine": harness.ECHO, "workers": 2}}
K64 = 64 * 1024
MB = 1_000_000
PAGE_NUMBERS = 512  # float64 in a page of 4 KiB
IN_FLIGHT = 4  # arrays asked for at once: two are made while two are read


@dataclass(frozen=True)
class Sizes:
    """How many rounds, jobs and arrays."""

    rounds: int = 5
    jobs: int = 2000
    arrays: int = 40
    array_mb: int = 16


QUICK = Sizes(rounds=1, jobs=10, arrays=3, array_mb=2)


def echoed(pool: Any, count: int) -> float:
    """Jobs per second with 64 KiB in and out."""
    blob = bytes(range(256)) * (K64 // 256)
    calls = [{"blob": blob}] * count
    begun = time.perf_counter()
    futures = pool.submit_many("echo", calls, durable=False)
    wait(futures, 600)
    spent = time.perf_counter() - begun
    assert all(future.result(0)["blob"] == blob for future in futures)
    harness.forget_records(pool.spool.root)
    return count / spent


def arrays(pool: Any, count: int, array_mb: int, in_flight: int = IN_FLIGHT) -> float:
    """Million bytes per second to the caller's hands."""
    pending: deque[Any] = deque()
    sent = total = 0
    begun = time.perf_counter()
    while sent < count or pending:
        while sent < count and len(pending) < in_flight:
            pending.append(pool.submit("echo", array_mb=array_mb, durable=False, consume=True))
            sent += 1
        array = pending.popleft().result(60)["array"]
        assert float(array[::PAGE_NUMBERS].sum()) == array.size / PAGE_NUMBERS
        total += array.nbytes
    spent = time.perf_counter() - begun
    assert total == count * array_mb << 20
    return total / MB / spent


def measure(sizes: Sizes, place: Path) -> Measured:
    """Jobs per second with small parameters, megabytes per second with arrays."""
    rates: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    big = sizes.array_mb << 20
    with (
        harness.warm_pool(place, ENGINES) as pool,
        floor.store(place, K64, K64) as small_files,
        floor.store(place, floor.MESSAGE_BYTES, big) as big_files,
    ):
        echoed(pool, sizes.jobs // 10)
        arrays(pool, 2, sizes.array_mb)
        for number in range(sizes.rounds):
            harness.in_turn(
                number,
                lambda: note("k64_jobs_per_s", echoed(pool, sizes.jobs)),
                lambda: note("k64_floor_per_s", small_files.round(sizes.jobs, sync=False)),
                lambda: note("mb_per_s", arrays(pool, sizes.arrays, sizes.array_mb)),
                lambda: note("one_by_one_mb_per_s", arrays(pool, sizes.arrays // 2, sizes.array_mb, 1)),
                lambda: note("floor_mb_per_s", big_files.round(sizes.arrays, sync=False) * big / MB),
            )
    figures: dict[str, Any] = {name: round(statistics.median(values)) for name, values in rates.items()}
    figures["ratio"] = harness.ratio(figures["mb_per_s"], figures["floor_mb_per_s"])
    figures["k64_ratio"] = harness.ratio(figures["k64_jobs_per_s"], figures["k64_floor_per_s"])
    rows = [
        Row(
            "64 KiB in, 64 KiB out",
            f"{figures['k64_jobs_per_s']} jobs/s",
            f"bare files {figures['k64_floor_per_s']} /s",
            "k64_jobs_per_s",
        ),
        Row(
            f"{sizes.array_mb} MiB arrays",
            f"{figures['mb_per_s']} MB/s",
            f"bare files {figures['floor_mb_per_s']} MB/s; {IN_FLIGHT} asked for at once",
            "mb_per_s",
        ),
        Row("  one at a time", f"{figures['one_by_one_mb_per_s']} MB/s"),
    ]
    return Measured("payload", figures, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
