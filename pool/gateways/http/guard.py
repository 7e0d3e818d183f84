"""Authentication and rate limits, checked before any route runs.

With a token, every request but those for /health and the console's static files must carry it, as
`Authorization: Bearer …`. Safe methods may send it as the cookie `filepool_token` instead, because browsers send no
header for media elements. Without a token the gateway serves this machine only, and refuses requests that another
site makes through a browser on this machine (the Host must be an address).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pool.gateways.http.errors import Problem, respond, retry_after
from pool.gateways.http.prefix import route_path
from pool.gateways.http.settings import Settings

COOKIE = "filepool_token"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = frozenset({"/health"})
_OPEN_FILES = ("/", "/static/")  # the console, which asks for the token itself
_MANY = 10_000  # clients whose buckets are kept


class Buckets:
    """Token buckets: `per_minute` requests per client, in bursts of at most a tenth of that."""

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._now = per_minute / 60, max(1.0, per_minute / 10), now
        self._levels: dict[str, tuple[float, float]] = {}

    def __str__(self) -> str:
        return f"{self._rate * 60:g} requests a minute, {self._burst:g} at once,"

    def take(self, client: str) -> float:
        """Count one request of a client: 0.0 when it may pass, else the seconds until the next one may."""
        now = self._now()
        level, then = self._levels.get(client, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._rate)
        passes = level >= 1
        self._levels[client] = (level - passes, now)
        if len(self._levels) > _MANY:
            full = [who for who, (left, at) in self._levels.items() if left + (now - at) * self._rate >= self._burst]
            for who in full or list(self._levels)[: _MANY // 2]:
                del self._levels[who]
        return 0.0 if passes else (1 - level) / self._rate


class Guard:
    """ASGI middleware that refuses requests without the token, above the limits, or from other sites."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._token = _digest(settings.token) if settings.token is not None else None
        self._buckets = Buckets(settings.rate_per_minute) if settings.rate_per_minute else None
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on. WebSockets are closed: the gateway has none."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path, client = route_path(scope), _client(scope)
        problem = None if path in _OPEN else self._refusal(scope, client)
        if problem is not None:
            await respond(path, problem)(scope, receive, send)
            return
        self._running[client] += 1
        answer = _Answer(scope, send)
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:  # the server ends and has waited long enough
            if not answer.begun:
                message = "the gateway is being restarted: send the same request again"
                problem = Problem(503, "ServiceUnavailable", message, headers=retry_after())
                await respond(path, problem)(scope, receive, answer.send)
        finally:
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]

    def _refusal(self, scope: Scope, client: str) -> Problem | None:
        headers_in, safe = Headers(scope=scope), scope["method"] in _SAFE
        path = route_path(scope)
        if safe and (path == _OPEN_FILES[0] or path.startswith(_OPEN_FILES[1])):
            return _foreign(headers_in, safe, self._settings) if self._token is None else None
        wait_s = self._buckets.take(client) if self._buckets else 0.0
        if self._buckets and wait_s:
            headers = {"Retry-After": str(math.ceil(wait_s))}
            message = f"{self._buckets} are allowed for each address (http.rate_per_minute): wait {math.ceil(wait_s)} s"
            return Problem(429, "TooManyRequests", message, headers=headers)
        if self._settings.concurrent and self._running[client] >= self._settings.concurrent:
            limit = f"{self._settings.concurrent} requests of one address may run at a time"
            message = f"{limit} (http.concurrent_requests): wait for one to end"
            return Problem(429, "TooManyRequests", message, headers={"Retry-After": "1"})
        if self._token is None:
            return _foreign(headers_in, safe, self._settings)
        given = _bearer(headers_in) or (_cookie(headers_in) if safe else "")
        if given and hmac.compare_digest(_digest(given), self._token):
            return None
        message = "the token is wrong" if given else "a token is required: Authorization: Bearer <token>"
        return Problem(401, "Unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def _foreign(headers: Headers, safe: bool, settings: Settings) -> Problem | None:
    """Refuse requests of other sites: by DNS rebinding (a foreign name in Host), or by a cross-site write."""
    host = _host_of(f"//{headers.get('host', '')}")
    if host and host not in ("localhost", settings.host) and not _is_address(host):
        message = f"{host!r:.100} is not an accepted host name: use the address of the gateway, or set a token"
        return Problem(403, "Forbidden", message)
    origin = headers.get("origin")
    if not safe and origin and _host_of(origin) != host and origin not in settings.cors_origins:
        return Problem(
            403, "Forbidden", "cross-site writes are refused: set a token, or name the origin in http.cors_origins"
        )
    return None


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return "?"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _client(scope: Scope) -> str:
    peer = scope.get("client")
    return str(peer[0]) if peer else ""


def _bearer(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _digest(token: str) -> bytes:
    """SHA-256 of a token: of fixed length, so that the comparison does not reveal the length of the token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class _Answer:
    """Adds headers to the response: those that forbid browsers to guess media types and to frame it, and the id of the
    job that the route has noted in `request.state.job_id`."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._state, self._path, self._send = scope.setdefault("state", {}), route_path(scope), send
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            extra = [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY")]
            if job_id := str(self._state.get("job_id", "")).encode():
                extra.append((b"x-job-id", job_id))
                if self._path.startswith("/v1/"):
                    extra.append((b"x-request-id", job_id))  # which OpenAI's clients show
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)
