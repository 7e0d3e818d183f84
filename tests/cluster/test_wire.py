"""Messages of the cluster: what is sent comes back, and whatever else arrives is refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from fuzz.mutate import mutations
from hypothesis import example, given
from hypothesis import strategies as st

from pool.cluster import wire
from pool.cluster.local import Errand
from pool.cluster.wire import Blob, End, EngineState, Event, Hold, Identity, JobKey, Lost, NodeState, Order
from pool.errors import ProtocolError
from pool.format import codec

ORIGIN, SHA = "0123456789abcdef" * 2, "a1" * 32
KEY = JobKey(ORIGIN, "job-1", 3)
JOB = {"id": "job-1", "engine": "fake", "params": {"value": [1, {"a": b"x"}]}}
LOST = Lost("first", 1, 1.5, 2)
BLOB = Blob(SHA, 7, "a.bin")
STATE = NodeState(
    "n", ORIGIN, "h", "1.0", 30.0, ("gpu",), True, 3, {"fake": EngineState(1, 1, 0, 2, "why")}, ({"slot": "fake-0"},)
)
MESSAGES: list[Any] = [
    Order(KEY, JOB, ("gpu",), 4.0, True),
    Identity(ORIGIN, "fake", 4, "digest"),
    Hold("n", ORIGIN, 2, "$JS.ACK.x", (LOST,), 3),
    End(KEY, "n", 2, b"record", BLOB, (BLOB,), (BLOB,), (LOST,)),
    Event(3, "n", 1, "progress", 2, ["inference", 50.0, "text"], [0, ["inference", 5]], 1_795_000_000_000_000),
    STATE,
]
KINDS = [type(message) for message in MESSAGES]
named = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from([ORIGIN, SHA, str(KEY), "fake", "../x", "a b", "x\r\nPUB y 0", 2**62, 10**14, "any"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def refused_or_whole(kind: Any, data: bytes) -> None:
    """It is no message, or one that can be sent on."""
    try:
        value = kind.unpack(data)
    except ProtocolError:
        return
    assert kind.unpack(value.pack()) == value or "nan" in repr(value)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_sent_comes_back(message: Any) -> None:
    assert type(message).unpack(message.pack()) == message


@named
def test_mutations_are_refused_or_whole(kind: Any) -> None:
    seeds = [message.pack() for message in MESSAGES]
    for data in mutations(seeds, KINDS.index(kind), 3000):
        refused_or_whole(kind, data)


@named
@given(data=st.data())
def test_any_value_under_any_name(kind: Any, data: st.DataObject) -> None:
    """A valid message with some of its values replaced, removed, or more than there should be."""
    whole = codec.decode(MESSAGES[KINDS.index(kind)].pack())
    for name in data.draw(st.sets(st.sampled_from(sorted(whole)), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            whole[name] = data.draw(VALUES)
        else:
            del whole[name]
    whole[data.draw(st.text(max_size=4))] = data.draw(VALUES)
    refused_or_whole(kind, msgpack.packb(whole))


@given(value=VALUES)
def test_parts_of_messages(value: Any) -> None:
    for take in (Blob.from_map, EngineState.from_map, JobKey.parse):
        with suppress(ProtocolError):
            take(value)


@given(text=st.text() | VALUES.map(lambda value: json.dumps(value, default=repr)))
def test_notes_of_jobs_on_a_node(text: str) -> None:
    try:
        errand = Errand.of_note(text)
    except ProtocolError:
        return
    assert Errand.of_note(errand.note()) == errand


@pytest.mark.parametrize(
    "key", ["x", f"{ORIGIN}.a.b", f"{ORIGIN}.a", f"{ORIGIN}.a.1\n", f"{ORIGIN}.a.-1", f"{ORIGIN}.a.²"]
)
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ProtocolError):
        JobKey.parse(key)


NOT_A_NUMBER = float("nan")


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (Identity(ORIGIN, "fake"), {"engine": "../../x"}),
        (Identity(ORIGIN, "fake"), {"run": 10_000}),
        (Hold("n", ORIGIN, 1, "r"), {"spool": "x\r\nPUB filepool.events.y 0\r\n"}),
        (Hold("n", ORIGIN, 1, "r"), {"spool": "*"}),
        (Hold("n", ORIGIN, 1, "r"), {"delivery": -1}),
        (Hold("n", ORIGIN, 1, "r", (LOST,)), {"lost": [LOST.to_map()] * 10_000}),
        (End(KEY, "n", 1), {"lost": [LOST.to_map()] * 10_000}),
        (End(KEY, "n", 1), {"delivery": 2**62}),
        (Event(0, "n", 1, "progress"), {"attempt": -1}),
        (Event(0, "n", 1, "progress"), {"number": 2**62}),
        (Event(0, "n", 1, "progress"), {"at": -1}),
        (Event(0, "n", 1, "progress"), {"at": NOT_A_NUMBER}),
        (Event(0, "n", 1, "progress"), {"run": NOT_A_NUMBER}),
        (Event(0, "n", 1, "progress"), {"kind": ["progress"]}),
        (STATE, {"name": "x" * 1000}),
        (STATE, {"name": "a/b"}),
        (STATE, {"lease_s": 1e14}),
        (STATE, {"lease_s": NOT_A_NUMBER}),
        (STATE, {"labels": ["a b"]}),
        (Order(KEY, JOB), {"job": {**JOB, "engine": "Fake/.."}}),
        (Order(KEY, JOB), {"job": {**JOB, "id": "other"}}),
        (Order(KEY, JOB), {"labels": ["a"] * 10_000}),
        (Order(KEY, JOB), {"labels": ["a.b"]}),
        (Order(KEY, JOB), {"expires_s": NOT_A_NUMBER}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else type(value).__name__,
)
def test_what_is_refused(message: Any, change: dict[str, Any]) -> None:
    whole = {**codec.decode(message.pack()), **change}
    with pytest.raises(ProtocolError):
        type(message).unpack(msgpack.packb(whole))


def test_long_texts_of_a_node_are_cut() -> None:
    whole = codec.decode(STATE.pack())
    long = "x" * 20_000
    whole |= {"host": long, "version": long}
    whole["engines"]["fake"]["trouble"] = long
    whole["engines"]["not/an/engine"] = whole["engines"]["fake"]
    whole["slots"] = [{"slot": "fake-0", "message": long, long: 1, "deep": {"a": [long, [[[long]]]]}}] * 100
    state = NodeState.unpack(msgpack.packb(whole))
    assert len(state.pack()) < 500_000
    assert list(state.engines) == ["fake"]


@pytest.mark.parametrize("text", ["", "filepool.jobs.fake.any", "filepool.jobs.fake.any.urgent", "x.jobs.fake.any.low"])
def test_what_is_no_subject_of_jobs(text: str) -> None:
    assert wire.parse_subject(text) is None


LABELS = st.frozensets(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,7}", fullmatch=True) | st.sampled_from(["any", "a-and-b"]), max_size=3
)
QUEUES = st.tuples(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), LABELS, st.sampled_from(wire.URGENCIES))


@given(QUEUES)
@example(("echo", frozenset({"any"}), "normal"))
def test_a_subject_says_what_it_was_made_of(queue: tuple[str, frozenset[str], str]) -> None:
    assert wire.parse_subject(wire.subject(*queue)) == queue


@given(st.lists(QUEUES, unique=True, max_size=8))
@example([("echo", frozenset({"a-and-b"}), "normal"), ("echo", frozenset({"a", "b"}), "normal")])
@example([("echo", frozenset({"any"}), "low"), ("echo", frozenset(), "low")])
def test_each_queue_has_a_subject_and_a_consumer_of_its_own(queues: list[tuple[str, frozenset[str], str]]) -> None:
    for name in (wire.subject, wire.consumer):
        assert len({name(*queue) for queue in queues}) == len(queues)


def test_a_consumer_of_many_labels_has_a_name_that_the_servers_take() -> None:
    many = [frozenset(f"{'x' * 60}{number}" for number in range(first, first + 30)) for first in range(2)]
    names = {wire.consumer("echo", labels, "normal") for labels in many}
    assert len(names) == 2
    assert all(len(name) <= 255 for name in names)


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


@named
@pytest.mark.parametrize(
    "make",
    [lambda: nested(500), lambda: nested(100_000), lambda: b"\xdf\xff\xff\xff\xff", lambda: b"\xc6\x7f\xff\xff\xff"],
    ids=["deep", "deeper", "large map", "large bytes"],
)
def test_bombs(kind: Any, make: Callable[[], bytes]) -> None:
    with pytest.raises(ProtocolError):
        kind.unpack(b"\x82\xa1v\x01\xa1x" + make())
