"""Who may do what on the servers: the permissions of the users *client* and *node*, by subject.

A client sends jobs, asks to stop them and reads what becomes of them. A node takes jobs and says what becomes of
them. Neither creates, changes, deletes or purges a stream, with one exception: removing a file from the media store
purges its chunks. The third user, *admin*, may do everything in the account; it creates what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pool.cluster import wire

ACCOUNT = "FILEPOOL"
ADMIN, CLIENT, NODE = ROLES = ("admin", "client", "node")
LOCAL = "local"  # the user of connections without credentials, on loopback only

BUCKETS = (wire.IDS, wire.CLAIMS, wire.RESULTS, wire.CANCEL, wire.NODES, wire.ENGINES, wire.REFS)
MEDIA_STREAM = f"OBJ_{wire.MEDIA}"


def stream_of(bucket: str) -> str:
    """The stream that stores a bucket."""
    return f"KV_{bucket}"


STREAMS = (wire.JOBS, wire.EVENTS, *map(stream_of, BUCKETS), MEDIA_STREAM)


@dataclass(frozen=True)
class Permissions:
    """Subjects that a user may publish to and subscribe to. answers: whether it may reply to what it is asked."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False


def permissions(role: str) -> Permissions | None:
    """What a role may do; None: everything in the account. Raises KeyError for a role that is none."""
    return {ADMIN: None, CLIENT: _CLIENT, NODE: _NODE}[role]


def _consumers(stream: str) -> list[str]:
    """Reading a stream in order, pulled or pushed to an inbox."""
    api = "$JS.API.CONSUMER"
    return [
        f"{api}.CREATE.{stream}",
        f"{api}.CREATE.{stream}.>",
        f"{api}.DURABLE.CREATE.{stream}.*",
        f"{api}.INFO.{stream}.*",
        f"{api}.NAMES.{stream}",
        f"{api}.LIST.{stream}",
        f"{api}.MSG.NEXT.{stream}.*",
        f"$JS.ACK.{stream}.>",
        f"$JS.ACK.*.*.{stream}.>",  # of servers that put domain and account first
    ]


def _reads(streams: Iterable[str]) -> list[str]:
    """Reading and following streams of which every user has its own view: one may end only its own consumers, by
    their names, which are random."""
    found = []
    for stream in streams:
        found += _consumers(stream)
        found += [
            f"$JS.API.CONSUMER.DELETE.{stream}.*",
            f"$JS.API.STREAM.MSG.GET.{stream}",
            f"$JS.API.DIRECT.GET.{stream}",
            f"$JS.API.DIRECT.GET.{stream}.>",
        ]
    return found


def _writes(*buckets: str) -> list[str]:
    return [f"$KV.{bucket}.>" for bucket in buckets]


_COMMON = (
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    *(f"$JS.API.STREAM.INFO.{stream}" for stream in STREAMS),
    *_reads(stream for stream in STREAMS if stream != wire.JOBS),
    "$JS.FC.>",  # answers to the flow control of consumers
    f"$O.{wire.MEDIA}.>",
    f"$JS.API.STREAM.PURGE.{MEDIA_STREAM}",
    *_writes(wire.REFS),
)
_SUBSCRIBE = ("_INBOX.>", "filepool.events.>")
_CLIENT = Permissions(
    publish=(
        "filepool.jobs.>",
        *_writes(wire.IDS, wire.CANCEL, wire.RESULTS),
        f"$JS.API.CONSUMER.LIST.{wire.JOBS}",  # how much waits where
        f"$JS.API.CONSUMER.INFO.{wire.JOBS}.*",
        *_COMMON,
    ),
    subscribe=_SUBSCRIBE,
)
_NODE = Permissions(
    publish=(
        "filepool.events.>",
        "filepool.nodes.*",  # asks whether a node has a job
        *_writes(wire.CLAIMS, wire.RESULTS, wire.NODES, wire.ENGINES),
        *_consumers(wire.JOBS),
        *_COMMON,
    ),
    subscribe=(*_SUBSCRIBE, "filepool.nodes.*"),
    answers=True,
)
