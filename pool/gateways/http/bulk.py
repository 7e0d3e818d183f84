"""Routes that do one thing to many jobs: retry, cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pool.client.future import JobFuture
from pool.errors import PoolError
from pool.gateways.http.bodies import JsonRoute
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import json_response, problem_of
from pool.gateways.http.shapes import BulkDone, Failed, JobIds, Refusal, responses


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

    return router


def _each(ids: Iterable[str], act: Callable[[str], str]) -> BulkDone:
    done: list[str] = []
    refused: list[Refusal] = []
    for job_id in dict.fromkeys(ids):
        try:
            done.append(act(job_id))
        except (PoolError, HTTPException, OSError) as error:
            refused.append(Refusal(id=job_id, message=problem_of(error).message))
    return BulkDone(done=done, refused=refused)
