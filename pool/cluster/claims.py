"""Who has a job: what an agent decides about a message before it runs anything.

A job that comes a second time was with a node whose lease ran out. It is taken over only when that node is proven not
to have it: when nobody answers for it, and we have been connected for a whole lease, so that it had the time to come
back from an outage that hit all of us.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Iterable
from dataclasses import dataclass

from nats.errors import NoRespondersError
from nats.js.errors import KeyWrongLastSequenceError

from pool.cluster import wire
from pool.cluster.carried import Carried
from pool.cluster.link import Link, get_entry
from pool.cluster.media import MARK_S
from pool.cluster.wire import Hold, Lost, Order
from pool.config.settings import ClusterConfig
from pool.errors import ProtocolError
from pool.job import Failure, FailureKind
from pool.system.clock import REAL

_AGAIN_MOST = 20  # times that a node claims a job and does not come to begin it
_ASK_S = 2.0  # how long a node may take to say whether it has a job
_SWEPT = 100  # claims that one sweep looks at


class Way(enum.Enum):
    """What becomes of a message."""

    OURS = "ours"  # claimed: run it
    ENDED = "ended"  # it has a result: acknowledge it
    REFUSED = "refused"  # end it with the failure
    LEFT = "left"  # give it back


@dataclass(frozen=True)
class Decision:
    """failure: of what is refused. delay_s: after which what is left may come again."""

    way: Way
    failure: Failure | None = None
    delay_s: float = 0.0


class Claims:
    """Of one node. spool: the id of its spool."""

    def __init__(self, link: Link, config: ClusterConfig, spool: str, node: str) -> None:
        self._link, self._config, self._spool, self._node = link, config, spool, node

    async def decide(
        self, carried: Carried, order: Order, age_s: float, *, draining: bool, cancelled: bool
    ) -> Decision:
        """What to do with a job that has come. age_s: since it was published. draining: we take no more. cancelled: a
        client has asked to stop it. Raises what the servers raise."""
        result = claim = None
        if carried.errand.delivery > 1 or order.again:
            buckets = [await self._link.bucket(name) for name in (wire.RESULTS, wire.CLAIMS)]
            result, claim = await asyncio.gather(*(get_entry(bucket, str(carried.key)) for bucket in buckets))
        if result is not None:
            return Decision(Way.ENDED)
        if (failure := _not_worth_it(carried, order, age_s, cancelled=cancelled)) is not None:
            return Decision(Way.REFUSED, failure)
        if draining or not set(order.labels) <= set(self._config.labels):
            return Decision(Way.LEFT)
        revision = 0
        if claim is not None:
            hold, revision = read_hold(claim.value or b""), int(claim.revision or 0)
            wait_s = await self._still_there(hold, carried)
            if wait_s:
                return Decision(Way.LEFT, delay_s=wait_s)
            self._inherit(carried, hold)
            if len(carried.lost) >= self._config.deliveries or carried.again > _AGAIN_MOST:
                return Decision(Way.REFUSED, poisoned(carried.lost, carried.again))
        if carried.errand.delivery == 1 and not order.again:
            # no other node has seen it: the claim may come while the job begins, as long as it is there before the end
            carried.claiming = asyncio.create_task(self.claim(carried, revision))
        elif not await self.claim(carried, revision):
            return Decision(Way.LEFT, delay_s=self._config.lease_s / 2)
        return Decision(Way.OURS)

    def _inherit(self, carried: Carried, hold: Hold) -> None:
        """What the one that had the job before knew of it."""
        carried.lost = hold.lost
        if hold.spool == self._spool:  # we had it, and nothing of it is in our spool: it was not begun
            carried.again = hold.again + 1
        else:
            carried.lost = (*hold.lost, Lost(hold.node, hold.delivery, REAL.wall(), hold.attempts))

    async def claim(self, carried: Carried, revision: int) -> bool:
        """Say that the job is ours. revision: of the claim that there is, 0: there is none. False: another node was
        faster."""
        errand = carried.errand
        mine = Hold(
            self._node, self._spool, errand.delivery, errand.reply, carried.lost, carried.attempt, carried.again
        ).pack()
        claims = await self._link.bucket(wire.CLAIMS)
        try:
            if revision:
                carried.revision = await claims.update(str(errand.key), mine, last=revision)
            else:
                carried.revision = await claims.create(str(errand.key), mine)
        except KeyWrongLastSequenceError:
            return False
        return True

    async def sweep(self, most: int = _SWEPT) -> int:
        """Drop claims of jobs that have ended, at most so many: the word that drops one may be lost. How many."""
        claims, results = [await self._link.bucket(name) for name in (wire.CLAIMS, wire.RESULTS)]
        keys = await self._link.keys(wire.CLAIMS)
        dropped = 0
        for key in random.sample(keys, min(most, len(keys))):
            if await get_entry(results, key) is not None and await get_entry(claims, key) is not None:
                await claims.purge(key, msg_ttl=MARK_S)
                dropped += 1
        return dropped

    async def _still_there(self, hold: Hold, carried: Carried) -> float:
        """Seconds after which to look again, because the node that had the job may have it still; 0: it has not."""
        if not hold.spool or hold.spool == self._spool:
            return 0.0
        lease_s = self._config.lease_s
        if self._link.unbroken_s < lease_s:
            return lease_s - self._link.unbroken_s + 0.1
        try:
            said = await self._link.client.request(wire.asking(hold.spool), str(carried.key).encode(), timeout=_ASK_S)
        except (NoRespondersError, TimeoutError, asyncio.TimeoutError):
            return 0.0
        return lease_s / 2 if said.data == b"yes" else 0.0


def read_hold(data: bytes) -> Hold:
    """A claim; one that cannot be read is that of a node which nobody can ask."""
    try:
        return Hold.unpack(data)
    except ProtocolError:
        return Hold("", "", 0, "")


def _not_worth_it(carried: Carried, order: Order, age_s: float, *, cancelled: bool) -> Failure | None:
    """Why the job is not to be begun any more."""
    if cancelled:
        return Failure(FailureKind.CANCELLED.value, "cancelled by request before it started", "queued")
    if order.expires_s is None:
        return None
    carried.expires_s = order.expires_s - age_s
    if carried.expires_s > 0:
        return None
    text = f"it expired before a worker began it, {order.expires_s:.0f} s after it was sent"
    return Failure(FailureKind.EXPIRED.value, text, "queued", hint="more nodes, a higher priority, or later `expires`")


def poisoned(lost: Iterable[Lost], again: int = 0) -> Failure:
    """Why a job that several nodes were lost with is not tried again. again: times that one did not begin it."""
    nodes = ", ".join(one.node or "an unknown node" for one in lost)
    text = f"the nodes that had it were lost with it, one after another: {nodes}"
    if again > _AGAIN_MOST:
        text = f"a node took it {again} times and could not begin it{f'; {text}' if nodes else ''}"
    return Failure(
        FailureKind.INFRASTRUCTURE.value,
        text,
        "cluster",
        hint="look at the logs of these machines; `cluster.deliveries` says how many a job may lose",
    )
