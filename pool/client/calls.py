"""What a caller of FilePool hands over, looked at before anything is done with it.

What belongs to a job is refused with JobRefused and its key. How long to wait is no part of a job: there a wrong type
is a TypeError, as for every future.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from pool.errors import JobRefused
from pool.job.terms import refused, shown

LONGEST_WAIT_S = 1e9  # beyond what locks and selectors take: no limit


def params_of(given: object, more: Mapping[str, Any], key: str = "params") -> dict[str, Any]:
    """The parameters of one call, from a mapping (None: none) and keyword arguments. Raises JobRefused."""
    if given is None:
        return dict(more)
    if not isinstance(given, Mapping):
        raise refused(given, key, "a mapping of parameters")
    for name in given:
        if not isinstance(name, str):
            raise refused(name, key, "a name of a parameter", "names are text")
        if name in more:
            raise JobRefused("given twice, in params and by keyword; keep one of them", f"{key}.{name}")
    return {**given, **more}


def calls_of(given: object) -> Iterator[dict[str, Any]]:
    """The parameters of many calls, one after another. Raises JobRefused, at once or when a bad one has its turn."""
    if isinstance(given, (str, bytes, bytearray, Mapping)) or not isinstance(given, Iterable):
        raise refused(given, "calls", "a list, or another iterable, of mappings", "one mapping for each call")
    return (_call(call, number) for number, call in enumerate(given))


def _call(given: object, number: int) -> dict[str, Any]:
    if given is None:  # params=None is "no parameters"; a None among many calls is a mistake
        raise refused(given, f"calls[{number}]", "a mapping of parameters")
    return params_of(given, {}, f"calls[{number}]")


def chunked(calls: Iterator[Mapping[str, Any]], size: int) -> Iterator[tuple[Mapping[str, Any], ...]]:
    """`size` calls at a time."""
    while chunk := tuple(islice(calls, size)):
        yield chunk


def seconds_to_wait(timeout: object, name: str = "timeout") -> float | None:
    """Seconds to wait, from 0; None: without limit, which infinity is, too. Raises TypeError, ValueError."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):
        raise TypeError(f"{name}: {shown(timeout)} is neither a number of seconds nor None")
    if timeout != timeout:
        raise ValueError(f"{name}: nan is no number of seconds")
    return None if timeout >= LONGEST_WAIT_S else max(0.0, float(timeout))  # type: ignore[operator]
