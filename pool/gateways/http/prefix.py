"""The path below which a proxy serves the gateway, such as /pool: `http.root_path`, else the header X-Forwarded-Prefix.

Within the application `root_path` of the scope is that prefix, and `path` begins with it, as ASGI says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pool.config.settings import ROOT_PATH
from pool.gateways.http.errors import Problem, respond

_HEADER = "X-Forwarded-Prefix"


class Prefix:
    """ASGI middleware that puts the prefix into the scope. configured: one that the proxy may take off the path, or
    leave on; "": that of the header, which a proxy sends when it takes the prefix off."""

    def __init__(self, app: ASGIApp, configured: str) -> None:
        self._app, self._configured = app, configured

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its prefix; 400 for a malformed header."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix, path = self._configured, scope["path"]
        if prefix and path == prefix:
            await RedirectResponse(f"{prefix}/", 308)(scope, receive, send)
            return
        if prefix:
            path = path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path
        else:
            prefix = Headers(scope=scope).get(_HEADER, "").rstrip("/")
            if not ROOT_PATH.fullmatch(prefix):
                message = f"{_HEADER}: {prefix!r:.100} is not a path like /pool"
                await respond(path, Problem(400, "BadRequest", message))(scope, receive, send)
                return
        if prefix:
            scope = {**scope, "root_path": prefix, "path": prefix + path}
        await self._app(scope, receive, send)


def route_path(scope: Mapping[str, Any]) -> str:
    """The path of a request without the prefix."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def address(scope: Mapping[str, Any], path: str) -> str:
    """A path of this gateway as the client of a request reaches it."""
    return f"{scope.get('root_path', '')}{path}"
