"""Throughput, waits and runs over time: of each engine, in stretches by the moment at which jobs ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pool.client import browse
from pool.errors import JobRefused
from pool.job import TERMINAL
from pool.spool.store import Spool

STEP_S = 600  # the shortest stretch
KEPT_S = 14 * 86400  # how far back at most
_STEPS = ((6 * 3600, STEP_S), (2 * 86400, 3600), (KEPT_S, 6 * 3600))  # up to so far back, stretches of this length
_OVER = tuple(state.value for state in TERMINAL)


@dataclass
class Sums:
    """Of the jobs of one engine that ended in one stretch of time. ran: how many of them ran. Waits, runs: seconds."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    ran: int = 0
    wait_s: float = 0.0
    wait_most_s: float = 0.0
    run_s: float = 0.0
    run_most_s: float = 0.0

    def count(self, state: str, created: int, started: int, finished: int) -> None:
        """Add a job. Times: µs, `started` 0 when it never ran."""
        if state in _OVER:
            setattr(self, state, getattr(self, state) + 1)
        if started:
            wait, run = max(0, started - created) / 1e6, max(0, finished - started) / 1e6
            self.ran += 1
            self.wait_s, self.run_s = self.wait_s + wait, self.run_s + run
            self.wait_most_s, self.run_most_s = max(self.wait_most_s, wait), max(self.run_most_s, run)

    def add(self, other: Sums) -> None:
        """Add those of another stretch."""
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, max(mine, its) if "most" in field.name else mine + its)

    def to_map(self) -> dict[str, Any]:
        """Plain values, with the means in place of the sums of seconds."""
        ran = max(1, self.ran)
        return {**vars(self), "wait_s": self.wait_s / ran, "run_s": self.run_s / ran}


Place = tuple[str, int]  # engine, number of the stretch of STEP_S since 1970


@dataclass(frozen=True)
class Window:
    """A time up to now. begin_s: seconds since 1970, where its first stretch begins; step_s: length of each stretch."""

    begin_s: int
    step_s: int


def window(now: int, since_s: float) -> Window:
    """The last `since_s` seconds. now: µs. Raises JobRefused."""
    if not 0 < since_s <= KEPT_S:
        raise JobRefused(f"must be above 0 and at most {KEPT_S // 86400}d: the history is kept for that long", "since")
    step_s = next(step for most, step in _STEPS if since_s <= most)
    return Window(int(now / 1e6 - since_s) // step_s * step_s, step_s)


def place_of(engine: str, finished: int) -> Place:
    """Where a job counts. finished: µs."""
    return engine, finished // 1_000_000 // STEP_S


def stretches(sums: Mapping[Place, Sums], chosen: Window) -> Iterator[tuple[str, int, Sums]]:
    """(engine, begin of the stretch in s since 1970, sums), the oldest first."""
    found: dict[tuple[int, str], Sums] = {}
    for (engine, number), its in sums.items():
        at = number * STEP_S // chosen.step_s * chosen.step_s
        if at >= chosen.begin_s:
            found.setdefault((at, engine), Sums()).add(its)
    for (at, engine), its in sorted(found.items(), key=lambda one: one[0]):
        yield engine, at, its


def of_records(spool: Spool, chosen: Window) -> dict[Place, Sums]:
    """The sums of the jobs whose records the spool has."""
    sums: dict[Place, Sums] = {}
    for job in _ended(spool):
        if job.finished >= chosen.begin_s * 1_000_000:
            its = sums.setdefault(place_of(job.engine, job.finished), Sums())
            its.count(job.state.value, job.created, job.started, job.finished)
    return sums


def _ended(spool: Spool) -> Iterable[browse.JobInfo]:
    after = ""
    while True:
        page = browse.page(spool, browse.Filter(state=_OVER), limit=browse.LIMIT_MOST, after=after)
        yield from page
        if not (after := page.next):
            return
