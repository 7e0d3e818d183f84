"""Which jobs a node asks the servers for: as many as it has free workers, high before normal before low."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from loguru import logger
from nats.aio.msg import Msg
from nats.js.errors import APIError

from pool.cluster import wire
from pool.cluster.link import AWAY, Link
from pool.cluster.presence import Presence
from pool.cluster.pulling import Queue
from pool.cluster.wire import EngineState
from pool.config.settings import ClusterConfig

_PULL_S = 5.0  # how long the servers keep a pull that finds nothing
_BUSY_S = 0.5  # until a node without a free worker looks again
_LABELS_MOST = 64  # queues of one engine that a node with labels looks at
_AGAIN_S = 1.0
_AHEAD = 1  # jobs of an engine that wait here, so that a worker that gets free has one


class Fetching:
    """Of one node. took: called on the event loop with each message."""

    def __init__(self, link: Link, config: ClusterConfig, presence: Presence, took: Callable[[Msg], None]) -> None:
        self._link, self._config, self._presence, self._took = link, config, presence, took
        self._queues: dict[str, dict[str, Queue]] = {}  # engine -> subject -> queue
        self._cold: dict[str, float] = {}  # subject -> since when jobs wait there and no model is loaded here
        self.stirred = asyncio.Event()  # there may be a free worker

    async def fetch(self) -> None:
        """Ask for jobs, for ever; again at once when `stirred` is set."""
        while True:
            self.stirred.clear()
            pause = _PULL_S
            if not self._presence.draining and self._link.connected:
                try:
                    for engine, about in (await self._presence.engines()).items():
                        pause = min(pause, await self._fetch_for(engine, about))
                except (*AWAY, APIError) as error:
                    logger.debug("no jobs are fetched: {}", error)
                    pause = _AGAIN_S
            else:
                pause = _AGAIN_S if not self._presence.draining else _PULL_S
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self.stirred.wait(), pause)

    async def _fetch_for(self, engine: str, about: EngineState) -> float:
        """Ask for jobs of one engine as far as it has free workers; seconds until it wants to be looked at again."""
        mine = self._presence.mine(engine)
        queues = await self._queues_of(engine)
        if not about.serving:  # the model is not loaded: others may be faster
            return await self._fetch_cold(queues, mine, about)
        free = about.serving + _AHEAD - mine - self._presence.others(engine)
        for queue in queues:
            if free <= 0:
                return _BUSY_S
            if not queue.waits:
                free -= await queue.take(free)
        for queue in queues:
            if free > 0 and not queue.waits:
                await queue.wait(1, _PULL_S)
        return _PULL_S

    async def _fetch_cold(self, queues: list[Queue], mine: int, about: EngineState) -> float:
        waited_s = self._config.cold_after_s
        if not about.slots or mine or about.trouble:
            return _AGAIN_S
        for queue in queues:
            backlog = await queue.backlog()
            since = self._cold.setdefault(queue.subject, time.monotonic())
            if not backlog:
                del self._cold[queue.subject]
            elif time.monotonic() - since >= waited_s:
                await queue.take(1)
                break
        return _AGAIN_S

    async def _queues_of(self, engine: str) -> list[Queue]:
        """The queues that this node may take from, high before normal before low."""
        known = self._queues.setdefault(engine, {})
        for subject in await self._subjects(engine):
            if subject not in known:
                known[subject] = Queue(self._link, subject, self._config.lease_s, self._took, self.stirred.set)
        urgent = {word: number for number, word in enumerate(wire.URGENCIES)}
        return sorted(known.values(), key=lambda queue: urgent[queue.subject.rpartition(".")[2]])

    async def _subjects(self, engine: str) -> list[str]:
        mine = frozenset(self._config.labels)
        sets = {frozenset[str](), *(frozenset({label}) for label in mine)}
        if len(mine) > 1:  # jobs that want several labels: those queues that there are
            info = await self._link.js.stream_info(wire.JOBS, subjects_filter=f"filepool.jobs.{engine}.>")
            for subject in list(info.state.subjects or {}):
                parsed = wire.parse_subject(subject)
                if parsed is not None and parsed[1] <= mine:
                    sets.add(parsed[1])
        chosen = sorted(sets, key=lambda labels: (len(labels), sorted(labels)))[:_LABELS_MOST]
        return [wire.subject(engine, labels, word) for word in wire.URGENCIES for labels in chosen]
