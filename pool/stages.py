"""Which statuses an engine reported in one attempt, and when. Knows nothing else of the pool."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

STAGES_MOST = 64  # changes of status that one attempt keeps; the rest is counted
_STATUS_CHARS = 64
TIME_MOST = 10**17  # µs; every time is below


class Stage(NamedTuple):
    """A status and when it began, µs of the spool clock; it lasts until the next one, or the end of the attempt."""

    status: str
    at: int


@dataclass(frozen=True)
class Stages:
    """The first STAGES_MOST changes of status in order. left_out: how many came after them."""

    changes: tuple[Stage, ...] = ()
    left_out: int = 0

    def __bool__(self) -> bool:
        return bool(self.changes)

    def moved(self, by: int) -> Stages:
        """The same at another time: by, in µs, is added to each."""
        return replace(self, changes=tuple(Stage(one.status, moved(one.at, by)) for one in self.changes))

    def to_list(self) -> list[Any]:
        """As it is stored: [left_out, [status, at], …]."""
        return [self.left_out, *map(list, self.changes)]

    @classmethod
    def from_list(cls, value: Any) -> Stages:
        """From what is stored. Raises ValueError."""
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= STAGES_MOST + 1:
            raise ValueError("stages: not a list of stages")
        left_out, *changes = value
        if not is_time(left_out) or not all(map(_is_stage, changes)):
            raise ValueError("stages: one of them is wrong")
        return cls(tuple(Stage(*one) for one in changes), left_out)


NO_STAGES = Stages()


def moved(time: int, by: int) -> int:
    """A time in µs, by µs later, within what a time may be; never 0, which says that it is not known."""
    return min(TIME_MOST - 1, max(1, time + by))


def is_time(value: Any) -> bool:
    """Whether it can be one, in µs."""
    return type(value) is int and 0 <= value < TIME_MOST


def _is_stage(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return isinstance(value[0], str) and 0 < len(value[0]) <= _STATUS_CHARS and is_time(value[1])
