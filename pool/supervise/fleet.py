"""The slots of a spool and the processes in them: start, adopt, judge, recycle, reap, take their jobs back.

Called by the supervisor's loop, never by a thread. What is decided here is policy (`restart`, `judge`) applied to
facts (`slot`, heartbeats); what happens to jobs is in `recovery`.
"""

from __future__ import annotations

import os
import random

from loguru import logger

from pool.config.seats import slots as expand
from pool.config.settings import Config, EngineConfig
from pool.constants import SERVING, Phase
from pool.errors import ProtocolError
from pool.format.names import WorkerName, parse_worker
from pool.job import Failure
from pool.policy.blame import Remedy
from pool.runfiles import heartbeat
from pool.spool import fsops
from pool.spool.store import NO_SPACE, Spool
from pool.supervise import adoption
from pool.supervise.attention import Attention
from pool.supervise.judge import PLANNED, Cause, Verdict
from pool.supervise.recovery import End, Recovery
from pool.supervise.remains import stage_of
from pool.supervise.restart import STARTABLE, Bench, BenchReason, Seat
from pool.supervise.rollout import Place, Roll, Stand
from pool.supervise.slot import Slot
from pool.system import cgroup
from pool.system.lineage import Heir

_TIMEOUTS_KEPT = 1000
_NO_ROOM_S = 1.0  # between two tries to start a worker on a full disk


