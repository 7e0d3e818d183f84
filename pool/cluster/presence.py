"""What a node is, for the others: its name, which is its own, its engines, slots and load, told again and again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from loguru import logger
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError, KeyWrongLastSequenceError

import pool
from pool.client.filepool import FilePool
from pool.client.status import PoolStatus, SlotStatus
from pool.cluster import wire
from pool.cluster.carried import Carried
from pool.cluster.carrying import in_thread
from pool.cluster.link import AWAY, Link
from pool.cluster.wire import EngineState, NodeState
from pool.config.settings import ClusterConfig
from pool.errors import ConfigError, ProtocolError
from pool.format import codec
from pool.runfiles.schemas import Schemas

_LOOK_S = 0.5  # how long a status of the pool is believed
_SLOTS_TOLD = 64
_LEAVE_S = 2.0


class NameTaken(ConfigError):
    """Another machine has this name in the cluster."""


def default_name() -> str:
    """Of a node whose configuration gives none: this machine's, without its domain."""
    return socket.gethostname().split(".")[0]


class Presence:
    """Of one node. jobs: of the cluster that it has, by key. draining: it takes no more."""

    def __init__(self, link: Link, config: ClusterConfig, pool: FilePool, jobs: Mapping[str, Carried]) -> None:
        self.name = config.name or default_name()
        self.draining = False
        self._link, self._config, self._pool, self._jobs = link, config, pool, jobs
        self._status: PoolStatus | None = None
        self._status_at = 0.0
        self._others: dict[str, int] = {}  # engine -> jobs here that are not the cluster's
        self._described: dict[str, bytes] = {}
        self._schemas = Schemas(pool.spool.root)

    async def take_name(self) -> None:
        """Have the name for ourselves. Raises NameTaken, and what the servers raise."""
        nodes = await self._link.bucket(wire.NODES)
        state = (await in_thread(self._state)).pack()
        try:
            await nodes.create(self.name, state)
        except KeyWrongLastSequenceError:
            with contextlib.suppress(KeyNotFoundError, KeyDeletedError, ProtocolError):
                there = NodeState.unpack((await nodes.get(self.name)).value or b"")
                if there.spool != self._pool.spool.id:
                    raise NameTaken(
                        f"{self.name!r} is the name of another node, on {there.host}: give this one another, or wait "
                        f"{there.lease_s:g} s if that one has gone",
                        "cluster.name",
                    ) from None
            await nodes.put(self.name, state)

    async def announce(self) -> None:
        """Renew our entry, for ever."""
        while True:
            await self.say_state()
            await asyncio.sleep(min(2.0, self._config.lease_s / 4))

    async def say_state(self) -> None:
        """Renew our entry once, as far as the servers are there."""
        state = await in_thread(self._state)
        if not self._link.connected:
            return  # a call would wait for them
        try:
            nodes = await self._link.bucket(wire.NODES)
            await nodes.put(self.name, state.pack())
            await self._describe(state)
        except (*AWAY, APIError) as error:
            logger.debug("not announced: {}", error)

    async def _describe(self, state: NodeState) -> None:
        """What the engines here accept; for all that want to submit."""
        for engine in state.engines:
            about = await in_thread(lambda engine=engine: self._schemas.describe(engine))  # type: ignore[misc]
            data = codec.encode(about) if about is not None else b""
            if data and self._described.get(engine) != data:
                engines = await self._link.bucket(wire.ENGINES)
                await engines.put(engine, data)
                self._described[engine] = data

    def status(self) -> PoolStatus:
        """Of the pool here, at most half a second old. Blocks."""
        now = time.monotonic()
        if self._status is None or now - self._status_at > _LOOK_S:
            self._status, self._status_at = self._pool.status(), now
            for name, about in self._engines(self._status).items():
                self._others[name] = max(0, about.busy + about.waiting - self.mine(name))
        return self._status

    async def engines(self) -> dict[str, EngineState]:
        """The engines of this node, as of at most half a second ago."""
        fresh = self._status is not None and time.monotonic() - self._status_at < _LOOK_S
        status = self._status if fresh else await in_thread(self.status)
        assert status is not None
        return self._engines(status)

    async def leave(self) -> None:
        """Take our entry away, as far as the servers are there."""
        if not self._link.connected:
            return
        with contextlib.suppress(Exception):
            nodes = await self._link.bucket(wire.NODES)
            await asyncio.wait_for(nodes.purge(self.name), _LEAVE_S)

    @staticmethod
    def _engines(status: PoolStatus) -> dict[str, EngineState]:
        engines = {}
        for engine in status.engines:
            if engine.configured:
                trouble = next((slot.trouble for slot in status.of(engine.name) if slot.trouble), "")
                waiting = engine.queued + engine.held + engine.deferred
                engines[engine.name] = EngineState(engine.workers, engine.serving, engine.busy, waiting, trouble[:300])
        return engines

    def others(self, engine: str) -> int:
        """Jobs that wait or run here and are not the cluster's."""
        return self._others.get(engine, 0)

    def mine(self, engine: str) -> int:
        """Jobs of the cluster that wait or run here."""
        jobs = list(self._jobs.values())
        return sum(1 for carried in jobs if carried.engine == engine and not carried.over.is_set())

    def _state(self) -> NodeState:
        status = self.status()
        engines = self._engines(status)
        return NodeState(
            self.name,
            self._pool.spool.id,
            socket.gethostname(),
            pool.__version__,
            self._config.lease_s,
            self._config.labels,
            self.draining,
            len(self._jobs),
            engines,
            tuple(map(_slot_map, status.slots[:_SLOTS_TOLD])),
        )


def _slot_map(slot: SlotStatus) -> dict[str, Any]:
    """A slot as other machines see it: plain values, no long texts."""
    plain = asdict(replace(slot, restarts_by={}, ended=None))
    for key in ("why", "last_death", "trouble", "message"):
        plain[key] = str(plain[key])[:300]
    return {key: value for key, value in plain.items() if key not in ("watching", "restarts_by", "ended", "pid")}
