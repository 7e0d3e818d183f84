"""Redis comes and goes: said once each, however many threads notice."""

from __future__ import annotations

import threading
import time

from loguru import logger


class Outage:
    """Whether Redis is away, as all threads see it together. address: for people."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._since: float | None = None

    def begins(self, error: Exception) -> None:
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                logger.warning("Redis at {} is away ({}); jobs go on, it is tried again", self._address, error)

    def over(self) -> None:
        with self._lock:
            if self._since is not None:
                logger.info("Redis at {} is back after {:.1f} s", self._address, time.monotonic() - self._since)
                self._since = None
