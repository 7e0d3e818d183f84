"""Who may come in, and how often: before anything else sees a request.

With a token: every request but /health and the console's own files carries it, as `Authorization: Bearer …`, or for
reading (a browser's video and event streams can send no header) as the cookie `filepool_token`. Without one, on
loopback: only this machine, and no page of a foreign site through a browser on it (the Host must be an address).
"""

from __future__ import annotations

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

from pool.gateways.http.errors import Problem, respond
from pool.gateways.http.settings import Settings

COOKIE = "filepool_token"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = frozenset({"/health"})
_OPEN_FILES = ("/", "/static/")  # the console: it asks for the token itself
_MANY = 10_000  # clients remembered


class Buckets:
    """Token buckets: so many requests a minute per client, in bursts of a tenth of them."""

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._now = per_minute / 60, max(1.0, per_minute / 10), now
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, client: str) -> float:
        """0.0 when the request may pass, else the seconds until the next one may."""
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
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._token = _digest(settings.token) if settings.token is not None else None
        self._buckets = Buckets(settings.rate_per_minute) if settings.rate_per_minute else None
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path, client = scope["path"], _client(scope)
        problem = None if path in _OPEN else self._refusal(scope, client)
        if problem is not None:
            await respond(path, problem)(scope, receive, send)
            return
        self._running[client] += 1
        try:
            await self._app(scope, receive, _plain(send))
        finally:
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]

    def _refusal(self, scope: Scope, client: str) -> Problem | None:
        wait_s = self._buckets.take(client) if self._buckets else 0.0
        if wait_s:
            headers = {"Retry-After": str(math.ceil(wait_s))}
            limit = self._settings.rate_per_minute
            return Problem(429, "TooManyRequests", f"more than {limit} requests a minute", headers=headers)
        if self._settings.concurrent and self._running[client] >= self._settings.concurrent:
            message = f"{self._settings.concurrent} requests at a time are allowed: wait for one of them"
            return Problem(429, "TooManyRequests", message, headers={"Retry-After": "1"})
        headers_in, safe = Headers(scope=scope), scope["method"] in _SAFE
        if self._token is None:
            return _foreign(headers_in, safe, self._settings)
        if safe and (scope["path"] == _OPEN_FILES[0] or scope["path"].startswith(_OPEN_FILES[1])):
            return None
        given = _bearer(headers_in) or (_cookie(headers_in) if safe else "")
        if given and hmac.compare_digest(_digest(given), self._token):
            return None
        message = "the token is wrong" if given else "a token is needed: Authorization: Bearer <token>"
        return Problem(401, "Unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def _foreign(headers: Headers, safe: bool, settings: Settings) -> Problem | None:
    """Without a token a browser on this machine would let any page in: by a name that leads here, or across sites."""
    host = _host_of(f"//{headers.get('host', '')}")
    if host and host not in ("localhost", settings.host) and not _is_address(host):
        message = f"{host!r:.100} is not how this gateway is called: use its address, or set a token"
        return Problem(403, "Forbidden", message)
    origin = headers.get("origin")
    if not safe and origin and _host_of(origin) != host:
        return Problem(403, "Forbidden", "pages of other sites may not write here: set a token")
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
    """Of one length, so that comparing tells nothing about the token's."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _plain(send: Send) -> Send:
    """Uploaded and produced files are shown as what they are said to be, and in nobody's frame."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY")]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sent
