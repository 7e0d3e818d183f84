"""Routes for jobs: submit, list, view, follow, fetch, cancel, retry, rerun."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request
from fastapi import Path as InPath
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse

from pool.errors import JobConflict, UnknownJob
from pool.format.names import check_id
from pool.gateways.http import views
from pool.gateways.http.asks import id_of, key_taken
from pool.gateways.http.bodies import JsonRoute
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import STATUS_OF_KIND, json_response
from pool.gateways.http.events import END, stream
from pool.gateways.http.lists import LIMIT_MOST, TEXT_CHARS, Wanted, find
from pool.gateways.http.origins import origin
from pool.gateways.http.prefix import address
from pool.gateways.http.shapes import (
    Cancelled,
    Failed,
    JobList,
    JobView,
    JobWalk,
    Origin,
    Outcome,
    Rerun,
    State,
    Submit,
    responses,
)
from pool.gateways.http.streams import grow
from pool.gateways.http.tempfile import SENT, send_file, shown_type
from pool.gateways.http.told import job_events
from pool.job import JobState, Record
from pool.job.terms import OUTSIDE
from pool.spool import growing, lookup
from pool.spool.growing import StreamReader

JobId = Annotated[str, InPath(max_length=200, description="the id from the answer to the submit")]
_MAX_WAIT_S = 300.0
_LOOK_S = 0.1


def make_routes(desk: Desk) -> APIRouter:
    """The routes below /jobs."""
    router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)
    for add in (_submit_routes, _list_routes, _view_routes, _stream_routes, _result_routes, _control_routes):
        add(router, desk)
    return router


def _submit_routes(router: APIRouter, desk: Desk) -> None:
    """Submit a job, or run an old one again as a new one."""

    @router.post(
        "/{engine}",
        summary="Submit a job",
        status_code=202,
        response_model=JobView,
        responses=responses(Failed, 400, 403, 404, 408, 409, 413, 415, 422, 503),
    )
    async def submit(
        engine: Annotated[str, InPath(max_length=200)], body: Submit, request: Request, response: Response
    ) -> JobView:
        """After the answer the job survives every crash. A repeated request with the same `id`, or the same
        Idempotency-Key, is the same job."""
        options = {name: getattr(body, name) for name in OUTSIDE} | {"id": body.id or id_of(request)}
        try:
            future = await in_thread(lambda: desk.submit(engine, body.params, **options))
        except JobConflict as error:
            raise (error if body.id else key_taken(error.job_id)) from None
        response.headers["Location"] = address(request.scope, f"/jobs/{future.id}")
        return await in_thread(lambda: desk.look(future.id))

    @router.post(
        "/{job_id}/rerun",
        summary="Submit a changed copy of a job",
        status_code=202,
        response_model=JobView,
        responses=responses(Failed, 400, 403, 404, 409, 413, 415, 422, 503),
    )
    async def rerun(job_id: JobId, body: Rerun, request: Request, response: Response) -> JobView:
        """A new job with the engine, parameters and terms of the old one, except for what the body changes. The old job
        stays as it is. Parameters that are secret, or were too large to be kept, must be given again."""
        options = body.model_dump(exclude={"params", "without"})
        future = await in_thread(lambda: desk.rerun(job_id, body.params, body.without, **options))
        response.headers["Location"] = address(request.scope, f"/jobs/{future.id}")
        return await in_thread(lambda: views.look(desk.pool.spool, future.id))


def _list_routes(router: APIRouter, desk: Desk) -> None:
    """Lists of jobs."""

    @router.get(
        "", summary="All jobs, or some", response_model=JobList | JobWalk, responses=responses(Failed, 403, 422)
    )
    async def jobs(
        *,
        state: Annotated[list[State] | None, Query(description="in any of these states")] = None,
        engine: Annotated[str | None, Query(max_length=32)] = None,
        tag: Annotated[list[str] | None, Query(description="with all of these tags; paged")] = None,
        q: Annotated[
            str | None,
            Query(max_length=TEXT_CHARS, description="with this text in the id, a tag, the note or the reason; paged"),
        ] = None,
        since: Annotated[str | None, Query(max_length=20, description="submitted within 2h, 30m, 90s; paged")] = None,
        limit: Annotated[int, Query(ge=1, le=LIMIT_MOST)] = 100,
        after: Annotated[str | None, Query(max_length=300, description="`next` of the previous page; paged")] = None,
    ) -> Response:
        """Without `after`, `q`, `tag` and `since`: running jobs, waiting jobs in their order, then ended jobs, the
        latest first. A job that ended within the last second may be missing.

        With one of them: newest first, page by page, every job once. An empty `after` gives the first page.
        """
        wanted = Wanted(state=state or [], engine=engine, tag=tag or [], q=q, since=since, limit=limit, after=after)
        found = await in_thread(lambda: find(desk, wanted))
        return json_response(found.model_dump())


def _view_routes(router: APIRouter, desk: Desk) -> None:
    """One job: where it stands, and its events."""

    @router.get(
        "/{job_id}", summary="The state of a job", response_model=JobView, responses=responses(Failed, 403, 404, 422)
    )
    async def job(job_id: JobId) -> Response:
        view = await in_thread(lambda: desk.look(job_id))
        return json_response(view.model_dump())

    @router.get(
        "/{job_id}/params",
        summary="What a job was submitted with",
        response_model=Origin,
        responses=responses(Failed, 403, 404, 422),
    )
    async def params(request: Request, job_id: JobId) -> Response:
        """In whatever state it is. Secret values are left out, and so are paths outside of the allowed folders."""
        prefix = address(request.scope, "")
        found = await in_thread(lambda: origin(desk, job_id, prefix))
        return json_response(found.model_dump())

    @router.get(
        "/{job_id}/events",
        summary="Follow a job",
        response_class=StreamingResponse,
        responses={
            200: job_events(),
            204: {"description": "The client has the end already (Last-Event-ID)"},
            **responses(Failed, 403, 404, 422),
        },
    )
    async def events(
        request: Request, job_id: JobId, last_event_id: Annotated[str | None, Header()] = None
    ) -> Response:
        """Events `status`, `progress`, `partial`, `setback`, `notice`, and at the end `result`; comments in between
        keep the connection open. When no worker of its engine can run, the stream ends with `unavailable` and the
        reason; the job stays, and a client that reconnects follows it further. Partial results have ids
        `attempt.number`, so that a client that reconnects with `Last-Event-ID` gets each once."""
        if last_event_id == END:
            return Response(status_code=204)
        future = await desk.future(check_id(job_id))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        source = stream(desk, future, last_event_id or "", address(request.scope, ""))
        return StreamingResponse(source, media_type="text/event-stream", headers=headers)


def _stream_routes(router: APIRouter, desk: Desk) -> None:
    """The output of a job while it is being made."""

    @router.head("/{job_id}/stream", include_in_schema=False)
    @router.get(
        "/{job_id}/stream",
        summary="Watch a job while it runs",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"video/mp4": {}}, "description": "The stream from its beginning; it grows with the job"},
            206: {"content": {"video/mp4": {}}, "description": "The requested range"},
            307: {"description": "The job has completed: its video or sound is there"},
            416: {"description": "No such range yet"},
            **responses(JobView, 202),
            **responses(Failed, 403, 404, 409, 410, 422, 502, 503, 504),
        },
    )
    async def stream_of(
        request: Request,
        job_id: JobId,
        attempt: Annotated[int | None, Query(ge=1, description="of this attempt only; default: the latest")] = None,
        wait_s: Annotated[
            float, Query(ge=0, le=_MAX_WAIT_S, description="how long to wait for the beginning of the stream")
        ] = 0.0,
    ) -> Response:
        """A fragmented MP4 that browsers play from its first second on, where the engine makes one (`lipsync` and
        `portrait`: `"stream": true`). `X-Attempt` is the attempt that makes it. The response ends when the stream is
        whole; when the attempt fails the connection breaks off, and the next attempt has a new stream. 202 while there
        is none yet, 409 when the job runs on another machine, after the end the file of the job (307) or its failure.
        """
        # RACE: what an attempt has written outlives its record for a moment
        if (record := await _record(desk, check_id(job_id), 0.0)) is not None:
            return _instead(request, record)
        reader = await in_thread(lambda: growing.open_newest(desk.pool.spool, job_id, attempt))
        if reader is None and wait_s:
            reader = await _begun(desk, request, job_id, attempt, wait_s)
        if reader is not None:
            return grow(request, desk, job_id, reader)
        record = await _record(desk, job_id, 0.0)
        return _instead(request, record) if record is not None else await in_thread(lambda: _not_yet(desk, job_id))


def _result_routes(router: APIRouter, desk: Desk) -> None:
    """What a job returned and the files that it made."""

    @router.get(
        "/{job_id}/result",
        summary="What a job returned",
        response_model=Outcome,
        responses={**responses(JobView, 202), **responses(Failed, 403, 404, 410, 422, 502, 503, 504)},
    )
    async def result(
        request: Request,
        job_id: JobId,
        wait_s: Annotated[
            float, Query(ge=0, le=_MAX_WAIT_S, description="how long to wait for the end of the job")
        ] = 0.0,
    ) -> Response:
        """200 with the value; 202 while the job is not over; 503 after a wait when no worker of its engine can run.
        A failed job gives the status of its kind (422 input, 502 engine, 503 resources, 504 timeout, 410
        cancelled) and its failure."""
        record = await _record(desk, check_id(job_id), wait_s)
        if record is None:
            view = await in_thread(lambda: desk.look(job_id))
            return json_response(view.model_dump(), 202, {"Retry-After": "1"})
        if record.state is JobState.COMPLETED:
            prefix = address(request.scope, "")
            return await in_thread(lambda: json_response(desk.outcome(record, prefix).to_map()))
        return _failed(record)

    @router.head("/{job_id}/files/{name}", include_in_schema=False)
    @router.get(
        "/{job_id}/files/{name}",
        summary="Fetch a file that a job produced",
        response_class=FileResponse,
        responses={
            **SENT,
            **responses(Failed, 403, 404, 422),
        },
    )
    async def file(request: Request, job_id: JobId, name: Annotated[str, InPath(max_length=255)]) -> Response:
        """Only files that the record of the job names, whole or in ranges. Content-Disposition carries the name of the
        job's input, unless the job wrote the file where its client said."""
        record = await _record(desk, check_id(job_id), 0.0)
        path = _path_in(record, name) if record is not None else ""
        if not path:
            raise HTTPException(404, f"job {job_id} has no file {name!r:.100}")
        assert record is not None
        save_as = desk.save_as(record).get(path, name)
        return await send_file(request, await in_thread(lambda: desk.produced(job_id, path)), save_as)


