"""What is said of messages that are no good: a few lines a minute, and how many more there were, so that a flood of
them does not fill the log."""

from __future__ import annotations

import time

from loguru import logger

_LINES = 10
_EACH_S = 60.0
_LINE_CHARS = 500


class Dropped:
    """Says why something was dropped. Used on one event loop."""

    def __init__(self) -> None:
        self._since, self._said, self._left_out = -_EACH_S, 0, 0

    def __call__(self, what: str, why: object) -> None:
        """what: the message, and what becomes of it. why: the reason."""
        now = time.monotonic()
        if now - self._since >= _EACH_S:
            if self._left_out:
                logger.error("{} more were dropped in the last {:.0f} s", self._left_out, now - self._since)
            self._since, self._said, self._left_out = now, 0, 0
        if self._said == _LINES:
            self._left_out += 1
            return
        self._said += 1
        logger.error("{}", f"{what}: {why}"[:_LINE_CHARS])
        if self._said == _LINES:
            logger.error("more of such lines are left out for a minute")
