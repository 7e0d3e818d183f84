"""A job as server-sent events, from its current state to its result."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pool.client.follow import Event, Follower, Notice, Part, Setback
from pool.client.future import JobFuture
from pool.errors import EngineUnavailable
from pool.format import codec
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.views import stages_of

END = "end"  # the id of the last event
_LOOK_S = 0.2
HEARTBEAT_S = 10.0
HEARTBEAT = ": keep-alive\n\n"


@dataclass(frozen=True)
class Sent:
    """One event. id: to send as Last-Event-ID, "" of an event that a client gets again when it reconnects."""

    name: str
    body: dict[str, Any]
    id: str = ""


async def stream(desk: Desk, future: JobFuture, last_event_id: str, prefix: str) -> AsyncIterator[str]:
    """The events of one job as text. last_event_id: from a client that reconnects; partial results up to it are left
    out. prefix: of the URLs of its files."""
    sent_at = time.monotonic()
    yield "retry: 1000\n\n"
    async for event in follow(desk, future, last_event_id, prefix):
        if event is not None:
            sent_at = time.monotonic()
            yield text_of(event.name, event.body, event.id)
        elif time.monotonic() - sent_at >= HEARTBEAT_S:
            sent_at = time.monotonic()
            yield HEARTBEAT


async def follow(desk: Desk, future: JobFuture, last_event_id: str, prefix: str) -> AsyncIterator[Sent | None]:
    """The events of one job, None after each look. Ends after `result` or `unavailable`, and without either when the
    gateway leaves."""
    follower = Follower(desk.pool, future, desk.status)
    encoder = _Encoder(last_event_id)
    while True:
        over = future.decided
        for event in await in_thread(follower.poll):
            if found := encoder.encode(event):
                yield found
        if over:
            break
        yield None
        if desk.leaving:  # the client connects again
            return
        await desk.wait(future, _LOOK_S)
    yield await in_thread(lambda: _result(desk, future, prefix))


class _Encoder:
    """Makes what is sent of the events of a Follower."""

    def __init__(self, last_event_id: str) -> None:
        self._status = ""
        self._attempt, self._number = 1, 0
        attempt, _, number = last_event_id.partition(".")
        self._seen = (int(attempt), int(number)) if attempt.isdecimal() and number.isdecimal() else (0, 0)

    def encode(self, event: Event) -> Sent | None:
        """What is sent, None when the client has it already."""
        if isinstance(event, Part):
            self._number += 1
            if (self._attempt, self._number) <= self._seen:
                return None
            body = {"attempt": self._attempt, "number": self._number, "record": event.record}
            return Sent("partial", body, f"{self._attempt}.{self._number}")
        if isinstance(event, Setback):
            self._attempt, self._number = event.failure.attempt + 1, 0
            return Sent("setback", {"failure": event.failure.to_map()})
        if isinstance(event, Notice):
            return Sent("notice", {"message": event.text})
        name = "progress" if event.status == self._status else "status"
        self._status = event.status
        word: dict[str, Any] = {"status": event.status, "percent": event.percent, "message": event.message}
        word["attempt"] = event.attempt
        if name == "status" and event.stages:
            word["stages"] = [one.model_dump() for one in stages_of(event.stages)]
            word["stages_left_out"] = event.stages.left_out
        return Sent(name, word)


def _result(desk: Desk, future: JobFuture, prefix: str) -> Sent:
    record = future.record
    if record is None:
        error = future.exception(0)
        if isinstance(error, EngineUnavailable):  # without an id: a client that reconnects follows the job further
            about = {"engine": error.engine, "reason": error.reason, "hint": error.hint}
            return Sent("unavailable", {"id": future.id, "state": "queued", "message": str(error), **about})
        message = str(error) or "the record cannot be read"
        return Sent("result", {"id": future.id, "state": "unknown", "message": message}, END)
    return Sent("result", desk.outcome(record, prefix).to_map(), END)


def text_of(name: str, body: dict[str, Any], event_id: str = "") -> str:
    """A server-sent event."""
    data = json.dumps(json.loads(codec.to_json(body)))  # one line, as the format requires
    return f"event: {name}\ndata: {data}\n{f'id: {event_id}' + chr(10) if event_id else ''}\n"
