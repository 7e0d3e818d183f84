"""W3C trace context: what is one, whose it is, and that the environment is as it was; fields of log lines as text."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pool.format import trace_context
from pool.format.trace_context import TraceContext, carried, current, given, is_state, parse
from pool.work import log_fields

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (PARENT, PARENT),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future.brings", PARENT),  # a later version is read as far as ours goes
        (f"cc-{TRACE}-{SPAN}-09", PARENT),
        (f"{PARENT}-more", ""),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (PARENT.upper(), ""),
        (f"{PARENT}\n", ""),
        (f" {PARENT}", ""),
        (f"00-{TRACE[1:]}-{SPAN}-01", ""),
        (f"cc-{TRACE}-{SPAN}-01-{'x' * 500}", ""),
        ("", ""),
    ],
)
def test_a_traceparent(text: str, kept: str) -> None:
    assert str(parse(text) or "") == kept


@pytest.mark.parametrize(
    ("text", "well"),
    [
        ("", True),
        ("a=1", True),
        ("rojo=00f067, congo=t61rcWkgMzE", True),
        ("fw529a3039@dt=FfFf,,a=b ", True),
        (",".join(f"k{n}=v" for n in range(32)), True),
        (",".join(f"k{n}=v" for n in range(33)), False),
        ("a=1,a=2", False),
        ("A=1", False),
        ("a", False),
        ("a=", False),
        ("a=1=2", False),
        ("a=\u00e9", False),
        ("a=1\n", False),
        (f"a={'x' * 256}", True),
        (f"a={'x' * 257}", False),
        (f"a={'x' * 255},b={'x' * 255}", False),
    ],
)
def test_a_tracestate(text: str, well: bool) -> None:
    assert is_state(text) is well


@contextmanager
def serving(context: TraceContext | None) -> Iterator[None]:
    token = given.set(context)
    try:
        yield
    finally:
        given.reset(token)


def test_an_active_span_comes_before_what_the_request_said() -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    assert current() is None
    with serving(TraceContext(PARENT, "a=1")):
        assert current() == (PARENT, "a=1")
        state = trace.TraceState.from_header(["b=2"])
        span = trace.SpanContext(0xABC, 0xDEF, True, trace.TraceFlags(1), state)
        with trace.use_span(trace.NonRecordingSpan(span)):
            assert current() == (f"00-{0xABC:032x}-{0xDEF:016x}-01", "b=2")
        assert current() == (PARENT, "a=1")


def test_a_library_that_is_broken_costs_no_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trace_context.sys.modules, "opentelemetry.trace", object())  # type: ignore[arg-type]
    assert current() is None


def test_the_environment_is_afterwards_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACESTATE", raising=False)
    monkeypatch.setenv("TRACEPARENT", "of somebody else")
    before = dict(os.environ)
    with contextlib.suppress(ZeroDivisionError), carried(TraceContext(PARENT, "a=1")):
        assert (os.environ["TRACEPARENT"], os.environ["TRACESTATE"]) == (PARENT, "a=1")
        raise ZeroDivisionError
    assert dict(os.environ) == before
    with carried(TraceContext(PARENT)):
        assert "TRACESTATE" not in os.environ


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"request": "r-17", "user": 5}, " request=r-17 user=5"),
        ({"a": "two words", "b": 'a "b"', "c": "x=y", "d": ""}, ' a="two words" b="a \\"b\\"" c="x=y" d=""'),
        ({"on": True, "load": 0.5, "who": "日本"}, " on=true load=0.5 who=日本"),
    ],
)
def test_fields_as_text(fields: dict[str, Any], text: str) -> None:
    assert log_fields.text_of(fields) == text


def test_jobs_in_one_call_tell_what_they_share() -> None:
    assert log_fields.shared([{"a": 1, "b": 2}, {"b": 2, "a": 3}, {"b": 2}]) == {"b": 2}


def test_lines_of_any_factory_and_handler_carry_them_only_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()

    class Own(logging.LogRecord):
        pass

    logging.setLogRecordFactory(Own)
    try:
        with log_fields.bound({"share": "50%", "n": 1}):
            logging.warning("%d%% done", 20)
            logging.warning("plain")
        logging.warning("after %s", "it")
    finally:
        logging.setLogRecordFactory(before)
    assert [record.getMessage() for record in caplog.records] == [
        "20% done share=50% n=1",
        "plain share=50% n=1",
        "after it",
    ]
    assert caplog.records[0].log_context == {"share": "50%", "n": 1}  # type: ignore[attr-defined]
    assert all(isinstance(record, Own) for record in caplog.records)
