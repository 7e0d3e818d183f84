"""POST /v1/audio/transcriptions, compatible with OpenAI's API, run by the transcription engine."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from pool.client.future import JobFuture
from pool.errors import JobConflict, JobRefused, UnknownJob
from pool.gateways.http import transcripts
from pool.gateways.http.asks import Ask, digest, given_key, key_of
from pool.gateways.http.bodies import Form
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import json_response, retry_after
from pool.gateways.http.shapes import OpenAIFailed, responses
from pool.gateways.http.tempfile import FILE, form
from pool.job import JobState

_TEXT = {"type": "string"}
_FIELDS: dict[str, dict[str, Any]] = {
    "language": {**_TEXT, "description": "language code such as en; default: detected"},
    "prompt": {**_TEXT, "description": "names and terms to expect"},
    "response_format": {**_TEXT, "enum": list(transcripts.FORMATS), "default": "json"},
    "temperature": {"type": "number", "description": "accepted and ignored"},
    "timestamp_granularities[]": {"type": "array", "items": {**_TEXT, "enum": ["word", "segment"]}},
    "stream": {"type": "boolean", "description": "accepted and ignored, as with whisper-1"},
}
_GRANULARITIES = "timestamp_granularities"
_AUDIO = ("audio", "video")


def make_routes(desk: Desk) -> APIRouter:
    """The routes below /v1/audio."""
    router = APIRouter(prefix="/v1/audio", tags=["speech"])
    engine = desk.settings.transcribe

    @router.post(
        "/transcriptions",
        summary="Speech to text",
        response_class=Response,
        responses={
            200: {
                "content": {"application/json": {"schema": {"type": "object"}}, "text/plain": {"schema": _TEXT}},
                "description": "The transcript",
            },
            **responses(OpenAIFailed, 400, 403, 408, 410, 413, 415, 502, 503, 504),
        },
        openapi_extra=form(
            {**FILE, "model": {**_TEXT, "description": "any text: the pool's engine is used"}}, **_FIELDS
        ),
    )
    async def transcriptions(request: Request) -> Response:
        """The same request again, by the same client, waits for the same job until it has been answered: by the
        Idempotency-Key header, else by the content. A job whose client leaves and does not return is cancelled. The
        upload is removed once the job is over."""
        if lacks := await in_thread(lambda: desk.lacks(engine)):
            raise HTTPException(503, lacks, retry_after())
        await in_thread(lambda: desk.expect_worker(engine))  # before the upload
        found = await desk.receive(request)
        if found.file is None:
            raise JobRefused("is required", "file")
        file_id, needed = found.file.file_id, False
        try:
            wanted, granularities = _options(found)
            params = _params(found, str(await in_thread(lambda: desk.tempfiles.path(file_id))))
            content = digest(found.digest, {**params, "audio": ""})
            key = key_of(request, content)
            new = Ask(str(uuid.uuid4()), content, file_id, lasting=bool(given_key(request)), alone=True)
            ask = await in_thread(lambda: desk.asks.open(key, new))
            async with desk.answering(key):
                future, needed = await _job(desk, engine, ask, params, there=ask is not new)
                needed = needed or ask.file == file_id
                await desk.end_of(request, future, key)
                if future.record is not None:
                    needed = False
                    await in_thread(lambda: desk.tempfiles.remove(ask.file))
                result = await in_thread(lambda: _result(future))
                return await in_thread(lambda: _render(result, wanted, granularities))
        finally:
            if not needed:  # otherwise the job is not over
                with contextlib.suppress(OSError):
                    desk.tempfiles.remove(file_id)

    return router


async def _job(desk: Desk, engine: str, ask: Ask, params: dict[str, Any], *, there: bool) -> tuple[JobFuture, bool]:
    """The job of a request, and whether it was submitted now. there: an earlier request may have submitted it.

    Raises what FilePool.submit raises.
    """
    if there:
        with contextlib.suppress(UnknownJob):
            return await desk.future(ask.job), False
    try:
        return desk.expect(await in_thread(lambda: desk.pool.submit(engine, params=params, id=ask.job))), True
    except JobConflict:  # RACE: the same request was there first
        return await desk.future(ask.job), False


def _result(future: JobFuture) -> Any:
    """What a job returned. Raises HTTPException when it was cancelled, JobFailed, EngineUnavailable."""
    record = future.record
    if record is not None and record.state is JobState.CANCELLED:
        raise HTTPException(410, f"job {future.id} was cancelled")
    return future.result(0)


def _options(found: Form) -> tuple[str, frozenset[str]]:
    """(response format, timestamp granularities). Raises JobRefused where OpenAI's service refuses, too."""
    wanted = found.one("response_format") or "json"
    if wanted not in transcripts.FORMATS:
        raise JobRefused(f"{wanted!r:.60} is not one of {', '.join(transcripts.FORMATS)}", "response_format")
    given = [*found.fields.get(f"{_GRANULARITIES}[]", ()), *found.fields.get(_GRANULARITIES, ())]
    for name in given:
        if name not in ("word", "segment"):
            raise JobRefused(f"{name!r:.60} is neither word nor segment", _GRANULARITIES)
    if not found.one("model"):
        raise JobRefused("is required", "model")
    assert found.file is not None
    if found.file.file_type not in _AUDIO:
        raise JobRefused(f"{found.file.original_name!r:.100} has no audio: it is an image", "file")
    return wanted, frozenset(given)


def _params(found: Form, audio: str) -> dict[str, Any]:
    params: dict[str, Any] = {"audio": audio}
    if language := found.one("language"):
        params["language"] = language
    if prompt := found.one("prompt"):
        params["hotword"] = prompt[:4000]
    return params


def _render(result: Any, wanted: str, granularities: frozenset[str]) -> Response:
    if not isinstance(result, dict):
        raise HTTPException(502, "the engine did not return a transcript")
    if wanted == "json":
        return json_response(transcripts.as_json(result))
    if wanted == "verbose_json":
        return json_response(transcripts.as_verbose_json(result, granularities))
    if wanted == "diarized_json":
        return json_response(transcripts.as_diarized_json(result))
    make = {"text": transcripts.as_text, "srt": transcripts.as_srt, "vtt": transcripts.as_vtt}[wanted]
    return PlainTextResponse(make(result).encode("utf-8", "replace"))
