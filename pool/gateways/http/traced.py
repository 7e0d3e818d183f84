"""The trace context of a request: jobs that the request submits belong to that trace.

As the W3C recommendation says, a malformed header is ignored and the request is served, because a proxy may have
added it. The log reports it.
"""

from __future__ import annotations

from loguru import logger
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pool.format.trace_context import TraceContext, given, is_state, parse


class Traced:
    """ASGI middleware that sets the trace context for the duration of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its trace context set."""
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
        logger.warning("ignored a malformed traceparent header: {!r:.100}", ", ".join(parents))
        return None
    state = ",".join(headers.getlist("tracestate"))
    if not is_state(state):
        logger.warning("ignored a malformed tracestate header: {!r:.100}", state)
        state = ""
    return TraceContext(str(parent), state)
