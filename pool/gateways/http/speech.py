"""/v1/audio/transcriptions, /v1/audio/translations and /v1/models of OpenAI's API, run by the transcription engine."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from pool.client.follow import Follower, Part, Setback
from pool.client.future import JobFuture
from pool.errors import JobConflict, JobRefused, PoolError, UnknownJob
from pool.gateways.http import transcripts
from pool.gateways.http.asks import Ask, digest, given_key, key_of
from pool.gateways.http.bodies import Form
from pool.gateways.http.desk import Desk, Unanswered, in_thread
from pool.gateways.http.errors import json_response, problem_of, respond, retry_after
from pool.gateways.http.shapes import OpenAIFailed, responses
from pool.gateways.http.tempfile import FILE, form
from pool.gateways.tempfiles import Tempfile
from pool.job import JobState

PROMPT_CHARS = 4000
_TEXT = {"type": "string"}
_FIELDS: dict[str, dict[str, Any]] = {
    "language": {**_TEXT, "description": "language code such as en; default: detected"},
    "prompt": {**_TEXT, "maxLength": PROMPT_CHARS, "description": "names and terms to expect"},
    "response_format": {**_TEXT, "enum": list(transcripts.FORMATS), "default": "json"},
    "temperature": {"type": "number", "description": "accepted and ignored"},
    "timestamp_granularities[]": {"type": "array", "items": {**_TEXT, "enum": ["word", "segment"]}},
    "stream": {"type": "boolean", "description": "send the text segment by segment; formats json and text"},
    "chunking_strategy": {**_TEXT, "description": "accepted and ignored: the engine cuts where nobody speaks"},
}
_MODEL = {**_TEXT, "description": "any text: the pool's engine is used"}
_TRANSLATED = ("language", "prompt", "response_format", "temperature")
_TRANSLATIONS = ("json", "text", "srt", "verbose_json", "vtt")
_GRANULARITIES = "timestamp_granularities"
_SWITCHES = {"": False, "false": False, "0": False, "true": True, "1": True}
_STREAMED = ("json", "text")
_LOOK_S = 0.2
_AUDIO = ("audio", "video")


def make_routes(desk: Desk) -> APIRouter:
    """The routes below /v1."""
    router = APIRouter(prefix="/v1", tags=["speech"])
    for add in (_model_routes, _transcription_route, _translation_route):
        add(router, desk)
    return router


def _model_routes(router: APIRouter, desk: Desk) -> None:
    """Which models there are: the engine."""
    engine = desk.settings.transcribe

    @router.get(
        "/models",
        summary="The model behind transcriptions",
        response_class=Response,
        responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "A list"}},
    )
    async def models() -> Response:
        return json_response({"object": "list", "data": [_model(engine)]})

    @router.get(
        "/models/{name}",
        summary="One model",
        response_class=Response,
        responses={
            200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "The model"},
            **responses(OpenAIFailed, 404),
        },
    )
    async def model(name: str) -> Response:
        if name != engine:
            raise HTTPException(404, f"there is no model {name!r:.60}: {engine} is the only one")
        return json_response(_model(engine))


def _transcription_route(router: APIRouter, desk: Desk) -> None:
    """Speech to text."""

    @router.post(
        "/audio/transcriptions",
        summary="Speech to text",
        response_class=Response,
        responses=_answers("The transcript"),
        openapi_extra=form({**FILE, "model": _MODEL}, **_FIELDS),
    )
    async def transcriptions(request: Request) -> Response:
        """The same request again, by the same client, waits for the same job until it has been answered: by the
        Idempotency-Key header, else by the content. A job whose client leaves and does not return is cancelled. The
        upload is removed once the job is over."""
        found = await _received(desk, request)
        return await _transcribed(desk, request, found)


def _translation_route(router: APIRouter, desk: Desk) -> None:
    """Speech to English text."""
    engine = desk.settings.transcribe

    @router.post(
        "/audio/translations",
        summary="Speech in any language to English text",
        response_class=Response,
        responses=_answers("The translation"),
        openapi_extra=form({**FILE, "model": _MODEL}, **{key: _FIELDS[key] for key in _TRANSLATED}),
    )
    async def translations(request: Request) -> Response:
        """As transcriptions, with the text in English. The engine's model must be able to translate: 400 otherwise."""
        found = await _received(desk, request)
        schema = (await in_thread(lambda: desk.describe(engine)) or {}).get("schema")
        if isinstance(schema, dict) and "task" not in schema.get("properties", {}):
            await in_thread(lambda: desk.tempfiles.remove(_file(found).file_id))
            raise HTTPException(400, f"the engine {engine} cannot translate: it has no parameter task")
        return await _transcribed(desk, request, found, task="translate")


