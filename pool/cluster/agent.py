"""The agent of a node: takes jobs of the cluster for the free workers of this machine, and brings their ends back.

It holds no state but that of the spool: killed at any instruction, the next agent finds the jobs that it took by their
tag and goes on with them, if the servers still say that they are this node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import time
from collections.abc import Coroutine, Iterator
from dataclasses import asdict, replace
from typing import Any

from loguru import logger
from nats.aio.msg import Msg
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

import pool
from pool.client.filepool import FilePool
from pool.client.status import PoolStatus, SlotStatus
from pool.cluster import topology, wire
from pool.cluster.carried import Carried
from pool.cluster.carrying import Carrier, in_thread, nak
from pool.cluster.claims import Claims, Way, read_hold
from pool.cluster.dropped import Dropped
from pool.cluster.link import AWAY, Link, ended_all, get_entry, lasting
from pool.cluster.local import TAG, Errand
from pool.cluster.media import MARK_S, Cache, MediaError, MediaGone, MediaUnreachable, Store, open_store
from pool.cluster.pulling import Queue
from pool.cluster.sharedfiles import SharedError
from pool.cluster.wire import EngineState, NodeState, Order
from pool.config.settings import Config
from pool.errors import CallerError, ConfigError, ProtocolError, SpoolFull, UnknownJob
from pool.format import codec
from pool.job import Failure, FailureKind
from pool.runfiles.schemas import Schemas
from pool.system.clock import REAL

_TELL_S = 0.2  # between two looks at the progress of the jobs here
_PULL_S = 5.0  # how long the servers keep a pull that finds nothing
_LOOK_S = 0.5  # how long a status of the pool is believed
_LABELS_MOST = 64  # queues of one engine that a node with labels looks at
_SLOTS_TOLD = 64
_AGAIN_S = 1.0
_SWEEP_S = 600.0  # about so often, of each node
_AHEAD = 1  # jobs of an engine that wait here, so that a worker that gets free has one


class NameTaken(ConfigError):
    """Another machine has this name in the cluster."""


class Agent:
    """Serves the cluster with the workers of one FilePool. config: of this node; pool: started or not."""

    def __init__(self, config: Config, pool: FilePool) -> None:
        settings = config.cluster
        self.name = settings.name or socket.gethostname().split(".")[0]
        self.link = Link(settings, f"node {self.name}")
        self._media_link = Link(settings, f"media of node {self.name}")
        self._config, self._pool = config, pool
        self._lease_s = settings.lease_s
        self._jobs: dict[str, Carried] = {}  # by key
        self._tasks: set[asyncio.Task[None]] = set()
        self._queues: dict[str, dict[str, Queue]] = {}  # engine -> subject -> queue
        self.opened = asyncio.Event()
        self._stirred = asyncio.Event()
        self._ended = asyncio.Event()
        self._draining = False
        self._status: PoolStatus | None = None
        self._status_at = 0.0
        self._others: dict[str, int] = {}  # engine -> jobs here that are not the cluster's
        self._cold: dict[str, float] = {}  # subject -> since when jobs wait there and no model is loaded here
        self._cancelled: set[str] = set()  # keys of jobs that clients have asked to stop
        self._described: dict[str, bytes] = {}
        self._schemas = Schemas(pool.spool.root)
        self._dropped = Dropped()
        self._carrier: Carrier | None = None
        self._store: Store | None = None

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
                await self._serve(ended)
        finally:
            await ended_all((ended, opening, *self._tasks))
            await self._leave()

    async def _serve(self, ended: asyncio.Task[None]) -> None:
        loops = [self._announce, self._renew, self._tell, self._mind_cancels, self._fetch, self._sweep]
        tasks = [asyncio.create_task(lasting(loop)) for loop in loops]
        logger.info("node {} serves the cluster at {}", self.name, self.link.servers)
        try:
            await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            await ended_all(tasks)

    async def _until_ended(self) -> None:
        await self._ended.wait()

    async def open(self) -> None:
        """Connect, take the name, and go on with what this node had; servers that are away are waited for."""
        settings = self._config.cluster
        await asyncio.gather(self.link.open(), self._media_link.open())
        await self._prepare()
        await self.link.until_done(self._take_name, f"the name {self.name}")
        self._store = await self._media_link.until_done(
            lambda: open_store(self._media_link, settings), "the media store"
        )
        cache = Cache(self._pool.spool.root / "cache" / "cluster-media", settings.cache_mb << 20)
        self._carrier = Carrier(self.link, self._pool, self._store, cache, node=self.name, status=self.status)
        await self.link.client.subscribe(wire.asking(self._pool.spool.id), cb=self._answer)
        await self._resume()

    async def _prepare(self) -> None:
        """Streams and buckets."""
        settings = self._config.cluster
        while True:
            try:
                notes = await topology.ensure(
                    self.link.js,
                    replicas=settings.replicas,
                    max_waiting=settings.max_waiting,
                    result_s=settings.result_hours * 3600,
                    lease_s=self._lease_s,
                )
            except topology.TopologyError as error:
                if error.lasting:
                    raise
                logger.warning("{}", error)
                await asyncio.sleep(_AGAIN_S)
            else:
                break
        for note in notes:
            logger.warning("{}", note)

    async def drain(self, grace_s: float) -> None:
        """Take no more jobs, give back what no worker has begun, wait for the rest, then give that back, too."""
        self._draining = True
        self._stirred.set()
        await self._say_state()
        for carried in list(self._jobs.values()):
            if carried.future is not None and not carried.future.running() and not carried.future.decided:
                await self._return(carried)
        deadline = time.monotonic() + grace_s
        while self._jobs and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for carried in list(self._jobs.values()):
            await self._return(carried)
        self._ended.set()

    async def _leave(self) -> None:
        with contextlib.suppress(Exception):
            nodes = await self.link.bucket(wire.NODES)
            await asyncio.wait_for(nodes.purge(self.name), 2)
        await self._media_link.close()
        await self.link.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.opt(exception=error).error("a job could not be carried; it is delivered again after its lease")

    # ---- who we are

    async def _take_name(self) -> None:
        nodes = await self.link.bucket(wire.NODES)
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

    async def _announce(self) -> None:
        while True:
            await self._say_state()
            await asyncio.sleep(min(2.0, self._lease_s / 4))

    async def _say_state(self) -> None:
        state = await in_thread(self._state)
        try:
            nodes = await self.link.bucket(wire.NODES)
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
                engines = await self.link.bucket(wire.ENGINES)
                await engines.put(engine, data)
                self._described[engine] = data

    def status(self) -> PoolStatus:
        """Of the pool here, at most half a second old. Blocks."""
        now = time.monotonic()
        if self._status is None or now - self._status_at > _LOOK_S:
            self._status, self._status_at = self._pool.status(), now
            for name, about in self._engines(self._status).items():
                self._others[name] = max(0, about.busy + about.waiting - self._count(name))
        return self._status

    @staticmethod
    def _engines(status: PoolStatus) -> dict[str, EngineState]:
        engines = {}
        for engine in status.engines:
            if engine.configured:
                trouble = next((slot.trouble for slot in status.of(engine.name) if slot.trouble), "")
                waiting = engine.queued + engine.held + engine.deferred
                engines[engine.name] = EngineState(engine.workers, engine.serving, engine.busy, waiting, trouble[:300])
        return engines

    def _count(self, engine: str) -> int:
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
            self._lease_s,
            self._config.cluster.labels,
            self._draining,
            len(self._jobs),
            engines,
            tuple(map(_slot_map, status.slots[:_SLOTS_TOLD])),
        )

    async def _answer(self, message: Msg) -> None:
        """Another node asks whether we have a job."""
        with contextlib.suppress(Exception):
            await message.respond(b"yes" if message.data.decode() in self._jobs else b"no")

    # ---- leases

    async def _renew(self) -> None:
        while True:
            for carried in list(self._jobs.values()):
                if not carried.given_back:
                    with contextlib.suppress(*AWAY):
                        await self.link.client.publish(carried.errand.reply, b"+WPI")
            await asyncio.sleep(self._lease_s / 3)

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
            try:
                bucket = await self.link.bucket(wire.CANCEL)
                watch = await bucket.watchall(meta_only=True)
                until = time.monotonic() + max(10.0, self._lease_s)  # then anew: a watch may have gone deaf
                there: set[str] = set()
                while time.monotonic() < until:
                    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                        entry = await watch.updates(timeout=1.0)  # type: ignore[no-untyped-call]
                        if entry is not None and entry.operation is None:
                            there.add(entry.key)
                            self._cancelled.add(entry.key)
                            await self._cancel(entry.key)
                        elif entry is not None:
                            self._cancelled.discard(entry.key)
                self._cancelled = there
                await watch.stop()  # type: ignore[no-untyped-call]
            except (*AWAY, APIError):
                await asyncio.sleep(_AGAIN_S)

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
                await Claims(self.link, self._config.cluster, self._pool.spool.id, self.name).sweep()

    # ---- taking jobs

    async def _fetch(self) -> None:
        while True:
            self._stirred.clear()
            pause = _PULL_S
            if not self._draining and self.link.connected:
                try:
                    fresh = self._status is not None and time.monotonic() - self._status_at < _LOOK_S
                    status = self._status if fresh else await in_thread(self.status)
                    assert status is not None
                    for engine, about in self._engines(status).items():
                        pause = min(pause, await self._fetch_for(engine, about))
                except (*AWAY, APIError) as error:
                    logger.debug("no jobs are fetched: {}", error)
                    pause = _AGAIN_S
            else:
                pause = _AGAIN_S if not self._draining else _PULL_S
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), pause)

    async def _fetch_for(self, engine: str, about: EngineState) -> float:
        """Ask for jobs of one engine as far as it has free workers; seconds until it wants to be looked at again."""
        mine = self._count(engine)
        queues = await self._queues_of(engine)
        if not about.serving:  # the model is not loaded: others may be faster
            return await self._fetch_cold(queues, mine, about)
        free = about.serving + _AHEAD - mine - self._others.get(engine, 0)
        for queue in queues:
            if free <= 0:
                return _LOOK_S
            if not queue.waits:
                free -= await queue.take(free)
        for queue in queues:
            if free > 0 and not queue.waits:
                await queue.wait(1, _PULL_S)
        return _PULL_S

    async def _fetch_cold(self, queues: list[Queue], mine: int, about: EngineState) -> float:
        waited_s = self._config.cluster.cold_after_s
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
                known[subject] = Queue(self.link, subject, self._lease_s, self._took, self._stirred.set)
        urgent = {word: number for number, word in enumerate(wire.URGENCIES)}
        return sorted(known.values(), key=lambda queue: urgent[queue.subject.rpartition(".")[2]])

    async def _subjects(self, engine: str) -> list[str]:
        mine = frozenset(self._config.cluster.labels)
        sets = {frozenset[str](), *(frozenset({label}) for label in mine)}
        if len(mine) > 1:  # jobs that want several labels: those queues that there are
            info = await self.link.js.stream_info(wire.JOBS, subjects_filter=f"filepool.jobs.{engine}.>")
            for subject in list(info.state.subjects or {}):
                parsed = wire.parse_subject(subject)
                if parsed is not None and parsed[1] <= mine:
                    sets.add(parsed[1])
        chosen = sorted(sets, key=lambda labels: (len(labels), sorted(labels)))[:_LABELS_MOST]
        return [wire.subject(engine, labels, word) for word in wire.URGENCIES for labels in chosen]

    def _took(self, message: Msg) -> None:
        self._stirred.set()
        self._spawn(self._consider(message))

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
            await nak(self.link, message.reply, self._lease_s / 2)  # of another client: two have one id here
            return
        carried = Carried(errand, str(order.job["engine"]))
        self._jobs[str(order.key)] = carried  # RACE: before anything is awaited, so that a second delivery finds it
        try:
            await self._decide(carried, order, message)
        except (*AWAY, APIError) as error:
            logger.warning("job {} comes again after its lease: {}", order.key.id, error)
        finally:
            if self._jobs.get(str(order.key)) is carried:
                del self._jobs[str(order.key)]
            self._stirred.set()

    async def _decide(self, carried: Carried, order: Order, message: Msg) -> None:
        if wire.parse_subject(message.subject) != (carried.engine, frozenset(order.labels), _urgency_of(message)):
            text = f"it wants {carried.engine!r} with labels {list(order.labels)}, and was sent to {message.subject}"
            await self._worker.refuse(carried, Failure(FailureKind.INPUT.value, text, "check"))
            return
        claims = Claims(self.link, self._config.cluster, self._pool.spool.id, self.name)
        decision = await claims.decide(
            carried, order, _age_s(message), draining=self._draining, cancelled=str(carried.key) in self._cancelled
        )
        if decision.way is Way.OURS:
            await self._carry(carried, order)
        elif decision.way is Way.ENDED:
            await self._worker.acknowledge(carried.errand)
        elif decision.failure is not None:
            await self._worker.refuse(carried, decision.failure)
        else:
            await nak(self.link, carried.errand.reply, decision.delay_s)

    # ---- one job

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
            logger.warning("job {} is given back: {}", errand.key.id, error)
            await self._unclaim(carried, _AGAIN_S)
            return
        except (CallerError, ProtocolError) as error:
            await worker.refuse(carried, Failure(FailureKind.INPUT.value, str(error), "check"))
            return
        self._stirred.set()  # its worker is free
        await self._finish(carried)

    async def _return(self, carried: Carried) -> None:
        """Leave a job to other nodes: ended here, without a result."""
        if carried.given_back or carried.future is None or carried.future.decided:
            return
        carried.given_back = True
        await in_thread(lambda: self._worker.leave(carried.errand))
        await self._unclaim(carried, 0.0)
        carried.over.set()

    async def _unclaim(self, carried: Carried, delay_s: float) -> None:
        await carried.claimed()
        claims = await self.link.bucket(wire.CLAIMS)
        await claims.purge(str(carried.key), msg_ttl=MARK_S)
        await self._worker.give_back(carried, delay_s)

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
            if await in_thread(lambda errand=errand: self._worker.is_left(errand)):  # type: ignore[misc]
                if mine:
                    await self.link.until_done(lambda carried=carried: self._unclaim(carried, 0.0), "a claim")  # type: ignore[misc]
                await in_thread(lambda errand=errand: self._worker.leave(errand))  # type: ignore[misc]
                if over:
                    await in_thread(lambda errand=errand: self._worker.forget([errand]))  # type: ignore[misc]
            elif over:
                carried.urls = await in_thread(lambda errand=errand: self._worker.urls_of(errand))  # type: ignore[misc]
                self._spawn(self._finish(carried))
            elif mine:
                self._jobs[str(errand.key)] = carried
                self._spawn(self._await(carried))
            else:
                logger.info("job {} is no longer ours", errand.key.id)
                await in_thread(lambda errand=errand: self._worker.leave(errand))  # type: ignore[misc]

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
            self._stirred.set()

    async def _finish(self, carried: Carried) -> None:
        """Bring the end of a job that is over here to the servers, however long that takes: it has run."""
        while not carried.given_back:
            try:
                await self._worker.end(carried)
                return
            except FileNotFoundError:
                return  # it was forgotten already, or removed by hand
            except (*AWAY, APIError, MediaError, SharedError, OSError) as error:
                logger.warning("the end of job {} cannot be sent yet: {}", carried.key.id, error)
                await asyncio.sleep(_AGAIN_S)


def _urgency_of(message: Msg) -> str:
    return message.subject.rpartition(".")[2]


def _age_s(message: Msg) -> float:
    """How long ago the servers took the message, by the wall clocks of both."""
    return REAL.wall() - message.metadata.timestamp.timestamp()


def _slot_map(slot: SlotStatus) -> dict[str, Any]:
    """A slot as other machines see it: plain values, no long texts."""
    plain = asdict(replace(slot, restarts_by={}, ended=None))
    for key in ("why", "last_death", "trouble", "message"):
        plain[key] = str(plain[key])[:300]
    return {key: value for key, value in plain.items() if key not in ("watching", "restarts_by", "ended", "pid")}
