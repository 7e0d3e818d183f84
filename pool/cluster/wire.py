"""What goes over the wire: names of streams, buckets and subjects, and messages, checked on arrival.

    stream   FILEPOOL_JOBS      filepool.jobs.<engine>.<labels>.<urgency>    work queue: one message per run of a job
    stream   FILEPOOL_EVENTS    filepool.events.<origin>.<id>                what happens to a job; kept for an hour
    bucket   filepool_ids       <id>                     whose job it is: the first client that says so
    bucket   filepool_claims    <origin>.<id>.<run>      the node that has it
    bucket   filepool_results   <origin>.<id>.<run>      its end: the first one counts
    bucket   filepool_cancel    <origin>.<id>.<run>      a client asks to stop it
    bucket   filepool_nodes     <node>                   a node, as long as it renews this
    bucket   filepool_engines   <engine>                 what the engine accepts
    bucket   filepool_refs      <sha256>.<…>             why a file in the store is kept
    store    filepool_media     <sha256>                 files

<origin> is the id of the spool from which the job came, <run> counts the retries of a job that failed. <labels> are
those that the job wants, sorted, joined by "+", or "any". All messages are msgpack maps of bounded depth with text
keys. A message that is not what this module says raises ProtocolError, whoever sent it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pool.errors import ProtocolError
from pool.format import codec
from pool.format.names import MAX_ATTEMPTS, is_engine, is_id
from pool.stages import is_time

VERSION = 1
JOBS, EVENTS = "FILEPOOL_JOBS", "FILEPOOL_EVENTS"
IDS, CLAIMS, RESULTS, CANCEL = "filepool_ids", "filepool_claims", "filepool_results", "filepool_cancel"
NODES, ENGINES, REFS, MEDIA = "filepool_nodes", "filepool_engines", "filepool_refs", "filepool_media"
URGENCIES = ("high", "normal", "low")
ANY = "any"

_ORIGIN = re.compile(r"[0-9a-f]{32}\Z")
_SHA = re.compile(r"[0-9a-f]{64}\Z")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_RUNS_MOST = 10_000
_LOST_MOST, _LABELS_MOST = 100, 64
_LEASE_MOST_S = 3600.0
_SLOTS_MOST, _ENGINES_MOST = 64, 256  # of one node
_TEXT_CHARS, _NAME_CHARS = 500, 64
_CONSUMER_LABELS_CHARS = 160


@dataclass(frozen=True)
class JobKey:
    """One run of one job, unique in the cluster. origin: the id of the spool it came from. run: 0, 1 … its retries."""

    origin: str
    id: str
    run: int = 0

    def __str__(self) -> str:
        return f"{self.origin}.{self.id}.{self.run}"

    @classmethod
    def parse(cls, text: object) -> JobKey:
        """From its text. Raises ProtocolError."""
        parts = text.split(".") if isinstance(text, str) else []
        good = len(parts) == 3 and _ORIGIN.match(parts[0]) and is_id(parts[1]) and re.match(r"[0-9]{1,4}\Z", parts[2])
        if not good:
            raise ProtocolError(f"{ascii(text)[:120]} is not the key of a job")
        return cls(parts[0], parts[1], int(parts[2]))

    @property
    def events(self) -> str:
        """The subject of what happens to it."""
        return f"filepool.events.{self.origin}.{self.id}"


def urgency(priority: int) -> str:
    """The part of a subject that a priority becomes: above 0 high, 0 normal, below low."""
    return URGENCIES[1] if priority == 0 else URGENCIES[0] if priority > 0 else URGENCIES[2]


def joined(labels: Iterable[str]) -> str:
    """The labels that a job wants, as a part of a subject. A label that is called "any" stands there twice."""
    chosen = sorted(set(labels))
    return "+".join(2 * chosen if chosen == [ANY] else chosen) or ANY


def wanted(text: str) -> frozenset[str]:
    """The labels of that part of a subject."""
    return frozenset() if text == ANY else frozenset(text.split("+"))


def subject(engine: str, labels: Iterable[str], how_urgent: str) -> str:
    """Where a job waits."""
    return f"filepool.jobs.{engine}.{joined(labels)}.{how_urgent}"


def parse_subject(text: str) -> tuple[str, frozenset[str], str] | None:
    """(engine, labels, urgency) of a subject of jobs; None when it is none."""
    parts = text.split(".")
    if len(parts) != 5 or parts[:2] != ["filepool", "jobs"] or parts[4] not in URGENCIES:
        return None
    return parts[2], wanted(parts[3]), parts[4]


def asking(spool: str) -> str:
    """Where the agent of a spool is asked whether it has a job."""
    return f"filepool.nodes.{spool}"


def consumer(engine: str, labels: Iterable[str], how_urgent: str) -> str:
    """The durable consumer that all nodes share for one subject: a name of its own, at most 255 characters."""
    which = joined(labels)
    if len(which) > _CONSUMER_LABELS_CHARS:
        which = f"{which[:_CONSUMER_LABELS_CHARS]}={hashlib.sha256(which.encode()).hexdigest()[:32]}"
    return f"{engine}-{which}-{how_urgent}"


# ---- messages


@dataclass(frozen=True)
class Blob:
    """A file in the media store. name: what it was called, for its suffix and for people."""

    sha256: str
    size: int
    name: str = ""

    def to_map(self) -> dict[str, Any]:
        """As it is sent."""
        return {"sha256": self.sha256, "size": self.size, "name": self.name}

    @classmethod
    def from_map(cls, value: object) -> Blob:
        """Raises ProtocolError."""
        if not isinstance(value, Mapping):
            raise ProtocolError("not a file in the media store")
        sha, size, name = value.get("sha256"), value.get("size"), value.get("name", "")
        if not (isinstance(sha, str) and _SHA.match(sha) and type(size) is int and size >= 0 and isinstance(name, str)):
            raise ProtocolError("not a file in the media store")
        return cls(sha, size, name.rpartition("/")[2][:255])


@dataclass(frozen=True)
class Order:
    """A job on its way to a node. job: the map of a job file, with media and outputs in place of paths.

    expires_s: seconds from its publishing after which it is not worth beginning; None: none. labels: that it wants.
    again: it may have been published before, so it is looked for whether it has ended.
    """

    key: JobKey
    job: Mapping[str, Any]
    labels: tuple[str, ...] = ()
    expires_s: float | None = None
    again: bool = False

    def pack(self) -> bytes:
        """As it is sent. Raises ProtocolError when a value cannot be."""
        return codec.encode(
            {
                "v": VERSION,
                "key": str(self.key),
                "labels": list(self.labels),
                "expires_s": self.expires_s,
                "again": self.again,
                "job": self.job,
            }
        )

    @classmethod
    def unpack(cls, data: bytes) -> Order:
        """Raises ProtocolError."""
        value = _open(data, "a job")
        key, job, labels, expires_s = JobKey.parse(value.get("key")), value.get("job"), value.get("labels"), None
        if not isinstance(job, dict) or job.get("id") != key.id or not isinstance(job.get("params"), dict):
            raise ProtocolError("a job without its own parameters")
        if not is_engine(job.get("engine")):
            raise ProtocolError("a job without the name of an engine")
        if value.get("expires_s") is not None:
            expires_s = _number(value["expires_s"], "expires_s")
        return cls(key, job, _labels(labels), expires_s, value.get("again") is True)


@dataclass(frozen=True)
class Identity:
    """Whose a job id is. digest: of engine and parameters when the caller gave the id, else ""."""

    origin: str
    engine: str
    run: int = 0
    digest: str = ""

    def pack(self) -> bytes:
        """As it is stored."""
        return codec.encode({"v": VERSION, **vars(self)})

    @classmethod
    def unpack(cls, data: bytes) -> Identity:
        """Raises ProtocolError."""
        value = _open(data, "an id")
        origin, engine, run, digest = (value.get(name) for name in ("origin", "engine", "run", "digest"))
        good = isinstance(origin, str) and _ORIGIN.match(origin) and is_engine(engine) and isinstance(digest, str)
        if not good or type(run) is not int or not 0 <= run < _RUNS_MOST:
            raise ProtocolError("not the owner of an id")
        return cls(str(origin), str(engine), run, str(digest))


@dataclass(frozen=True)
class Lost:
    """A node that had a job and was lost with it. attempts: that it had begun, at least 1. at: seconds of the wall
    clock of the node that noticed."""

    node: str
    delivery: int
    at: float
    attempts: int = 1

    def to_map(self) -> dict[str, Any]:
        """As it is stored."""
        return dict(vars(self))


@dataclass(frozen=True)
class Hold:
    """The node that has a job. spool: the id of its spool. reply: where its lease is renewed. lost: those before it.
    attempts: that it has begun. again: how often it has claimed the job without coming to begin it."""

    node: str
    spool: str
    delivery: int
    reply: str
    lost: tuple[Lost, ...] = ()
    attempts: int = 1
    again: int = 0

    def pack(self) -> bytes:
        """As it is stored."""
        return codec.encode({"v": VERSION, **vars(self), "lost": [one.to_map() for one in self.lost]})

    @classmethod
    def unpack(cls, data: bytes) -> Hold:
        """Raises ProtocolError."""
        value = _open(data, "a claim")
        node, spool, delivery, reply = (value.get(name) for name in ("node", "spool", "delivery", "reply"))
        lost, begun = value.get("lost"), value.get("attempts")
        texts = isinstance(node, str) and isinstance(spool, str) and _ORIGIN.match(spool) and isinstance(reply, str)
        again = value.get("again", 0)
        if not texts or type(again) is not int or not 0 <= again < 2**31:
            raise ProtocolError("not a claim")
        return cls(str(node), str(spool), _delivery(delivery), str(reply), _all_lost(lost), _attempts(begun), again)


def _all_lost(value: object) -> tuple[Lost, ...]:
    if not isinstance(value, list) or len(value) > _LOST_MOST:
        raise ProtocolError("not a list of lost nodes")
    return tuple(map(_lost, value))


def _lost(value: object) -> Lost:
    if not isinstance(value, dict) or not isinstance(value.get("node"), str):
        raise ProtocolError("not a lost node")
    delivery, at = _delivery(value.get("delivery")), _number(value.get("at"), "at")
    return Lost(value["node"][:_TEXT_CHARS], delivery, at, _attempts(value.get("attempts")))


def _delivery(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ProtocolError("not the number of a delivery")
    return value


def _labels(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _LABELS_MOST:
        raise ProtocolError("not a list of labels")
    if not all(isinstance(one, str) and _LABEL.match(one) for one in value):
        raise ProtocolError("labels that are none")
    return tuple(value)


def _attempts(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_ATTEMPTS:
        raise ProtocolError("not a number of attempts")
    return value


@dataclass(frozen=True)
class End:
    """The end of one run of a job. record: the bytes of a record file as the node wrote it, b"" when they are in the
    store (`body`). node: "" when the client ended it itself. arrays: array files beside the record, by name. outputs:
    files that the job produced, by the name that the parcel gave them. at: of its
    end, by the wall clock of the node, in seconds; 0: not known."""

    key: JobKey
    node: str
    delivery: int
    record: bytes = b""
    body: Blob | None = None
    arrays: tuple[Blob, ...] = ()
    outputs: tuple[Blob, ...] = ()
    lost: tuple[Lost, ...] = ()
    at: float = 0.0

    def pack(self) -> bytes:
        """As it is stored."""
        return codec.encode(
            {
                "v": VERSION,
                "key": str(self.key),
                "node": self.node,
                "delivery": self.delivery,
                "record": self.record,
                "body": self.body.to_map() if self.body else None,
                "arrays": [blob.to_map() for blob in self.arrays],
                "outputs": [blob.to_map() for blob in self.outputs],
                "lost": [one.to_map() for one in self.lost],
                "at": self.at,
            }
        )

    @classmethod
    def unpack(cls, data: bytes) -> End:
        """Raises ProtocolError."""
        value = _open(data, "an end")
        node, delivery, record = value.get("node"), value.get("delivery"), value.get("record")
        arrays, outputs = value.get("arrays"), value.get("outputs")
        good = isinstance(node, str) and isinstance(record, bytes)
        if not good or not isinstance(arrays, list) or not isinstance(outputs, list):
            raise ProtocolError("not the end of a job")
        body = Blob.from_map(value["body"]) if value.get("body") is not None else None
        return cls(
            JobKey.parse(value.get("key")),
            str(node)[:_TEXT_CHARS],
            _delivery(delivery),
            record if isinstance(record, bytes) else b"",
            body,
            tuple(map(Blob.from_map, arrays)),
            tuple(map(Blob.from_map, outputs)),
            _all_lost(value.get("lost")),
            _number(value.get("at", 0.0), "at"),
        )


@dataclass(frozen=True)
class Event:
    """Something that happened to a job on a node. kind: "progress", "partial" or "setback".

    attempt: counted over all nodes that had the job, from 1. number: of partial results, 0, 1 …. body: what the kind
    holds. stages: of progress, as `pool.stages.Stages` stores them; at: when it was sent, µs of the node's spool clock,
    as the times in stages.
    """

    run: int
    node: str
    attempt: int
    kind: str
    number: int = 0
    body: Any = None
    stages: Any = None
    at: int = 0

    def pack(self) -> bytes:
        """As it is sent."""
        return codec.encode({"v": VERSION, **vars(self)})

    @classmethod
    def unpack(cls, data: bytes) -> Event:
        """Raises ProtocolError."""
        value = _open(data, "an event")
        numbers = [value.get(name) for name in ("run", "attempt", "number")]
        good = isinstance(value.get("node"), str) and value.get("kind") in EVENT_KINDS
        if not good or not all(type(one) is int and 0 <= one < 2**31 for one in numbers):
            raise ProtocolError("not an event")
        run, attempt, number = (int(one or 0) for one in numbers)
        at = value.get("at", 0)
        if not is_time(at):
            raise ProtocolError("not an event")
        body, stages = value.get("body"), value.get("stages")
        return cls(run, value["node"], max(1, attempt), value["kind"], number, body, stages, at)


EVENT_KINDS = ("progress", "partial", "setback")


@dataclass(frozen=True)
class NodeState:
    """A node as it says it is. spool: id of its spool. engines: name -> what its slots do, see `EngineState`.

    slots: plain maps of `pool.client.status.SlotStatus`. draining: it takes no more jobs. Texts and lists are cut to a
    size on arrival.
    """

    name: str
    spool: str
    host: str
    version: str
    lease_s: float
    labels: tuple[str, ...] = ()
    draining: bool = False
    jobs: int = 0
    engines: Mapping[str, EngineState] = field(default_factory=dict)
    slots: tuple[Mapping[str, Any], ...] = ()

    def pack(self) -> bytes:
        """As it is stored."""
        engines = {name: dict(vars(state)) for name, state in self.engines.items()}
        value = {**vars(self), "labels": list(self.labels), "engines": engines, "slots": list(self.slots)}
        return codec.encode({"v": VERSION, **value})

    @classmethod
    def unpack(cls, data: bytes) -> NodeState:
        """Raises ProtocolError."""
        value = _open(data, "a node")
        texts = [value.get(name) for name in ("name", "spool", "host", "version")]
        labels, engines, slots = value.get("labels"), value.get("engines"), value.get("slots")
        if not all(isinstance(text, str) for text in texts) or not isinstance(engines, dict):
            raise ProtocolError("not a node")
        if not isinstance(slots, list) or not all(isinstance(s, dict) for s in slots):
            raise ProtocolError("not a node")
        name, spool, host, version = (str(text)[:_TEXT_CHARS] for text in texts)
        if not _LABEL.match(name) or not _ORIGIN.match(spool):
            raise ProtocolError("not the name of a node, or not of its spool")
        lease_s = _number(value.get("lease_s"), "lease_s")
        if lease_s > _LEASE_MOST_S:
            raise ProtocolError("lease_s is too long")
        return cls(
            name,
            spool,
            host,
            version,
            lease_s=lease_s,
            labels=_labels(labels),
            draining=value.get("draining") is True,
            jobs=int(_number(value.get("jobs"), "jobs")),
            engines={
                name: EngineState.from_map(about)
                for name, about in list(engines.items())[:_ENGINES_MOST]
                if is_engine(name)
            },
            slots=tuple(_cut(slot, 0) for slot in slots[:_SLOTS_MOST]),
        )


@dataclass(frozen=True)
class EngineState:
    """One engine on one node. slots: configured; serving: loaded; busy: at work; waiting: jobs in its own spool."""

    slots: int
    serving: int
    busy: int
    waiting: int = 0
    trouble: str = ""

    @classmethod
    def from_map(cls, value: object) -> EngineState:
        """Raises ProtocolError."""
        if not isinstance(value, dict):
            raise ProtocolError("not an engine of a node")
        slots, serving, busy, waiting = (
            int(_number(value.get(name), name)) for name in ("slots", "serving", "busy", "waiting")
        )
        return cls(slots, serving, busy, waiting, str(value.get("trouble") or "")[:_TEXT_CHARS])


def _cut(value: Any, depth: int) -> Any:
    """A value that another machine shows, without what is long or deep."""
    if isinstance(value, str):
        return value[:_TEXT_CHARS]
    if isinstance(value, dict):
        some = list(value.items())[:_NAME_CHARS] if depth < 3 else ()
        return {str(name)[:_NAME_CHARS]: _cut(item, depth + 1) for name, item in some}
    if isinstance(value, list):
        return [_cut(item, depth + 1) for item in value[:_NAME_CHARS]] if depth < 3 else []
    return value if value is None or isinstance(value, (bool, int, float)) else ""


def _open(data: bytes, what: str) -> dict[str, Any]:
    value = codec.decode(data, strict=True)
    if not isinstance(value, dict) or value.get("v") != VERSION:
        raise ProtocolError(f"not {what} of version {VERSION} of the cluster's protocol")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        raise ProtocolError(f"{name} is no number")
    return float(value)
