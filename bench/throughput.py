"""Many no-op jobs at once, two workers. `python -m bench.throughput --json`

From submit_many to the last result in the caller's hand, submission included. The floor, in turns: two bare
processes that write, sync and rename files of the same sizes.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import floor, harness
from bench.harness import Measured, Row

ENGINES = {"echo": {"engine": harness.ECHO, "workers": 2}}
CHUNK = 64


@dataclass(frozen=True)
class Sizes:
    """How many rounds and jobs."""

    rounds: int = 5
    jobs: int = 5000
    durable_jobs: int = 2000
    items: int = 40_000


QUICK = Sizes(rounds=1, jobs=50, durable_jobs=20, items=640)


def burst(pool: Any, count: int, *, durable: bool) -> float:
    """Jobs per second."""
    calls = [{"n": number} for number in range(count)]
    begun = time.perf_counter()
    futures = pool.submit_many("echo", calls, durable=durable)
    wait(futures, 600)
    spent = time.perf_counter() - begun
    assert all(future.result(0) == call for future, call in zip(futures, calls, strict=True))
    harness.forget_records(pool.spool.root)
    return count / spent


def mapped(pool: Any, count: int) -> float:
    """Items per second."""
    begun = time.perf_counter()
    total = sum(item["n"] for item in _map(pool, count))
    spent = time.perf_counter() - begun
    assert total == count * (count - 1) // 2
    harness.forget_records(pool.spool.root)
    return count / spent


def _map(pool: Any, count: int) -> Any:
    return pool.map("echo", ({"n": n} for n in range(count)), chunksize=CHUNK, durable=False, timeout=600)


def file_sizes(pool: Any) -> tuple[int, int]:
    """Bytes of the job file and of the record of a no-op job."""
    from pool.format import codec
    from pool.job import Job

    future = pool.submit("echo", n=1000, durable=True)
    future.result(60)
    job = Job(future.id, "echo", {"n": 1000}, created=pool.spool.now())
    record = Path(pool.spool.record_path(future.id))
    return len(codec.encode(job.to_map())), record.stat().st_size


def measure(sizes: Sizes, place: Path) -> Measured:
    """Jobs per second."""
    rates: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    with harness.warm_pool(place, ENGINES) as pool:
        job_bytes, record_bytes = file_sizes(pool)
        with floor.store(place, job_bytes, record_bytes) as files:
            burst(pool, sizes.jobs // 10, durable=False)
            many, some = sizes.jobs, sizes.durable_jobs
            for number in range(sizes.rounds):
                harness.in_turn(
                    number,
                    lambda: note("jobs_per_s", burst(pool, many, durable=False)),
                    lambda: note("floor_per_s", files.round(many, sync=False)),
                    lambda: note("map_items_per_s", mapped(pool, sizes.items)),
                    lambda: note("durable_jobs_per_s", burst(pool, some, durable=True)),
                    lambda: note("durable_floor_per_s", files.round(some, sync=True)),
                    lambda: note("durable_names_floor_per_s", files.round(some, sync=True, sync_dirs=True)),
                )
    figures: dict[str, Any] = {name: round(statistics.median(values)) for name, values in rates.items()}
    figures["ratio"] = harness.ratio(figures["jobs_per_s"], figures["floor_per_s"])
    figures["durable_ratio"] = harness.ratio(figures["durable_jobs_per_s"], figures["durable_floor_per_s"])
    figures["job_bytes"], figures["record_bytes"] = job_bytes, record_bytes
    rows = [
        Row("no-op jobs", f"{figures['jobs_per_s']} /s", f"bare files {figures['floor_per_s']} /s", "jobs_per_s"),
        Row(
            "no-op jobs, durable",
            f"{figures['durable_jobs_per_s']} /s",
            f"bare files {figures['durable_floor_per_s']} /s, "
            f"directories synced too {figures['durable_names_floor_per_s']} /s",
        ),
        Row("  × floor", f"{figures['durable_ratio']:.2f}", figure="durable_ratio"),
        Row(f"map(chunksize={CHUNK})", f"{figures['map_items_per_s']} items/s", figure="map_items_per_s"),
    ]
    return Measured("throughput", figures, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
