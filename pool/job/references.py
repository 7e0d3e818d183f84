"""Results of other jobs among the parameters of a job: placeholders, which a worker fills in when it begins.

    pool.submit("lipsync", audio=speech["path"], video="person.mp4")       speech: a JobFuture
    {"audio": {"$result": "speech-7", "path": ["path"]}, "video": …}      the same in a dropped file, or over HTTP

A placeholder is a map of just these two keys. A job with one depends on the job that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union

from pool.errors import JobRefused
from pool.format.names import check_id

MARK = "$result"
_DEPTH = 64  # as the codec's

Key = Union[str, int]  # noqa: UP007 - old interpreters


class Referable:
    """What stands for the result of a job, and with [key] for a part of it."""

    id: str
    # or iter() and `in` would try 0, 1, 2 … without end
    __iter__ = None
    __contains__ = None

    def __getitem__(self, key: Key) -> ResultRef:
        return ResultRef(self.id, (*self._keys(), key))

    def _keys(self) -> tuple[Key, ...]:
        return ()

    def placeholder(self) -> dict[str, Any]:
        """The map that stands for it in a job file."""
        return {MARK: self.id, "path": list(self._keys())}


@dataclass(frozen=True)
class ResultRef(Referable):
    """A part of the result of job `id`: `result[keys[0]][keys[1]] …`"""

    id: str
    keys: tuple[Key, ...] = ()

    def _keys(self) -> tuple[Key, ...]:
        return self.keys


class MissingPart(Exception):
    """The result has no such part. The message says what it has."""

    def __init__(self, job_id: str, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id


def result_of(job: str | Referable, *keys: Key) -> ResultRef:
    """The result of a job, by id or future, or the part of it that the keys lead to."""
    inner = job._keys() if isinstance(job, Referable) else ()
    return ResultRef(check_id(job.id if isinstance(job, Referable) else job), (*inner, *keys))


def pack(params: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The parameters with placeholders for what is Referable, and the jobs that they name. Raises JobRefused."""
    if are_plain(params):
        return params, ()
    found: dict[str, None] = {}
    packed = {key: _pack(value, f"params.{key}", found, 0) for key, value in params.items()}
    return packed, tuple(found)


def are_plain(params: Mapping[str, Any]) -> bool:
    """Whether no value holds others, or stands for something else."""
    return _PLAIN.issuperset(map(type, params.values()))


def paths(value: Any, at: tuple[Key, ...] = ()) -> list[tuple[Key, ...]]:
    """Where placeholders stand."""
    if is_placeholder(value):
        return [at]
    if len(at) > _DEPTH or type(value) in _PLAIN:
        return []
    items: Iterable[tuple[Key, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    return [path for key, item in items for path in paths(item, (*at, key))]


def fill(value: Any, result: Callable[[str], Any]) -> Any:
    """The value with results in place of placeholders. result: of a job by id. Raises MissingPart."""
    if is_placeholder(value):
        return _part(value[MARK], value["path"], result(value[MARK]))
    if isinstance(value, Mapping):
        return {key: fill(item, result) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill(item, result) for item in value]
    return value


def is_placeholder(value: Any) -> bool:
    """Whether a value stands for the result of another job."""
    return isinstance(value, Mapping) and value.keys() == {MARK, "path"}


_PLAIN = frozenset({str, int, float, bool, type(None), bytes})


def _pack(value: Any, at: str, found: dict[str, None], depth: int) -> Any:
    if type(value) in _PLAIN or depth > _DEPTH:  # the codec refuses what is deeper
        return value
    if isinstance(value, Referable):
        value = value.placeholder()
    if isinstance(value, dict):
        if MARK in value:
            _check(value, at)
            found[value[MARK]] = None
            return value
        return {key: _pack(item, f"{at}.{key}", found, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_pack(item, f"{at}.{number}", found, depth + 1) for number, item in enumerate(value)]
    return value


def _check(value: Mapping[str, Any], at: str) -> None:
    keys = value.get("path")
    good = is_placeholder(value) and isinstance(keys, (list, tuple)) and all(type(key) in (str, int) for key in keys)
    if not good:
        raise JobRefused(f'the result of another job is {{"{MARK}": its id, "path": [keys and numbers]}}', at)
    try:
        check_id(value[MARK])
    except JobRefused as error:
        raise JobRefused(str(error).partition(": ")[2], f"{at}.{MARK}") from None


def _part(job_id: str, keys: list[Key], value: Any) -> Any:
    for number, key in enumerate(keys):
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            where = "".join(f"[{step!r}]" for step in keys[:number])
            if isinstance(value, Mapping):
                has = f"it has {', '.join(map(repr, value))}" if value else "it is empty"
            else:
                has = f"it is a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list) else "")
            raise MissingPart(job_id, f"the result{where} of job {job_id} has no {key!r}: {has[:400]}") from None
    return value