def _answers(description: str) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that turns speech into text."""
    content = {"application/json": {"schema": {"type": "object"}}, "text/plain": {"schema": _TEXT}}
    return {
        200: {"content": content, "description": description},
        **responses(OpenAIFailed, 400, 403, 408, 410, 413, 415, 502, 503, 504),
    }


async def _received(desk: Desk, request: Request) -> Form:
    """The form of a request, with its file. Raises HTTPException, EngineUnavailable, JobRefused."""
    engine = desk.settings.transcribe
    if lacks := await in_thread(lambda: desk.lacks(engine)):
        raise HTTPException(503, lacks, retry_after())
    await in_thread(lambda: desk.expect_worker(engine))  # before the upload
    found = await desk.receive(request)
    if found.file is None:
        raise JobRefused("is required", "file")
    return found


def _file(found: Form) -> Tempfile:
    assert found.file is not None
    return found.file


def _model(engine: str) -> dict[str, Any]:
    return {"id": engine, "object": "model", "created": 0, "owned_by": "filepool"}


async def _transcribed(desk: Desk, request: Request, found: Form, *, task: str = "") -> Response:
    """The answer to a request. Its upload is removed, unless a job that is not over needs it. task: "translate", or ""
    for the transcript."""
    engine, needed, file_id = desk.settings.transcribe, False, _file(found).file_id
    try:
        _known(found, _TRANSLATED if task else tuple(_FIELDS))
        wanted, granularities = _options(found, _TRANSLATIONS if task else transcripts.FORMATS)
        streams = not task and _streams(found, wanted)
        params = {"task": task} if task else {}
        params |= _params(found, str(await in_thread(lambda: desk.tempfiles.path(file_id))))
        content = digest(found.digest, {**params, "audio": ""})
        key = key_of(request, content)
        new = Ask(str(uuid.uuid4()), content, file_id, lasting=bool(given_key(request)), alone=True)
        ask = await in_thread(lambda: desk.asks.open(key, new))
        async with desk.answering("" if streams else key):
            future, submitted = await _job(desk, engine, ask, params, there=ask is not new)
            needed = submitted or ask.file == file_id
            if streams:
                request.state.job_id = future.id
                return StreamingResponse(_events(desk, future, key, ask.file), media_type="text/event-stream")
            await desk.end_of(request, future, key)
            if future.record is not None:
                needed = False
                await in_thread(lambda: desk.tempfiles.remove(ask.file))
            result = await in_thread(lambda: _result(future))
            return await in_thread(lambda: _render(result, wanted, granularities))
    finally:
        if not needed:
            with contextlib.suppress(OSError):
                desk.tempfiles.remove(file_id)


async def _events(desk: Desk, future: JobFuture, key: str, file_id: str) -> AsyncIterator[str]:
    """The text as OpenAI's server-sent events, segment by segment, then the whole; or an event `error`. An attempt that
    comes after a failed one says nothing twice."""
    follower = Follower(desk.pool, future, desk.status)
    said = number = 0
    try:
        while True:
            over = future.decided
            for event in await in_thread(follower.poll):
                if isinstance(event, Setback):
                    number = 0
                elif isinstance(event, Part):
                    number += 1
                    if number > said and (text := transcripts.text_of(event.record)):
                        said = number
                        yield _event({"type": "transcript.text.delta", "delta": text if said == 1 else f" {text}"})
            if over:
                break
            if desk.leaving:
                raise Unanswered(503, f"the gateway is being restarted and job {future.id} goes on: ask again")
            await in_thread(lambda: desk.asks.awaited(key))
            await desk.wait(future, _LOOK_S)
        async with desk.answering(key):
            if future.record is not None:
                await in_thread(lambda: desk.tempfiles.remove(file_id))
            result = await in_thread(lambda: _result(future))
            yield _event({"type": "transcript.text.done", **transcripts.as_json(result)})
    except (PoolError, HTTPException, OSError) as error:
        body = json.loads(bytes(respond("/v1/", problem_of(error)).body))
        yield f"event: error\ndata: {json.dumps(body)}\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"


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


def _known(found: Form, names: Sequence[str]) -> None:
    """Refuse fields that would be ignored: JobRefused."""
    there = {"model", *(name.removesuffix("[]") for name in names)}
    for name in found.fields:
        if name.removesuffix("[]") not in there:
            raise JobRefused(f"is an unknown field; there are: {', '.join(sorted(there))}", name)


def _options(found: Form, formats: Sequence[str]) -> tuple[str, frozenset[str]]:
    """(response format, timestamp granularities). Raises JobRefused where OpenAI's service refuses, too."""
    wanted = found.one("response_format") or "json"
    if wanted not in formats:
        raise JobRefused(f"{wanted!r:.60} is not one of {', '.join(formats)}", "response_format")
    given = [*found.fields.get(f"{_GRANULARITIES}[]", ()), *found.fields.get(_GRANULARITIES, ())]
    for name in given:
        if name not in ("word", "segment"):
            raise JobRefused(f"{name!r:.60} is neither word nor segment", _GRANULARITIES)
    if not found.one("model"):
        raise JobRefused("is required", "model")
    if _file(found).file_type not in _AUDIO:
        raise JobRefused(f"{_file(found).original_name!r:.100} has no audio: it is an image", "file")
    return wanted, frozenset(given)


def _streams(found: Form, wanted: str) -> bool:
    """Whether the text is to be sent while it comes into being. Raises JobRefused."""
    given = found.one("stream").lower()
    if given not in _SWITCHES:
        raise JobRefused(f"{given!r:.60} is neither true nor false", "stream")
    if _SWITCHES[given] and wanted not in _STREAMED:
        raise JobRefused(f"{wanted} cannot be streamed, {' and '.join(_STREAMED)} can", "stream")
    return _SWITCHES[given]


def _params(found: Form, audio: str) -> dict[str, Any]:
    """The parameters of the engine. Raises JobRefused."""
    params: dict[str, Any] = {"audio": audio}
    if language := found.one("language"):
        params["language"] = language
    if prompt := found.one("prompt"):
        if len(prompt) > PROMPT_CHARS:
            known = f"has {len(prompt)} characters, more than {PROMPT_CHARS}: send the names and terms only"
            raise JobRefused(known, "prompt")
        params["hotword"] = prompt
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
