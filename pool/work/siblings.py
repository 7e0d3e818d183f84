"""Whether a worker's engine has other slots: what the supervisor says now, not what held when the worker was started.

A worker that fits a new configuration is kept, so the number of its siblings changes while it runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from pool.format.names import WorkerName
from pool.runfiles.snapshot import ReplacedMap
from pool.spool.store import Spool


class Siblings:
    """The siblings of one worker. Read only after a job failed."""

    def __init__(self, spool: Spool, worker: WorkerName) -> None:
        self._worker = worker
        self._record = ReplacedMap(f"{spool.root}/run/supervisor.json")
        self._there = False

    def there(self) -> bool:
        """Other slots are configured for its engine, whether a process is in them or not. Without a supervisor: when
        it was last known."""
        slots = self._record.read().get("slots")
        if isinstance(slots, Mapping):
            count = slots.get(self._worker.engine, 0)
            others = range(count) if isinstance(count, int) else ()
            self._there = any(index != self._worker.index for index in others)
        return self._there