def _control_routes(router: APIRouter, desk: Desk) -> None:
    """Cancel a job, retry one that failed or was cancelled."""

    @router.delete(
        "/{job_id}",
        summary="Cancel a job",
        status_code=202,
        response_model=Cancelled,
        responses=responses(Failed, 403, 404, 409, 422, 503),
    )
    async def cancel(job_id: JobId) -> Response:
        """A waiting job never starts; a running job is ended with all processes that it started."""
        state = await in_thread(lambda: desk.cancel(job_id))
        return json_response({"id": job_id, "state": state.value}, 202)

    @router.post(
        "/{job_id}/retry",
        summary="Retry a job that failed or was cancelled",
        status_code=202,
        response_model=JobView,
        responses=responses(Failed, 403, 404, 409, 422, 503),
    )
    async def retry(job_id: JobId, request: Request) -> Response:
        """A failed job keeps its id and gets all its attempts again. In place of a cancelled one, whose file is gone, a
        new job runs with the same parameters and terms; its `rerun_of` names the old one."""
        future = await in_thread(lambda: desk.retry(job_id))
        desk.renew(future)
        view = await in_thread(lambda: desk.look(future.id))
        return json_response(view.model_dump(), 202, {"Location": address(request.scope, f"/jobs/{future.id}")})


