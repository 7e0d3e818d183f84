"""For how long the supervisor was awake to see what it judges.

A machine that is suspended, a container that is paused, a supervisor that is stopped or gets no processor: its workers
stood still too, or nobody saw them. That time is counted against no worker, no job and no grace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pool.system.clock import boot_ns

TURN_NS = 1_000_000_000  # between two turns, when nothing happens
_LATE_NS = 3 * TURN_NS  # a turn that comes so late was kept from it
_KEPT = 1000  # gaps; of those before, workers that have been at one thing ever since are not told


@dataclass(frozen=True)
class _Gap:
    begin_ns: int
    end_ns: int


class Attention:
    """Counts the time in which turns come. All moments are of the boot clock, which goes on in a suspended machine."""

    def __init__(self, clock: Callable[[], int] = boot_ns) -> None:
        self._clock = clock
        self._turn_ns = clock()
        self._gaps: deque[_Gap] = deque(maxlen=_KEPT)
        self._away_ns = 0

    def start(self) -> None:
        """Turns come from now on; what was before is counted."""
        self._turn_ns = self._clock()

    @property
    def away_s(self) -> float:
        """Seconds that were not counted, all together."""
        return self._away_ns / 1e9

    def turn(self) -> float:
        """The next turn begins. Seconds for which nobody looked, 0 when it comes in time."""
        before, self._turn_ns = self._turn_ns, self._clock()
        if self._turn_ns - before < _LATE_NS:
            return 0.0
        gap = _Gap(before + TURN_NS, self._turn_ns)
        self._gaps.append(gap)
        self._away_ns += gap.end_ns - gap.begin_ns
        return (gap.end_ns - gap.begin_ns) / 1e9

    def now(self) -> float:
        """Seconds, for deadlines: the beginning of this turn, on a clock that counts the time awake."""
        return (self._turn_ns - self._away_ns) / 1e9

    def left(self, until: float) -> float:
        """Seconds from this instant until `now` will be that, at least 0."""
        return max(0.0, until - (self._clock() - self._away_ns) / 1e9)

    def since(self, moment_ns: int) -> float:
        """Seconds awake from that moment to the beginning of this turn. What stood still within this turn is not known
        yet, so nothing is judged by the instant."""
        away = 0
        for gap in reversed(self._gaps):
            if gap.end_ns <= moment_ns:
                break
            away += gap.end_ns - max(gap.begin_ns, moment_ns)
        return (self._turn_ns - moment_ns - away) / 1e9
