"""Every failure as a true HTTP status and a message that is never empty, in the form that the client knows.

/human, /health       {"code", "message", "data"}                        the digital-human service's envelope
/api/tempfile         {"success": false, "message"}
/v1                   {"error": {"message", "type", "param", "code"}}    as OpenAI's clients read it
everywhere else       {"error": {"type", "message", "path"}}             as `--json` of the command line
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pool.errors import (
    JobConflict,
    JobFailed,
    JobRefused,
    OperatorError,
    PoolClosed,
    ProtocolError,
    SpoolFull,
    UnknownEngine,
    UnknownJob,
)
from pool.format import codec
from pool.gateways.roots import OutsideRoots
from pool.gateways.tempfiles import UnknownFile
from pool.job import Failure

RETRY_AFTER_S = 5
#: What a job that failed is to the client that waited for it.
STATUS_OF_KIND = {
    "input": 422,
    "resource": 503,
    "timeout": 504,
    "expired": 504,
    "cancelled": 410,
    "dependency": 424,
    "engine": 502,
    "infrastructure": 502,
}
_STATUS = (
    (UnknownFile, 404),
    (OutsideRoots, 403),
    (UnknownEngine, 404),
    (JobRefused, 422),
    (JobConflict, 409),
    (UnknownJob, 404),
    (SpoolFull, 503),
    (PoolClosed, 503),
    (OperatorError, 503),
    (ProtocolError, 502),
)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True)
class Problem:
    """What a client is told. path: the key that is wrong. data: beside the message in the first envelope."""

    status: int
    type: str
    message: str
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None


def problem_of(error: BaseException) -> Problem:
    """The problem that an exception means; 500 only for what nobody foresaw."""
    name = type(error).__name__
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        message = str(error.detail or phrase)
        return Problem(error.status_code, phrase.replace(" ", ""), message, headers=dict(error.headers or {}))
    if isinstance(error, JobFailed):
        return failed(error.job_id, error.failure)
    if isinstance(error, TimeoutError):
        return Problem(504, "Timeout", str(error) or "it took too long")
    if isinstance(error, OSError):
        label = "NoRoom" if error.errno in _NO_ROOM else "SpoolError"
        message = f"this machine cannot do it now: {error.strerror or name}"
        return Problem(503, label, message, headers=retry_after())
    for kind, status in _STATUS:
        if isinstance(error, kind):
            headers = retry_after() if status == 503 else {}
            return Problem(status, name, str(error) or name, getattr(error, "path", ""), headers)
    return Problem(500, "InternalError", f"the gateway failed: {name}; its log has the rest")


def failed(job_id: str, failure: Failure) -> Problem:
    """The problem of a job that ended without a result."""
    status = STATUS_OF_KIND.get(failure.kind, 502)
    headers = {"x-should-retry": "false"}  # OpenAI's clients obey: the pool has tried it as often as it may
    return Problem(status, "JobFailed", failure.describe(), headers=headers, data={"task_id": job_id})


def retry_after() -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S)}


def _invalid(error: RequestValidationError) -> Problem:
    """The first thing that is wrong with a request, named as the client wrote it."""
    first = next(iter(error.errors()), {"loc": (), "msg": "the request cannot be read"})
    where = [str(part) for part in first["loc"]]
    path = ".".join(part for part in where[1:] if part) if len(where) > 1 else ""
    message = {"missing": "is required", "extra_forbidden": "is not known here"}.get(
        str(first.get("type")), str(first["msg"]).removeprefix("Value error, ")
    )
    if where == ["body"]:
        message = "a JSON object is expected as the body"
    return Problem(422, "JobRefused", f"{path}: {message}" if path else message, path)


def respond(path: str, problem: Problem) -> Response:
    """A problem in the form of the route that met it."""
    status, message = problem.status, problem.message.strip() or HTTPStatus(problem.status).phrase
    body: dict[str, Any]
    if path.startswith(("/human", "/health")):
        status = 400 if status == 422 and problem.type == "JobRefused" else status
        body = {"code": status, "message": message, "data": problem.data}
    elif path.startswith("/api/"):
        body = {"success": False, "message": message}
    elif path.startswith("/v1/"):
        status = 400 if status == 422 else status
        kind = "invalid_request_error" if status < 500 else "server_error"
        body = {"error": {"message": message, "type": kind, "param": problem.path or None, "code": problem.type}}
    else:
        body = {"error": {"type": problem.type, "message": message, "path": problem.path}}
        if problem.data is not None:
            body["error"]["data"] = problem.data
    return json_response(body, status, problem.headers)


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON of anything that a record may hold: arrays, bytes, NaN and broken text are bent into it."""
    content = codec.to_json(body).encode("utf-8", "replace")
    return Response(content, status, headers=dict(headers or {}), media_type="application/json")
