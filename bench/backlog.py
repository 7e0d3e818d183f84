"""A hundred thousand jobs in the queue: what a claim costs then, and the pool after it. `python -m bench.backlog`

Claims go through pool.picker.Picker and Spool.claim, one rename each; the directory is listed once before. Two
queues of 1,000 and 100,000 jobs in one spool are claimed from in turns. Then two workers run the long one down,
and the round trip is measured again in the same spool, against the one before.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import floor, harness
from bench.harness import Measured, Row
from bench.roundtrip import ENGINES, trips

SMALL, LARGE = "small", "echo"  # nobody serves the first
_BATCH = 5000


@dataclass(frozen=True)
class Sizes:
    """How many jobs wait, and how often it is measured."""

    small: int = 1000
    large: int = 100_000
    rounds: int = 10
    claims: int = 50  # per round and queue
    trips: int = 600
    renew_s: float = 15.0  # how long a pool at rest has to replace the directory that was large


QUICK = Sizes(small=50, large=300, rounds=2, claims=10, trips=20, renew_s=0.1)


def fill(spool: Any, engine: str, count: int) -> None:
    """Submit no-op jobs without sync."""
    from pool.format.names import new_id
    from pool.job import Job
    from pool.job.terms import Terms

    for start in range(0, count, _BATCH):
        jobs = []
        for number in range(start, min(start + _BATCH, count)):
            born = spool.now()
            jobs.append(Job(new_id(born), engine, {"n": number}, created=born, terms=Terms(durable=False)))
        spool.submit_many(jobs)


def claim_costs(spool: Any, sizes: Sizes) -> dict[str, Any]:
    """µs per claim from both queues, by a picker of each; what was claimed is given back."""
    from pool.format.names import WorkerName
    from pool.policy.retries import Retries
    from pool.work.picker import Picker

    spent: dict[str, list[float]] = {SMALL: [], LARGE: []}
    listing: dict[str, float] = {}
    pickers = {}
    for engine in spent:
        worker = WorkerName(engine, 90, 1)
        os.mkdir(spool.work_dir(worker))
        pickers[engine] = Picker(spool, worker, 2.0, siblings=lambda: True, retries=Retries(), suspect=bool)
        begun = time.perf_counter()
        pickers[engine].rescan()
        listing[engine] = round((time.perf_counter() - begun) * 1e3, 3)
    claims = []
    for _ in range(sizes.rounds):
        for engine, picker in pickers.items():
            for _ in range(sizes.claims):
                begun = time.perf_counter()
                claim = picker.take()
                spent[engine].append(time.perf_counter() - begun)
                assert claim is not None
                claims.append(claim)
    for claim in claims:
        spool.release(claim)
    for engine in spent:
        os.rmdir(spool.work_dir(WorkerName(engine, 90, 1)))
    return {
        "claim_us_1k": round(statistics.median(spent[SMALL]) * 1e6, 2),
        "claim_us_100k": round(statistics.median(spent[LARGE]) * 1e6, 2),
        "listing_ms_1k": listing[SMALL],
        "listing_ms_100k": listing[LARGE],
    }


def trip_figures(pool: Any, place: Path, count: int) -> dict[str, Any]:
    """A round trip now, the floor beside it, and what listing the queue costs."""
    with floor.ping_pong(place) as game:
        ours, theirs = [], []
        trips(pool, count // 10, durable=False)
        for _ in range(4):
            ours += trips(pool, count // 4, durable=False)
            theirs += game.round(count // 4, durable=False)
    floor_ms = harness.percentiles(theirs)["p50_ms"]
    return {**harness.percentiles(ours), "floor_p50_ms": floor_ms, "listing_us": listing_us(pool.spool)}


def listing_us(spool: Any) -> float:
    """Microseconds of one listing of the queue, the median of 20."""
    costs = []
    for _ in range(20):
        begun = time.perf_counter()
        os.listdir(spool.ready_dir(LARGE))
        costs.append(time.perf_counter() - begun)
    return round(statistics.median(costs) * 1e6, 1)


def run_down(pool: Any, count: int) -> float:
    """Jobs per second while the workers empty the queue."""
    begun = time.perf_counter()
    while os.listdir(pool.spool.ready_dir(LARGE)):
        time.sleep(min(0.5, count / 1e5))
    return count / (time.perf_counter() - begun)


def wait_for_renewal(spool: Any, before: int, seconds: float) -> bool:
    """Whether the queue's directory became another one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.stat(spool.ready_dir(LARGE)).st_ino != before:
            return True
        time.sleep(0.1)
    return False


def measure(sizes: Sizes, place: Path) -> Measured:
    """Milliseconds per round trip with a short and a long queue, and what they stand to each other."""
    from pool import FilePool
    from pool.spool.store import Spool

    directory = Path(tempfile.mkdtemp(prefix="pool-", dir=place))
    config = harness.write_config(directory, ENGINES, max_ready=10 * sizes.large)
    root = directory / "spool"
    try:
        with FilePool(config) as pool:
            harness.wait_warm(root, 2)
            before = trip_figures(pool, place, sizes.trips)
        harness.end_processes(root)
        harness.forget_records(root)
        spool = Spool(root)
        fill(spool, SMALL, sizes.small)
        fill(spool, LARGE, sizes.large)
        figures = claim_costs(spool, sizes)
        inode = os.stat(spool.ready_dir(LARGE)).st_ino
        with FilePool(config) as pool:
            harness.wait_warm(root, 2, busy_too=True)
            rate = run_down(pool, sizes.large)
            figures["renewed"] = wait_for_renewal(spool, inode, sizes.renew_s)
            harness.forget_records(root)
            after = trip_figures(pool, place, sizes.trips)
    finally:
        harness.end_processes(root)
    figures["ratio"] = harness.ratio(figures["claim_us_100k"], figures["claim_us_1k"])
    drift = after["floor_p50_ms"] / before["floor_p50_ms"]  # the machine itself, in between
    figures["roundtrip"] = {
        "before": before,
        "after": after,
        "ratio": round(after["p50_ms"] / before["p50_ms"] / drift, 3),
    }
    figures["run_down_per_s"] = round(rate)
    rows = [
        Row(
            f"claim, {sizes.small:,} waiting",
            f"{figures['claim_us_1k']:.1f} µs",
            f"listed once in {figures['listing_ms_1k']:.1f} ms",
        ),
        Row(
            f"claim, {sizes.large:,} waiting",
            f"{figures['claim_us_100k']:.1f} µs",
            f"listed once in {figures['listing_ms_100k']:.1f} ms",
        ),
        Row("  × at first", f"{figures['ratio']:.2f}", figure="ratio"),
        Row("run down by two workers", f"{figures['run_down_per_s']} jobs/s"),
        Row("round trip before", harness.ms(before["p50_ms"]), f"the empty queue lists in {before['listing_us']} µs"),
        Row("round trip after", harness.ms(after["p50_ms"]), f"the empty queue lists in {after['listing_us']} µs"),
        Row(
            "  × before, less the floor's drift",
            f"{figures['roundtrip']['ratio']:.2f}",
            figure="roundtrip.ratio",
            note="directory replaced" if figures["renewed"] else "directory NOT replaced",
        ),
    ]
    return Measured("backlog", figures, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
