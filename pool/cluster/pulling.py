"""Pulling jobs from the stream: requests for so many messages of one queue, and what comes of them.

All nodes share one durable consumer per subject. The servers hand each job to one of the pulls that wait, so a node
asks only for what it has room for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

from loguru import logger
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError, NotFoundError

from pool.cluster import wire
from pool.cluster.link import Link

_MANY_PULLS = 8192
_MANY_UNACKED = 1_000_000
_GRACE_S = 2.0  # beyond the time after which the servers end a pull themselves


class Queue:
    """The jobs of one subject. At most one pull is on its way: as long as one waits there, the queue is empty.

    took: called on the event loop with each message. stirred: called when a pull is over.
    """

    def __init__(
        self, link: Link, subject: str, lease_s: float, took: Callable[[Msg], None], stirred: Callable[[], None]
    ) -> None:
        self.subject = subject
        self._link, self._lease_s, self._took, self._stirred = link, lease_s, took, stirred
        self._consumer = ""
        self._inbox = ""
        self._heard: Subscription | None = None
        self._left = self._got = 0
        self._over = asyncio.Event()
        self._over.set()
        self._timer: asyncio.TimerHandle | None = None
        link.on_gap.append(self._end)

    @property
    def waits(self) -> bool:
        """Whether a pull is on its way."""
        return not self._over.is_set()

    async def take(self, wanted: int) -> int:
        """Take what is there, at most `wanted`; how many came. Raises what JetStream raises."""
        await self._ask(wanted, 0.0)
        await self._over.wait()
        return self._got

    async def wait(self, wanted: int, seconds: float) -> None:
        """Have the servers send the next jobs that come within so many seconds, at most `wanted`; returns at once."""
        await self._ask(wanted, seconds)

    async def backlog(self) -> int:
        """How many jobs wait here."""
        info = await self._link.js.consumer_info(wire.JOBS, await self._make())
        return int(info.num_pending or 0)

    async def close(self) -> None:
        """Listen no more. A job that comes all the same is delivered again after its lease."""
        self._end()
        self._link.on_gap.remove(self._end)
        if self._heard is not None:
            with contextlib.suppress(Exception):
                await self._heard.unsubscribe()

    async def _ask(self, wanted: int, seconds: float) -> None:
        consumer = await self._make()
        self._left, self._got = wanted, 0
        self._over.clear()
        self._timer = asyncio.get_running_loop().call_later(seconds + _GRACE_S, self._end)
        how = {"expires": int(seconds * 1e9)} if seconds > 0 else {"no_wait": True}
        where = f"$JS.API.CONSUMER.MSG.NEXT.{wire.JOBS}.{consumer}"
        try:
            await self._link.client.publish(where, json.dumps({"batch": wanted, **how}).encode(), reply=self._inbox)
        except BaseException:
            self._end()
            raise

    async def _make(self) -> str:
        """The consumer, made when there is none; from then on we listen."""
        if self._heard is None:
            self._inbox = self._link.client.new_inbox()
            self._heard = await self._link.client.subscribe(self._inbox, cb=self._hear)
        if not self._consumer:
            self._consumer = await self._join()
        return self._consumer

    async def _join(self) -> str:
        parsed = wire.parse_subject(self.subject)
        assert parsed is not None, self.subject
        name = wire.consumer(*parsed)
        config = ConsumerConfig(
            durable_name=name,
            filter_subject=self.subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._lease_s,
            max_deliver=-1,
            max_ack_pending=_MANY_UNACKED,
            max_waiting=_MANY_PULLS,
        )
        try:
            there = await self._link.js.consumer_info(wire.JOBS, name)
        except NotFoundError:
            try:
                there = await self._link.js.add_consumer(wire.JOBS, config)
            except APIError:  # RACE: another node has made it, with a lease of its own
                there = await self._link.js.consumer_info(wire.JOBS, name)
        if there.config.ack_wait != self._lease_s:
            logger.warning(
                "the lease of {} is {} s on the servers, and cluster.lease_s is {:g} here: give all nodes the same",
                self.subject,
                there.config.ack_wait,
                self._lease_s,
            )
        return name

    async def _hear(self, message: Msg) -> None:
        if message.subject != self._inbox:  # a job keeps the subject under which it was published
            self._got += 1
            self._left -= 1
            if self._left <= 0:
                self._end()
            self._took(message)
            return
        status = (message.headers or {}).get("Status", "")
        if status == "409":
            self._consumer = ""  # it may have been deleted
        if status and status != "100":
            self._end()

    def _end(self) -> None:
        """A pull is over; the servers forget those of a connection that breaks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._over.is_set():
            self._over.set()
            self._stirred()
