"""How a process notices what arrives, for `status`: the supervisor says it in run/status.json, a worker in
run/slots/<worker>.watch while it is not woken by events."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pool.format.names import WorkerName
from pool.spool import fsops
from pool.spool.store import Spool
from pool.system.watch import Watcher

_MAX_BYTES = 65536


@dataclass(frozen=True)
class WatchingStatus:
    """mode: "inotify", "observer" or "polling" ("" unknown); reason: why not the first. limited: that is a limit of
    the system, which an operator may raise."""

    mode: str = ""
    reason: str = ""
    limited: bool = False

    @classmethod
    def of(cls, watcher: Watcher) -> WatchingStatus:
        """Of a watcher of this process."""
        return cls(watcher.mode, watcher.reason, watcher.limited)

    @classmethod
    def from_map(cls, value: object) -> WatchingStatus:
        """Whatever a file holds; "" for what it does not."""
        about = value if isinstance(value, dict) else {}
        return cls(str(about.get("mode") or ""), str(about.get("reason") or ""), about.get("limited") is True)


EVENTS = WatchingStatus()  # nothing was said, as while all is well


class WatchNote:
    """Kept by a worker about itself."""

    def __init__(self, spool: Spool, worker: WorkerName) -> None:
        self._spool, self._path = spool, _path(spool, worker)
        self._told = WatchingStatus("inotify")

    def update(self, watcher: Watcher) -> str:
        """Tell what holds now; a sentence for the log when that is news, else ''."""
        if (watcher.mode, watcher.reason) == (self._told.mode, self._told.reason):
            return ""
        self._told = WatchingStatus.of(watcher)
        try:
            if self._told.reason:
                fsops.put(self._spool.temp(), self._path, [json.dumps(asdict(self._told)).encode()], sync=False)
            else:
                fsops.unlink(self._path, missing_ok=True)
        except OSError:
            pass  # a full disk: the log has it
        return f"watching by {self._told.mode}" + (f": {self._told.reason}" if self._told.reason else "")


def told(spool: Spool, worker: str) -> WatchingStatus:
    """What a worker said of itself; "" when it is woken by events."""
    try:
        return WatchingStatus.from_map(json.loads(fsops.read_bounded(_path(spool, worker), _MAX_BYTES)))
    except (OSError, ValueError):
        return EVENTS


def _path(spool: Spool, worker: WorkerName | str) -> str:
    return f"{spool.root}/run/slots/{worker}.watch"
