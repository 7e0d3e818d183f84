"""Lengths of time as people write them."""

from __future__ import annotations

import re

from pool.errors import JobRefused

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def span(text: str, key: str) -> float:
    """Seconds of "90s", "30m", "24h", "7d", "2w" or a plain number. Raises JobRefused with `key`."""
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise JobRefused(f"{text!r} is no time: write for example 90s, 30m, 24h, 7d", key)
    return float(match[1]) * _UNITS[match[2]]
