"""Throughput, waits and runs over days: sums of ten minutes each, kept in a file over restarts of the gateway.

The file says up to which moment it counts all jobs, and which jobs of the last seconds before. After a restart the
records from then on are counted, and no other, so that each job counts once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pool.gateways.http.ledger import Entry
from pool.spool import fsops

STEP_S = 600
KEPT_S = 14 * 86400
_SLACK_US = 10_000_000  # a record may appear so long after the moment at which its job ended
_LATELY_MOST = 50_000  # ids of that time in the file
_MOST_BYTES = 64 << 20


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

    def count(self, job: Entry) -> None:
        """Add a job."""
        if job.state in ("completed", "failed", "cancelled"):
            setattr(self, job.state, getattr(self, job.state) + 1)
        if job.started:
            wait, run = max(0, job.started - job.created) / 1e6, max(0, job.finished - job.started) / 1e6
            self.ran += 1
            self.wait_s, self.run_s = self.wait_s + wait, self.run_s + run
            self.wait_most_s, self.run_most_s = max(self.wait_most_s, wait), max(self.run_most_s, run)

    def add(self, other: Sums) -> None:
        """Add those of another stretch."""
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, max(mine, its) if "most" in field.name else mine + its)


class History:
    """The sums. Safe to use from several threads. path: of the file; one that is damaged counts as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, int], Sums] = {}  # engine and number of the stretch
        self._lately: dict[str, int] = {}  # id -> when it ended, of what was counted last
        self._before: dict[str, int] = {}  # the same, from the file
        self._upto = 0  # all that ended before this and is not in _before was counted by the gateway before
        self._changed = False
        self._load()

    def add(self, job: Entry) -> None:
        """Count a job, unless the file has it."""
        with self._lock:
            if job.finished <= self._upto - _SLACK_US or self._before.get(job.id) == job.finished:
                return
            place = job.engine, job.finished // 1_000_000 // STEP_S
            self._sums.setdefault(place, Sums()).count(job)
            self._lately[job.id] = job.finished
            self._changed = True

    def save(self, upto: int) -> None:
        """Write the file, if anything has changed. upto: µs; what was there then is counted. Raises OSError."""
        with self._lock:
            if not self._changed:
                return
            oldest = (upto // 1_000_000 - KEPT_S) // STEP_S
            self._sums = {place: sums for place, sums in self._sums.items() if place[1] >= oldest}
            known = {**self._before, **self._lately}
            late = sorted((at, one) for one, at in known.items() if at > upto - _SLACK_US)[-_LATELY_MOST:]
            self._lately = {one: at for at, one in late}
            document = {
                "version": 1,
                "upto": upto,
                "lately": self._lately,
                "sums": [[engine, number, *vars(sums).values()] for (engine, number), sums in self._sums.items()],
            }
            self._changed = False
        fsops.put(f"{self._path}.{os.getpid()}", str(self._path), [json.dumps(document).encode()], sync=False)

    def since(self, begin_s: int, step_s: int) -> Iterator[tuple[str, int, Sums]]:
        """(engine, begin of the stretch in s since 1970, sums), the oldest first. step_s: a multiple of STEP_S."""
        found: dict[tuple[int, str], Sums] = {}
        with self._lock:
            for (engine, number), sums in self._sums.items():
                at = number * STEP_S // step_s * step_s
                if at >= begin_s // step_s * step_s:
                    found.setdefault((at, engine), Sums()).add(sums)
        for (at, engine), sums in sorted(found.items(), key=lambda one: one[0]):
            yield engine, at, sums

    def _load(self) -> None:
        try:
            document: Mapping[str, Any] = json.loads(fsops.read_bounded(self._path, _MOST_BYTES))
            if document["version"] != 1:
                return
            sums = {(str(engine), int(number)): Sums(*rest) for engine, number, *rest in document["sums"]}
            before, upto = {str(one): int(at) for one, at in document["lately"].items()}, int(document["upto"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return
        self._sums, self._before, self._upto = sums, before, upto
