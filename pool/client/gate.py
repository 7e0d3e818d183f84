"""Back-pressure: a submit is refused before it fills the disk, or the queue without end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from pool.config.settings import Config
from pool.errors import SpoolFull
from pool.spool.placement import count_later
from pool.spool.store import Spool

_BELIEVED_S = 0.5  # how long a look at queue length and free space is believed
_SHARE = 20  # a count that took t is not repeated before 20 t have passed


class Gate:
    """Counts what waits and what is free, not more often than that pays. full: why those who take the jobs of this
    spool elsewhere take no more, "" while they do."""

    def __init__(self, config: Config, spool: Spool, full: Callable[[], str]) -> None:
        self._config, self._spool, self._full = config, spool, full
        self._waiting: dict[tuple[str, bool], tuple[float, int]] = {}  # -> (believed until, how many)
        self._space = (0.0, 0, "")  # (believed until, bytes, why the cluster is full)

    def admit(self, engine: str, count: int, *, later: bool = False) -> None:
        """Raises SpoolFull when `count` more jobs for an engine are too many. later: jobs that wait for their time."""
        now = time.monotonic()
        if now >= self._space[0]:
            self._space = (now + _BELIEVED_S, self._free_bytes(), self._full())
        if self._space[2]:
            raise SpoolFull(f"the cluster takes no more jobs now: {self._space[2]}: submit again later")
        if self._space[1] < self._config.min_free_mb << 20:
            raise SpoolFull(
                f"{self._space[1] >> 20} MB free on the disk of {self._spool.root}, less than min_free_mb "
                f"({self._config.min_free_mb}): free some space, then submit again"
            )
        key = (engine, later)
        until, known = self._waiting.get(key, (0.0, 0))
        if now >= until:
            known = count_later(self._spool, engine) if later else len(self._spool.list_ready(engine))
            until = now + max(_BELIEVED_S, _SHARE * (time.monotonic() - now))
        if known + count > self._config.max_ready:
            raise SpoolFull(
                f"{known} jobs {'of' if later else 'wait for'} {engine}{' wait for their time' if later else ''}, "
                f"max_ready is {self._config.max_ready}: wait, or add workers"
            )
        self._waiting[key] = (until, known + count)

    def _free_bytes(self) -> int:
        if not hasattr(os, "statvfs"):  # pragma: no cover - other platforms
            import shutil

            return shutil.disk_usage(self._spool.root).free
        info = os.statvfs(self._spool.root)
        return info.f_bavail * info.f_frsize
