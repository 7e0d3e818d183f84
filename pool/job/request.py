"""The job as its file holds it: what is to be computed, and on which terms."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pool.constants import MAX_JOB_BYTES, PROTOCOL
from pool.errors import JobRefused, ProtocolError
from pool.format import codec
from pool.format.names import JobName, job_name
from pool.job.moments import Given, SpoolTime
from pool.job.terms import Terms

_SAFE = Terms(durable=True)


@dataclass(frozen=True)
class Job:
    """One job as its file holds it; immutable, so that its bytes never change after submit.

    Attributes:
        params: For the engine.
        items: Parameters of many small calls that travel as one job (`FilePool.map`).
        created: µs of the spool clock.
        terms: How it is to be run.
        reply: "json" asks for a JSON rendering of the record beside it.
        digest: Of engine and parameters, set when the caller gave the id.
        rerun_of: The job this one repeats.
    """

    id: str
    engine: str
    params: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[Mapping[str, Any], ...] | None = None
    created: int = 0
    terms: Terms = _SAFE
    source: str = ""
    reply: str = ""
    digest: str = ""
    rerun_of: str = ""

    @property
    def priority(self) -> int:
        """-100 … 100; higher runs first."""
        return self.terms.priority

    @property
    def timeout_s(self) -> float | None:
        """Of one attempt; None: as the engine's configuration says."""
        return self.terms.timeout_s

    @property
    def durable(self) -> bool:
        """Whether it must survive power loss."""
        return self.terms.durable is not False

    @property
    def not_before(self) -> int:
        """µs of the spool clock; 0: at once."""
        return _fixed(self.terms.not_before)

    @property
    def expires(self) -> int:
        """µs of the spool clock; 0: never."""
        return _fixed(self.terms.expires)

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Ids of the jobs that must have completed before; their results may stand in `params`, see
        `pool.job.references`."""
        found: tuple[str, ...] = self.terms.depends_on
        return found

    @property
    def waits_first(self) -> bool:
        """Whether it waits for its time, or for other jobs, before it waits for a worker."""
        return self.not_before > self.created or bool(self.depends_on)

    @property
    def file_name(self) -> JobName:
        """Name of the file of a job that no worker has begun."""
        return job_name(self.priority, self.created, self.id)

    def to_map(self) -> dict[str, Any]:
        """As it is stored: `params` last, behind all that a list of jobs shows."""
        full: dict[str, Any] = {
            "protocol": PROTOCOL,
            "id": self.id,
            "engine": self.engine,
            "created": self.created,
            **self.terms.to_map(),
            "durable": self.durable,
        }
        for key in ("source", "reply", "digest", "rerun_of"):
            value = getattr(self, key)
            if value:
                full[key] = value
        full["params"] = self.params  # behind all that a list of jobs shows
        if self.items is not None:
            full["items"] = self.items
        return full

    @classmethod
    def from_map(cls, value: Any) -> Job:
        """From its map. Raises ProtocolError."""
        if not isinstance(value, dict) or value.get("protocol") != PROTOCOL:
            raise ProtocolError(f"not a job of protocol {PROTOCOL}")
        items = value.get("items")
        try:
            job = cls(
                value["id"],
                value["engine"],
                value["params"],
                tuple(items) if items is not None else None,
                value["created"],
                Terms.from_map(value),
                value.get("source", ""),
                value.get("reply", ""),
                value.get("digest", ""),
                value.get("rerun_of", ""),
            )
        except (KeyError, TypeError) as error:
            raise ProtocolError(f"job lacks {error}") from None
        job._check()
        return job

    def _check(self) -> None:
        """Check the types of a file that another program may have written; a wrong one would end a worker later."""
        texts = type(self.id) is str and type(self.engine) is str and type(self.source) is str
        texts = texts and type(self.reply) is str and type(self.digest) is str and type(self.rerun_of) is str
        maps = type(self.params) is dict and all(type(item) is dict for item in self.items or ())
        if not (texts and type(self.created) is int and maps):
            raise ProtocolError("a field of the job has the wrong type")


def packed(job: Job, place: str = "") -> bytes:
    """The bytes of a job file. place: before the path of what is refused. JobRefused: it cannot be stored."""
    try:
        data = codec.encode(job.to_map())
    except ProtocolError as error:
        raise _refusal(error, place) from None
    if len(data) > MAX_JOB_BYTES:
        raise JobRefused(f"{len(data)} bytes of parameters: pass media by path, not by value", f"{place}params")
    return data


def _refusal(error: ProtocolError, place: str = "") -> JobRefused:
    reason = f"{error.reason}{f': {error.hint}' if error.hint else ''}"
    return JobRefused(reason, f"{place}{error.path or 'params'}")


def digest_of(engine: str, params: Mapping[str, Any], items: Any) -> str:
    """Identity of a job's content. JobRefused: it cannot be stored."""
    try:
        return hashlib.sha256(codec.encode([engine, _ordered(params), _ordered(items)])).hexdigest()
    except (ProtocolError, RecursionError):
        packed(Job("", engine, params, items))  # says where it is
        raise JobRefused("nested too deeply", "params") from None


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):  # the only map there is afterwards, so that no list can pass for one
        return {"": [[key, _ordered(value[key])] for key in sorted(value, key=str)]}
    if isinstance(value, (list, tuple)):
        return [_ordered(item) for item in value]
    return value


def _fixed(moment: Given | None) -> int:
    if moment is None:
        return 0
    assert isinstance(moment, SpoolTime), "the terms of a job are fixed"
    return moment
