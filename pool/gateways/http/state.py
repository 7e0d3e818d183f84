"""Routes for the pool as a whole: status, engines and their parameters, metrics for Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import json_response
from pool.gateways.http.metrics import make_registry, render
from pool.gateways.http.shapes import Failed, responses

_OBJECT: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}


def make_routes(desk: Desk) -> APIRouter:
    """The routes /status, /engines and /metrics."""
    router = APIRouter(tags=["pool"])
    registry = make_registry(desk)

    @router.get(
        "/status",
        summary="Engines, queues, workers",
        response_class=Response,
        responses={
            200: {"content": _OBJECT, "description": "As `python -m pool status --json`"},
            **responses(Failed, 403),
        },
    )
    async def status() -> Response:
        """At most half a second old."""
        found = await in_thread(desk.status)
        return json_response(found.to_map())

    @router.get(
        "/engines",
        summary="Engines and their parameters",
        response_class=Response,
        responses={200: {"content": _OBJECT, "description": "Each with its JSON schema"}, **responses(Failed, 403)},
    )
    async def engines() -> Response:
        return json_response(await in_thread(lambda: engines_of(desk)))

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
