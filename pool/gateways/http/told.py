"""What the streams of server-sent events say, for the OpenAPI document: each event with the schema of its data.

OpenAPI 3.1 has no place for the items of a stream: they stand in `x-itemSchema`, written as 3.2 has its `itemSchema`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from pool.client.status import PoolStatus
from pool.gateways.http.shapes import Engines, JobList, JobWalk, Outcome, StageView

Schema = dict[str, Any]


class Standing(BaseModel):
    """Where a job stands. status: as the engine reports it; percent: 0-100."""

    status: str
    percent: float
    message: str
    attempt: int


class Status(Standing):
    """The status is another one. stages, stages_left_out: of the attempt so far, as in a job."""

    stages: list[StageView] = []
    stages_left_out: int = 0


class PartialResult(BaseModel):
    """A part of the result, before its end. number: from 1 on, of the attempt."""

    attempt: int
    number: int
    record: Any


class AttemptFailed(BaseModel):
    """An attempt failed, and the job goes on. failure: as in a job that has failed."""

    failure: dict[str, Any]


class Notice(BaseModel):
    """What a person who waits should know."""

    message: str


class Unreadable(BaseModel):
    """The job has ended, but its record cannot be read."""

    id: str
    state: Literal["unknown"]
    message: str


class Unavailable(BaseModel):
    """No worker of the engine can run: the stream ends, the job stays."""

    id: str
    state: Literal["queued"]
    message: str
    engine: str
    reason: str
    hint: str


class Overview(JobList):
    """An overview of jobs. of: its place in the query, from 0."""

    of: int


class Walk(JobWalk):
    """The first page of a list. of: its place in the query, from 0."""

    of: int


class Gone(BaseModel):
    """There is no such job, or it cannot be followed. of: its place in the query, from 0. status: as of a response."""

    of: int
    status: int
    message: str


_OF_JOB: dict[str, Any] = {
    "status": Status,
    "progress": Standing,
    "partial": PartialResult,
    "setback": AttemptFailed,
    "notice": Notice,
    "result": Outcome | Unreadable,
    "unavailable": Unavailable,
}
_OF_POOL: dict[str, Any] = {"status": PoolStatus, "engines": Engines, "list": Overview | Walk, "gone": Gone}
_IDS = ("partial", "result")  # events that a client who reconnects names
_TEXT = {"type": "string"}


def job_events() -> Schema:
    """The response of a stream that follows one job."""
    return _response([_item(name, schema, name in _IDS) for name, schema in _schemas(_OF_JOB)[0].items()])


def pool_events() -> Schema:
    """The response of a stream that follows the pool, lists and jobs."""
    job = {"oneOf": [_job(name, schema) for name, schema in _schemas(_OF_JOB)[0].items()]}
    found = {**_schemas(_OF_POOL)[0], "job": job}
    return _response([_item(name, schema, False) for name, schema in found.items()])


def definitions() -> Schema:
    """The schemas to which these responses refer, by their names."""
    return {**_schemas(_OF_JOB)[1], **_schemas(_OF_POOL)[1]}


def _schemas(kinds: dict[str, Any]) -> tuple[dict[str, Schema], Schema]:
    """(schema of each, definitions)."""
    inputs = [(name, "serialization", TypeAdapter(kind)) for name, kind in kinds.items()]
    found, about = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    return {name: schema for (name, _), schema in found.items()}, about["$defs"]


def _job(name: str, schema: Schema) -> Schema:
    """An event of a job within a stream of several."""
    fields = {"of": {"type": "integer"}, "event": {"const": name}, "id": _TEXT, "data": schema}
    return {"type": "object", "properties": fields, "required": list(fields)}


def _item(name: str, schema: Schema, has_id: bool) -> Schema:
    """One event, in the form in which OpenAPI 3.2 describes them."""
    data = {**_TEXT, "contentMediaType": "application/json", "contentSchema": schema}
    fields = {"event": {"const": name}, "data": data, **({"id": _TEXT} if has_id else {})}
    return {"type": "object", "properties": fields, "required": ["event", "data"]}


def _response(items: list[Schema]) -> Schema:
    content = {"text/event-stream": {"schema": _TEXT, "x-itemSchema": {"oneOf": items}}}
    return {"content": content, "description": "Server-sent events"}
