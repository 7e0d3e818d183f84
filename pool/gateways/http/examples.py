"""Routes for the examples of the start page: what each engine makes of recordings and a picture that come with this."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pool.client.future import JobFuture
from pool.config.roots import TEMPFILE
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import json_response
from pool.gateways.http.prefix import address
from pool.gateways.http.shapes import Example, Examples, Failed, JobView, responses
from pool.gateways.tempfiles import Tempfiles

FOLDER = Path(__file__).resolve().parents[3] / "examples"  # of a checkout; a wheel has none


@dataclass(frozen=True)
class _Made:
    """An example. engine: its usual name. files: parameter -> kind and path below FOLDER."""

    engine: str
    files: Mapping[str, tuple[str, str]]


_MADE = {
    "transcribe": _Made("transcribe", {"audio": ("audio", "speech/two_speakers.flac")}),
    "lipsync": _Made(
        "lipsync", {"audio": ("audio", "speech/address.flac"), "video": ("image", "portrait/mona_lisa.jpg")}
    ),
    "portrait": _Made(
        "portrait", {"audio": ("audio", "speech/reading.flac"), "image": ("image", "portrait/mona_lisa.jpg")}
    ),
}


def make_routes(desk: Desk) -> APIRouter:
    """The routes below /examples."""
    router = APIRouter(prefix="/examples", tags=["jobs"])
    engines = {"transcribe": desk.settings.transcribe, "lipsync": desk.settings.lipsync}

    @router.get("", summary="Examples to try", response_model=Examples, responses=responses(Failed, 403))
    async def listed() -> Response:
        """`missing` says why one cannot be tried here, such as that its files are not on this machine."""
        return json_response((await in_thread(lambda: examples(FOLDER, engines, desk.lacks))).model_dump())

    @router.post(
        "/{name}",
        summary="Try an example",
        status_code=202,
        response_model=JobView,
        responses=responses(Failed, 403, 404, 409, 422, 503),
    )
    async def attempt(name: Annotated[str, InPath(max_length=100)], request: Request) -> Response:
        """A new job with the files of the example, which count as uploads."""

        def submit() -> JobFuture:
            found = {one.name: one for one in examples(FOLDER, engines, desk.lacks).examples}.get(name)
            if found is None:
                raise HTTPException(404, f"there is no example {name!r:.100}: GET /examples lists them")
            if found.missing:
                raise HTTPException(409, f"the example {name} cannot be tried here: {found.missing}")
            params = {
                key: f"{TEMPFILE}{_upload(desk.tempfiles, kind, FOLDER / path)}"
                for key, (kind, path) in _MADE[name].files.items()
            }
            return desk.submit(found.engine, params, tags=["example"])

        future = await in_thread(submit)
        view = await in_thread(lambda: desk.look(future.id))
        return json_response(view.model_dump(), 202, {"Location": address(request.scope, f"/jobs/{future.id}")})

    return router


def examples(folder: Path, engines: Mapping[str, str], lacks: Callable[[str], str]) -> Examples:
    """The examples. engines: names of engines that are not the usual ones. lacks: why there is no such one, or ""."""
    found = []
    for name, made in _MADE.items():
        engine = engines.get(name, made.engine)
        paths = [path for _, path in made.files.values()]
        gone = [path for path in paths if not os.access(folder / path, os.R_OK)]
        missing = lacks(engine)
        if not missing and gone:
            missing = f"its files are not on this machine: examples/{', examples/'.join(gone)} of the repository"
        found.append(Example(name=name, engine=engine, files=[Path(path).name for path in paths], missing=missing))
    return Examples(examples=found)


def _upload(tempfiles: Tempfiles, kind: str, path: Path) -> str:
    """The id of a copy of a file among the uploads. Raises OSError."""
    part = tempfiles.part()
    try:
        shutil.copyfile(path, part)
        return tempfiles.keep(part, kind, path.name).file_id
    except OSError:
        tempfiles.discard(part)
        raise
