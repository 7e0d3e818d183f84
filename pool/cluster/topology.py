"""What the servers store for a cluster: streams and buckets, created once, never deleted, never shrunk.

Any number of machines may call `ensure` at the same time: creating what exists is no error. A setting of something
that exists stays as it is; `ensure` says where it differs. A user that may not create only looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pool.cluster import wire
from pool.cluster.accounts import MEDIA_STREAM, stream_of
from pool.config.settings import ClusterConfig
from pool.errors import OperatorError

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.api import StreamConfig, StreamInfo

T = TypeVar("T")
DAY_S = 24 * 3600.0
MB = 1024 * 1024
DUPLICATES_S = 120.0  # a job that is published twice within this time is stored once
EVENTS_S, EVENTS_BYTES = 3600.0, 256 * MB
_EXISTS, _SAME_SUBJECTS = 10058, 10065
_NO_JETSTREAM = (10039, 10076)  # not for this account, not on this server
_PATIENCE_S = 20.0  # for servers that elect a leader
_PAUSE_S = 0.2


class TopologyError(OperatorError):
    """Streams and buckets cannot be created, or do not exist; the message says why and what helps.

    lasting: waiting does not help."""

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


async def ensure(
    js: JetStreamContext,
    *,
    replicas: int,
    max_waiting: int,
    result_s: float,
    lease_s: float,
    patience_s: float = _PATIENCE_S,
) -> tuple[str, ...]:
    """Create what is missing. Returns notes about settings that differ from those asked for.

    replicas: servers that store each job and result. max_waiting: jobs in the stream. result_s: seconds that results
    and media are kept. lease_s: seconds after which a silent node is forgotten. patience_s: how long to wait for
    servers that have no leader. Raises TopologyError.
    """
    wanted = streams(replicas=replicas, max_waiting=max_waiting, result_s=result_s, lease_s=lease_s)
    notes: list[str] = []
    for config in wanted:
        notes += await _Patience(js, patience_s).ensure(config)
    return tuple(notes)


async def prepare(js: JetStreamContext, config: ClusterConfig) -> tuple[str, ...]:
    """`ensure` with the settings of a configuration."""
    return await ensure(
        js,
        replicas=config.replicas,
        max_waiting=config.max_waiting,
        result_s=config.result_hours * 3600,
        lease_s=config.lease_s,
    )


async def look_over(js: JetStreamContext, config: ClusterConfig) -> list[tuple[str, StreamInfo | None, Sequence[str]]]:
    """Each stream that `prepare` would create: its name, what there is, None for nothing, and where it differs from
    the configuration. Raises what JetStream raises."""
    from nats.js.errors import NotFoundError

    found: list[tuple[str, StreamInfo | None, Sequence[str]]] = []
    for wanted in _wanted(config):
        name = wanted.name or ""
        try:
            info = await js.stream_info(name)
        except NotFoundError:
            found.append((name, None, ()))
        else:
            found.append((name, info, [f"{name}: {text}" for text in _differences(info.config, wanted)]))
    return found


async def may_publish(js: JetStreamContext, subject: str) -> bool:
    """Whether this user may write to a subject of a stream. Nothing is stored: the message is for another stream."""
    from nats.js.errors import APIError

    try:
        await _Refusals(js).or_answer(js.publish(subject, b"", stream="FILEPOOL_NONE"))
    except _Refused:
        return False
    except APIError:
        pass
    return True


def moment(text: object) -> float | None:
    """Seconds since 1970 of a time as the servers write it ("2030-01-31T08:00:00.123456789Z"); None for none."""
    try:
        return datetime.fromisoformat(f"{str(text).rstrip('Z')[:26]}+00:00").timestamp()
    except ValueError:
        return None


async def missing(js: JetStreamContext) -> tuple[str, ...]:
    """Names of streams that do not exist. Raises TopologyError when that cannot be known."""
    wanted = streams(replicas=1, max_waiting=1, result_s=DAY_S, lease_s=30)
    found = [config.name or "" for config in wanted if await _Patience(js, _PATIENCE_S).look(config.name or "") is None]
    return tuple(found)


def _wanted(config: ClusterConfig) -> list[StreamConfig]:
    return streams(
        replicas=config.replicas,
        max_waiting=config.max_waiting,
        result_s=config.result_hours * 3600,
        lease_s=config.lease_s,
    )


def streams(*, replicas: int, max_waiting: int, result_s: float, lease_s: float) -> list[StreamConfig]:
    """The settings of all streams; a bucket is a stream, too."""
    from nats.js import api

    jobs = api.StreamConfig(
        name=wire.JOBS,
        description="filepool: jobs that wait or run",
        subjects=["filepool.jobs.>"],
        retention=api.RetentionPolicy.WORK_QUEUE,
        storage=api.StorageType.FILE,
        max_msgs=max_waiting,
        discard=api.DiscardPolicy.NEW,  # a full stream refuses
        duplicate_window=DUPLICATES_S,
        num_replicas=replicas,
        deny_delete=True,
    )
    return [
        jobs,
        _events(replicas),
        _bucket(wire.IDS, replicas, result_s + 3 * DAY_S),  # each costs the servers half a KB of memory
        _bucket(wire.CLAIMS, replicas, result_s + 30 * DAY_S),
        _bucket(wire.RESULTS, replicas, result_s, final=True),
        _bucket(wire.CANCEL, replicas, result_s),
        _bucket(wire.NODES, replicas, lease_s),
        _bucket(wire.ENGINES, replicas, 0),
        _bucket(wire.REFS, replicas, 2 * result_s),  # as media.Store says
        _media(replicas),
    ]


def _events(replicas: int) -> StreamConfig:
    """Events need not survive a loss of power, and would cost one sync each. On one server they are in a file that is
    written when it suits; a stream in memory would be gone after a restart. On several, which agree on what streams
    there are, they are in the memory of each."""
    from nats.js import api

    alone = replicas == 1
    return api.StreamConfig(
        name=wire.EVENTS,
        description="filepool: what happens to jobs",
        subjects=["filepool.events.>"],
        retention=api.RetentionPolicy.LIMITS,
        storage=api.StorageType.FILE if alone else api.StorageType.MEMORY,
        persist_mode=api.PersistMode.ASYNC if alone else None,
        max_age=EVENTS_S,
        max_bytes=EVENTS_BYTES,
        discard=api.DiscardPolicy.OLD,
        num_replicas=replicas,
        allow_direct=True,
        duplicate_window=DUPLICATES_S,
    )


def _bucket(name: str, replicas: int, ttl_s: float, *, final: bool = False) -> StreamConfig:
    """As clients of NATS make buckets. ttl_s: seconds, 0: for ever. final: the servers refuse a second value of a key,
    and to delete it, whoever asks."""
    from nats.js import api

    return api.StreamConfig(
        name=stream_of(name),
        description="filepool",
        subjects=[f"$KV.{name}.>"],
        storage=api.StorageType.FILE,
        max_age=ttl_s,
        max_msgs_per_subject=1,
        discard=api.DiscardPolicy.NEW,
        duplicate_window=min(DUPLICATES_S, ttl_s) if ttl_s else DUPLICATES_S,
        num_replicas=replicas,
        deny_delete=True,
        discard_new_per_subject=final,
        allow_rollup_hdrs=not final,
        allow_direct=True,
        allow_msg_ttl=not final,
    )


def _media(replicas: int) -> StreamConfig:
    """As clients of NATS make object stores. Files are removed once nothing refers to them."""
    from nats.js import api

    return api.StreamConfig(
        name=MEDIA_STREAM,
        description="filepool: files",
        subjects=[f"$O.{wire.MEDIA}.C.>", f"$O.{wire.MEDIA}.M.>"],
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        num_replicas=replicas,
        allow_rollup_hdrs=True,
        allow_direct=True,
    )


class _Patience:
    """One stream, asked for until the servers have a leader or time is up."""

    def __init__(self, js: JetStreamContext, seconds: float) -> None:
        self._js = js
        self._until = asyncio.get_running_loop().time() + seconds

    async def ensure(self, config: StreamConfig) -> list[str]:
        """Create it unless it exists; what differs from what was asked for."""
        name = config.name or ""
        found = await self.look(name)
        if found is None:
            found = await self._create(config)
        return [f"{name}: {text}" for text in _differences(found, config)]

    async def look(self, name: str) -> StreamConfig | None:
        """The settings of a stream; None: there is none. Raises TopologyError."""
        from nats.js.errors import NotFoundError

        while True:
            try:
                return (await self._js.stream_info(name)).config
            except NotFoundError:
                return None
            except Exception as error:
                await self._again(error, f"{name} cannot be looked at")

    async def _create(self, config: StreamConfig) -> StreamConfig:
        from nats.js.errors import BadRequestError

        name = config.name or ""
        while True:
            errors = _Refusals(self._js)
            try:
                return (await errors.or_answer(self._js.add_stream(config))).config
            except BadRequestError as error:
                # RACE: another machine was first, with its own settings
                found = await self.look(name) if error.err_code in (_EXISTS, _SAME_SUBJECTS) else None
                if found is not None:
                    return found
                await self._again(error, f"{name} cannot be created")
            except _Refused:
                found = await self.look(name)  # RACE: created meanwhile by one that may
                if found is not None:
                    return found
                raise TopologyError(
                    f"{name} does not exist, and this user may not create it: run `python -m pool.cluster setup` as "
                    "admin, once"
                ) from None
            except Exception as error:
                await self._again(error, f"{name} cannot be created")

    async def _again(self, error: Exception, what: str) -> None:
        """Wait for the next try. Raises TopologyError when it would not help or time is up."""
        reason, lasting = _reason(error)
        if lasting or asyncio.get_running_loop().time() + _PAUSE_S > self._until:
            raise TopologyError(f"{what}: {reason}", lasting=lasting) from error
        await asyncio.sleep(_PAUSE_S)


class _Refused(Exception):
    """The user may not publish this request."""


class _Refusals:
    """A server tells a refused request to the connection, not to the request, which would wait in vain."""

    def __init__(self, js: JetStreamContext) -> None:
        self._connection = js._nc
        self._before = js._nc.last_error

    async def or_answer(self, request: Coroutine[Any, Any, T]) -> T:
        """The answer of a request. Raises _Refused, or what the request raises."""
        task = asyncio.ensure_future(request)
        try:
            while True:
                done, _ = await asyncio.wait([task], timeout=0.05)
                if done:
                    return task.result()
                error = self._connection.last_error
                if error is not self._before and "permissions violation for publish" in str(error).lower():
                    raise _Refused
        finally:
            task.cancel()


def _reason(error: Exception) -> tuple[str, bool]:
    """(why, in words, whether waiting is of no use)."""
    import nats.errors
    from nats.js.errors import APIError, BadRequestError, ServiceUnavailableError

    code = error.err_code if isinstance(error, APIError) else None
    text = (error.description if isinstance(error, APIError) else None) or str(error)
    if code in _NO_JETSTREAM or (isinstance(error, ServiceUnavailableError) and code is None):
        return "JetStream is off on the servers, or not for this account: their configuration needs `jetstream`", True
    if "replicas > 1 not supported" in text:
        return "one server cannot store replicas: set cluster.replicas to 1, or join three servers", True
    if "no suitable peers" in text or "insufficient" in text:
        return f"too few servers are up, or they have no room, for so many replicas ({text})", False
    if code == _EXISTS:  # RACE: another machine creates it, and this server does not know it yet
        return f"it is there and cannot be seen ({text})", False
    if code == _SAME_SUBJECTS:
        return f"another stream has its subjects ({text})", True
    if isinstance(error, (BadRequestError, nats.errors.ConnectionClosedError, nats.errors.AuthorizationError)):
        return text, True
    if isinstance(error, (asyncio.TimeoutError, nats.errors.TimeoutError)):
        return "the servers do not answer: fewer than half of them are up, or they have no leader yet", False
    return text, False


def _differences(found: StreamConfig, wanted: StreamConfig) -> Sequence[str]:
    names = {
        "num_replicas": "replicas",
        "max_msgs": "jobs at most",
        "max_age": "seconds kept",
        "max_bytes": "bytes at most",
    }
    return [
        f"has {_plain(getattr(found, key))} {what}, {_plain(getattr(wanted, key))} asked for; it stays as it is"
        for key, what in names.items()
        if getattr(wanted, key) is not None and _plain(getattr(found, key)) != _plain(getattr(wanted, key))
    ]


def _plain(value: object) -> str:
    return f"{float(value):g}" if isinstance(value, (int, float)) else "no limit on"