async def _record(desk: Desk, job_id: str, wait_s: float) -> Record | None:
    """The record of a job, awaited for `wait_s` seconds; None while it is not over.

    Raises UnknownJob, EngineUnavailable.
    """
    spool = desk.pool.spool
    if not spool.decided(job_id):
        if not wait_s:
            state = await in_thread(lambda: desk.pool.state(job_id))
            if not state.terminal:
                return None
        else:
            future = await desk.future(job_id)
            if not await desk.wait(future, wait_s):
                return None
            if future.unavailable is not None:
                raise future.unavailable
    try:
        return await in_thread(lambda: spool.read_record(job_id))
    except FileNotFoundError:
        raise UnknownJob(job_id) from None  # RACE: consumed or retried at this moment


def _failed(record: Record) -> Response:
    """The answer for a job that failed or was cancelled."""
    failure = record.failure
    kind = "cancelled" if record.state is JobState.CANCELLED else failure.kind if failure else "engine"
    data = views.of_record(record).model_dump()
    message = data["message"] or f"job {record.id} was {record.state.value}"
    error = {"type": "JobFailed", "message": message, "path": "", "data": data}
    return json_response({"error": error}, STATUS_OF_KIND.get(kind, 502), {"x-should-retry": "false"})


def _instead(request: Request, record: Record) -> Response:
    """The answer for the stream of a job that is over."""
    if record.state is not JobState.COMPLETED:
        return _failed(record)
    names = [str(file.get("path", "")).rpartition("/")[2] for file in record.files]
    shown = [name for name in names if shown_type(name).startswith(("video/", "audio/"))]
    if len(shown) != 1:
        raise HTTPException(404, f"job {record.id} is over and made no video or sound")
    where = address(request.scope, f"/jobs/{record.id}/files/{quote(shown[0])}")
    return RedirectResponse(where, 307, {"Cache-Control": "no-store"})


async def _begun(desk: Desk, request: Request, job_id: str, attempt: int | None, wait_s: float) -> StreamReader | None:
    """The stream of a job, awaited for `wait_s` seconds; None when there is none, or the job is over before.

    Raises UnknownJob, EngineUnavailable.
    """
    future = await desk.future(job_id)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and not desk.leaving and not await request.is_disconnected():
        over = await desk.wait(future, _LOOK_S)
        reader = await in_thread(lambda: growing.open_newest(desk.pool.spool, job_id, attempt))
        if reader is not None or over:
            return reader
        if future.unavailable is not None:
            raise future.unavailable
    return None


def _not_yet(desk: Desk, job_id: str) -> Response:
    if lookup.find(desk.pool.spool, job_id).away:
        message = f"job {job_id} runs on another machine of the cluster, which sends its file when it is done"
        raise HTTPException(409, f"{message}: there is no stream of it here")
    return json_response(desk.look(job_id).model_dump(), 202, {"Retry-After": "1"})


def _path_in(record: Record, name: str) -> str:
    """The path of a file that a record names, "" when it names none."""
    paths = (str(entry.get("path", "")) for entry in record.files)
    return next((path for path in paths if name and path.rpartition("/")[2] == name), "")
