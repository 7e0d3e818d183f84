"""The trace context of a request: jobs that it submits belong to that trace.

As W3C wants it, a header that is malformed is not taken, and the request is served all the same: who sent it may be a
proxy. It is said in the log.
"""

from __future__ import annotations

from loguru import logger
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pool.format.trace_context import TraceContext, given, is_state, parse


class Traced:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = given.set(_of(Headers(scope=scope)))
        try:
            await self._app(scope, receive, send)
        finally:
            given.reset(token)


def _of(headers: Headers) -> TraceContext | None:
    parents = headers.getlist("traceparent")
    if not parents:
        return None
    parent = parse(parents[0].strip()) if len(parents) == 1 else None
    if parent is None:
        logger.warning("a request with a malformed traceparent: {!r:.100}", ", ".join(parents))
        return None
    state = ",".join(headers.getlist("tracestate"))
    if not is_state(state):
        logger.warning("a request with a malformed tracestate: {!r:.100}", state)
        state = ""
    return TraceContext(str(parent), state)
