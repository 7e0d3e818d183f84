"""The recordings, pictures and videos that a job was given, for those who look at what it made of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from pool.config.roots import TEMPFILE, looks_like_a_path
from pool.errors import JobRefused, ProtocolError
from pool.format.names import check_id
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.shapes import Failed, Input, responses
from pool.gateways.http.tempfile import SENT, send_file, shown_type
from pool.gateways.tempfiles import UnknownFile
from pool.runfiles.schemas import path_keys

JobId = Annotated[str, InPath(max_length=200, description="the id from the answer to the submit")]


def make_routes(desk: Desk) -> APIRouter:
    """The route of a job's inputs."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])

    @router.head("/{job_id}/inputs/{key}", include_in_schema=False)
    @router.get(
        "/{job_id}/inputs/{key}",
        summary="Fetch a recording, picture or video that a job was given",
        response_class=FileResponse,
        responses={
            **SENT,
            **responses(Failed, 403, 404, 422),
        },
    )
    async def fetch(request: Request, job_id: JobId, key: Annotated[str, InPath(max_length=200)]) -> Response:
        """`key` is the parameter; `inputs` of `GET /jobs/{id}/params` lists them. Only sounds, pictures and videos, and
        only while they are where a request may name them: an upload, or a file under the allowed folders."""

        def find() -> tuple[Path, str]:
            old = desk.pool.origin(check_id(job_id))
            found = _find(desk, old.engine, key, old.params.get(key), written_by(desk, job_id))
            if found is None:
                raise HTTPException(404, f"job {job_id} has no input {key!r:.100} that can be shown")
            return found[0], found[1]

        path, name = await in_thread(find)
        return await send_file(request, path, name)

    return router


def inputs_of(desk: Desk, job_id: str, engine: str, params: Mapping[str, Any], prefix: str) -> dict[str, Input]:
    """Each parameter that is a sound, picture or video which may be fetched. prefix: of all paths of the gateway."""
    written = written_by(desk, job_id)
    found: dict[str, Input] = {}
    for key, value in params.items():
        try:
            one = _find(desk, engine, key, value, written)
        except JobRefused:
            continue  # it is gone, or outside of the allowed folders; `left_out` says so
        if one is not None:
            kind: Any = one[2]
            found[key] = Input(name=one[1], kind=kind, url=f"{prefix}/jobs/{job_id}/inputs/{quote(key, safe='')}")
    return found


def written_by(desk: Desk, job_id: str) -> Collection[str]:
    """The paths of the files that a job has written: a parameter may name one."""
    try:
        record = desk.pool.spool.read_record(job_id, arrays=False)
    except (FileNotFoundError, ProtocolError):
        return ()
    return [str(file.get("path", "")) for file in record.files]


def _find(desk: Desk, engine: str, key: str, value: Any, written: Collection[str]) -> tuple[Path, str, str] | None:
    """The path, the client's name and the kind of an input; None for anything else. Raises OutsideRoots, JobRefused."""
    if not isinstance(value, str) or not value or value in written:
        return None
    schema = (desk.describe(engine) or {}).get("schema")
    if key not in (path_keys(schema) if isinstance(schema, dict) else ()) and not looks_like_a_path(value):
        return None
    shown = desk.uploaded(value)
    if shown.startswith(TEMPFILE):
        try:
            about, path = desk.tempfiles.find(shown.removeprefix(TEMPFILE))
        except UnknownFile:
            return None
        return path, about.original_name or path.name, about.file_type
    name = os.path.basename(value)
    kind = shown_type(name).partition("/")[0]
    return (desk.roots.readable(value, f"params.{key}"), name, kind) if kind else None
