"""Every failure of the pool has a true status and a message, in the form of each client."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pool import errors
from pool.config.roots import OutsideRoots
from pool.gateways.http.errors import STATUS_OF_KIND, json_response, problem_of, respond
from pool.gateways.tempfiles import UnknownFile
from pool.job import Failure, FailureKind

CASES: list[tuple[BaseException, int]] = [
    (errors.JobRefused("no", "params.a"), 422),
    (errors.UnknownEngine("no engine"), 404),
    (OutsideRoots("outside"), 403),
    (UnknownFile("x"), 404),
    (errors.Conflict("other"), 409),
    (errors.JobConflict("x"), 409),
    (errors.UnknownJob("x"), 404),
    (errors.SpoolFull("full"), 503),
    (errors.PoolClosed("closed"), 503),
    (errors.ConfigError("wrong"), 503),
    (errors.SpoolError("wrong"), 503),
    (errors.SupervisorFailed("wrong"), 503),
    (errors.ProtocolError("damaged"), 502),
    (errors.ProtocolError(), 502),
    (OSError(errno.ENOSPC, "No space left on device"), 503),
    (PermissionError(errno.EACCES, "Permission denied"), 503),
    (OSError(), 503),
    (TimeoutError(), 504),
    (HTTPException(418), 418),
    (RequestValidationError([]), 422),
    (ZeroDivisionError(), 500),
]


@pytest.mark.parametrize(("error", "status"), CASES, ids=[repr(case[0])[:40] for case in CASES])
def test_each_error_has_its_status_and_words_everywhere(error: BaseException, status: int) -> None:
    problem = problem_of(error)
    assert problem.status == status
    if status == 503:
        assert int(problem.headers["Retry-After"]) > 0
    for path in ("/human/generate", "/api/tempfile/upload", "/v1/audio/transcriptions", "/jobs/x"):
        answer = respond(path, problem)
        body: Any = json.loads(bytes(answer.body))
        assert answer.status_code == (400 if status == 422 and path.startswith(("/human", "/v1")) else status)
        message = body["error"]["message"] if "error" in body else body["message"]
        assert message.strip()
        assert body.get("code", answer.status_code) == answer.status_code


def test_every_error_of_the_pool_is_foreseen() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PoolError)]
    bare = {errors.PoolError, errors.CallerError, errors.JobFailed, errors.EngineUnavailable, errors.NestedDeadlock}
    made = [*(kind("x") for kind in set(kinds) - bare), errors.EngineUnavailable("e", "why")]
    made.append(errors.NestedDeadlock("e", "j", [("i", "e-0.1", "j")]))
    for error in made:
        assert problem_of(error).status != 500, error


@pytest.mark.parametrize("kind", [kind.value for kind in FailureKind])
def test_every_kind_of_failure_has_a_status(kind: str) -> None:
    problem = problem_of(errors.JobFailed("j", Failure(kind, "")))
    assert problem.status == STATUS_OF_KIND[kind] != 500
    assert problem.message
    assert respond("/human/generate", problem).status_code == problem.status


def test_anything_becomes_json() -> None:
    import numpy as np

    odd = {"nan": float("nan"), "bytes": b"\xff", "array": np.zeros(3), "text": "\ud800", 5: {"deep": (1, 2)}}
    body = json.loads(bytes(json_response(odd).body))
    assert (body["nan"], body["5"]["deep"], body["text"]) == (None, [1, 2], "?")
