"""All that a console shows, as one stream of server-sent events: the pool, lists of jobs, the events of some jobs.

One connection serves all tabs of a browser, which opens at most six to one address.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from pool.errors import JobRefused, PoolError
from pool.format.names import check_id
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import problem_of
from pool.gateways.http.events import HEARTBEAT, HEARTBEAT_S, follow, text_of
from pool.gateways.http.lists import Wanted, find, parse
from pool.gateways.http.prefix import address
from pool.gateways.http.shapes import Failed, responses
from pool.gateways.http.state import engines_of
from pool.gateways.http.told import pool_events

_LISTS, _JOBS = 24, 48  # at most, of one stream
_SHARE = 4  # a turn that took t is not repeated before 4 t have passed
_ENGINES_S = 2.0
_AGAIN_S = 2.0  # between two tries to follow a job for which there is no worker
_AHEAD = 64  # events that wait for a slow client; then its stream waits


@dataclass(frozen=True)
class _Followed:
    """One job of a stream. last: the id of the last event that the client has."""

    id: str
    last: str = ""


def make_routes(desk: Desk) -> APIRouter:
    """The route /live."""
    router = APIRouter(tags=["pool"])

    @router.get(
        "/live",
        summary="Follow the pool, lists and jobs in one stream",
        response_class=StreamingResponse,
        responses={200: pool_events(), **responses(Failed, 403, 422)},
    )
    async def live(
        *,
        lists: Annotated[
            list[str] | None,
            Query(alias="list", max_length=_LISTS, description="the query of a GET /jobs, such as `state=failed`"),
        ] = None,
        jobs: Annotated[
            list[str] | None,
            Query(alias="job", max_length=_JOBS, description="the id of a job, or `<id>@<last event id>`"),
        ] = None,
        every_s: Annotated[float, Query(ge=1, le=60, description="seconds between two looks at the pool")] = 1.0,
        request: Request,
    ) -> Response:
        """`status` and `engines` as GET /status and GET /engines; `list` {of, …} as GET /jobs, when it changes; `job`
        {of, event, id, data}, an event of GET /jobs/{id}/events; `gone` {of, status, message}: there is no such job.
        `of` is the place of the list or job in the query, from 0."""
        wanted = [parse(query, f"list.{at}") for at, query in enumerate(lists or ())]
        followed = [_followed(text, f"job.{at}") for at, text in enumerate(jobs or ())]
        await in_thread(lambda: _check(desk, wanted))
        source = _stream(desk, wanted, followed, every_s, address(request.scope, ""))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(source, media_type="text/event-stream", headers=headers)

    return router


def _check(desk: Desk, lists: Sequence[Wanted]) -> None:
    """Raise what would end the stream, before it begins."""
    desk.status()
    for wanted in lists:
        if wanted.paged:
            find(desk, wanted)


def _followed(text: str, key: str) -> _Followed:
    job_id, _, last = text.partition("@")
    try:
        return _Followed(check_id(job_id), last)
    except JobRefused as error:
        raise JobRefused(str(error), key) from None


async def _stream(
    desk: Desk, lists: Sequence[Wanted], jobs: Sequence[_Followed], every_s: float, prefix: str
) -> AsyncIterator[str]:
    queue: asyncio.Queue[str] = asyncio.Queue(_AHEAD)
    tasks = [asyncio.create_task(_look_after_pool(desk, lists, every_s, queue))]
    tasks += [asyncio.create_task(_look_after_job(desk, at, job, prefix, queue)) for at, job in enumerate(jobs)]
    try:
        yield "retry: 1000\n\n"
        while not desk.leaving:
            taken = asyncio.create_task(queue.get())
            try:
                await asyncio.wait({taken, tasks[0]}, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
                if taken.done():
                    yield taken.result()
                elif tasks[0].done():
                    tasks[0].result()  # the pool cannot be read: the client connects again and is told why
                    return
                else:
                    yield HEARTBEAT
            finally:
                taken.cancel()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _look_after_pool(desk: Desk, lists: Sequence[Wanted], every_s: float, queue: asyncio.Queue[str]) -> None:
    sent: dict[int, str] = {}
    engines, engines_at = "", 0.0
    while not desk.leaving:
        begun = time.monotonic()
        await queue.put(await in_thread(lambda: text_of("status", desk.status().to_map())))
        if begun >= engines_at:
            engines_at = begun + _ENGINES_S
            text = await in_thread(lambda: text_of("engines", engines_of(desk)))
            if text != engines:
                engines = text
                await queue.put(text)
        for at, wanted in enumerate(lists):
            text = await in_thread(lambda at=at, wanted=wanted: _list(desk, at, wanted))  # type: ignore[misc]
            if sent.get(at) != text:
                sent[at] = text
                await queue.put(text)
        await desk.rest(max(every_s, _SHARE * (time.monotonic() - begun)))


def _list(desk: Desk, at: int, wanted: Wanted) -> str:
    return text_of("list", {"of": at, **find(desk, wanted).model_dump()})


async def _look_after_job(desk: Desk, at: int, job: _Followed, prefix: str, queue: asyncio.Queue[str]) -> None:
    last = job.last
    while not desk.leaving:
        try:
            future = await desk.future(job.id)
            async for event in follow(desk, future, last, prefix):
                if event is None:
                    continue
                last = event.id or last
                await queue.put(text_of("job", {"of": at, "event": event.name, "id": event.id, "data": event.body}))
                if event.name == "result":
                    return
        except (PoolError, HTTPException, OSError) as error:
            problem = problem_of(error)
            await queue.put(text_of("gone", {"of": at, "status": problem.status, "message": problem.message}))
            return
        await desk.rest(_AGAIN_S)
