"""W3C trace context: the two texts by which a job belongs to a trace, and whose trace the caller is in.

    traceparent   00-<trace, 32 hex digits>-<span, 16>-<flags, 2>
    tracestate    key=value,key=value …: what vendors add to it

https://www.w3.org/TR/trace-context/. Nothing of OpenTelemetry is imported here; when the caller's program has done
so, the span that is active there is asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

STATE_CHARS, _MEMBERS = 512, 32
VARIABLES = ("TRACEPARENT", "TRACESTATE")  # by which programs hand it to programs that they start

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_KEY = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_VALUE = r"[ -+\--<>-~]{0,255}[!-+\--<>-~]"
_MEMBER = re.compile(f"({_KEY})={_VALUE}")


class TraceContext(NamedTuple):
    """What a caller says of its trace. tracestate: "" for none."""

    traceparent: str
    tracestate: str = ""


class Parent(NamedTuple):
    """A traceparent in numbers."""

    trace: int
    span: int
    flags: int

    def __str__(self) -> str:
        return f"00-{self.trace:032x}-{self.span:016x}-{self.flags:02x}"


#: Of the request that this thread or task serves; set by a gateway.
given: ContextVar[TraceContext | None] = ContextVar("filepool_trace_context", default=None)


def parse(text: str) -> Parent | None:
    """None when it is no traceparent. A later version is read as far as version 00 goes."""
    match = _PARENT.fullmatch(text) if len(text) <= STATE_CHARS else None
    if match is None or (match[1] == "00" and match[5]):
        return None
    return Parent(int(match[2], 16), int(match[3], 16), int(match[4], 16) & 3)


def is_state(text: str) -> bool:
    """Whether it is a tracestate: at most 32 members, 512 characters, no key twice."""
    members = [member.strip(" \t") for member in text.split(",")]
    found = [_MEMBER.fullmatch(member) for member in members if member]
    keys = [match[1] for match in found if match]
    return len(text) <= STATE_CHARS and len(keys) == len(found) == len(set(keys)) <= _MEMBERS


def current() -> TraceContext | None:
    """The trace that the caller is in: its active OpenTelemetry span, else what the request said that it serves."""
    api = sys.modules.get("opentelemetry.trace")
    if api is not None and (active := _active(api)) is not None:
        return active
    return given.get()


def _active(api: object) -> TraceContext | None:
    try:
        span = api.get_current_span().get_span_context()  # type: ignore[attr-defined]
        if not span.is_valid:
            return None
        state = span.trace_state.to_header()
        return TraceContext(
            str(Parent(span.trace_id, span.span_id, int(span.trace_flags) & 3)), state if is_state(state) else ""
        )
    except Exception:  # half imported, or a foreign span class: tracing must not cost a job
        return None


@contextlib.contextmanager
def carried(context: TraceContext) -> Iterator[None]:
    """Programs that are started meanwhile find the trace in their environment; afterwards it is as it was."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    _set_environment(dict(zip(VARIABLES, context)))  # noqa: B905 - old interpreters
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None] | dict[str, str]) -> None:
    for name, value in values.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
