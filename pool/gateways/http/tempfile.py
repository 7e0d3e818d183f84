"""Routes for temporary files: an upload gets an id, jobs use it as `tempfile:<id>`, a download may use ranges."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from pool.gateways.downloads import disposition
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.shapes import Uploaded, UploadFailed, responses

#: Shown in a browser; anything else is downloaded, so that no upload can run as a page of this host.
_SHOWN = ("image/", "audio/", "video/")
_NOT_SHOWN = ("image/svg+xml",)


def form(required: dict[str, dict[str, Any]], **optional: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a multipart body: fields and their schemas."""
    schema = {"type": "object", "properties": {**required, **optional}, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


FILE = {"file": {"type": "string", "format": "binary"}}

#: What `send_file` answers, for OpenAPI.
SENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file"},
    304: {"description": "The client has this version (If-None-Match)"},
    206: {"content": {"application/octet-stream": {}}, "description": "The requested ranges"},
    416: {"content": {"text/plain": {}}, "description": "No such range"},
}


def make_routes(desk: Desk) -> APIRouter:
    """The routes below /api/tempfile."""
    router = APIRouter(prefix="/api/tempfile", tags=["temporary files"])

    @router.post(
        "/upload",
        summary="Upload an image, audio or video",
        response_model=Uploaded,
        responses=responses(UploadFailed, 400, 403, 408, 413, 415, 503),
        openapi_extra=form(FILE),
    )
    async def upload(request: Request) -> Uploaded:
        found = await desk.receive(request)
        if found.file is None:
            raise HTTPException(400, 'the form has no part "file"')
        kind: Any = found.file.file_type
        return Uploaded(file_id=found.file.file_id, file_type=kind, original_name=found.file.original_name)

    @router.head("/download/{file_id}", include_in_schema=False)
    @router.get(
        "/download/{file_id}",
        summary="Fetch an uploaded file, whole or in ranges",
        response_class=FileResponse,
        responses={
            **SENT,
            **responses(UploadFailed, 403, 404),
        },
    )
    async def download(request: Request, file_id: str) -> Response:
        about, path = await in_thread(lambda: desk.tempfiles.find(file_id))
        return await send_file(request, path, about.original_name or path.name)

    return router


def shown_type(name: str) -> str:
    """The media type of a file that a browser may show, by its name; "" for one that is only downloaded."""
    media_type = mimetypes.guess_type(name)[0] or ""
    return media_type if media_type.startswith(_SHOWN) and media_type not in _NOT_SHOWN else ""


async def send_file(request: Request, path: Path, name: str) -> Response:
    """The response with a file, or with the requested ranges of it; 304 without it when the client has this version.
    Raises HTTPException 404 when it is gone."""
    try:
        info = await in_thread(lambda: os.stat(path))
    except OSError:
        raise HTTPException(404, f"the file {name!r:.100} is gone") from None
    shown = shown_type(name)
    response = FileResponse(
        path,
        media_type=shown or "application/octet-stream",
        stat_result=info,
        headers={"Content-Disposition": disposition("inline" if shown else "attachment", name)},
    )
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if "*" in tags or response.headers["etag"] in tags:
        kept = {name: response.headers[name] for name in ("etag", "last-modified")}
        return Response(status_code=304, headers=kept)
    return response
