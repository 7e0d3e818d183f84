"""Throughput, waits and runs over days: sums of ten minutes each, kept in a file over restarts of the gateway.

The file says up to which moment it counts all jobs, and which jobs of the last seconds before. After a restart the
records from then on are counted, and no other, so that each job counts once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pool.client.stats import KEPT_S, STEP_S, Place, Sums, Window, place_of, stretches
from pool.gateways.http.ledger import Entry
from pool.spool import fsops

_SLACK_US = 10_000_000  # a record may appear so long after the moment at which its job ended
_LATELY_MOST = 50_000  # ids of that time in the file
_MOST_BYTES = 64 << 20


class History:
    """The sums. Safe to use from several threads. path: of the file; one that is damaged counts as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sums: dict[Place, Sums] = {}
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
            its = self._sums.setdefault(place_of(job.engine, job.finished), Sums())
            its.count(job.state, job.created, job.started, job.finished)
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

    def within(self, chosen: Window) -> Iterator[tuple[str, int, Sums]]:
        """(engine, begin of the stretch in s since 1970, sums), the oldest first."""
        with self._lock:
            found = list(stretches(self._sums, chosen))
        yield from found

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
