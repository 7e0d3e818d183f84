"""The digital-human service: POST /human/generate answers when the video is written; GET /health."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pool.client.status import PoolStatus
from pool.errors import JobConflict, JobFailed, JobRefused, SpoolError, UnknownEngine
from pool.format.names import check_engine
from pool.gateways.http.asks import Ask, digest, id_of, key_of, key_taken
from pool.gateways.http.bodies import JsonRoute
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import failed, json_response, respond, retry_after
from pool.gateways.http.shapes import Envelope, FailedEnvelope, Generate, Health, responses
from pool.job import JobState
from pool.policy.prospects import Outlook

SERVICE = "digital-human-service"
_VERDICTS = ((Outlook.FINE, "ok"), (Outlook.COMING, "starting"), (Outlook.HOPELESS, "down"))  # the best engine decides


def make_routes(desk: Desk) -> APIRouter:
    """The routes /human/generate and /health."""
    router = APIRouter(route_class=JsonRoute)
    engine = desk.settings.lipsync

    @router.post(
        "/human/generate",
        tags=["digital human"],
        summary="Make a person in a video say what an audio file says",
        response_model=Envelope,
        responses=responses(FailedEnvelope, 400, 403, 408, 409, 410, 413, 415, 422, 502, 503, 504),
    )
    async def generate(body: Generate, request: Request) -> Response:
        """Answers when the video is written. The job goes on when the client disconnects, and the same request again
        waits for it: with its `task_id` or Idempotency-Key at any time, without them until it has been answered."""
        if lacks := await in_thread(lambda: desk.lacks(engine)):
            raise HTTPException(503, lacks, retry_after())
        task_id, key = body.task_id or id_of(request), ""
        if task_id is None:
            key = key_of(request, digest(body.model_dump(), _stamp(body.audio_path), _stamp(body.video_path)))
            task_id = (await in_thread(lambda: desk.asks.open(key, Ask(str(uuid.uuid4()), "")))).job
        async with desk.answering(key):
            try:
                return await _generated(desk, request, body, task_id, key)
            except JobConflict as error:
                raise (error if body.task_id else key_taken(error.job_id)) from None

    @router.head("/health", include_in_schema=False)
    @router.get(
        "/health",
        tags=["pool"],
        summary="Whether a worker is ready",
        response_model=Health,
        responses={
            **responses(FailedEnvelope, 400, 404),
            503: {"model": Health, "description": "No worker is ready"},
        },
    )
    async def health(
        engine: str | None = Query(default=None, max_length=32, description="default: the engine of this service"),
    ) -> Response:
        """`ok` while at least one worker of the engine is alive, has loaded its model and takes jobs."""
        own, there = desk.settings.lipsync, desk.pool.config.engines
        wanted = check_engine(engine) if engine else own if own in there else None
        if wanted is not None and wanted not in there:
            raise UnknownEngine(f"no engine {wanted!r}; there are: {', '.join(there)}", "engine")
        try:
            verdict, message = _verdict(await in_thread(desk.status), wanted, desk.pool.starter)
        except SpoolError as error:
            verdict, message = "down", str(error)
        if desk.settings.token is not None:
            message = ""  # /health needs no token, and reasons name paths and models; GET /status has them
        body = {"status": verdict, "service": SERVICE, "message": message}
        return json_response(body, 200 if verdict == "ok" else 503)

    return router


async def _generated(desk: Desk, request: Request, body: Generate, task_id: str, key: str) -> Response:
    engine = desk.settings.lipsync
    params = await in_thread(lambda: _params(desk, body, task_id))
    await in_thread(lambda: desk.expect_worker(engine, task_id))
    future = desk.expect(await in_thread(lambda: desk.pool.submit(engine, params=params, id=task_id)))
    await desk.end_of(request, future, key)
    record = future.record
    if record is None or record.state is not JobState.COMPLETED:
        if record is not None and record.state is JobState.CANCELLED:
            raise HTTPException(410, f"task {task_id} was cancelled")
        error = future.exception(0)
        if isinstance(error, JobFailed):
            return respond("/human/generate", failed(task_id, error.failure))
        raise error if error is not None else HTTPException(503, "the gateway is shutting down", retry_after())
    data = {"save_path": _save_path(body, task_id), "task_id": task_id}
    return json_response({"code": 200, "message": "success", "data": data})


def _params(desk: Desk, body: Generate, task_id: str) -> dict[str, Any]:
    roots = desk.roots
    return {
        "audio": str(roots.readable(_absolute(body.audio_path, "audio_path"), "audio_path")),
        "video": str(roots.readable(_absolute(body.video_path, "video_path"), "video_path")),
        "output": str(roots.writable(_absolute(_save_path(body, task_id), "save_path"), "save_path")),
        "watermark": body.watermark,
        "digital_auth": body.digital_auth,
    }


def _stamp(path: str) -> list[int]:
    """Size and time of a file, so that one that was changed is another request; empty when there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return []
    return [found.st_size, found.st_mtime_ns]


def _absolute(text: str, key: str) -> str:
    if not text.startswith(("/", "tempfile:")):
        raise JobRefused(f"{text!r:.200} is not an absolute path: the service has another working directory", key)
    return text


def _save_path(body: Generate, task_id: str) -> str:
    """save_path as the client wrote it; when it ends in "/", <task_id>.mp4 in that folder."""
    return str(Path(body.save_path) / f"{task_id}.mp4") if body.save_path.endswith("/") else body.save_path


def _verdict(status: PoolStatus, engine: str | None, starter: str | None) -> tuple[str, str]:
    """("ok" | "starting" | "down", why) for one engine, or for all together."""
    names = [engine] if engine is not None else [about.name for about in status.engines if about.configured]
    expected = [status.prospect(name, starter) for name in names]
    for outlook, verdict in _VERDICTS:
        found = [each for each in expected if each.outlook is outlook]
        if found:
            return verdict, "; ".join(filter(None, (each.sentence() for each in found)))[:1000]
    return "down", status.health.sentence
