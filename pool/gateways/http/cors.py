"""Pages of other origins: the middleware of the framework, whose refusals are answers of this gateway."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pool.gateways.http.errors import Problem, respond
from pool.gateways.http.prefix import route_path

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")  # that a page of another origin may use
_EXPOSED = (
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Location",
    "Retry-After",
    "WWW-Authenticate",
    "X-Job-Id",
    "X-Request-Id",
)  # and the headers that it may read


class Cors(CORSMiddleware):
    """Answers preflights, and lets pages of the origins read the answers. origins: as in http.cors_origins."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(app, origins, METHODS, allow_headers=("*",), expose_headers=_EXPOSED)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight; a refusal in the format of the API that was asked."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        headers = {key: value for key, value in answer.headers.items() if not key.startswith("content-")}
        return _Refusal(Problem(403, "Forbidden", self._why(request_headers), headers=headers))

    def _why(self, asked: Headers) -> str:
        origin, method = asked["origin"], asked["access-control-request-method"]
        if not self.is_allowed_origin(origin):
            return f"the origin {origin!r:.100} is not named in http.cors_origins"
        if method not in METHODS:
            return f"pages of other origins may not use {method!r:.20}, only {', '.join(METHODS)}"
        return "pages of public sites may not use a gateway of a private network"


class _Refusal(Response):
    """A refusal whose format depends on the path."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(status_code=problem.status)
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await respond(route_path(scope), self._problem)(scope, receive, send)
