"""The port of a branch: takes jobs from the spool of a client's machine to the cluster, and brings their ends back.

    ready/ -> away/ -> media, stream                          out    sending.py
    events, results -> progress/, run/attempts/, out/         back   events.py, receiving.py
    run/control, run/expiry -> the end of what has not begun         revoking.py
    run/nodes.json, run/engines: what the cluster is                 directory.py
    jobs of other clients, by id                                     attaching.py

It holds no state but that of the spool and of the servers. Killed at any instruction, the next port finds what is in
away/ and does all of it again; each step may be repeated.
"""

from __future__ import annotations

import asyncio

from loguru import logger
from nats.js.errors import APIError

from pool.cluster import topology, wire
from pool.cluster.attaching import Attaching
from pool.cluster.directory import Directory
from pool.cluster.events import Events
from pool.cluster.link import AWAY, Link
from pool.cluster.media import MediaError, open_store
from pool.cluster.receiving import Receiving
from pool.cluster.revoking import Revoking
from pool.cluster.sending import Sending
from pool.cluster.tasks import ended_all, lasting, run_until
from pool.cluster.traffic import Traffic
from pool.config.settings import Config
from pool.spool.store import Spool

_AGAIN_S = 1.0


class Port:
    """Serves one branch. Runs on an event loop of its own; `run` ends when `stop` is set."""

    def __init__(self, config: Config, spool: Spool) -> None:
        self._config, self._spool = config, spool
        self._traffic = traffic = Traffic(config, spool)
        self._media_link = Link(config.cluster, f"media of port {spool.id[:8]}", traffic.link.complain)
        self._revoking = Revoking(traffic)
        self._receiving = Receiving(traffic, self._revoking)
        self._sending = Sending(traffic, self._receiving, self._revoking)
        self._events = Events(traffic)
        self._directory = Directory(traffic)
        self._attaching = Attaching(traffic, self._receiving)
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`."""
        early = [asyncio.create_task(lasting(loop)) for loop in (self._directory.tell, self._attaching.mind_requests)]
        try:
            await self._open()
            await run_until(
                self.stop,
                (
                    self._sending.mind_ready,
                    self._sending.mind_astray,
                    self._hear_results,
                    self._hear_events,
                    self._receiving.mind_away,
                    self._receiving.keep_media,
                    self._revoking.mind_cancels,
                    self._revoking.mind_expiry,
                    self._directory.mind_nodes,
                    self._directory.mind_engines,
                ),
            )
        finally:
            await ended_all(early)
            await self._traffic.tasks.end()
            await self._media_link.close()
            await self._traffic.link.close()

    async def _open(self) -> None:
        settings, link = self._config.cluster, self._traffic.link
        await asyncio.gather(link.open(), self._media_link.open())
        while True:
            try:
                notes = await topology.prepare(link.js, settings)
                self._traffic.store = await open_store(self._media_link, settings)
                break
            except (*AWAY, APIError, topology.TopologyError, MediaError) as error:
                link.trouble = str(error)
                await asyncio.sleep(_AGAIN_S)
        link.trouble = ""
        for note in notes:
            logger.warning("{}", note)
        await self._sending.take_up()

    async def _hear_results(self) -> None:
        subject = f"$KV.{wire.RESULTS}.{self._spool.id}.>"
        await self._traffic.link.hear(subject, f"KV_{wire.RESULTS}", self._receiving.take, self._receiving.look_anew)

    async def _hear_events(self) -> None:
        subject = f"filepool.events.{self._spool.id}.>"
        await self._traffic.link.hear(subject, wire.EVENTS, self._events.take)
