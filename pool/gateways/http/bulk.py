"""Routes that do one thing with many jobs: retry, cancel, fetch the results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from pool.client.future import JobFuture
from pool.errors import PoolError, UnknownJob
from pool.format import codec
from pool.gateways.downloads import disposition
from pool.gateways.http import corrected, edits
from pool.gateways.http.archive import Entry, distinct, file_entry, stream, text_entry
from pool.gateways.http.bodies import JsonRoute
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import json_response, problem_of
from pool.gateways.http.prefix import address
from pool.gateways.http.shapes import Archive, BulkDone, Failed, JobIds, Refusal, responses
from pool.job import JobState


def make_routes(desk: Desk) -> APIRouter:
    """The routes below /bulk. Each answers for every job by itself: one that is refused stops no other."""
    router = APIRouter(prefix="/bulk", tags=["jobs"], route_class=JsonRoute)
    declared = responses(Failed, 400, 403, 408, 413, 415, 422, 503)

    @router.post("/retry", summary="Retry many jobs", response_model=BulkDone, responses=declared)
    async def retry(body: JobIds) -> Response:
        """As `POST /jobs/{id}/retry` for each; in place of a cancelled one, the new job is in `done`."""
        futures: list[JobFuture] = []

        def again(job_id: str) -> str:
            futures.append(desk.retry(job_id))
            return futures[-1].id

        answer = await in_thread(lambda: _each(body.ids, again))
        for future in futures:
            desk.renew(future)
        return json_response(answer.model_dump())

    @router.post("/cancel", summary="Cancel many jobs", response_model=BulkDone, responses=declared)
    async def cancel(body: JobIds) -> Response:
        """As `DELETE /jobs/{id}` for each."""

        def stop(job_id: str) -> str:
            desk.cancel(job_id)
            return job_id

        answer = await in_thread(lambda: _each(body.ids, stop))
        return json_response(answer.model_dump())

    @router.post(
        "/files",
        summary="Ask for the results of many jobs as one archive",
        status_code=201,
        response_model=Archive,
        responses=declared,
    )
    async def pack(body: JobIds, request: Request) -> Response:
        """Of each completed job its files, under the names of its inputs, and its value as JSON without paths of this
        machine; of a transcript also the text as it was corrected. `url` is good for an hour, and until the gateway
        ends."""
        entries: list[Entry] = []

        def add(job_id: str) -> str:
            entries.extend(_results(desk, job_id))
            return job_id

        answer = await in_thread(lambda: _each(body.ids, add))
        named = distinct(entries)
        url = address(request.scope, f"/bulk/files/{desk.archives.put(named)}")
        size = sum(entry.size for entry in named)
        found = Archive(url=url, files=len(named), bytes=size, refused=answer.refused)
        return json_response(found.model_dump(), 201, {"Location": url})

    @router.get(
        "/files/{key}",
        summary="Fetch such an archive",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"application/zip": {}}, "description": "A ZIP archive, written while it is sent"},
            **responses(Failed, 403, 404),
        },
    )
    async def fetch(key: Annotated[str, InPath(max_length=100)]) -> Response:
        """When a file has gone meanwhile the connection breaks off, so that no archive looks whole and is not."""
        entries = desk.archives.get(key)
        if entries is None:
            raise HTTPException(404, "there is no such archive, or no longer: ask for it again")
        name = f"filepool-{time.strftime('%Y-%m-%d-%H%M')}.zip"
        headers = {"Content-Disposition": disposition("attachment", name), "Cache-Control": "no-store"}
        return StreamingResponse(stream(entries), media_type="application/zip", headers=headers)

    return router


def _results(desk: Desk, job_id: str) -> list[Entry]:
    """What is packed of one job. Raises UnknownJob, JobRefused, ProtocolError, OSError."""
    spool = desk.pool.spool
    state = desk.pool.state(job_id)
    if state is not JobState.COMPLETED:
        raise HTTPException(409, f"job {job_id} has no result: it is {state.value}")
    try:
        record = spool.read_record(job_id)
    except FileNotFoundError:
        raise UnknownJob(job_id) from None  # RACE: consumed at this moment
    names, stem = desk.save_as(record), desk.stem(record)
    paths = [str(file.get("path", "")) for file in record.files]
    entries = [file_entry(names[path], desk.produced(job_id, path)) for path in paths]
    at = record.finished / 1e6
    if record.value is not None:
        value = desk.paths.document({"result": json.loads(codec.to_json(record.value))}, "")["result"]
        entries.append(text_entry(f"{stem}.json", json.dumps(value, ensure_ascii=False, indent=2) + "\n", at))
    if corrected.is_transcript(record.value):
        lines = corrected.lines_of(record.value, edits.read(spool, job_id))
        entries.append(text_entry(f"{stem}.txt", corrected.as_text(lines), at))
    if not entries:
        raise HTTPException(409, f"job {job_id} returned nothing")
    return entries


def _each(ids: Iterable[str], act: Callable[[str], str]) -> BulkDone:
    done: list[str] = []
    refused: list[Refusal] = []
    for job_id in dict.fromkeys(ids):
        try:
            done.append(act(job_id))
        except (PoolError, HTTPException, OSError) as error:
            refused.append(Refusal(id=job_id, message=problem_of(error).message))
    return BulkDone(done=done, refused=refused)
