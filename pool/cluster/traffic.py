"""The jobs of a branch that are in the cluster, and what the parts of its port share."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pool.cluster.dropped import Dropped
from pool.cluster.link import Link
from pool.cluster.media import Store
from pool.cluster.tasks import Tasks
from pool.cluster.wire import JobKey
from pool.config.settings import Config
from pool.job import Job
from pool.runfiles.schemas import Schemas, path_keys
from pool.spool import attempts
from pool.spool.away import Away
from pool.spool.store import Spool

IMPORTED = "cluster"  # source of a job that another client has submitted
_AT_ONCE = 32  # jobs on their way out, or back
_FULL_S = 1.0  # how long a stream that was full is believed to be


@dataclass
class Sent:
    """A job that is away. frames: partial results in the file of each attempt. landing: its end is being written here.
    published: the stream has it."""

    item: Away
    job: Job
    key: JobKey
    looked_at: float = 0.0
    frames: dict[int, int] = field(default_factory=dict)
    landing: bool = False
    published: bool = False

    def ends(self) -> bool:
        """Whether the caller is to write its end here. RACE: several learn of it at once, and a second end would be
        that of the next run of a job that is run again."""
        first, self.landing = not self.landing, True
        return first


class Traffic:
    """Of one branch, on one event loop. sent: by id. retried: ids of jobs that were run again after they had failed."""

    def __init__(self, config: Config, spool: Spool) -> None:
        self.config, self.spool = config, spool
        self.link = Link(config.cluster, f"port {spool.id[:8]}")
        self.dropped = Dropped()
        self.sent: dict[str, Sent] = {}
        self.retried: set[str] = set()
        self.at_once = asyncio.Semaphore(_AT_ONCE)
        self.astray = asyncio.Event()  # a job is away and nobody looks after it
        self.stirred = asyncio.Event()  # something may go out
        self.tasks = Tasks("a job could not be carried; it is tried again", self._lost_sight)
        self._store: Store | None = None
        self._schemas = Schemas(spool.root)
        self._full, self._full_until = "", 0.0

    def _lost_sight(self) -> None:
        self.astray.set()
        self.stirred.set()

    # ---- the store of media

    @property
    def store(self) -> Store:
        """Where the media of jobs are; there once the port is open."""
        assert self._store is not None, "the port is open"
        return self._store

    @store.setter
    def store(self, store: Store) -> None:
        self._store = store

    @property
    def up(self) -> bool:
        """Whether the servers are connected, and all that is stored there is open."""
        return self.link.connected and self._store is not None

    # ---- whether the cluster takes jobs

    @property
    def full(self) -> str:
        """Why no jobs are sent for now, "" when they are."""
        return self._full if time.monotonic() < self._full_until else ""

    def is_full(self, why: str) -> None:
        """The servers have refused a job because they are full: believed for a second."""
        self._full, self._full_until = why, time.monotonic() + _FULL_S

    def is_open(self) -> None:
        """The servers have taken a job."""
        self._full = ""

    # ---- one job

    def keys(self, engine: str) -> tuple[frozenset[str], Mapping[str, Any]]:
        """The parameters of an engine that name files, and its schema, as far as they are known here."""
        schema = (self._schemas.describe(engine) or {}).get("schema")
        found: Mapping[str, Any] = schema if isinstance(schema, dict) else {}
        return path_keys(found), found

    def is_to_stop(self, job_id: str) -> bool:
        """Whether a client has asked to cancel it."""
        return os.path.lexists(attempts.cancel_path(self.spool, job_id))

    def forget(self, sent: Sent) -> None:
        """It is here again. RACE: under its id there may be its next run."""
        if self.sent.get(sent.job.id) is sent:
            del self.sent[sent.job.id]

    def is_ours(self, sent: Sent) -> bool:
        """Whether it was submitted here."""
        return sent.key.origin == self.spool.id
