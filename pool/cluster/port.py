"""The port of a branch: takes jobs from the spool of a client's machine to the cluster, and brings their ends back.

    ready/ -> away/ -> media, stream                          out
    events, results -> progress/, run/attempts/, out/         back

It holds no state but that of the spool and of the servers. Killed at any instruction, the next port finds what is in
away/ and does all of it again; each step may be repeated. Watches and events are hints: what is away is looked for
among the results now and then, as the directories of a spool are listed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loguru import logger
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy
from nats.js.errors import APIError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from pool.cluster import parcels, topology, wire
from pool.cluster.dropped import Dropped
from pool.cluster.link import AWAY, FULL, ClusterAway, Link, addresses, ended_all, get_entry, lasting, plain
from pool.cluster.media import MediaError, MediaGone, MediaUnreachable, Store, open_store
from pool.cluster.wire import End, Event, Identity, JobKey, NodeState, Order
from pool.config.settings import Config
from pool.constants import MAX_RESULT_BYTES, STATUSES
from pool.errors import JobConflict, JobRefused, ProtocolError, SpoolFull
from pool.format import codec
from pool.format.names import MAX_ATTEMPTS, JobName, check_engine, parse_expiry, parse_job
from pool.job import Failure, FailureKind, Job, JobState, Progress, Record, decode_failure, earlier, references
from pool.job.kept import NOTHING
from pool.runfiles import nodes as noderecord
from pool.runfiles.nodes import NodeFacts, Nodes
from pool.runfiles.schemas import Schemas, path_keys
from pool.spool import attempts, away, dependencies, elsewhere, fsops, reuse
from pool.spool.away import Away
from pool.spool.redaction import Redactor
from pool.spool.store import NO_SPACE, Spool
from pool.system import procs
from pool.system.clock import REAL
from pool.system.watch import Watcher

_AT_ONCE = 32  # jobs on their way out, or back
_AHEAD = 256  # of each engine, that wait for that
_FULL_S = 1.0  # how long a stream that was full is believed to be
_LOOK_S = 5.0  # after which a job that is away is looked for among the results
_FOREIGN_LOOK_S = 0.5
_LOOKS = 100  # of those, a second
_AGAIN_S = 1.0
_NODES_S = 1.0
_ASK_S = 0.05
_IN_PROCESS = 10158  # error code of JetStream


#: What a result raises that is not what it should be, whoever has written it.
_UNFIT = (ProtocolError, JobRefused, MediaGone, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


@dataclass
class Sent:
    """A job that is away. frames: partial results in the file of each attempt. published: the stream has it."""

    item: Away
    job: Job
    key: JobKey
    looked_at: float = 0.0
    frames: dict[int, int] = field(default_factory=dict)
    landing: bool = False
    published: bool = False


class Port:
    """Serves one branch. Runs on an event loop of its own; `run` ends when `stop` is set."""

    def __init__(self, config: Config, spool: Spool) -> None:
        self._config, self._spool = config, spool
        self.link = Link(config.cluster, f"port {spool.id[:8]}")
        self._media_link = Link(config.cluster, f"media of port {spool.id[:8]}")
        self._sent: dict[str, Sent] = {}  # by id
        self._schemas = Schemas(spool.root)
        self._store: Store | None = None
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()  # ids on their way out
        self._nodes: dict[str, tuple[NodeState, float]] = {}
        self._asked: set[str] = set()  # requests for jobs of other clients, on their way
        self._looked: set[str] = set()  # which of the two buckets, nodes and engines, were read whole
        self._full_until, self._full = 0.0, ""
        self._astray = False  # a job is away and nobody looks after it
        self._retried: set[str] = set()
        self._marks = 0
        self._told: Nodes | None = None
        self._stirred = asyncio.Event()
        self._dropped = Dropped()
        self.stop = asyncio.Event()

    # ---- the whole

    async def run(self) -> None:
        """Serve until `stop`."""
        elsewhere.open_port(self._spool)
        tasks = [asyncio.create_task(lasting(self._tell_nodes))]
        try:
            await self._open()
            loops = (
                self._mind_ready,
                lambda: self._hear(f"$KV.{wire.RESULTS}.{self._spool.id}.>", f"KV_{wire.RESULTS}", self._on_result),
                lambda: self._hear(f"filepool.events.{self._spool.id}.>", wire.EVENTS, self._on_event),
                self._mind_away,
                self._mind_nodes,
                self._mind_engines,
                self._mind_cancels,
                self._mind_asks,
                self._keep_media,
            )
            tasks += [asyncio.create_task(lasting(loop)) for loop in loops]
            tasks.append(asyncio.create_task(self._until_stop()))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await ended_all((*tasks, *self._tasks))
            elsewhere.close_port(self._spool)
            await self._media_link.close()
            await self.link.close()

    async def _until_stop(self) -> None:
        await self.stop.wait()

    async def _open(self) -> None:
        settings = self._config.cluster
        await asyncio.gather(self.link.open(), self._media_link.open())
        while True:
            try:
                notes = await topology.ensure(
                    self.link.js,
                    replicas=settings.replicas,
                    max_waiting=settings.max_waiting,
                    result_s=settings.result_hours * 3600,
                    lease_s=settings.lease_s,
                )
                self._store = await open_store(self._media_link, settings)
                break
            except (*AWAY, APIError, topology.TopologyError, MediaError) as error:
                self.link.trouble = str(error)
                await asyncio.sleep(_AGAIN_S)
        self.link.trouble = ""
        for note in notes:
            logger.warning("{}", note)
        for item in await asyncio.to_thread(away.waiting, self._spool):
            self._out_again(item)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.opt(exception=error).error("a job could not be carried; it is tried again")
            self._astray = True
            self._stirred.set()

    # ---- out

    async def _mind_ready(self) -> None:
        """Jobs that wait in ready/ go out, in their order, while the cluster has room."""
        queues = self._queues()
        watcher = Watcher(queues)
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(watcher.fileno(), self._stirred.set)
            while True:
                self._stirred.clear()
                arrivals = watcher.read()
                there = self._queues()
                if there != queues or arrivals.rescan:
                    queues = there
                    loop.remove_reader(watcher.fileno())
                    watcher.close()
                    watcher = Watcher(queues)
                    loop.add_reader(watcher.fileno(), self._stirred.set)
                if self.link.connected and time.monotonic() >= self._full_until:
                    for engine, names in (await asyncio.to_thread(self._ready)).items():
                        for name in names:
                            if name.id not in self._busy:
                                self._busy.add(name.id)
                                self._spawn(self._out(engine, name))
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._stirred.wait(), self._config.rescan_s)
        finally:
            loop.remove_reader(watcher.fileno())
            watcher.close()

    def _queues(self) -> dict[str, Path]:
        root = self._spool.root / "ready"
        return {"": root, **{name: root / name for name in os.listdir(root)}}

    def _ready(self) -> dict[str, list[JobName]]:
        """What waits, in its order, as far as there is room on the way."""
        self._read_marks()
        found = {}
        for engine in os.listdir(self._spool.root / "ready"):
            parsed = (parse_job(name) for name in self._spool.list_ready(engine)[:_AHEAD])
            found[engine] = [name for name in parsed if name is not None]
        return found

    def _read_marks(self) -> None:
        """Jobs that were run again after they had failed: they have another run in the cluster."""
        try:
            again, self._marks = reuse.marked(self._spool.root, self._marks)
        except ValueError:
            again, self._marks = reuse.marked(self._spool.root, 0)
        self._retried.update(again)

    async def _out(self, engine: str, name: JobName, item: Away | None = None) -> None:
        """Bring one job to the cluster. item: it is away already; an earlier port had begun this."""
        try:
            async with self._at_once:
                await self._carry_out(engine, name, item)
        except FileNotFoundError:
            pass  # RACE: cancelled or expired meanwhile
        finally:
            self._busy.discard(name.id)
            if not self._busy:
                self._stirred.set()  # the next ones

    async def _carry_out(self, engine: str, name: JobName, item: Away | None) -> None:
        again = item is not None
        key, conflict = JobKey(self._spool.id, name.id), ""
        job, item = await asyncio.to_thread(self._begin, engine, name, item, identified=False)
        if job is not None and item is None:
            # before it is away: an id that is taken, and the run that it gets, must be known to whoever finds it there
            key, conflict = await self._identify(job, again=False)
            job, item = await asyncio.to_thread(self._begin, engine, name, item, identified=True)
        if job is None or item is None:
            return
        named = bool(job.digest) or again or job.id in self._retried
        if again:
            key, conflict = await self._identify(job, again=True)
        if conflict:
            failure = Failure(FailureKind.INPUT.value, conflict, "submit", hint="choose another id")
            await self._fail(item, job, failure)
            return
        sent = self._sent[job.id] = Sent(item, job, key)
        if key.origin != self._spool.id:
            sent.published = True  # another client's: we only follow it
            return
        if again and await self._look_for(sent):
            return
        if named:
            await self._publish(sent, again=again)
        else:  # its id is its own: nobody else can have taken it
            await asyncio.gather(self._publish(sent, again=again), self._identify(job, again=False))

    def _begin(
        self, engine: str, name: JobName, item: Away | None, *, identified: bool
    ) -> tuple[Job | None, Away | None]:
        """The job, and where it is once it is away; no place: it is to be identified first. None, None: another was
        faster, or its file cannot be read, and it has ended."""
        path = item.path if item is not None else f"{self._spool.ready_dir(engine)}/{name}"
        job: Job | None = None
        failure: Failure | None = None
        try:
            job = self._spool.read_file(path, name)
        except ProtocolError as error:
            failure = Failure(FailureKind.INFRASTRUCTURE.value, f"the job file cannot be read: {error}", "read")
        if item is None:
            if job is not None and not identified and (job.digest or job.id in self._retried):
                return job, None
            item = away.send(self._spool, engine, name)
        if item is not None and failure is not None:
            away.finish(self._spool, item, self._failed(item, None, failure))
        return (job, item) if item is not None and job is not None else (None, None)

    async def _identify(self, job: Job, *, again: bool) -> tuple[JobKey, str]:
        """The key of a job in the cluster; why its id cannot be used, "" when it can.

        again: it went away before, under the run that the servers know."""
        mine = self._spool.id
        identity = Identity(mine, job.engine, 0, job.digest)

        async def claim() -> Identity:
            ids = await self.link.bucket(wire.IDS)
            try:
                await ids.create(job.id, identity.pack())
            except KeyWrongLastSequenceError:
                entry = await get_entry(ids, job.id)
                if entry is None:
                    raise TimeoutError from None  # RACE: it expired just now
                there = Identity.unpack(entry.value or b"")
                if again or there.origin != mine or job.id not in self._retried:
                    return there
                if await self._result(JobKey(mine, job.id, there.run)) is None:
                    return there  # that run was never begun
                there = replace(there, run=there.run + 1)
                Identity.unpack(there.pack())  # there is a last run
                await ids.update(job.id, there.pack(), last=entry.revision)
                return there
            return identity

        try:
            found = await self.link.until_done(claim, f"job {job.id}")
        except ProtocolError as error:
            return JobKey(mine, job.id), f"the id {job.id} cannot be used in the cluster: {error}"
        conflict = found.origin != mine and not (job.digest and found.digest == job.digest)
        if conflict and not self._is_import(job):
            return JobKey(found.origin, job.id, found.run), str(JobConflict(job.id))
        return JobKey(found.origin, job.id, found.run), ""

    @staticmethod
    def _is_import(job: Job) -> bool:
        return job.source == _IMPORTED

    async def _publish(self, sent: Sent, *, again: bool) -> None:
        job, key = sent.job, sent.key
        try:
            filled = await asyncio.to_thread(dependencies.hand_on, self._spool, job) if job.depends_on else job
            order = await self._pack(key, filled, again=again)
            data = order.pack()
            if len(data) > self.link.room:
                raise JobRefused(
                    f"{len(data)} bytes are more than the servers take in a message ({self.link.room}): pass media by "
                    "path, or raise their max_payload",
                    "params",
                )
        except MediaUnreachable as error:
            logger.warning("the media of job {} cannot be sent yet: {}", job.id, error)
            await self._take_back(sent)
            return
        except (JobRefused, references.MissingPart, ProtocolError, MediaError) as error:
            kind = FailureKind.INPUT if isinstance(error, JobRefused) else FailureKind.INFRASTRUCTURE
            await self._fail(sent.item, job, Failure(kind.value, str(error), "send"))
            return
        where = wire.subject(job.engine, order.labels, wire.urgency(job.priority))
        if not again and self._is_to_stop(job.id):
            reason = Failure(FailureKind.CANCELLED.value, "cancelled by request before it started", "queued")
            await self._fail(sent.item, job, reason)
            return

        try:
            await self.link.until_done(lambda: self._send(where, data, key), f"job {job.id}")
        except APIError as error:
            if error.err_code in FULL:
                self._full = f"the cluster takes no more jobs for now: {error.description}; try again"
                self._full_until = time.monotonic() + _FULL_S
                await self._take_back(sent)
                return
            await self._fail(sent.item, job, Failure("infrastructure", f"the cluster refuses it: {error}", "send"))
            return
        self._full = ""
        sent.published = True
        sent.looked_at = time.monotonic()
        if self._is_to_stop(job.id):  # RACE: asked for while it was sent
            await self._cancel(sent)

    async def _take_back(self, sent: Sent) -> None:
        """Let a job that could not be sent wait here."""
        self._sent.pop(sent.job.id, None)
        await asyncio.to_thread(away.come_back, self._spool, sent.item)

    async def _send(self, where: str, data: bytes, key: JobKey) -> None:
        try:
            await self.link.js.publish(where, data, headers={"Nats-Msg-Id": str(key)})
        except APIError as error:
            if error.err_code == _IN_PROCESS:  # our own, sent before: the servers have not agreed on it yet
                raise TimeoutError(error.description) from None
            raise

    def _keys(self, engine: str) -> tuple[frozenset[str], Mapping[str, Any]]:
        schema = (self._schemas.describe(engine) or {}).get("schema")
        found: Mapping[str, Any] = schema if isinstance(schema, dict) else {}
        return path_keys(found), found

    async def _pack(self, key: JobKey, job: Job, *, again: bool) -> Order:
        """The job with its media in the store. Raises JobRefused, MediaError."""
        assert self._store is not None
        keys, schema = self._keys(job.engine)
        shared = self._config.cluster.shared
        output_keys = parcels.output_keys(schema)
        wanted: dict[str, Any] = {"path_keys": keys, "output_keys": output_keys, "shared": shared, "items": job.items}
        blobs: dict[Path, wire.Blob] = {}
        packed = job
        if job.items is not None or _may_name_files(job.params, keys | output_keys):
            for path in await asyncio.to_thread(lambda: parcels.find(job.params, **wanted)):
                blobs[path] = await self._store.put(path, holder=str(key))
            sent = await asyncio.to_thread(lambda: parcels.pack(job.params, describe=blobs.get, **wanted))
            packed = replace(job, params=sent.params, items=sent.items)
        left_s = None if not job.expires else max(0.0, (job.expires - self._spool.now()) / 1e6)
        return Order(key, packed.to_map(), tuple(job.terms.labels), left_s, again)

    # ---- back

    async def _hear(self, subject: str, stream: str, take: Any) -> None:
        """Messages of a stream from now on; those before are looked for."""
        while True:
            gap = asyncio.Event()
            self.link.on_gap.append(gap.set)
            subscription = None
            try:
                subscription = await self.link.js.subscribe(
                    subject, stream=stream, cb=take, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
                )
                for sent in self._sent.values():
                    sent.looked_at = 0.0
                await gap.wait()
            except (*AWAY, APIError) as error:
                logger.debug("{}: {}", subject, error)
                await asyncio.sleep(_AGAIN_S)
            finally:
                self.link.on_gap.remove(gap.set)
                if subscription is not None:
                    with contextlib.suppress(Exception):
                        await subscription.unsubscribe()

    async def _on_result(self, message: Msg) -> None:
        if not message.data:
            return
        try:
            key = JobKey.parse(message.subject.removeprefix(f"$KV.{wire.RESULTS}."))
        except ProtocolError as error:
            self._dropped(f"a result at {message.subject}", error)
            return
        if key.id in self._sent:
            self._land_soon(self._end(key, message.data))

    def _land_soon(self, end: End) -> None:
        sent = self._sent.get(end.key.id)
        if sent is not None and sent.key == end.key and not sent.landing:
            sent.landing = True
            self._spawn(self._land(sent, end))

    async def _mind_away(self) -> None:
        """Look for results that were not heard of, and end what has expired."""
        while True:
            await asyncio.sleep(min(_FOREIGN_LOOK_S, self._config.rescan_s))
            now = time.monotonic()
            due = [
                sent
                for sent in self._sent.values()
                if sent.published
                and not sent.landing
                and now - sent.looked_at > (_LOOK_S if sent.key.origin == self._spool.id else _FOREIGN_LOOK_S)
            ]
            with contextlib.suppress(*AWAY, APIError, ProtocolError):
                for sent in sorted(due, key=lambda one: one.looked_at)[:_LOOKS]:
                    await self._look_for(sent)
                await self._expire()
            if self._astray and self.link.connected:
                self._astray = False
                for item in await asyncio.to_thread(away.waiting, self._spool):
                    if item.name.id not in self._sent and item.name.id not in self._busy:
                        self._out_again(item)

    async def _keep_media(self) -> None:
        """Say now and then that the media of waiting jobs are needed still."""
        assert self._store is not None
        while True:
            await asyncio.sleep(min(3600.0, self._config.cluster.result_hours * 900))
            for sent in [one for one in self._sent.values() if one.key.origin == self._spool.id]:
                with contextlib.suppress(*AWAY, APIError, MediaError):
                    await self._store.hold(str(sent.key), await self._store.held(str(sent.key)))

    def _out_again(self, item: Away) -> None:
        self._busy.add(item.name.id)
        self._spawn(self._out(item.engine, item.name, item))

    async def _look_for(self, sent: Sent) -> bool:
        """Whether the job has ended; then it is landed."""
        sent.looked_at = time.monotonic()
        found = await self.link.until_done(lambda: self._result(sent.key), f"job {sent.job.id}")
        if found is not None:
            self._land_soon(found)
        return found is not None

    async def _result(self, key: JobKey) -> End | None:
        entry = await get_entry(await self.link.bucket(wire.RESULTS), str(key))
        return self._end(key, entry.value) if entry is not None and entry.value else None

    def _end(self, key: JobKey, data: bytes) -> End:
        """The result that is stored under a key. One that cannot be read stays there: it becomes a failure."""
        try:
            end = End.unpack(data)
            if end.key != key:
                raise ProtocolError("it is the result of another job")
        except ProtocolError as error:
            self._dropped(f"the result of job {key.id}", error)
            return End(key, "", 0, codec.encode(self._unreadable(key.id, error).to_map()))
        return end

    def _unreadable(self, job_id: str, why: object) -> Record:
        now = self._spool.now()
        text = f"the result that the cluster has cannot be used: {why}"
        reason = Failure(FailureKind.INFRASTRUCTURE.value, text[:1000], "cluster", at=now)
        return Record(job_id, "", JobState.FAILED, 0, now, now, now, failure=reason)

    async def _land(self, sent: Sent, end: End) -> None:
        """Bring the end of a job into the spool: files first, then the record."""
        assert self._store is not None
        try:
            async with self._at_once:
                record = await self._record(sent, end)
                self._retried.discard(sent.job.id)  # RACE: before the record is out, for it may be run again at once
                await asyncio.to_thread(self._finish, sent, record)
            if self._sent.get(sent.job.id) is sent:
                del self._sent[sent.job.id]
            with contextlib.suppress(*AWAY, APIError, MediaError):
                await self._store.let_go(str(sent.key))
        except _UNFIT as error:
            self._dropped(f"the result of job {sent.job.id}", f"{type(error).__name__}: {error}")
            what = "has lost a file" if isinstance(error, MediaGone) else "cannot be read"
            text = f"it ended on {end.node or 'a client'}, and its result {what}: {error}"[:1000]
            await self._fail(sent.item, sent.job, Failure(FailureKind.INFRASTRUCTURE.value, text, "fetch"))
        except (MediaError, OSError, *AWAY) as error:
            logger.warning("the result of job {} is there and cannot be fetched yet: {}", sent.job.id, error)
            sent.landing, sent.looked_at = False, time.monotonic()

    async def _record(self, sent: Sent, end: End) -> Record:
        """The record of the end, with its files on this machine."""
        assert self._store is not None
        job, spool = sent.job, self._spool
        folder = spool.files_dir(job.id)
        raw = end.record
        if end.body is not None:
            path = Path(spool.temp())
            await self._store.get(end.body, path)
            raw = await asyncio.to_thread(fsops.read_bounded, path, MAX_RESULT_BYTES)
            fsops.unlink(str(path), missing_ok=True)
        record = Record.from_map(codec.decode(raw, arrays=False))
        shared = self._config.cluster.shared
        _, schema = self._keys(job.engine)
        wishes = parcels.outputs_of(job.params, schema=schema, shared=shared, items=job.items)
        if end.arrays or end.outputs:
            await asyncio.to_thread(spool.make_files_dir, job.id, sync=spool.durable)
        record = await parcels.land(
            record,
            end.outputs,
            self._store,
            wishes=wishes,
            folder=folder,
            arrays=end.arrays,
            shared=shared,
            params=job.params if job.items is None else list(job.items),
        )
        return self._ours(sent, end, record)

    def _ours(self, sent: Sent, end: End, record: Record) -> Record:
        """The record as of a job of this spool: its id, times and attempts here."""
        job = sent.job
        ago_s = max(0.0, REAL.wall() - end.at) if end.at else 0.0  # as far as the clocks of both machines agree
        finished = max(job.created, self._spool.now() - int(1e6 * ago_s))
        worker = f"{end.node}/{record.worker}" if end.node and record.worker else end.node
        shift = sum(one.attempts for one in end.lost)
        before = (*self._lost(job.id, end.lost), *(_shifted(one, end.node, shift) for one in record.attempts))
        attempt = min(MAX_ATTEMPTS, record.attempt + shift)
        failure = record.failure
        if failure is not None:
            failure = replace(_shifted(failure, end.node, shift), attempts=())
            failure = replace(failure, attempts=(*before, failure))
        return replace(
            record,
            id=job.id,
            engine=job.engine,
            attempt=attempt,
            created=job.created,
            started=max(job.created, finished - max(0, record.finished - record.started)),
            finished=finished,
            worker=worker,
            failure=failure,
            attempts=before,
            source=job.source if job.source != _IMPORTED else "",
            kept=Redactor.of_spool(self._spool.root, job.engine).keep(job),
        )

    def _lost(self, job_id: str, lost: Sequence[wire.Lost]) -> Iterator[Failure]:
        """A reason for each attempt on nodes that were lost: what the node has told of it, else that it was lost."""
        told = {one.attempt: one for one in self._spool.notes(job_id, sum(one.attempts for one in lost))}
        before = 0
        for one in lost:
            last = before + one.attempts
            yield from (told.get(attempt) or _lost_failure(one, attempt) for attempt in range(before + 1, last))
            yield _lost_failure(one, last)
            before = last

    def _finish(self, sent: Sent, record: Record) -> None:
        away.finish(self._spool, sent.item, record, reply=sent.job.reply, durable=sent.job.durable)
        fsops.unlink(attempts.cancel_path(self._spool, sent.job.id), missing_ok=True)

    async def _fail(self, item: Away, job: Job, failure: Failure) -> None:
        """End a job that no node has begun."""
        self._sent.pop(job.id, None)
        record = self._failed(item, job, failure)
        await asyncio.to_thread(away.finish, self._spool, item, record, reply=job.reply)
        fsops.unlink(attempts.cancel_path(self._spool, job.id), missing_ok=True)

    def _failed(self, item: Away, job: Job | None, failure: Failure) -> Record:
        now, begun = self._spool.now(), item.name.attempts
        reason = replace(failure, at=now, attempt=begun)
        before = earlier(self._spool.notes(item.name.id, begun), begun + 1)
        return Record(
            id=item.name.id,
            engine=item.engine,
            state=JobState.CANCELLED if failure.kind == FailureKind.CANCELLED.value else JobState.FAILED,
            attempt=begun,
            created=job.created if job else item.name.born,
            started=now,
            finished=now,
            failure=replace(reason, attempts=(*before, reason)),
            attempts=before,
            source=job.source if job else "",
            kept=Redactor.of_spool(self._spool.root, item.engine).keep(job) if job else NOTHING,
        )

    # ---- what happens on the way

    async def _on_event(self, message: Msg) -> None:
        parts = message.subject.split(".")
        sent = self._sent.get(parts[3]) if len(parts) == 4 else None
        if sent is None or sent.landing:
            return
        try:
            event = Event.unpack(message.data)
            if event.run == sent.key.run:
                self._tell(sent, event)
        except (ProtocolError, TypeError, ValueError, ArithmeticError) as error:
            self._dropped(f"an event at {message.subject}", error)
        except OSError as error:
            if error.errno not in NO_SPACE:
                logger.debug("progress of job {}: {}", sent.job.id, error)

    def _tell(self, sent: Sent, event: Event) -> None:
        spool, job_id = self._spool, sent.job.id
        attempt = min(MAX_ATTEMPTS, event.attempt)
        if event.kind in ("progress", "partial"):
            sent.item = away.begin(spool, sent.item, attempt)
        if event.kind == "progress":
            status, percent, text = event.body
            if status in STATUSES:
                word = Progress(
                    str(status), min(100.0, max(0.0, float(percent))), str(text)[:500], attempt, spool.now()
                )
                fsops.put(spool.temp(), spool.progress_path(job_id), [word.to_bytes()], sync=False)
        elif event.kind == "partial":
            path = attempts.partial_path(spool, job_id, attempt)
            if attempt not in sent.frames:
                sent.frames[attempt] = len(attempts.read_partials(path, 0)[0])
            if event.number >= sent.frames[attempt] and isinstance(event.body, bytes):
                codec.decode(event.body, strict=True)  # hostile bytes never reach a reader
                fsops.append(path, attempts.frame(event.body))
                sent.frames[attempt] += 1
        elif event.kind == "setback":
            failure = decode_failure(event.body)
            spool.note(job_id, replace(failure, attempt=attempt, at=spool.now()))

    # ---- cancel, expiry

    async def _mind_cancels(self) -> None:
        folder = str(self._spool.root / "run" / "control")
        asked: dict[str, float] = {}
        with Watcher({"control": folder}) as watcher:
            stirred = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(watcher.fileno(), stirred.set)
            try:
                while True:
                    stirred.clear()
                    watcher.read()
                    names = [name for name in os.listdir(folder) if name.endswith(".cancel")]
                    for job_id in (name.removesuffix(".cancel") for name in names):
                        sent = self._sent.get(job_id)
                        if sent is None or not sent.published:
                            continue  # whoever sends it looks for this
                        if time.monotonic() - asked.get(job_id, -60.0) > _LOOK_S:
                            asked[job_id] = time.monotonic()
                            self._spawn(self._cancel(sent))
                    asked = {job_id: at for job_id, at in asked.items() if f"{job_id}.cancel" in names}
                    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                        await asyncio.wait_for(stirred.wait(), self._config.rescan_s)
            finally:
                loop.remove_reader(watcher.fileno())

    def _is_to_stop(self, job_id: str) -> bool:
        return os.path.lexists(attempts.cancel_path(self._spool, job_id))

    async def _cancel(self, sent: Sent) -> None:
        """Ask the node that has the job to stop it; what no node has ends at once."""

        async def ask() -> None:
            cancel = await self.link.bucket(wire.CANCEL)
            await cancel.put(str(sent.key), b"cancel")

        await self.link.until_done(ask, f"cancel of job {sent.job.id}")
        reason = Failure(FailureKind.CANCELLED.value, "cancelled by request before it started", "queued")
        await self._end_waiting(sent, reason)

    async def _end_waiting(self, sent: Sent, reason: Failure) -> None:
        """End a job here that no node has; when one has begun it meanwhile, the first end counts."""
        claims = await self.link.bucket(wire.CLAIMS)
        if await get_entry(claims, str(sent.key)) is not None:
            return
        now = self._spool.now()
        state = JobState.CANCELLED if reason.kind == FailureKind.CANCELLED.value else JobState.FAILED
        record = Record(
            sent.job.id, sent.job.engine, state, 0, sent.job.created, now, now, failure=replace(reason, at=now)
        )
        end = End(sent.key, "", 0, codec.encode(record.to_map()))
        results = await self.link.bucket(wire.RESULTS)
        with contextlib.suppress(KeyWrongLastSequenceError):
            await results.create(str(sent.key), end.pack())

    async def _expire(self) -> None:
        now = self._spool.now()
        for entry in os.listdir(self._spool.root / "run" / "expiry"):
            parsed = parse_expiry(entry)
            sent = self._sent.get(parsed[1]) if parsed is not None and parsed[0] <= now else None
            if sent is not None and not sent.landing and not sent.item.name.attempts:
                waited_s = (sent.job.expires - sent.job.created) / 1e6
                text = f"it expired before a worker began it, {waited_s:.0f} s after it was submitted"
                hint = "more nodes, a higher priority, or a later `expires`"
                await self._end_waiting(sent, Failure(FailureKind.EXPIRED.value, text, "queued", hint=hint))

    # ---- what the cluster is

    async def _mind_nodes(self) -> None:
        while True:
            try:
                nodes = await self.link.bucket(wire.NODES)
                watch = await nodes.watchall()
                silent_s = self._config.cluster.lease_s / 2 + 1  # nodes renew their entries: this watch went deaf
                heard = time.monotonic()
                while time.monotonic() - heard < silent_s and self.link.connected:
                    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                        entry = await watch.updates(timeout=1.0)  # type: ignore[no-untyped-call]
                        heard = time.monotonic()
                        if entry is not None:
                            self._heard_of(entry)
                        else:  # that was all there is
                            self._looked.add(wire.NODES)
                await watch.stop()  # type: ignore[no-untyped-call]
            except (*AWAY, APIError) as error:
                logger.debug("nodes: {}", error)
            await asyncio.sleep(0.2)

    def _heard_of(self, entry: KeyValue.Entry) -> None:
        if entry.operation is not None:
            self._nodes.pop(entry.key, None)
            return
        try:
            state = NodeState.unpack(entry.value or b"")
            if state.name != entry.key:
                raise ProtocolError("it has another name")
        except ProtocolError as error:
            self._dropped(f"node {entry.key}", error)
            return
        if entry.key in self._nodes or len(self._nodes) < noderecord.NODES_MOST:
            self._nodes[entry.key] = (state, time.monotonic())

    async def _tell_nodes(self) -> None:
        """Keep run/nodes.json: what submitters and people here see of the cluster."""
        me = procs.identity_of(os.getpid())
        assert me is not None
        while True:
            now = time.monotonic()
            self._nodes = {
                name: (state, seen)
                for name, (state, seen) in self._nodes.items()
                # while the servers were away no node could renew its entry
                if min(now - seen, self.link.unbroken_s) <= state.lease_s
            }
            if now >= self._full_until:
                self._full = ""
            said = Nodes(
                me,
                self._spool.now(),
                tuple(map(plain, addresses(self._config.cluster))),
                self.link.connected and not self.link.trouble and len(self._looked) == 2,
                self.link.trouble,
                self._full,
                tuple(_facts(state, now - seen) for state, seen in self._nodes.values()),
            )
            if said.says(self._told) or said.at - self._told.at > 5_000_000:  # type: ignore[union-attr]
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(noderecord.write, self._spool, said)
                    self._told = said
            await asyncio.sleep(_NODES_S / 4)

    async def _mind_engines(self) -> None:
        """Descriptions of the engines that there are, where workers of this machine would leave theirs."""
        while True:
            try:
                engines = await self.link.bucket(wire.ENGINES)
                watch = await engines.watchall()
                until = time.monotonic() + 60.0
                while time.monotonic() < until and self.link.connected:
                    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                        entry = await watch.updates(timeout=1.0)  # type: ignore[no-untyped-call]
                        if entry is not None and entry.operation is None:
                            await asyncio.to_thread(self._describe, entry.key, entry.value or b"")
                        elif entry is None:  # that was all there is
                            self._looked.add(wire.ENGINES)
                await watch.stop()  # type: ignore[no-untyped-call]
            except (*AWAY, APIError) as error:
                logger.debug("engines: {}", error)
            await asyncio.sleep(0.2)

    def _describe(self, engine: str, data: bytes) -> None:
        try:
            about = codec.decode(data, strict=True)
            if not isinstance(about, dict) or not isinstance(about.get("engine"), str):
                raise ProtocolError("not the description of an engine")
            text = json.dumps(about)
            if isinstance(about.get("schema"), dict):
                path_keys(about["schema"]), parcels.output_keys(about["schema"])
            path = f"{self._spool.root}/run/engines/{check_engine(engine)}.json"
        except _UNFIT as error:
            self._dropped(f"engine {engine}", error)
            return
        with contextlib.suppress(OSError):
            fsops.put(self._spool.temp(), path, [text.encode()], sync=False)

    # ---- jobs of other clients

    async def _mind_asks(self) -> None:
        while True:
            for name, job_id in await asyncio.to_thread(elsewhere.requests, self._spool):
                if self.link.connected and name not in self._asked:
                    self._asked.add(name)
                    self._spawn(self._bring(name, job_id))
            await asyncio.sleep(_ASK_S)

    async def _bring(self, name: str, job_id: str) -> None:
        known = False
        try:
            known = await self._import(job_id)
        finally:
            await asyncio.to_thread(elsewhere.answer, self._spool, name, known)
            self._asked.discard(name)

    async def _import(self, job_id: str) -> bool:
        """Whether a job of another client is known here from now on."""
        known = False
        with contextlib.suppress(*AWAY, APIError, ProtocolError, SpoolFull, ClusterAway, JobRefused, JobConflict):
            entry = await get_entry(await self.link.bucket(wire.IDS), job_id)
            identity = Identity.unpack(entry.value or b"") if entry is not None else None
            if identity is not None and identity.origin != self._spool.id:  # else it was here, and has gone
                job = Job(job_id, identity.engine, created=self._spool.now(), source=_IMPORTED)
                item = await asyncio.to_thread(away.import_job, self._spool, job)
                known = True
                if item is not None and job_id not in self._sent:
                    key = JobKey(identity.origin, job_id, identity.run)
                    sent = self._sent[job_id] = Sent(item, job, key, published=True)
                    found = await self._result(key)
                    if found is not None:
                        sent.landing = True
                        await self._land(sent, found)
        return known


_IMPORTED = "cluster"  # source of a job that another client has submitted


def _may_name_files(params: Mapping[str, Any], keys: frozenset[str]) -> bool:
    """False when no parameter can be a path."""
    texts = (value for value in params.values() if isinstance(value, str))
    return not (references.are_plain(params) and keys.isdisjoint(params)) or any(map(os.path.isabs, texts))


def _lost_failure(lost: wire.Lost, attempt: int) -> Failure:
    who = f"node {lost.node}" if lost.node else "an unknown node"
    return Failure(
        FailureKind.INFRASTRUCTURE.value, f"{who} was lost with the job: its lease ran out", "cluster", attempt
    )


def _shifted(failure: Failure, node: str, by: int) -> Failure:
    worker = f"{node}/{failure.worker}" if node and failure.worker and "/" not in failure.worker else failure.worker
    return replace(failure, attempt=min(MAX_ATTEMPTS, failure.attempt + by), worker=worker)


def _facts(state: NodeState, seen_s: float) -> NodeFacts:
    return NodeFacts(
        state.name,
        state.host,
        state.version,
        seen_s,
        state.labels,
        state.draining,
        state.jobs,
        {name: dict(vars(about)) for name, about in state.engines.items()},
        state.slots,
    )
