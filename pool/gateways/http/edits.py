"""A transcript as a person has corrected it: what differs from the result, beside the record, which stays as it is.

    out/<id>/.edits.json     {"version", "names": {speaker: name}, "segments": {number: {"text", "words"}}}

It goes when the record goes. A version is for one writer: who has read an older one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pool.errors import Conflict, JobRefused, ProtocolError, UnknownJob
from pool.format.names import check_id
from pool.gateways.downloads import disposition
from pool.gateways.http import corrected
from pool.gateways.http.bodies import JsonRoute
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import json_response
from pool.gateways.http.shapes import Edits, Failed, responses
from pool.job import JobState, Record
from pool.spool import fsops
from pool.spool.store import Spool

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_NAME = ".edits.json"
_MOST_BYTES = 64 << 20
_SLACK_S = 0.01  # times are rounded to milliseconds

JobId = Annotated[str, InPath(max_length=200, description="the id from the answer to the submit")]


def make_routes(desk: Desk) -> APIRouter:
    """The routes of a job's corrections."""
    router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)

    @router.get(
        "/{job_id}/edits",
        summary="Corrections of a transcript",
        response_model=Edits,
        responses=responses(Failed, 403, 404, 409, 422, 502),
    )
    async def edits(job_id: JobId) -> Response:
        """What differs from the result; `version` 0 when nothing does."""

        def look() -> Edits:
            _transcript(desk.pool.spool, check_id(job_id))
            return read(desk.pool.spool, job_id)

        return json_response((await in_thread(look)).model_dump())

    @router.put(
        "/{job_id}/edits",
        summary="Correct a transcript",
        response_model=Edits,
        responses=responses(Failed, 400, 403, 404, 408, 409, 413, 415, 422, 502, 503),
    )
    async def correct(job_id: JobId, body: Edits) -> Response:
        """All corrections, with the version that they are based on; the answer has the next one. 409 when another
        client has written since. The result of the job stays as it is."""
        found = await in_thread(lambda: _write(desk.pool.spool, check_id(job_id), body))
        return json_response(found.model_dump())

    @router.get(
        "/{job_id}/transcript",
        summary="A transcript with its corrections, as a document",
        response_class=Response,
        responses={
            200: {"content": {DOCX: {}, "application/octet-stream": {}}, "description": "The document"},
            **responses(Failed, 403, 404, 409, 422, 502, 503),
        },
    )
    async def transcript(
        job_id: JobId,
        form: Annotated[Literal["docx", "txt"], Query(alias="format", description="docx needs filepool[docx]")] = "txt",
    ) -> Response:
        """Speakers with the names that a person gave them. It is saved under the name of the recording."""

        def make() -> tuple[str, bytes]:
            record = _transcript(desk.pool.spool, check_id(job_id))
            title = desk.stem(record)
            lines = corrected.lines_of(record.value, read(desk.pool.spool, job_id))
            if form == "docx":
                return title, corrected.as_docx(title, lines)
            return title, corrected.as_text(lines).encode("utf-8", "replace")

        title, data = await in_thread(make)
        media_type = DOCX if form == "docx" else "application/octet-stream"
        header = {"Content-Disposition": disposition("attachment", f"{title}.{form}")}
        return Response(data, media_type=media_type, headers=header)

    return router


def _transcript(spool: Spool, job_id: str) -> Record:
    """The record of a transcript. Raises UnknownJob, JobRefused, HTTPException 409 while there is none."""
    try:
        record = spool.read_record(job_id, arrays=False)
    except FileNotFoundError:
        raise UnknownJob(job_id) from None
    if record.state is not JobState.COMPLETED:
        raise HTTPException(409, f"job {job_id} has no transcript: it is {record.state.value}")
    if not corrected.is_transcript(record.value):
        raise JobRefused(f"the result of job {job_id} is no transcript", "id")
    return record


def _path(spool: Spool, job_id: str) -> Path:
    return spool.files_dir(job_id) / _NAME


def read(spool: Spool, job_id: str) -> Edits:
    """The corrections of a transcript, version 0 when there are none. Raises ProtocolError when they are damaged."""
    try:
        return Edits.model_validate(json.loads(fsops.read_bounded(_path(spool, job_id), _MOST_BYTES)))
    except FileNotFoundError:
        return Edits(version=0)
    except (ValueError, ValidationError) as error:
        raise ProtocolError(f"the corrections of job {job_id} are damaged: {error}") from None


def _write(spool: Spool, job_id: str, edits: Edits) -> Edits:
    _check(_transcript(spool, job_id).value["segments"], edits)
    with spool.ids.lock():  # RACE: of two gateways that have read the same version, one is refused
        version = read(spool, job_id).version
        if version != edits.version:
            raise Conflict(
                f"the corrections were changed meanwhile: they have version {version}, yours are of {edits.version}; "
                "read them again"
            )
        found = edits.model_copy(update={"version": version + 1})
        spool.make_files_dir(job_id, sync=spool.durable)
        fsops.put(
            spool.temp(), str(_path(spool, job_id)), [json.dumps(found.model_dump()).encode()], sync=spool.durable
        )
        if spool.durable:
            fsops.sync_dir(str(spool.files_dir(job_id)))
    return found


def _check(segments: Sequence[Mapping[str, Any]], edits: Edits) -> None:
    """Raise JobRefused for a segment that is not there, or for words whose times leave it or run backwards."""
    for number, edit in edits.segments.items():
        key = f"segments.{number}"
        if int(number) >= len(segments):
            raise JobRefused(f"there are {len(segments)} segments", key)
        segment = segments[int(number)]
        last = float(segment["start"]) - _SLACK_S
        for at, word in enumerate(edit.words):
            if not last <= word.start <= word.end <= float(segment["end"]) + _SLACK_S:
                raise JobRefused("its time is outside of the segment or before the previous word", f"{key}.words.{at}")
            last = word.start
