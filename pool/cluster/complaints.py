"""Complaints about what goes on for long: each reason is logged once, and after that once a minute at most."""

from __future__ import annotations

import time
from collections.abc import Callable

from loguru import logger

_EACH_S = 60.0


class Complaints:
    """Says what is wrong. now: a clock, in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._said: dict[str, tuple[float, int]] = {}  # reason -> when it was said, how often it came since

    def __call__(self, reason: str, text: str) -> None:
        """Log `text`, with how often it was not, unless something was logged for the same reason in the last minute."""
        now = self._now()
        at, left_out = self._said.get(reason, (-_EACH_S, 0))
        if now - at < _EACH_S:
            self._said[reason] = (at, left_out + 1)
            return
        self._said = {other: said for other, said in self._said.items() if now - said[0] < 2 * _EACH_S}
        self._said[reason] = (now, 0)
        logger.warning("{}", f"{text} (and {left_out} more times since it was said last)" if left_out else text)

    def forget(self) -> None:
        """All is well again: what comes next is news."""
        self._said.clear()
