"""Jobs of other clients that a client of this branch asks for by id: looked up, and followed from then on."""

from __future__ import annotations

import asyncio
import contextlib

from nats.js.errors import APIError

from pool.cluster import wire
from pool.cluster.link import AWAY, get_entry
from pool.cluster.receiving import Receiving
from pool.cluster.traffic import IMPORTED, Sent, Traffic
from pool.cluster.wire import Identity, JobKey
from pool.errors import ClusterAway, JobConflict, JobRefused, ProtocolError, SpoolFull
from pool.job import Job
from pool.spool import away, elsewhere

_ASK_S = 0.05


class Attaching:
    """Of one branch."""

    def __init__(self, traffic: Traffic, receiving: Receiving) -> None:
        self._traffic, self._spool, self._link, self._sent = traffic, traffic.spool, traffic.link, traffic.sent
        self._receiving = receiving
        self._asked: set[str] = set()  # requests that are on their way

    async def mind_requests(self) -> None:
        """Answer what clients of this branch ask, from before the servers are reached on."""
        while True:
            for name, job_id in await asyncio.to_thread(elsewhere.requests, self._spool):
                if name in self._asked or not (self._traffic.up or self._link.trouble):
                    continue  # it is being answered; or nothing can be said yet
                self._asked.add(name)
                self._traffic.tasks.spawn(self._answer(name, job_id))
            await asyncio.sleep(_ASK_S)

    async def _answer(self, name: str, job_id: str) -> None:
        try:
            if not self._traffic.up:
                raise ClusterAway(self._link.away)
            known = await self._import(job_id)
            await asyncio.to_thread(elsewhere.answer, self._spool, name, known)
        except (ClusterAway, SpoolFull) as error:
            await asyncio.to_thread(elsewhere.decline, self._spool, name, str(error))
        except (*AWAY, APIError) as error:
            await asyncio.to_thread(elsewhere.decline, self._spool, name, self._link.failing(error))
        finally:
            self._asked.discard(name)

    async def _import(self, job_id: str) -> bool:
        """Whether a job of another client is known here from now on. Raises SpoolFull, and what the servers raise."""
        known = False
        with contextlib.suppress(ProtocolError, JobRefused, JobConflict):
            entry = await get_entry(await self._link.bucket(wire.IDS), job_id)
            identity = Identity.unpack(entry.value or b"") if entry is not None else None
            if identity is not None and identity.origin != self._spool.id:  # else it was here, and has gone
                job = Job(job_id, identity.engine, created=self._spool.now(), source=IMPORTED)
                item = await asyncio.to_thread(away.import_job, self._spool, job)
                known = True
                if item is not None and job_id not in self._sent:
                    key = JobKey(identity.origin, job_id, identity.run)
                    self._sent[job_id] = Sent(item, job, key, published=True)
                    await self._land(self._sent[job_id])
        return known

    async def _land(self, sent: Sent) -> None:
        """Bring the result of a job that has one; that of another one is looked for again and again."""
        with contextlib.suppress(*AWAY, APIError):
            found = await self._receiving.result(sent.key)
            if found is not None and sent.ends():
                await self._receiving.land(sent, found)
