"""Every failure as an HTTP status and a message that is never empty, in the format of the API that was called.

/human, /health       {"code", "message", "data"}                        the digital-human service's envelope
/api/tempfile         {"success": false, "message"}
/v1                   {"error": {"message", "type", "param", "code"}}    the format of OpenAI's API
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

from pool.config.roots import OutsideRoots
from pool.errors import (
    Conflict,
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
from pool.format.invalid import complaint, sentence
from pool.gateways.tempfiles import UnknownFile
from pool.job import Failure

RETRY_AFTER_S = 5
#: Kind of a job's failure -> status for the client that waited for the job.
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
    (Conflict, 409),
    (UnknownJob, 404),
    (SpoolFull, 503),
    (PoolClosed, 503),
    (OperatorError, 503),
    (ProtocolError, 502),
)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True)
class Problem:
    """An error response. path: the key that is wrong. data: further fields for the formats that have `data`."""

    status: int
    type: str
    message: str
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None


def problem_of(error: BaseException) -> Problem:
    """The error response for an exception; 500 only for one that is not listed here."""
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
        return Problem(504, "Timeout", str(error) or "the request timed out")
    if isinstance(error, OSError):
        label = "NoRoom" if error.errno in _NO_ROOM else "SpoolError"
        message = f"the gateway's machine cannot do this now: {error.strerror or name}"
        return Problem(503, label, message, headers=retry_after())
    for kind, status in _STATUS:
        if isinstance(error, kind):
            headers = retry_after() if status == 503 else {}
            return Problem(status, name, str(error) or name, getattr(error, "path", ""), headers)
    return Problem(500, "InternalError", f"the gateway failed: {name}; see its log for the traceback")


def failed(job_id: str, failure: Failure) -> Problem:
    """The error response for a job that failed."""
    status = STATUS_OF_KIND.get(failure.kind, 502)
    headers = {"x-should-retry": "false"}  # for OpenAI's clients: the pool has used all attempts
    return Problem(status, "JobFailed", failure.describe(), headers=headers, data={"task_id": job_id})


def retry_after() -> dict[str, str]:
    """The header that asks a client to wait RETRY_AFTER_S seconds."""
    return {"Retry-After": str(RETRY_AFTER_S)}


def _invalid(error: RequestValidationError) -> Problem:
    """The error response for the first invalid value of a request; its path is the key that the client wrote."""
    found = [{**one, "loc": tuple(part for part in one["loc"][1:] if part != "")} for one in error.errors()]
    if any(one["loc"] == ("body",) for one in error.errors()):
        return Problem(422, "JobRefused", "the body must be a JSON object")
    first = next(iter(error.errors()), None)
    if first is None:
        return Problem(422, "JobRefused", "the request is not valid")
    if first["loc"][0] == "body":
        path, said = complaint(found, error.body)
    else:  # a key may be given several times, which pydantic counts
        path, said = ".".join(map(str, found[0]["loc"][:1])), sentence(found[0])
    return Problem(422, "JobRefused", f"{path}: {said}" if path else said, path)


def respond(path: str, problem: Problem) -> Response:
    """An error response in the format of the API that `path` belongs to."""
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
    """A JSON response from anything that a record may hold: arrays, bytes, NaN and lone surrogates are converted."""
    content = codec.to_json(body).encode("utf-8", "replace")
    return Response(content, status, headers=dict(headers or {}), media_type="application/json")
