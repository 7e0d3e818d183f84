"""Moments as people give them, and what the spool makes of them: µs of its own clock.

    3600 · timedelta(hours=1) · "90s" · "2h" · "1.5d"       from now
    datetime with a time zone · "2030-01-31T08:00:00+01:00"   by the wall clock at the time of asking

Once a job is accepted its moments are on the spool clock: a wall clock that jumps moves none of them.
"""

from __future__ import annotations

import datetime
import math
import numbers
import re
from typing import Any, Union

from pool.errors import JobRefused
from pool.system.clock import REAL

FARTHEST_S = 1e9  # 31 years: what names of files hold, and no typing error

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|m|min|h|d)?")
_UNIT_S = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_WANTED = 'seconds from now, a duration as "2h" or "1d", or a date and time with a time zone'


class SpoolTime(int):
    """µs of the spool clock: a moment that is fixed."""


Moment = Union[SpoolTime, float, datetime.datetime]  # noqa: UP007 - old interpreters; float: seconds from now
Given = Union[Moment, str, datetime.timedelta]  # noqa: UP007


def moment(value: Any, key: str) -> Moment:
    """A moment as a caller gives it. Raises JobRefused with the key."""
    if isinstance(value, SpoolTime):
        return value
    if isinstance(value, str):
        value = _read(value, key)
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    if isinstance(value, datetime.datetime):
        if value.utcoffset() is None:
            raise JobRefused(
                f"{value.isoformat()} has no time zone, so it is a different moment on every machine: use "
                "datetime.now(timezone.utc) + …, or value.astimezone() for the local time",
                key,
            )
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        seconds = _float(value)
        if not 0 <= seconds <= FARTHEST_S:
            raise JobRefused(f"{ascii(value)[:40]} is not between 0 and {FARTHEST_S:g} seconds from now", key)
        return seconds
    raise JobRefused(f"{ascii(value)[:60]} ({type(value).__name__}) is no moment: give {_WANTED}", key)


def _float(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _read(text: str, key: str) -> float | datetime.datetime:
    match = _DURATION.fullmatch(text.strip())
    if match is not None:
        return float(match[1]) * _UNIT_S[match[2]]
    try:
        return datetime.datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text.strip()))
    except ValueError:
        raise JobRefused(f"{ascii(text)[:60]} is no moment: give {_WANTED}", key) from None


def fix(value: Given, now: int, key: str) -> SpoolTime:
    """The moment on the spool clock, of which it is `now`. A date in the past stays there. Raises JobRefused."""
    value = moment(value, key)
    if isinstance(value, SpoolTime):
        return value
    away_s = value.timestamp() - REAL.wall() if isinstance(value, datetime.datetime) else value
    if away_s > FARTHEST_S:
        raise JobRefused(f"{value} is more than {FARTHEST_S:g} seconds from now", key)
    return SpoolTime(max(0, now + int(away_s * 1e6)))
