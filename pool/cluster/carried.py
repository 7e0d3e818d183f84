"""A job that a node has, as its agent knows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from pool.client.follow import Follower
from pool.client.future import JobFuture
from pool.cluster.local import Errand
from pool.cluster.wire import JobKey, Lost
from pool.errors import EngineUnavailable


@dataclass
class Carried:
    """A job that this node has. lost: nodes that had it before. attempt: the one that runs, counted here from 1.
    number: of its next partial result. revision: of our claim. expires_s: for how long it is worth beginning.
    urls: of outputs that go elsewhere than to the client, by the path here. again: how often this node has
    claimed it without coming to begin it."""

    errand: Errand
    engine: str
    lost: tuple[Lost, ...] = ()
    future: JobFuture | None = None
    follower: Follower | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)  # one look at its news at a time
    given_back: bool = False
    attempt: int = 1
    number: int = 0
    revision: int = 0
    expires_s: float | None = None
    urls: dict[Path, str] = field(default_factory=dict)
    claiming: asyncio.Task[bool] | None = None
    again: int = 0

    async def claimed(self) -> None:
        """Wait for our claim to be known, or not to be."""
        if self.claiming is not None:
            await asyncio.wait([self.claiming])
            if not self.claiming.cancelled():
                self.claiming.exception()  # away servers: the result needs them, too, and waits for them

    @property
    def key(self) -> JobKey:
        """The job."""
        return self.errand.key

    @property
    def completed(self) -> bool:
        """Whether it has ended here with a result."""
        future = self.future
        return future is not None and future.decided and not future.cancelled() and future.exception(0) is None

    @property
    def unserved(self) -> EngineUnavailable | None:
        """Why no worker of this node can run it; None while that is not known, and when it has ended."""
        future = self.future
        if future is None or not future.decided or future.cancelled():
            return None
        error = future.exception(0)
        return error if isinstance(error, EngineUnavailable) else None

    @property
    def held(self) -> bool:
        """Whether its lease is to be renewed: until it is given back, and no worker here is at it any more."""
        return not self.given_back or (self.future is not None and not self.over.is_set())

    @property
    def before(self) -> int:
        """Attempts that were begun on other nodes."""
        return sum(one.attempts for one in self.lost)
