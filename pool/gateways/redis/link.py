"""The connection to Redis: how it is made and checked, and the log of its outages."""

from __future__ import annotations

import threading
import time
from typing import Any

from loguru import logger
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from pool.errors import ConfigError
from pool.gateways.redis.settings import Settings

_ANSWER_S = 10.0  # longer than BLMOVE may block
_OLDEST = (6, 2)  # LMOVE


def connect(settings: Settings) -> Any:
    """A client that never retries a command by itself: a repeated BLMOVE would take two jobs. With Sentinels each new
    connection asks them for the master."""
    wire: dict[str, Any] = {
        "socket_timeout": _ANSWER_S,
        "socket_connect_timeout": _ANSWER_S / 2,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.tls is not None:
        wire["ssl"], wire["ssl_check_hostname"] = True, True
        for option, path in (
            ("ca_certs", settings.tls.ca),
            ("certfile", settings.tls.cert),
            ("keyfile", settings.tls.key),
        ):
            wire[f"ssl_{option}"] = None if path is None else str(path)
    login: dict[str, Any] = {
        "db": settings.db,
        "username": settings.username,
        "password": settings.password,
        "health_check_interval": 15,
        "client_name": "filepool",
    }
    if settings.sentinels:
        sentinels: Any = Sentinel  # without annotations there
        return sentinels(settings.sentinels, sentinel_kwargs=wire, **wire, **login).master_for(settings.service)
    return Redis(host=settings.host, port=settings.port, **wire, **login)


def examine(client: Any, settings: Settings) -> str:
    """ "" when Redis can be used now, else why not. Raises ConfigError when waiting cannot help."""
    try:
        version = str(client.info("server")["redis_version"])
    except NoPermissionError:
        return ""  # the account may not run INFO; it may still run all else
    except AuthenticationError as error:
        raise ConfigError(f"Redis at {settings.address} refuses the login: {error}", "redis.password") from None
    except RedisError as error:
        return str(error)
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        raise ConfigError(f"{settings.address} is Redis {version}; it must be 6.2 or newer (LMOVE)", "redis.host")
    return ""


class Outage:
    """Logs the begin and the end of an outage once each, however many threads notice. address: for the log."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._since: float | None = None

    def begins(self, error: Exception) -> None:
        """Log that Redis is unreachable, unless that is logged already."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                logger.warning("Redis at {} is unreachable ({}); jobs go on, connecting again", self._address, error)

    def over(self) -> None:
        """Log that Redis is back, if an outage was logged."""
        with self._lock:
            if self._since is not None:
                logger.info("Redis at {} is back after {:.1f} s", self._address, time.monotonic() - self._since)
                self._since = None
