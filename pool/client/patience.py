"""How long a caller waits for what cannot come: ends waits of which no worker will ever take the job as things are.

Looked at about once a second while something is awaited. A future counts while a caller waits for it (result, wait,
as_completed, a callback, progress, done() again and again); one that no caller asks for is left alone, however long no
worker comes. Its clock runs while its job is hopeless (see `hopes`), stands still while a worker may come, and begins
anew when one serves or the last caller stops waiting. When it has reached the patience, the future ends with
EngineUnavailable. No Future can change its mind: that one stays so, although the job stays in the spool and runs after
a repair; attach(id) makes another future of it.

Inside a worker, a wait for a job that can only run after the one that waits ends as NestedDeadlock: of all that wait
for each other the last one at once, the others after their patience.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from pool.client.future import JobFuture
from pool.client.hopes import Hopes
from pool.client.scout import Scout
from pool.errors import EngineUnavailable, NestedDeadlock
from pool.policy.prospects import PoolFacts, Prospect, prospect
from pool.runfiles.waits import inside
from pool.spool.store import Spool

_GAP_S = 5.0  # counted between two looks at most: a machine that slept was not waiting


class Patience:
    """Of one FilePool. starter: as in PoolFacts. give_up: ends one future with an error."""

    def __init__(
        self,
        spool: Spool,
        starter: Callable[[], str | None],
        give_up: Callable[[JobFuture, EngineUnavailable], None],
    ) -> None:
        self._spool, self._starter, self._give_up = spool, starter, give_up
        self._scout, self._hopes = Scout(spool), Hopes(spool)
        self._inside = inside(spool)
        self._clocks: dict[JobFuture, float] = {}
        self._looked_at = -math.inf

    def prospect(self, engine: str) -> Prospect:
        """What a job that waits for this engine may expect now."""
        return prospect(engine, self._scout.look(self._starter()))

    def prospect_of(self, job_id: str, engine: str) -> Prospect:
        """What a job of this engine may expect now, which may wait for others."""
        return Hopes(self._spool).of({job_id: engine}, self._scout.look(self._starter()))[job_id]

    def look(self, futures: Iterable[JobFuture]) -> None:
        """End the waits that have no hope, and were patient enough."""
        now = time.monotonic()
        gap, self._looked_at = now - self._looked_at, now
        passed = min(gap, _GAP_S)
        waiting = [future for future in futures if future.wanted]
        clocks: dict[JobFuture, float] = {}
        facts = self._scout.look(self._starter()) if waiting else PoolFacts(served=True)
        stuck = dict(self._deadlocks(waiting, facts))
        for future in waiting if facts.away is not None else ():
            if future.labels is not None:
                self._hopes.learn(future.id, future.labels)
        hopes = self._hopes.of({future.id: future.engine for future in waiting}, facts) if waiting else {}
        for future in waiting:
            expected = hopes[future.id]
            error: EngineUnavailable | None = stuck.get(future)
            if error is None and expected.hopeless:
                error = expected.error(future.id)
            before = self._clocks.get(future)
            if error is None:
                if before is not None and expected.reason:  # a worker may come, or not: the clock stands still
                    clocks[future] = before
                continue
            clocks[future] = 0.0 if before is None else before + passed
            if clocks[future] >= _limit(future) and not self._spool.decided(future.id):
                self._give_up(future, error)
        self._clocks = clocks

    def wait_over(self) -> None:
        """A blocking wait has ended."""
        if self._inside is not None:
            self._inside.over()

    def _deadlocks(self, waiting: Sequence[JobFuture], facts: PoolFacts) -> Iterator[tuple[JobFuture, NestedDeadlock]]:
        """Waits inside a worker that cannot end. The one that has to give way does so at once."""
        if self._inside is None:
            return
        blocking = [future for future in waiting if future.blocking]
        awaits = {future.id: future.engine for future in blocking}
        for error, gives_way in self._inside.deadlocks(awaits, facts):
            for future in blocking:
                if future.id != error.job_id:
                    continue
                if gives_way and _limit(future) < math.inf:
                    self._give_up(future, error)
                else:
                    yield future, error


def _limit(future: JobFuture) -> float:
    return math.inf if future.patience is None else future.patience
