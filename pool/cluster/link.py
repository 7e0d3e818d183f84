"""The connection to the servers of a cluster: opened once, kept up for ever, and how it is told at any time.

NATS' client reconnects by itself. What it cannot know is here: whether there was a gap (`unbroken_s`), why there is no
connection (`trouble`), and that a server which answers may still have no quorum, which a request of JetStream tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from loguru import logger
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError, ServiceUnavailableError
from nats.js.kv import KeyValue

from pool.cluster.complaints import Complaints
from pool.config.settings import ClusterConfig
from pool.errors import ClusterAway, ConfigError

T = TypeVar("T")
_CONNECT_S, _AGAIN_S = 5, 0.5
_CLOSE_S = 3.0
_REFUSED = "it refuses this user or password: cluster.user and cluster.password_file, or --user and --password-file"
_REQUEST_S = 5.0
_HEAR_AGAIN_S, _FOLLOW_AGAIN_S = 1.0, 0.2
_WHOLE_S = 0.9  # of silence: what was counted and does not come has expired
_PAYLOAD = 1 << 20  # what a server takes that says nothing else

#: What a call may raise while the servers are away, or have no leader.
AWAY = (NatsError, TimeoutError, asyncio.TimeoutError, ServiceUnavailableError, OSError)


#: Error codes of JetStream: a stream, or its disk, is full.
FULL = frozenset({10077, 10047, 10023, 10053})


class Link:
    """One connection. `open` returns when it stands; from then on it comes back by itself."""

    def __init__(self, config: ClusterConfig, name: str, complain: Complaints | None = None) -> None:
        if not config.servers:
            raise ConfigError('no servers are given; for example ["nats://10.0.0.1:4222"]', "cluster.servers")
        self._config, self._name = config, name
        self.client = Client()
        self.trouble = ""
        self.complain = complain or Complaints()
        self._closing = False
        self._since: float | None = None  # monotonic: connected without a gap
        self._buckets: dict[str, KeyValue] = {}
        self.js: JetStreamContext = self.client.jetstream(timeout=_REQUEST_S)
        self.on_gap: list[Callable[[], None]] = []  # called on the loop when a connection stands again

    # ---- how it is

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._since is not None and self.client.is_connected

    @property
    def unbroken_s(self) -> float:
        """For how long the connection has stood without a gap; 0 without one."""
        return time.monotonic() - self._since if self.connected and self._since is not None else 0.0

    @property
    def servers(self) -> str:
        """The addresses, for people: without passwords."""
        return ", ".join(map(plain, addresses(self._config)))

    @property
    def refused(self) -> bool:
        """Whether the servers refuse this user or password."""
        return self.trouble == _REFUSED

    @property
    def certificate_expires(self) -> float | None:
        """Until when the certificate of the server is good, in seconds since 1970; None without one."""
        writer = getattr(self.client._transport, "_io_writer", None)
        about = writer.get_extra_info("peercert") if writer is not None else None
        return ssl.cert_time_to_seconds(str(about["notAfter"])) if about else None

    @property
    def away(self) -> str:
        """That there is no connection, and why, for people."""
        return self._sentence(self.trouble)

    def failing(self, error: BaseException) -> str:
        """The same for what a call has raised."""
        return self._sentence(self.trouble or _words(error))

    def _sentence(self, why: str) -> str:
        return f"the cluster at {self.servers} does not answer: {why}"

    @property
    def room(self) -> int:
        """How many bytes of a message the servers take."""
        return (self.client.max_payload or _PAYLOAD) - 16_384  # headers, and the rest of the message

    # ---- begin and end

    async def open(self, *, patience_s: float | None = None) -> Link:
        """Connect. patience_s: how long to try; None: for ever. Raises ClusterAway, ConfigError."""
        deadline = None if patience_s is None else time.monotonic() + patience_s
        options = self._options()
        while True:
            try:
                connecting = self.client.connect(servers=addresses(self._config), **options)  # tries for ever
                left = None if deadline is None else max(0.1, deadline - time.monotonic())
                await asyncio.wait_for(connecting, left)
            except AWAY as error:
                if "invalid connect url" in str(error):
                    raise ConfigError(
                        f"{self.servers} is no address: write nats://host:4222", "cluster.servers"
                    ) from None
                if str(error) or not self.trouble:  # the end of our patience is no reason
                    self._fault(error)
                if deadline is not None and time.monotonic() >= deadline:
                    raise ClusterAway(self.away) from None
                await _closed(self.client)
                self.client = Client()
                self.js = self.client.jetstream(timeout=_REQUEST_S)
                await asyncio.sleep(_AGAIN_S)
            else:
                self._since, self.trouble = time.monotonic(), ""
                return self

    async def close(self) -> None:
        """Say good-bye; what was sent is out."""
        self._closing = True
        if self.connected:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.client.flush(timeout=2), 3)
        await _closed(self.client)

    def _options(self) -> dict[str, Any]:
        config = self._config
        return {
            "name": self._name,
            "user": config.user,
            "password": _secret(config.password_file, "cluster.password_file"),
            "token": _secret(config.token_file, "cluster.token_file"),
            "tls": self._tls(),
            "connect_timeout": _CONNECT_S,
            "reconnect_time_wait": _AGAIN_S,
            "max_reconnect_attempts": -1,
            "ping_interval": max(1, int(config.lease_s / 6)),
            "max_outstanding_pings": 2,
            "disconnected_cb": self._disconnected,
            "reconnected_cb": self._reconnected,
            "error_cb": self._error,
            "pending_size": 64 << 20,
        }

    def _tls(self) -> ssl.SSLContext | None:
        config = self._config
        if not (config.tls_ca or config.tls_cert or any(one.startswith(("tls:", "wss:")) for one in config.servers)):
            return None
        logging.getLogger("asyncio").addFilter(_worth_saying)
        try:
            context = ssl.create_default_context(cafile=str(config.tls_ca) if config.tls_ca else None)
        except OSError as error:
            raise ConfigError(f"{config.tls_ca} cannot be used: {error.strerror}", "cluster.tls_ca") from None
        if config.tls_cert:
            key = str(config.tls_key) if config.tls_key else None
            try:
                context.load_cert_chain(str(config.tls_cert), key)
            except OSError as error:
                raise ConfigError(f"{config.tls_cert} cannot be used: {error.strerror}", "cluster.tls_cert") from None
        return context

    async def _disconnected(self) -> None:
        if self._closing:
            return
        self._broken("the connection broke")

    async def _reconnected(self) -> None:
        self._since, self.trouble = time.monotonic(), ""
        logger.info("connected again to the cluster")
        self.complain.forget()
        for call in self.on_gap:
            call()

    async def _error(self, error: Exception) -> None:
        if not self.connected:
            self._fault(error)
        else:
            logger.debug("cluster: {}", _words(error))

    def _fault(self, error: BaseException) -> None:
        if self.trouble == _REFUSED and isinstance(error, (ConnectionResetError, BrokenPipeError)):
            return  # so ends every connection that is refused
        self._broken(_words(error))

    def _broken(self, why: str) -> None:
        self._since, self.trouble = None, why
        self.complain(why, self.away)

    # ---- buckets

    async def bucket(self, name: str) -> KeyValue:
        """A bucket that exists. Raises what JetStream raises."""
        found = self._buckets.get(name)
        if found is None or found._js is not self.js:
            found = self._buckets[name] = await self.js.key_value(name)
        return found

    async def hear(
        self, subject: str, stream: str, take: Callable[[Msg], Awaitable[None]], anew: Callable[[], None] = lambda: None
    ) -> None:
        """Call `take` with each message of a stream that comes from now on, for ever. anew: called whenever some may
        have been missed."""
        while True:
            gap = asyncio.Event()
            self.on_gap.append(gap.set)
            subscription = None
            try:
                subscription = await self.js.subscribe(
                    subject, stream=stream, cb=take, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
                )
                anew()
                await gap.wait()
            except (*AWAY, APIError) as error:
                logger.debug("{}: {}", subject, error)
                await asyncio.sleep(_HEAR_AGAIN_S)
            finally:
                self.on_gap.remove(gap.set)
                if subscription is not None:
                    with contextlib.suppress(Exception):
                        await subscription.unsubscribe()

    async def keys(self, bucket: str) -> list[str]:
        """The keys that a bucket has, with those that were just deleted: `KeyValue.keys` may end before the first one.

        Raises what JetStream raises."""
        state = (await self.js.stream_info(f"KV_{bucket}", subjects_filter=">")).state
        return [subject.removeprefix(f"$KV.{bucket}.") for subject in state.subjects or {}]

    async def follow(
        self,
        bucket: str,
        take: Callable[[KeyValue.Entry | None], Awaitable[None]],
        *,
        anew_s: float = math.inf,
        silent_s: float = math.inf,
        meta_only: bool = False,
    ) -> bool:
        """Call `take` with each entry that a bucket has, with None after the last of them, then with each that changes.

        Returns after so many seconds, or after so many without a word, and when the connection breaks: a watch may go
        deaf, so call it anew. False: the servers did not serve it."""
        served = whole = False
        try:
            left = len(await self.keys(bucket))
            watch = await (await self.bucket(bucket)).watchall(meta_only=meta_only)
            begun = heard = time.monotonic()
            while self.connected and time.monotonic() < min(begun + anew_s, heard + silent_s):
                # counted, since the mark that nats-py sets may come before the first entry
                if not whole and (left <= 0 or time.monotonic() - heard > _WHOLE_S):
                    whole = True
                    await take(None)
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    entry = await watch.updates(timeout=1.0)  # type: ignore[no-untyped-call]
                    heard = time.monotonic()
                    if entry is not None:
                        left -= 1
                        await take(entry)
            await watch.stop()  # type: ignore[no-untyped-call]
            served = True
        except (*AWAY, APIError) as error:
            logger.debug("{}: {}", bucket, error)
        await asyncio.sleep(_FOLLOW_AGAIN_S)
        return served

    async def until_done(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """What a call returns, tried again for as long as the servers are away; it must be one that may be repeated.

        Raises APIError when they refuse it, or are full."""
        pause = 0.05
        while True:
            try:
                return await call()
            except KeyNotFoundError:  # what exists was to be created, and the server that was asked lags behind
                reason = "its servers have not agreed yet"
            except APIError as error:
                if (error.code or 0) < 500 or error.err_code in FULL:
                    raise
                reason = _words(error)
            except AWAY as error:
                reason = _words(error)
            if pause >= 1.0:
                self.complain(f"waits: {reason}", f"{what} waits for the cluster: {reason}")
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)


async def _closed(client: Client) -> None:
    """End a connection, in whatever state it is."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.close(), _CLOSE_S)


def addresses(config: ClusterConfig) -> list[str]:
    """The servers, one by one; several may stand in one text, with commas."""
    return [one.strip() for text in config.servers for one in text.split(",") if one.strip()]


def plain(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _secret(path: Path | None, key: str) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", key) from None


def _worth_saying(record: logging.LogRecord) -> bool:
    """Not what asyncio says whenever a connection of nats-py with TLS ends."""
    return "eof_received() has no effect" not in record.getMessage()


def _words(error: BaseException) -> str:
    text = str(error).removeprefix("nats: ").strip()
    if "authorization violation" in text.lower():
        return _REFUSED
    return text or type(error).__name__


async def get_entry(bucket: KeyValue, key: str) -> KeyValue.Entry | None:
    """What a bucket has under a key, None when it has nothing. Raises what JetStream raises."""
    try:
        return await bucket.get(key)
    except (KeyNotFoundError, KeyDeletedError):
        return None
