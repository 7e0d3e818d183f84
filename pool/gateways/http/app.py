"""The ASGI application: routes, guard, error handlers, the OpenAPI document."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from pool import __version__
from pool.client.filepool import FilePool
from pool.errors import JobRefused, OperatorError, PoolError, SpoolError, UnknownJob
from pool.gateways.http import bulk, docs, edits, examples, human, inputs, jobs, live, logs, speech, state, tempfile
from pool.gateways.http.cors import Cors
from pool.gateways.http.desk import Desk
from pool.gateways.http.errors import problem_of, respond
from pool.gateways.http.guard import Guard
from pool.gateways.http.heads import Heads
from pool.gateways.http.prefix import Prefix, route_path
from pool.gateways.http.private import Private
from pool.gateways.http.settings import Settings
from pool.gateways.http.traced import Traced

_REVALIDATE = {"Cache-Control": "no-cache"}  # otherwise browsers mix files of two versions
CONSOLE = Path(__file__).resolve().parents[1] / "console"  # index.html at /, the rest at /static


def make_app(pool: FilePool, settings: Settings) -> FastAPI:
    """The application that serves one pool. The folders of the settings must exist; the caller closes the pool."""
    desk = Desk(pool, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with desk.open():
            yield

    app = FastAPI(
        title="filepool",
        version=__version__,
        description="Lip-synced video, talking portraits and transcripts from a pool of workers.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        dependencies=[Depends(_only_known_keys)],
    )
    app.state.leave, app.state.lost = desk.leave, pool.spool.lost
    for module in (human, tempfile, jobs, inputs, bulk, edits, speech, state, live, logs, examples):
        app.include_router(module.make_routes(desk))
    app.include_router(docs.make_routes(app))
    docs.declare(app, settings)
    for kind in (RequestValidationError, HTTPException, PoolError, OSError, TimeoutError):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_middleware(Traced)
    app.add_middleware(Private, paths=desk.paths, always=settings.remote)
    app.add_middleware(Heads)
    app.add_middleware(Guard, settings=settings)
    if settings.cors_origins:  # outside of the guard: preflights have no token, and pages must be able to read refusals
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(Prefix, configured=settings.root_path)
    if CONSOLE.is_dir():
        assets = _Assets(directory=CONSOLE)
        app.mount("/static", assets, name="static")

        @app.get("/", include_in_schema=False)
        async def console(request: Request) -> Response:
            return await assets.get_response("index.html", request.scope)

    return app


async def _only_known_keys(request: Request) -> None:
    """Refuse keys of the query that the route does not have: a misspelt filter must not give everything."""
    known = [each.alias for each in request.scope["route"].dependant.query_params]
    for key in request.query_params:
        if key not in known:
            there = f"there are: {', '.join(known)}" if known else "this route has none"
            raise JobRefused(f"is an unknown key; {there}", key)


class _Assets(StaticFiles):
    """The static files of the console, revalidated on every request."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_REVALIDATE)
        return response


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, (OSError, SpoolError, UnknownJob)) and (reason := request.app.state.lost()):
        error = SpoolError(f"{reason}; restart this gateway once a pool serves there")
    problem = problem_of(error)
    if problem.status == 500:
        logger.opt(exception=error).error("{} {}", request.method, request.url.path)
    elif isinstance(error, (OperatorError, OSError)):
        logger.warning("{} {}: {}", request.method, request.url.path, error)
    return respond(route_path(request.scope), problem)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    return await _on_error(request, error)
