"""What jobs that kill their worker cost the others. `python -m bench.poison --json`

300 ordinary jobs on two workers, alone and beside six jobs that end their worker with SIGKILL in every attempt and
were submitted first; in turns in one pool, the median of the pairs' ratios. The ordinary jobs are 20 ms of processor
time, 20 ms of waiting, as for a device, or nothing at all: then what is left is the start of processes. Timed from
the first submit to the last ordinary result in the caller's hand; before the next turn the six have failed and both
workers are idle.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import Measured, Row

WORKERS = 2
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Sizes:
    """How many pairs of runs, jobs, and jobs that kill their worker."""

    pairs: int = 5
    jobs: int = 300
    poison: int = 6
    job_s: float = 0.02
    retry_times: int = 2  # of those that kill


QUICK = Sizes(pairs=1, jobs=10, poison=1, job_s=0.001, retry_times=0)


@dataclass(frozen=True)
class Turn:
    """Seconds for the ordinary jobs, and how many workers had to be started meanwhile."""

    seconds: float
    starts: int = 0


class Bench:
    """One pool. loads: a file with a line for every worker that loaded."""

    def __init__(self, pool: Any, loads: Path, sizes: Sizes) -> None:
        self._pool, self._loads, self._sizes = pool, loads, sizes

    def turn(self, what: Mapping[str, Any], poison: int) -> Turn:
        """what: parameters of the ordinary jobs; poison: how many of the others go first."""
        pool, before = self._pool, self._started()
        calls = [{**what, "value": number} for number in range(self._sizes.jobs)]
        begun = time.perf_counter()
        terms = {"durable": False, "retry_times": self._sizes.retry_times}
        deadly = pool.submit_many("fake", [{"do": "kill"}] * poison, **terms) if poison else []
        futures = pool.submit_many("fake", calls, durable=False)
        wait(futures, _PATIENCE_S)
        spent, starts = time.perf_counter() - begun, self._started() - before
        found = [(future.result(0)["value"], future.result(0)["attempt"]) for future in futures]
        assert found == [(number, 1) for number in range(self._sizes.jobs)], "an ordinary job was charged"
        assert all(future.exception(_PATIENCE_S).failure.kind == "infrastructure" for future in deadly)
        harness.wait_warm(pool.spool.root, WORKERS)
        harness.forget_records(pool.spool.root)
        return Turn(spent, starts)

    def pairs(self, what: Mapping[str, Any]) -> dict[str, Any]:
        """Alone and beside, in turns."""
        alone: list[Turn] = []
        beside: list[Turn] = []
        for number in range(self._sizes.pairs):
            harness.in_turn(
                number,
                lambda: alone.append(self.turn(what, 0)),
                lambda: beside.append(self.turn(what, self._sizes.poison)),
            )
        ratios = [after.seconds / before.seconds for before, after in zip(alone, beside, strict=True)]
        lost = [after.seconds - before.seconds for before, after in zip(alone, beside, strict=True)]
        return {
            "alone_s": round(statistics.median(turn.seconds for turn in alone), 4),
            "beside_s": round(statistics.median(turn.seconds for turn in beside), 4),
            "ratio": round(statistics.median(ratios), 3),
            "worst_ratio": round(max(ratios), 3),
            "lost_s": round(statistics.median(lost), 4),
            "starts": round(statistics.median(turn.starts for turn in beside)),
        }

    def _started(self) -> int:
        return len(self._loads.read_text().splitlines())


def measure(sizes: Sizes, place: Path) -> Measured:
    """How much longer good jobs take beside jobs that kill their worker."""
    loads = place / "loads"
    engine = {"engine": harness.FAKE, "workers": WORKERS, "options": {"loads": str(loads)}}
    with harness.warm_pool(place, {"fake": engine}) as pool:
        bench = Bench(pool, loads, sizes)
        bench.turn({}, 0)
        work = bench.pairs({"do": "work", "seconds": sizes.job_s})
        waiting = bench.pairs({"do": "sleep", "seconds": sizes.job_s})
        trivial = bench.pairs({})
    loads.unlink()
    figures = {"work": work, "waiting": waiting, "trivial": trivial, "jobs": sizes.jobs, "poison": sizes.poison}
    rows = [
        *_rows(f"{sizes.jobs} × {sizes.job_s * 1e3:g} ms of work", work, sizes, "work.ratio"),
        *_rows(f"{sizes.jobs} × {sizes.job_s * 1e3:g} ms of waiting", waiting, sizes, "waiting.ratio"),
        *_rows(f"{sizes.jobs} × nothing", trivial, sizes, ""),
    ]
    return Measured("poison", figures, rows)


def _rows(what: str, found: dict[str, Any], sizes: Sizes, figure: str) -> list[Row]:
    return [
        Row(f"{what}, alone", f"{found['alone_s']:.3f} s"),
        Row(
            f"  beside {sizes.poison} that kill their worker",
            f"{found['beside_s']:.3f} s",
            f"{found['starts']} workers started meanwhile",
        ),
        Row("  × alone", f"{found['ratio']:.2f}", f"worst of {sizes.pairs}: {found['worst_ratio']:.2f}", figure),
    ]


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
