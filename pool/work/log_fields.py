"""The fields that end every line a worker logs while it runs a job: the job's `log_context`, as key=value.

Lines of `logging` and of loguru, from any thread and through any handler, and lines of the worker itself. What is
printed, or written by native code, is no line of a log and stays as it is. A handler that writes JSON finds the same
fields as `log_context` of the record (logging) and in `extra` (loguru).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = re.compile(r"[^\s\"'=\\]+")
_NOTHING: Mapping[str, Any] = {}


class _Now:
    """The current fields. One object for the process, because engines log from threads of their own."""

    fields: Mapping[str, Any] = _NOTHING
    suffix = ""


_installed: set[str] = set()


def suffix() -> str:
    """The current end of a line; "" outside of a job."""
    return _Now.suffix


@contextlib.contextmanager
def bound(fields: Mapping[str, Any]) -> Iterator[None]:
    """Lines that are logged meanwhile carry these."""
    if not fields:
        yield
        return
    _install()
    before = _Now.fields, _Now.suffix
    _Now.fields, _Now.suffix = fields, text_of(fields)
    try:
        yield
    finally:
        _Now.fields, _Now.suffix = before


def text_of(fields: Mapping[str, Any]) -> str:
    """ " request=r-17 user=5"; text that holds blanks, quotes or = stands in quotes."""
    return "".join(f" {name}={_shown(value)}" for name, value in fields.items())


def shared(many: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The fields that all of these have in common: of jobs that run in one call, whose lines cannot be told apart."""
    first, *rest = many
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in rest)}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _install() -> None:
    """Called when the first job has fields: loguru is slow to import. An engine's own factory and patcher stay."""
    factory: Any = logging.getLogRecordFactory()
    if getattr(factory, "of_filepool", None) is None:
        logging.setLogRecordFactory(_Factory(factory))
    if "loguru" not in _installed:
        _installed.add("loguru")
        with contextlib.suppress(ImportError):  # an interpreter of the engine's own
            from loguru import logger

            core = getattr(logger, "_core", None)  # loguru has no other way to ask for the patcher
            logger.configure(patcher=_Patcher(getattr(core, "patcher", None)))


class _Factory:
    """Makes log records as another factory does, and adds the fields."""

    of_filepool = True

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def __call__(self, *args: Any, **named: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._factory(*args, **named)
        if _Now.fields:
            record.log_context = dict(_Now.fields)
            text = _Now.suffix.replace("%", "%%") if record.args else _Now.suffix
            record.msg = f"{record.msg}{text}"
        return record


class _Patcher:
    """Adds the fields to what loguru writes, after another patcher."""

    def __init__(self, patcher: Any) -> None:
        self._patcher = patcher

    def __call__(self, record: Any) -> None:
        if self._patcher is not None:
            self._patcher(record)
        if _Now.fields:
            record["extra"].update(_Now.fields)
            if not record["message"].endswith(_Now.suffix):  # an engine may send the lines of `logging` on to loguru
                record["message"] += _Now.suffix
