"""The slots of a spool and the processes in them: start, adopt, judge, recycle, bury, take their jobs back.

Called by the supervisor's loop, never by a thread. What is decided here is policy (`restart`, `judge`) applied to
facts (`slot`, heartbeats); what happens to jobs is in `recovery`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Mapping

from loguru import logger

from pool import cgroup, fsops, heartbeat, procs
from pool.blame import Remedy
from pool.config import Config
from pool.constants import SERVING, Phase
from pool.death import death_of
from pool.errors import ProtocolError
from pool.job import Failure
from pool.judge import PLANNED, Cause, Verdict
from pool.lineage import Heir
from pool.names import WorkerName, parse_worker
from pool.procs import Identity
from pool.recovery import End, Recovery
from pool.restart import STARTABLE, Bench, BenchReason, Seat
from pool.slot import Slot, group_of, launch_path
from pool.slots import slots as expand
from pool.spool import NO_SPACE, Spool

_TIMEOUTS_KEPT = 1000
_NO_ROOM_S = 1.0  # between two tries to start a worker on a full disk


class Fleet:
    """All slots. draining: nothing is started any more. heir: of what workers leave behind, in a process of its own."""

    def __init__(self, spool: Spool, config: Config, rng: random.Random, heir: Heir | None = None) -> None:
        self._spool, self._config, self._heir = spool, config, heir
        now = time.monotonic()
        self.slots = [Slot(spool, config, spec, rng, now) for spec in expand(config)]
        self.recovery = Recovery(spool, config, rng)
        self.draining = False
        self._generation = self._first_generation()
        self._timeouts: dict[str, float | None] = {}
        self._unrecovered: list[tuple[WorkerName, End]] = []

    @property
    def containment(self) -> str:
        """How all that a worker started is found at its end, by the surest means there is."""
        by_descent = self._heir is not None and self._heir.ends
        return "cgroup" if cgroup.home() else "descent" if by_descent else "session"

    def living(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.alive]

    def next_start_at(self) -> float:
        """Monotonic time at which a slot wants to start; infinity when none does."""
        waiting = () if self.draining else (s.policy for s in self.slots if not s.alive)
        return min((p.next_start_at for p in waiting if p.seat in STARTABLE), default=float("inf"))

    def drain(self, now: float) -> None:
        """No new claims; running jobs may finish within the grace, then they are given back unharmed."""
        self.draining = True
        for slot in self.living():
            slot.ask_to_end(Verdict(Cause.DRAIN), now + self._config.drain_grace_s)
        for slot in self.slots:
            slot.policy.retire()

    def end_now(self) -> None:
        for slot in self.living():
            slot.kill(Verdict(Cause.DRAIN))

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
        self._generation += 1
        temp = self._spool.temp()
        fsops.write_new(temp, [str(self._generation).encode()], sync=False)
        fsops.replace(temp, f"{self._spool.root}/run/generation")
        return self._generation

    def adopt(self) -> None:
        """Take over the workers of a supervisor that died; end those that fit no slot; recover the rest."""
        living: dict[WorkerName, Identity] = {}
        for member in procs.members(self._spool.id):
            worker = parse_worker(member.worker)
            if (
                worker is not None
                and member.session == member.identity.pid
                and self._is_main(worker, member.identity)
            ):
                living[worker] = member.identity
        now = time.monotonic()
        by_name = {slot.spec.name: slot for slot in self.slots}
        misfits: dict[WorkerName, Identity] = {}
        for worker, identity in sorted(living.items(), key=lambda item: -item[0].generation):
            slot = by_name.get(worker.slot)
            if slot is None or slot.alive:
                misfits[worker] = identity
                continue
            slot.policy.adopted(now)
            slot.adopt(worker, identity)
            logger.info("adopted {} (pid {})", worker, identity.pid)
            if not self._fits(slot, worker):
                logger.info("{} has an older configuration: ending it", worker)
                slot.ask_to_end(Verdict(Cause.MISFIT), now + self._config.drain_grace_s)
        self._end_misfits(misfits)
        self._end_groups()
        self.end_strays()
        for worker in self.recovery.recover_abandoned({slot.worker for slot in self.living() if slot.worker}):
            logger.warning("recovered the jobs of {}, which is gone", worker)

    def _end_groups(self) -> None:
        """What is left in the control groups of workers that died unseen."""
        ours = {slot.worker for slot in self.living()}
        for name in os.listdir(self._spool.root / "run" / "slots"):
            worker = parse_worker(name.rpartition(".")[0])
            if worker is not None and worker not in ours:
                cgroup.end(group_of(self._spool, worker), self._spool.id)

    def end_strays(self) -> None:
        """Kill what carries the tag of a worker that is in no slot: children of the dead, ffmpeg and the like, and a
        worker whose supervisor was killed while it started it."""
        ours = {slot.worker for slot in self.living()}
        for member in procs.members(self._spool.id):
            if member.worker and parse_worker(member.worker) not in ours:
                logger.warning("pid {} is left over from {}: ending it", member.identity.pid, member.worker)
                procs.signal_process(member.identity, signal.SIGKILL)
                _await_death(member.identity)
        self._end_inherited()

    def _end_inherited(self) -> None:
        """Kill what descends from dead workers and carries no tag: it had cleared its environment."""
        workers = {slot.identity.pid for slot in self.slots if slot.identity is not None}
        for what in self._heir.end(workers) if self._heir is not None else ():
            logger.warning("{} was left running by a worker: ended", what)

    def _is_main(self, worker: WorkerName, identity: Identity) -> bool:
        beat = heartbeat.read(f"{self._spool.root}/run/heartbeats/{worker}")
        return beat is None or beat.pid == identity.pid

    def _fits(self, slot: Slot, worker: WorkerName) -> bool:
        try:
            launch = json.loads(launch_path(self._spool, worker).read_bytes())
        except (OSError, ValueError):
            return False
        return bool(launch.get("fingerprint") == slot.spec.fingerprint)

    def _end_misfits(self, misfits: Mapping[WorkerName, Identity]) -> None:
        """Workers without a slot of their own any more: each may finish its job within the drain grace."""
        for worker, identity in misfits.items():
            logger.info("{} (pid {}) has no slot in the configuration: ending it", worker, identity.pid)
            procs.signal_process(identity, signal.SIGTERM)
        deadline = time.monotonic() + self._config.drain_grace_s
        while any(identity.alive() for identity in misfits.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for worker, identity in misfits.items():
            procs.kill_group(identity, signal.SIGKILL, spool_id=self._spool.id, worker=str(worker))
            _await_death(identity)
            cgroup.end(group_of(self._spool, worker), self._spool.id)
            self.recovery.recover(worker, End(death_of(None), Verdict(Cause.MISFIT)))

    def start_due(self, now: float) -> None:
        """Start a process in every slot whose time has come."""
        if self.draining:
            return
        for slot in self.slots:
            if slot.alive or not slot.policy.due(now):
                continue
            peers = [s for s in self.slots if s.spec.engine.name == slot.spec.engine.name]
            active = sum(1 for s in peers if s.alive and not s.standby)
            try:
                slot.start(
                    self.next_generation(),
                    standby=active >= slot.spec.engine.workers,
                    siblings=len(peers) > 1,
                )
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    slot.policy.next_start_at = now + _NO_ROOM_S  # says nothing about the slot
                    continue
                logger.error("{}: {}", slot.spec.name, error)
                slot.error = {"message": str(error), "stage": "spawn", "hint": ""}
                slot.policy.started(now)
                slot.policy.exited(now, None, "spawn failure")
                continue
            slot.policy.started(now)
            logger.info("started {} (pid {})", slot.worker, slot.identity.pid if slot.identity else 0)

    # ---- deaths

    def bury_dead(self, now: float) -> bool:
        """Recover after every worker that is proven dead; whether there was one."""
        dead = [slot for slot in self.living() if slot.dead()]
        for slot in dead:
            self._bury(slot, now)
        return bool(dead)

    def _bury(self, slot: Slot, now: float) -> None:
        worker, beat, was_standby = slot.worker, slot.beat(), slot.standby
        assert worker is not None
        busy = beat is not None and beat.phase is Phase.BUSY
        stage = (beat.stage if busy else beat.phase.label) if beat else Phase.BOOTING.label
        death = slot.bury(stage, beat.job if beat and busy else "")
        self._end_inherited()
        verdict = slot.verdict
        end = End(death, verdict, stage, slot.log_tail())
        log = logger.info if verdict.cause in (Cause.DRAIN, Cause.RECYCLE) else logger.warning
        log("{} ended in {}: {}", worker, stage, slot.last_death)
        if not was_standby:
            self._promote_spare(slot)
        self._credit(slot, beat, now)
        charged: tuple[str, ...] = ()
        try:
            row = beat.row if beat is not None else slot.row
            found = self.recovery.recover(worker, end, row=row, siblings=bool(self._same_engine(slot)))
            charged, slot.row = found.charged, found.row
        except OSError as error:
            logger.error("the jobs of {} cannot be taken back yet: {}", worker, error)
            self._unrecovered.append((worker, end))
        slot.policy.exited(
            now, death.exit_code, death.signal, planned=verdict.cause in PLANNED, job_id=charged[0] if charged else None
        )
        if slot.policy.benched:
            logger.error("{} is benched: {}", slot.spec.name, slot.policy.benched)

    def settle_unrecovered(self) -> None:
        """Again for jobs that a full disk kept from being taken back."""
        while self._unrecovered:
            worker, end = self._unrecovered[0]
            self.recovery.recover(worker, end)
            self._unrecovered.pop(0)

    def _promote_spare(self, dead: Slot) -> None:
        for slot in self._same_engine(dead):
            beat = slot.beat()
            if slot.standby and slot.cause is None and beat is not None and beat.phase is Phase.IDLE:
                slot.promote()
                logger.info("{} takes over from {}", slot.worker, dead.spec.name)
                return

    def _same_engine(self, slot: Slot) -> list[Slot]:
        """The other slots of its engine, whether a process is in them or not."""
        return [s for s in self.slots if s is not slot and s.spec.engine.name == slot.spec.engine.name]

    # ---- once a second

    def judge(self, now: float) -> None:
        """Look at every process; end what is not well, recycle what is worn out."""
        for slot in self.living():
            beat = slot.beat()
            if beat is not None and beat.phase in SERVING:
                slot.policy.ready(now)
            self._credit(slot, beat, now)
            verdict = slot.look(beat, lambda s=slot, b=beat: self._timeout_of(s, b))  # type: ignore[misc]
            if verdict.cause is not None:
                logger.warning("{}: {}: ending it", slot.worker, verdict.sentence)
                slot.abort(verdict, now)
            elif beat is not None and slot.cause is None and beat.phase in SERVING:
                self._recycle(slot, beat)

        for slot in self.slots:
            self._cure(slot, now)

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
            if peer.cause is Cause.RECYCLE or starting:
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


def _await_death(identity: Identity) -> None:
    """After SIGKILL: until the process is gone, however long the kernel takes."""
    while identity.alive():
        time.sleep(0.002)
