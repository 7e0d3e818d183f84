"""The agent of a node: takes jobs of the cluster for the free workers of this machine, and brings their ends back.

It holds no state but that of the spool: killed at any instruction, the next agent finds the jobs that it took by their
tag and goes on with them, if the servers still say that they are this node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from loguru import logger
from nats.aio.msg import Msg
from nats.js.errors import APIError
from nats.js.kv import KeyValue

from pool.client.filepool import FilePool
from pool.cluster import topology, wire
from pool.cluster.carried import Carried
from pool.cluster.carrying import Carrier, in_thread, nak
from pool.cluster.claims import Claims, Way, read_hold
from pool.cluster.dropped import Dropped
from pool.cluster.fetching import Fetching
from pool.cluster.link import AWAY, Link, get_entry
from pool.cluster.local import TAG, Errand
from pool.cluster.media import MARK_S, Cache, MediaError, MediaGone, MediaUnreachable, Store, open_store
from pool.cluster.presence import Presence, default_name
from pool.cluster.sharedfiles import SharedError
from pool.cluster.tasks import Tasks, ended_all, run_until, say
from pool.cluster.wire import Order
from pool.config.settings import Config
from pool.errors import CallerError, ProtocolError, SpoolFull, UnknownJob
from pool.job import Failure, FailureKind
from pool.system.clock import REAL

_TELL_S = 0.2  # between two looks at the progress of the jobs here
_AGAIN_S = 1.0
_SWEEP_S = 600.0  # about so often, of each node
_OPEN_S = 5.0  # for one that is asked to drain while it begins
_STOP_S = 5.0  # beyond the grace of its engine, for a job that is left to end


class Agent:
    """Serves the cluster with the workers of one FilePool. config: of this node; pool: started or not."""

    def __init__(self, config: Config, pool: FilePool) -> None:
        settings = config.cluster
        self._config, self._pool = config, pool
        self._jobs: dict[str, Carried] = {}  # by key
        self._cancelled: set[str] = set()  # keys of jobs that clients have asked to stop
        node = settings.name or default_name()
        self.link = Link(settings, f"node {node}")
        self._media_link = Link(settings, f"media of node {node}", self.link.complain)
        self._presence = Presence(self.link, settings, pool, self._jobs)
        self._fetching = Fetching(self.link, settings, self._presence, self._took)
        self._claims = Claims(self.link, settings, pool.spool.id, node)
        self._tasks = Tasks("a job could not be carried; it is delivered again after its lease")
        self._dropped = Dropped()
        self._carrier: Carrier | None = None
        self._store: Store | None = None
        self.opened = asyncio.Event()
        self._ended = asyncio.Event()

    # ---- the whole

    async def run(self) -> None:
        """Serve until `drain`. Raises NameTaken, ClusterAway, ConfigError."""
        ended = asyncio.create_task(self._until_ended())
        opening = asyncio.create_task(self.open())
        try:
            await asyncio.wait([ended, opening], return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                opening.result()
                self.opened.set()
                logger.info("node {} serves the cluster at {}", self._presence.name, self.link.servers)
                await run_until(
                    self._ended,
                    (
                        self._presence.announce,
                        self._renew,
                        self._tell,
                        self._mind_cancels,
                        self._fetching.fetch,
                        self._sweep,
                    ),
                )
        finally:
            await ended_all((ended, opening))
            await self._tasks.end()
            await self._presence.leave()
            await self._media_link.close()
            await self.link.close()

    async def _until_ended(self) -> None:
        await self._ended.wait()

    async def open(self) -> None:
        """Connect, take the name, and go on with what this node had; servers that are away are waited for."""
        settings = self._config.cluster
        await asyncio.gather(self.link.open(), self._media_link.open())
        await self._prepare()
        await self.link.until_done(self._presence.take_name, f"the name {self._presence.name}")
        self._store = await self._media_link.until_done(
            lambda: open_store(self._media_link, settings), "the media store"
        )
        cache = Cache(self._pool.spool.root / "cache" / "cluster-media", settings.cache_mb << 20)
        self._carrier = Carrier(
            self.link, self._pool, self._store, cache, node=self._presence.name, status=self._presence.status
        )
        await self.link.client.subscribe(wire.asking(self._pool.spool.id), cb=self._answer)
        await self._resume()

    async def _prepare(self) -> None:
        """Streams and buckets."""
        while True:
            try:
                notes = await topology.prepare(self.link.js, self._config.cluster)
            except topology.TopologyError as error:
                if error.lasting:
                    raise
                self.link.complain(str(error), str(error))
                await asyncio.sleep(_AGAIN_S)
            else:
                break
        for note in notes:
            logger.warning("{}", note)

    async def drain(self, grace_s: float) -> None:
        """Take no more jobs, give back what no worker has begun, wait for the rest, then give that back, too; `run`
        returns, whatever happens meanwhile."""
        try:
            await self._empty(grace_s)
        except Exception as error:
            say("it ends before it is drained, and its jobs are delivered again", error)
        finally:
            self.end()

    def end(self) -> None:
        """Let `run` return at once; what it has is delivered again."""
        self._ended.set()

    async def _empty(self, grace_s: float) -> None:
        self._presence.draining = True
        self._fetching.stirred.set()
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):  # until then we do not know what we have
            await asyncio.wait_for(self.opened.wait(), _OPEN_S)
        await self._presence.say_state()
        await self._return(one for one in self._jobs.values() if one.future is not None and not one.future.running())
        await self._none_left(time.monotonic() + grace_s)
        await self._return(self._jobs.values())
        await self._none_left(time.monotonic() + _STOP_S)  # what completed all the same

    async def _none_left(self, deadline: float) -> None:
        while self._jobs and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    # ---- leases

    async def _answer(self, message: Msg) -> None:
        """Another node asks whether we have a job."""
        with contextlib.suppress(Exception):
            may = not self.opened.is_set() or message.data.decode() in self._jobs  # at first we do not know
            await message.respond(b"yes" if may else b"no")

    async def _renew(self) -> None:
        while True:
            for carried in list(self._jobs.values()):
                if carried.held:
                    with contextlib.suppress(*AWAY):
                        await self.link.client.publish(carried.errand.reply, b"+WPI")
            await asyncio.sleep(self._config.cluster.lease_s / 3)

    async def _tell(self) -> None:
        while True:
            for carried in list(self._jobs.values()):
                if not carried.over.is_set():
                    with contextlib.suppress(*AWAY, UnknownJob):
                        await self._worker.tell(carried)
            await self._worker.tidy()
            await asyncio.sleep(_TELL_S)

    @property
    def _worker(self) -> Carrier:
        assert self._carrier is not None, "the agent is open"
        return self._carrier

    # ---- cancels

    async def _mind_cancels(self) -> None:
        while True:
            there: set[str] = set()

            async def take(entry: KeyValue.Entry | None, there: set[str] = there) -> None:
                if entry is None:
                    self._cancelled = there  # what is no longer there went while nobody listened
                elif entry.operation is not None:
                    self._cancelled.discard(entry.key)
                else:
                    there.add(entry.key)
                    self._cancelled.add(entry.key)
                    await self._cancel(entry.key)

            anew_s = max(10.0, self._config.cluster.lease_s)
            await self.link.follow(wire.CANCEL, take, anew_s=anew_s, meta_only=True)

    async def _cancel(self, key: str) -> None:
        carried = self._jobs.get(key)
        if carried is not None and carried.future is not None and not carried.future.decided:
            logger.info("job {} is to be cancelled", carried.key.id)
            with contextlib.suppress(UnknownJob):
                await in_thread(carried.future.cancel)

    async def _sweep(self) -> None:
        """Remove media and claims that no job needs; any number of nodes may do so at once."""
        assert self._store is not None
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5) * _SWEEP_S)
            with contextlib.suppress(*AWAY, APIError, MediaError):
                gone = await self._store.sweep()
                if gone:
                    logger.info("removed {} files that no job needs from the media store", gone)
                await self._claims.sweep()

    # ---- one job

    def _took(self, message: Msg) -> None:
        self._fetching.stirred.set()
        self._tasks.spawn(self._consider(message))

    async def _consider(self, message: Msg) -> None:
        """A job has come: ours to run, or not."""
        try:
            order = Order.unpack(message.data)
        except ProtocolError as error:
            self._dropped(f"a message on {message.subject} is no job and is dropped", error)
            await message.term()
            return
        errand = Errand(order.key, int(message.metadata.num_delivered or 1), message.reply)
        there = self._jobs.get(str(order.key))
        if there is not None:  # our own lease ran out on the way; we have it still
            there.errand = replace(there.errand, reply=message.reply)
            return
        if any(one.errand.local_id == errand.local_id for one in self._jobs.values()):
            await nak(
                self.link, message.reply, self._config.cluster.lease_s / 2
            )  # of another client: two have one id here
            return
        carried = Carried(errand, str(order.job["engine"]))
        self._jobs[str(order.key)] = carried  # RACE: before anything is awaited, so that a second delivery finds it
        try:
            await self._decide(carried, order, message)
        except (*AWAY, APIError) as error:
            self.link.complain(f"again: {error}", f"job {order.key.id} comes again after its lease: {error}")
        finally:
            if self._jobs.get(str(order.key)) is carried:
                del self._jobs[str(order.key)]
            self._fetching.stirred.set()

    async def _decide(self, carried: Carried, order: Order, message: Msg) -> None:
        if wire.parse_subject(message.subject) != (carried.engine, frozenset(order.labels), _urgency_of(message)):
            text = f"it wants {carried.engine!r} with labels {list(order.labels)}, and was sent to {message.subject}"
            await self._worker.refuse(carried, Failure(FailureKind.INPUT.value, text, "check"))
            return
        decision = await self._claims.decide(
            carried,
            order,
            _age_s(message),
            draining=self._presence.draining,
            cancelled=str(carried.key) in self._cancelled,
        )
        if decision.way is Way.OURS:
            await self._carry(carried, order)
        elif decision.way is Way.ENDED:
            await self._worker.acknowledge(carried.errand)
        elif decision.failure is not None:
            await self._worker.refuse(carried, decision.failure)
        else:
            await nak(self.link, carried.errand.reply, decision.delay_s)

    async def _carry(self, carried: Carried, order: Order) -> None:
        worker, errand = self._worker, carried.errand
        try:
            await worker.run(carried, order)
        except MediaGone as error:
            await worker.refuse(carried, Failure(FailureKind.INFRASTRUCTURE.value, str(error), "media"))
            return
        except SharedError as error:
            if error.missing:
                await worker.refuse(carried, Failure(FailureKind.INPUT.value, str(error), "media"))
            else:
                await self._unclaim(carried, _AGAIN_S)
            return
        except (SpoolFull, MediaUnreachable) as error:
            self.link.complain(f"back: {error}", f"job {errand.key.id} is given back: {error}")
            await self._unclaim(carried, _AGAIN_S)
            return
        except (CallerError, ProtocolError) as error:
            await worker.refuse(carried, Failure(FailureKind.INPUT.value, str(error), "check"))
            return
        self._fetching.stirred.set()  # its worker is free
        await self._finish(carried)

    async def _return(self, some: Iterable[Carried]) -> None:
        """Leave jobs to other nodes: ended here, without a result."""
        chosen = [one for one in some if one.future is not None and not (one.future.decided or one.given_back)]
        for carried in chosen:
            carried.given_back = True
            await in_thread(lambda carried=carried: self._worker.leave(carried.errand))  # type: ignore[misc]
        await asyncio.gather(*map(self._hand_on, chosen))

    async def _hand_on(self, carried: Carried) -> None:
        """Give a job back that was left here."""
        await self._stopped(carried)
        if carried.completed:
            return
        try:
            await self._unclaim(carried, 0.0)
        except (*AWAY, APIError) as error:
            logger.warning("job {} comes to other nodes after its lease: {}", carried.key.id, error)
        await self._forget(carried)

    async def _stopped(self, carried: Carried) -> None:
        """Wait until no worker here is at a job that was left: only then may another node begin it."""
        settings = self._config.engines.get(carried.engine)
        patience_s = _STOP_S + (settings.cancel_grace_s if settings is not None else 0.0)
        try:
            await asyncio.wait_for(carried.over.wait(), patience_s)
        except (TimeoutError, asyncio.TimeoutError):
            logger.warning("job {} does not end here; another node may begin it all the same", carried.key.id)

    async def _forget(self, carried: Carried) -> None:
        if carried.over.is_set():
            await in_thread(lambda: self._worker.forget([carried.errand]))
        carried.over.set()

    async def _unclaim(self, carried: Carried, delay_s: float) -> None:
        await carried.claimed()
        claims = await self.link.bucket(wire.CLAIMS)
        await claims.purge(str(carried.key), msg_ttl=MARK_S)
        await self._worker.give_back(carried, delay_s)

    async def _finish(self, carried: Carried) -> None:
        """Bring the end of a job that is over here to the servers, however long that takes: it has run."""
        if (reason := carried.unserved) is not None:
            logger.warning("job {} is given back: {}", carried.key.id, reason.sentence())
            carried.given_back = True
            await in_thread(lambda: self._worker.leave(carried.errand))
            await self.link.until_done(lambda: self._unclaim(carried, _AGAIN_S), f"the claim of job {carried.key.id}")
        while carried.completed or not carried.given_back:  # one that was left may have completed all the same
            try:
                await self._worker.end(carried)
                return
            except FileNotFoundError:
                return  # it was forgotten already, or removed by hand
            except (*AWAY, APIError, MediaError, SharedError, OSError) as error:
                self.link.complain(f"end: {error}", f"the end of job {carried.key.id} cannot be sent yet: {error}")
                await asyncio.sleep(_AGAIN_S)

    # ---- after a restart

    async def _resume(self) -> None:
        """Go on with the jobs that an agent before us took."""
        left = await in_thread(lambda: list(self._left()))
        await in_thread(lambda: self._worker.sweep_outputs({errand.local_id for errand, _, _ in left}))
        for errand, engine, over in left:
            claim = await self.link.until_done(
                lambda errand=errand: self._claim_of(errand),  # type: ignore[misc]
                f"the claim of job {errand.key.id}",
            )
            hold = read_hold(claim.value or b"") if claim is not None else None
            mine = hold is not None and hold.spool == self._pool.spool.id and hold.delivery == errand.delivery
            carried = Carried(errand, engine, hold.lost if hold is not None else ())
            carried.revision = int(claim.revision or 0) if claim is not None else 0
            left_before = await in_thread(lambda errand=errand: self._worker.is_left(errand))  # type: ignore[misc]
            if left_before or not (over or mine):
                logger.info("job {} is no longer ours", errand.key.id)
                await in_thread(lambda errand=errand: self._worker.leave(errand))  # type: ignore[misc]
                self._tasks.spawn(self._end_left(carried, mine=mine))
            elif over:
                carried.urls = await in_thread(lambda errand=errand: self._worker.urls_of(errand))  # type: ignore[misc]
                self._tasks.spawn(self._finish(carried))
            else:
                self._jobs[str(errand.key)] = carried
                self._tasks.spawn(self._await(carried))

    async def _claim_of(self, errand: Errand) -> KeyValue.Entry | None:
        return await get_entry(await self.link.bucket(wire.CLAIMS), str(errand.key))

    def _left(self) -> Iterator[tuple[Errand, str, bool]]:
        """What is tagged as ours in the spool: its engine, and whether it is over."""
        after = ""
        for _ in itertools.count():
            page = self._pool.jobs(tag=TAG, limit=1000, after=after)
            for info in page:
                with contextlib.suppress(ProtocolError):
                    yield Errand.of_note(info.note), info.engine, info.state.terminal
            after = page.next
            if not after:
                return

    async def _await(self, carried: Carried) -> None:
        try:
            with contextlib.suppress(UnknownJob):  # it was removed here; it comes again after its lease
                await self._worker.go_on(carried)
                await self._finish(carried)
        finally:
            if self._jobs.get(str(carried.key)) is carried:
                del self._jobs[str(carried.key)]
            self._fetching.stirred.set()

    async def _end_left(self, carried: Carried, *, mine: bool) -> None:
        """See a job end here that other nodes are to run. mine: they wait for us to give it back."""
        carried.given_back = True
        if mine:
            self._jobs[str(carried.key)] = carried
        try:
            with contextlib.suppress(UnknownJob):
                await self._worker.watch(carried)
                await self._stopped(carried)
            if carried.completed:
                carried.urls = await in_thread(lambda: self._worker.urls_of(carried.errand))
                await self._finish(carried)
                return
            if mine:
                await self.link.until_done(lambda: self._unclaim(carried, 0.0), f"the claim of job {carried.key.id}")
            await self._forget(carried)
        finally:
            if self._jobs.get(str(carried.key)) is carried:
                del self._jobs[str(carried.key)]
            self._fetching.stirred.set()


def _urgency_of(message: Msg) -> str:
    return message.subject.rpartition(".")[2]


def _age_s(message: Msg) -> float:
    """How long ago the servers took the message, by the wall clocks of both."""
    return REAL.wall() - message.metadata.timestamp.timestamp()
