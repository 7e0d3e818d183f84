"""Routes for the pool as a whole: status, engines and their parameters, history, metrics for Prometheus."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from pool.client.durations import span
from pool.client.stats import window
from pool.client.status import PoolStatus
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import json_response
from pool.gateways.http.metrics import make_registry, render
from pool.gateways.http.shapes import Engines, Failed, Stats, Stretch, responses


def make_routes(desk: Desk) -> APIRouter:
    """The routes /status, /engines, /stats and /metrics."""
    router = APIRouter(tags=["pool"])
    registry = make_registry(desk)

    @router.get(
        "/status",
        summary="Engines, queues, workers",
        response_model=PoolStatus,
        responses=responses(Failed, 403),
    )
    async def status() -> Response:
        """As `python -m pool status --json`, at most half a second old."""
        found = await in_thread(desk.status)
        return json_response(found.to_map())

    @router.get(
        "/engines",
        summary="Engines and their parameters",
        response_model=Engines,
        responses=responses(Failed, 403),
    )
    async def engines() -> Response:
        return json_response(await in_thread(lambda: engines_of(desk)))

    @router.get(
        "/stats",
        summary="Throughput, waits and runs over time",
        response_model=Stats,
        responses=responses(Failed, 403, 422),
    )
    async def stats(
        since: Annotated[str, Query(max_length=20, description="how far back: 6h, 24h, 7d; 14d at most")] = "24h",
    ) -> Response:
        """By the moment at which jobs ended, in stretches of 10 minutes (up to 6 h), 1 h (up to 2 d) or 6 h. Kept for
        14 days, also over restarts of the gateway and longer than the records."""
        found = await in_thread(lambda: stats_of(desk, span(since, "since")))
        return json_response(found.model_dump())

    @router.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text format"},
            **responses(Failed, 403),
        },
    )
    async def metrics() -> Response:
        return Response(await in_thread(lambda: render(registry)), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def stats_of(desk: Desk, since_s: float) -> Stats:
    """The history of the last `since_s` seconds. Raises JobRefused."""
    chosen = window(desk.pool.spool.now(), since_s)
    desk.ledger.refresh()
    found = [Stretch(engine=engine, at=at, **sums.to_map()) for engine, at, sums in desk.history.within(chosen)]
    return Stats(begin=chosen.begin_s, step_s=chosen.step_s, stretches=found, unread=desk.ledger.unread)


def engines_of(desk: Desk) -> dict[str, Any]:
    """The engines with the schemas of their parameters; blocks while they are read."""
    found = []
    for engine in desk.pool.config.engines.values():
        about = desk.describe(engine.name) or {}
        found.append(
            {
                "name": engine.name,
                "workers": engine.workers,
                "described": bool(about),
                "doc": about.get("doc", ""),
                "schema": about.get("schema"),
            }
        )
    return {"engines": found}