class Fleet:
    """All slots. draining: nothing is started any more. heir: of what workers leave behind, in a process of its own.
    attention: its `now` is the time of all deadlines here."""

    def __init__(
        self, spool: Spool, config: Config, rng: random.Random, attention: Attention, heir: Heir | None = None
    ) -> None:
        self._spool, self._config, self._heir, self._rng = spool, config, heir, rng
        self._attention = attention
        self.slots = [Slot(spool, config, spec, rng, attention.now()) for spec in expand(config)]
        self.recovery = Recovery(spool, config, rng)
        self.roll = Roll()
        self.draining = False
        self._generation = self._first_generation()
        self._timeouts: dict[str, float | None] = {}
        self._unrecovered: list[tuple[WorkerName, End, EngineConfig]] = []

    @property
    def containment(self) -> str:
        """How all that a worker started is found at its end, by the surest means there is."""
        by_descent = self._heir is not None and self._heir.ends
        return "cgroup" if cgroup.home() else "descent" if by_descent else "session"

    def living(self) -> list[Slot]:
        """Slots with a process."""
        return [slot for slot in self.slots if slot.alive]

    def next_start_at(self) -> float:
        """Time at which a slot wants to start; infinity when none does."""
        waiting = () if self.draining else (s.policy for s in self.slots if not s.alive)
        return min((p.next_start_at for p in waiting if p.seat in STARTABLE), default=float("inf"))

    def drain(self, now: float) -> None:
        """No new claims; running jobs may finish within the grace, then they are given back unharmed."""
        self.draining, self.roll = True, Roll()
        for slot in self.living():
            slot.ask_to_end(Verdict(Cause.DRAIN), now + self._config.drain_grace_s)
        for slot in self.slots:
            slot.policy.retire()

    def end_now(self) -> None:
        """Kill every worker."""
        for slot in self.living():
            slot.kill(Verdict(Cause.DRAIN))

    # ---- another configuration

    def use(self, config: Config, now: float) -> None:
        """Go over to another configuration. Limits hold at once, and benched slots of engines that changed are taken
        back; processes follow one by one (`advance`). Raises ConfigError before anything has changed."""
        specs = expand(config)
        known, before = {slot.spec.name: slot for slot in self.slots}, self.roll.awaited
        self._config = self.recovery.config = config
        self._timeouts.clear()
        awaited, slots = {}, []
        for spec in specs:
            slot = known.pop(spec.name, None)
            if slot is None:
                slot = Slot(self._spool, config, spec, self._rng, now)
                awaited[spec.name] = False
            elif slot.use(spec, config) or slot.leaving:
                slot.leaving = False
                slot.policy.recover(now, alive=slot.alive)
                slot.blame.forget()
                if slot.old or not slot.alive:
                    awaited[spec.name] = slot.alive
            if spec.name in before:  # of a roll that this one follows
                awaited[spec.name] = awaited.get(spec.name, False) or before[spec.name]
            slots.append(slot)
        for slot in known.values():
            slot.leaving = True
            slot.policy.retire()
        self.slots = [*slots, *(slot for slot in known.values() if slot.alive)]
        for engine in config.engines.values():
            self._count_workers(engine)
            if engine.spares:
                for slot in self._active(engine.name)[engine.workers :]:  # too many are at work: they become spares
                    slot.fingerprint = ""
                    awaited[slot.spec.name] = True
        self.roll = Roll(awaited, frozenset(config.engines), leaving=len(self.slots) - len(slots))
        logger.info("{} slots: {} to be replaced or started, {} to leave", len(slots), len(awaited), len(known))

    def advance(self) -> None:
        """Bring a new configuration one step further."""
        said = self.roll.failed
        for name in self.roll.step([_place(slot) for slot in self.slots]):
            slot = next(slot for slot in self.slots if slot.spec.name == name)
            logger.info("{}: {}: it may finish its job", slot.worker, Verdict(Cause.OUTDATED).sentence)
            slot.ask_to_end(Verdict(Cause.OUTDATED), None)
        if self.roll.failed and self.roll.failed != said:
            logger.error("the new configuration does not start: {}", self.roll.failed)
        if self.roll.over:
            logger.info("all slots run the new configuration")

    def configured(self) -> list[Slot]:
        """Slots that have a place in the configuration."""
        return [slot for slot in self.slots if not slot.leaving]

    def _active(self, engine: str) -> list[Slot]:
        """Slots of an engine with a process that takes jobs, or will; spares do not."""
        return [s for s in self.configured() if s.spec.engine.name == engine and s.alive and not s.standby]

    def _count_workers(self, engine: EngineConfig) -> None:
        """Spares take the place of workers that are missing."""
        missing = engine.workers - len(self._active(engine.name))
        for slot in self.configured() if missing > 0 else ():
            if missing <= 0 or slot.spec.engine.name != engine.name or not slot.standby or slot.cause is not None:
                continue
            beat = slot.beat()
            if beat is not None and beat.phase is Phase.IDLE:
                slot.promote()
                missing -= 1
                logger.info("{} was a spare and is a worker now", slot.worker)

    # ---- start and adoption

    def _first_generation(self) -> int:
        """Generations are never used twice, whatever was removed meanwhile."""
        seen = [0]
        for folder in ("work", "run/heartbeats", "run/slots"):
            for name in os.listdir(self._spool.root / folder):
                worker = parse_worker(name) or parse_worker(name.rpartition(".")[0])
                seen.append(worker.generation if worker else 0)
        try:
            seen.append(int((self._spool.root / "run" / "generation").read_bytes()))
        except (OSError, ValueError):
            pass
        return max(seen)

    def next_generation(self) -> int:
        """A number that no worker of this spool has had."""
        self._generation += 1
        temp = self._spool.temp()
        fsops.write_new(temp, [str(self._generation).encode()], sync=False)
        fsops.replace(temp, f"{self._spool.root}/run/generation")
        return self._generation

    def adopt(self) -> None:
        """Take over the workers of a supervisor that died; end those that fit no slot; recover the rest."""
        adoption.adopt(self._spool, self._config, self.slots, self.recovery, now=self._attention.now(), heir=self._heir)

    def end_strays(self) -> None:
        """Kill what no slot knows."""
        adoption.end_strays(self._spool, self.slots, self._heir)

    def start_due(self, now: float) -> None:
        """Start a process in every slot whose time has come."""
        if self.draining:
            return
        for slot in self.slots:
            if slot.alive or not slot.policy.due(now):
                continue
            engine = slot.spec.engine
            try:
                slot.start(self.next_generation(), standby=len(self._active(engine.name)) >= engine.workers)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    slot.policy.next_start_at = now + _NO_ROOM_S  # says nothing about the slot
                    continue
                logger.error("{}: {}", slot.spec.name, error)
                slot.error = {"message": str(error), "stage": "spawn", "hint": ""}
                slot.count_start()
                slot.ended = None
                slot.policy.started(now)
                slot.policy.exited(now, None, "spawn failure")
                continue
            slot.count_start()
            slot.policy.started(now)
            logger.info("started {} (pid {})", slot.worker, slot.identity.pid if slot.identity else 0)

    # ---- deaths

    def reap_dead(self, now: float) -> bool:
        """Recover after every worker that is proven dead; whether there was one."""
        dead = [slot for slot in self.living() if slot.dead()]
        for slot in dead:
            self._reap(slot, now)
            if slot.leaving:
                self.slots.remove(slot)
        return bool(dead)

    def _reap(self, slot: Slot, now: float) -> None:
        worker, beat = slot.worker, slot.beat()
        assert worker is not None
        busy = beat is not None and beat.phase is Phase.BUSY
        stage = stage_of(beat)
        death = slot.reap(stage, beat.job if beat and busy else "")
        adoption.end_inherited(self.slots, self._heir)
        verdict = slot.verdict
        end = End(death, verdict, stage, slot.log_tail())
        log = logger.info if verdict.cause in (Cause.DRAIN, Cause.RECYCLE, Cause.OUTDATED) else logger.warning
        log("{} ended in {}: {}", worker, stage, slot.last_death)
        if slot.spec.engine.name in self._config.engines and not self.draining:
            self._count_workers(self._config.engines[slot.spec.engine.name])
        self._credit(slot, beat, now)
        charged: tuple[str, ...] = ()
        try:
            row = beat.row if beat is not None else slot.row
            found = self.recovery.recover(
                worker, end, row=row, siblings=bool(self._same_engine(slot)), engine=slot.spec.engine
            )
            charged, slot.row = found.charged, found.row
        except OSError as error:
            logger.error("the jobs of {} cannot be taken back yet: {}", worker, error)
            self._unrecovered.append((worker, end, slot.spec.engine))
        slot.policy.exited(
            now, death.exit_code, death.signal, planned=verdict.cause in PLANNED, job_id=charged[0] if charged else None
        )
        if slot.policy.benched:
            logger.error("{} is benched: {}", slot.spec.name, slot.policy.benched)

    def settle_unrecovered(self) -> None:
        """Again for jobs that a full disk kept from being taken back."""
        while self._unrecovered:
            worker, end, engine = self._unrecovered[0]
            self.recovery.recover(worker, end, engine=engine)
            self._unrecovered.pop(0)

    def _same_engine(self, slot: Slot) -> list[Slot]:
        """The other slots of its engine, whether a process is in them or not."""
        return [s for s in self.configured() if s is not slot and s.spec.engine.name == slot.spec.engine.name]

    # ---- once a second

    def judge(self, now: float) -> None:
        """Look at every process; end what is not well, recycle what is worn out."""
        for slot in self.living():
            beat = slot.beat()
            if beat is not None and beat.phase in SERVING:
                slot.policy.ready(now)
            self._credit(slot, beat, now)
            verdict = slot.look(beat, self._attention.since, lambda s=slot, b=beat: self._timeout_of(s, b))  # type: ignore[misc]
            if verdict.cause is not None:
                logger.warning("{}: {}: ending it", slot.worker, verdict.sentence)
                slot.abort(verdict, now)
            elif beat is not None and slot.cause is None and beat.phase in SERVING:
                self._recycle(slot, beat)

        for slot in self.slots:
            self._cure(slot, now)
        for engine in self._config.engines.values() if not self.draining else ():
            self._count_workers(engine)  # one that was not loaded yet when it was missed

    def _cure(self, slot: Slot, now: float) -> None:
        """What is held against a slot has an end: a fresh process first, the bench when that did not help."""
        if slot.cause not in (None, Cause.RECYCLE) or slot.policy.seat not in (Seat.RUNNING, Seat.WAITING):
            return
        generation = slot.worker.generation if slot.worker else -1
        remedy = slot.blame.remedy(generation, others_serve=self._others_serve(slot))
        if remedy is Remedy.NONE:
            return
        verdict = Verdict(Cause.SICK, subject=str(slot.blame.count()))
        if remedy is Remedy.BENCH:
            slot.policy.bench(now, Bench(BenchReason.SICK, slot.blame.count()))
            slot.blame.forget()
            logger.error("{} is benched: {}", slot.spec.name, slot.policy.benched)
        else:
            logger.warning("{} gets a fresh process: {}", slot.worker, verdict.sentence)
        slot.kill(verdict)

    def _others_serve(self, slot: Slot) -> bool:
        """Whether another slot of its engine takes jobs now."""
        for peer in self._same_engine(slot):
            beat = peer.beat()
            if peer.cause is None and beat is not None and beat.phase in SERVING and not beat.standby:
                return True
        return False

    def _credit(self, slot: Slot, beat: heartbeat.Beat | None, now: float) -> None:
        if beat is not None and beat.jobs_done > slot.jobs_done:
            slot.jobs_done = beat.jobs_done
            slot.policy.finished_job(now)
            slot.blame.succeeded(beat.succeeded_at)

    def _timeout_of(self, slot: Slot, beat: heartbeat.Beat | None) -> float | None:
        """Time limit of the job that a worker runs, of a batch the shortest one; read once per job."""
        job_id, usual = beat.job if beat else "", slot.spec.engine.task_timeout_s
        if job_id in self._timeouts:
            return self._timeouts[job_id]
        limits: dict[str, float | None] = {}
        for claim in self._spool.claims(slot.worker) if slot.worker else ():
            try:
                limits[claim.name.id] = self._spool.read_claim(claim, arrays=False).timeout_s or usual
            except (ProtocolError, OSError):
                continue
        limit = min((each for each in limits.values() if each is not None), default=usual)
        if job_id in limits:  # RACE: else the beat was of a job that ended meanwhile
            if len(self._timeouts) > _TIMEOUTS_KEPT:
                self._timeouts.clear()
            self._timeouts[job_id] = limit
        return limit

    def _recycle(self, slot: Slot, beat: heartbeat.Beat) -> None:
        """Replace a worn-out worker, one of an engine at a time."""
        limit = slot.worn_out(beat)
        if limit is None:
            return
        for peer in self._same_engine(slot):
            other = peer.beat()
            starting = peer.alive and (other is None or other.phase not in SERVING)
            if peer.cause in (Cause.RECYCLE, Cause.OUTDATED) or starting:
                return
        verdict = Verdict(Cause.RECYCLE, limit)
        logger.info("{} is {}", slot.worker, verdict.sentence)
        slot.ask_to_end(verdict, None)

    def accuse(self, job_id: str, failure: Failure) -> None:
        """A job has completed in another slot than the one where this attempt failed."""
        worker = parse_worker(failure.worker)
        for slot in self.slots:
            if worker is not None and slot.spec.name == worker.slot:
                slot.blame.accuse(job_id, failure.at, worker.generation)


def _place(slot: Slot) -> Place:
    beat = slot.beat()
    loaded = beat is not None and beat.phase in SERVING
    if slot.alive and slot.cause is not None:
        stand = Stand.ENDING
    elif slot.old:
        stand = Stand.OLD
    elif loaded:
        stand = Stand.SERVES
    else:
        stand = Stand.FAILED if slot.policy.failing else Stand.STARTS
    return Place(
        slot.spec.name,
        slot.spec.engine.name,
        stand,
        spare=slot.standby,
        busy=beat is not None and bool(beat.job),
        leaving=slot.leaving,
        why=slot.last_death,
    )
