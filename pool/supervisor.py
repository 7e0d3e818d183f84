"""The supervisor: starts workers, judges them, ends them, takes their jobs back. It is not on the data path.

One loop, one thread. It wakes when a process dies (pidfd), when something is dropped, requested or noted (watch),
when a signal comes, and once a second to judge; a tick without news costs about a millisecond.

    deaths -> recover claims -> (re)start slots -> judge -> press endings -> requests -> drop box -> due retries

When it is killed, workers work on; the next supervisor adopts those that fit its configuration.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time

from filelock import FileLock, Timeout
from loguru import logger

import pool
from pool import fsops, heartbeat, logs, procs
from pool.attendant import living_clients
from pool.config import Config
from pool.constants import EXIT_DRAINED, SERVING, Phase
from pool.control import Control
from pool.death import death_of
from pool.errors import ProtocolError, SupervisorRunning
from pool.intake import Intake
from pool.job import Failure
from pool.judge import PLANNED, Cause
from pool.names import WorkerName, parse_note, parse_worker
from pool.procs import Identity
from pool.recovery import End, Recovery
from pool.report import write_status
from pool.restart import Seat
from pool.retention import Retention
from pool.slot import Slot, launch_path
from pool.slots import slots as expand
from pool.spool import NO_SPACE, Spool
from pool.watch import Watcher

_TICK_S = 1.0
_SWEEP_S = 60.0
_CARE_S = 10.0  # watcher health, log sizes, directories
_CLIENT_GRACE_S = 1.0  # a tied supervisor without clients waits that long
_POLL_DEAD_S = 0.05  # where the kernel has no pidfd


class Supervisor:
    """Serves one spool until it is told to drain. Raises SupervisorRunning, ConfigError, SpoolError."""

    def __init__(self, config: Config, *, tied: bool = False) -> None:
        self._config, self._tied = config, tied
        self.spool = Spool.create(config.spool, durable=config.durable)
        self._lock = FileLock(f"{self.spool.root}/run/supervisor.lock", mode=0o600)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SupervisorRunning(f"another supervisor serves {config.spool}") from None
        self._rng = random.Random()
        self._record = self.spool.root / "run" / "supervisor.json"
        now = time.monotonic()
        self.slots = [Slot(self.spool, config, spec, self._rng, now) for spec in expand(config)]
        self._recovery = Recovery(self.spool, config, self._rng)
        self._intake = Intake(self.spool, config)
        self._retention = Retention(self.spool, config)
        self._generation = self._first_generation()
        self._control = Control(self.spool, config, lambda: self._living(), self._next_generation())
        self._draining = False
        self._signals = 0
        self._due: dict[str, float] = dict.fromkeys(
            ("tick", "intake", "control", "deferred", "sweep", "care"), 0.0
        )
        self._timeouts: dict[str, float | None] = {}
        self._alone_since: float | None = None
        self._unrecovered: list[tuple[WorkerName, End]] = []
        self._wake_reader, self._wake_writer = os.pipe()

    # ---- life

    def run(self) -> int:
        """Serve; the exit code."""
        self._arm_signals()
        self._announce()
        self._adopt()
        self._recovery.mend_requeues()
        root = self.spool.root
        places = {"in": root / "in", "control": root / "run" / "control", "notes": root / "run" / "attempts"}
        with Watcher(places, closes=("in",)) as watcher:
            self._watcher = watcher
            if watcher.reason:
                logger.warning("watching by polling: {}", watcher.reason)
            while not (self._draining and not self._living()):
                self._turn(watcher)
        self._farewell()
        return EXIT_DRAINED

    def _turn(self, watcher: Watcher) -> None:
        self._wait(watcher)
        now = time.monotonic()
        self._take_signals(now)
        for slot in self._living():
            if slot.dead():
                self._on_death(slot, now)
        self._read_arrivals(watcher, now)
        if now >= self._due["tick"]:
            self._due["tick"] = now + _TICK_S
            self._tick(now)
        for slot in self._living():
            slot.press(now)
        self._start_due(now)
        try:
            self._chores(now)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            logger.warning("disk full: {}", error)
            for chore in ("control", "deferred", "intake"):
                self._due[chore] = max(self._due[chore], now + _TICK_S)

    def _chores(self, now: float) -> None:
        if self._unrecovered:
            self._settle_unrecovered()
        if now >= self._due["control"]:
            self._due["control"] = now + (self._control.turn() or _TICK_S)
        if now >= self._due["deferred"]:
            upcoming = self.spool.wake_deferred()
            self._due["deferred"] = now + _until(upcoming, self.spool.now(), self._config.rescan_s)
        if now >= self._due["intake"] and not self._draining:
            again = self._intake.turn()
            self._due["intake"] = now + (self._config.rescan_s if again is None else again)
        if now >= self._due["care"]:
            self._due["care"] = now + _CARE_S
            self._care(now)
        if now >= self._due["sweep"]:
            self._due["sweep"] = now + _SWEEP_S
            self._retention.sweep()

    def _wait(self, watcher: Watcher) -> None:
        now = time.monotonic()
        until = min(self._due["tick"], self._due["intake"], self._due["control"], self._due["deferred"])
        for slot in self.slots:
            if not slot.alive and slot.policy.seat in (Seat.WAITING, Seat.BENCHED) and not self._draining:
                until = min(until, slot.policy.next_start_at)
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        poll.register(watcher.fileno(), select.POLLIN)
        blind = False
        for slot in self._living():
            if slot.descriptor is not None:
                poll.register(slot.descriptor, select.POLLIN)
            else:
                blind = True
        pause = max(0.0, until - now)
        poll.poll((min(pause, _POLL_DEAD_S) if blind else pause) * 1000)

    # ---- signals

    def _arm_signals(self) -> None:
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._signals += 1

    def _take_signals(self, now: float) -> None:
        try:
            os.read(self._wake_reader, 512)
        except BlockingIOError:
            pass
        if self._signals and not self._draining:
            self._signals = 0
            self.drain(now, "asked to end")
        elif self._signals:
            self._signals = 0
            logger.warning("asked again: ending at once")
            for slot in self._living():
                slot.kill(Cause.DRAIN, "the pool was ended at once")

    def drain(self, now: float, why: str) -> None:
        """No new claims; running jobs may finish within the grace, then they are given back unharmed."""
        logger.info("draining: {}", why)
        self._draining = True
        for slot in self._living():
            slot.ask_to_end(Cause.DRAIN, "the pool drains", now + self._config.drain_grace_s)
        for slot in self.slots:
            slot.policy.retire()

    # ---- start and adoption

    def _announce(self) -> None:
        me = procs.identity_of(os.getpid())
        assert me is not None
        body = {
            "identity": me.to_map(),
            "started": self.spool.now(),
            "tied": self._tied,
            "config": str(self._config.file) if self._config.file else None,
            "version": pool.__version__,
        }
        temp = self.spool.temp()
        fsops.write_new(temp, [json.dumps(body).encode()], sync=False)
        fsops.replace(temp, str(self._record))
        logger.info("serving {} with {} slots", self.spool.root, len(self.slots))

    def _first_generation(self) -> int:
        """Generations are never used twice, whatever was removed meanwhile."""
        seen = [0]
        for folder in ("work", "run/heartbeats", "run/slots"):
            for name in os.listdir(self.spool.root / folder):
                worker = parse_worker(name) or parse_worker(name.rpartition(".")[0])
                seen.append(worker.generation if worker else 0)
        try:
            seen.append(int((self.spool.root / "run" / "generation").read_bytes()))
        except (OSError, ValueError):
            pass
        return max(seen)

    def _next_generation(self) -> int:
        self._generation += 1
        temp = self.spool.temp()
        fsops.write_new(temp, [str(self._generation).encode()], sync=False)
        fsops.replace(temp, f"{self.spool.root}/run/generation")
        return self._generation

    def _adopt(self) -> None:
        """Take over the workers of a supervisor that died; end those that fit no slot; recover the rest."""
        living: dict[WorkerName, Identity] = {}
        for member in procs.members(self.spool.id):
            worker = parse_worker(member.worker)
            if (
                worker is not None
                and member.session == member.identity.pid
                and self._is_main(worker, member.identity)
            ):
                living[worker] = member.identity
        now = time.monotonic()
        by_name = {slot.spec.name: slot for slot in self.slots}
        for worker, identity in sorted(living.items(), key=lambda item: -item[0].generation):
            slot = by_name.get(worker.slot)
            if slot is not None and not slot.alive and self._fits(slot, worker):
                slot.policy.adopted(now)
                slot.adopt(worker, identity)
                logger.info("adopted {} (pid {})", worker, identity.pid)
            else:
                self._end_misfit(worker, identity)
                del living[worker]
        for worker in self._recovery.recover_abandoned({s.worker for s in self._living() if s.worker}):
            logger.warning("recovered the jobs of {}, which is gone", worker)

    def _is_main(self, worker: WorkerName, identity: Identity) -> bool:
        beat = heartbeat.read(f"{self.spool.root}/run/heartbeats/{worker}")
        return beat is None or beat.pid == identity.pid

    def _fits(self, slot: Slot, worker: WorkerName) -> bool:
        try:
            launch = json.loads(launch_path(self.spool, worker).read_bytes())
        except (OSError, ValueError):
            return False
        return bool(launch.get("fingerprint") == slot.spec.fingerprint)

    def _end_misfit(self, worker: WorkerName, identity: Identity) -> None:
        """A worker of an older configuration: it may finish its job within the drain grace."""
        logger.info("{} (pid {}) does not fit the configuration: ending it", worker, identity.pid)
        procs.signal_process(identity, signal.SIGTERM)
        deadline = time.monotonic() + self._config.drain_grace_s
        while identity.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        end = End(death_of(None), Cause.MISFIT, "its configuration changed")
        procs.kill_group(identity, signal.SIGKILL, spool_id=self.spool.id, worker=str(worker))
        while identity.alive():
            time.sleep(0.01)
        self._recovery.recover(worker, end)

    def _start_due(self, now: float) -> None:
        if self._draining:
            return
        for slot in self.slots:
            if slot.alive or not slot.policy.due(now):
                continue
            peers = [s for s in self.slots if s.spec.engine.name == slot.spec.engine.name]
            active = sum(1 for s in peers if s.alive and not s.standby)
            try:
                slot.start(
                    self._next_generation(),
                    standby=active >= slot.spec.engine.workers,
                    siblings=len(peers) > 1,
                )
            except Exception as error:
                logger.error("{}: {}", slot.spec.name, error)
                slot.error = {"message": str(error), "stage": "spawn", "hint": ""}
                slot.policy.started(now)
                slot.policy.exited(now, None, "spawn failure")
                continue
            slot.policy.started(now)
            logger.info("started {} (pid {})", slot.worker, slot.identity.pid if slot.identity else 0)

    def _living(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.alive]

    # ---- deaths

    def _on_death(self, slot: Slot, now: float) -> None:
        worker, cause, beat = slot.worker, slot.cause, slot.beat()
        assert worker is not None
        busy = beat is not None and beat.phase is Phase.BUSY
        stage = (beat.stage if busy else beat.phase.label) if beat else Phase.BOOTING.label
        death = slot.bury()
        end = End(death, cause, slot.sentence, stage, slot.log_tail())
        planned = cause in PLANNED
        log = logger.info if cause in (Cause.DRAIN, Cause.RECYCLE) else logger.warning
        log("{} ended in {}: {}", worker, stage, slot.last_death)
        self._promote_spare(slot)
        self._credit(slot, beat, now)
        charged: list[str] = []
        try:
            charged = self._recovery.recover(worker, end)
        except OSError as error:
            logger.error("the jobs of {} cannot be taken back yet: {}", worker, error)
            self._unrecovered.append((worker, end))
        job_id = charged[0] if charged else None
        if planned and job_id is not None:
            slot.policy.failed_job(now, job_id, "timeout")
        slot.policy.exited(now, death.exit_code, death.signal, planned=planned, job_id=job_id)
        if slot.policy.benched:
            logger.error("{} is benched: {}", slot.spec.name, slot.policy.benched)
        for peer in self._same_engine(slot):
            for charged_id in charged:
                peer.policy.peer_failed(charged_id)
        self._due["deferred"] = self._due["tick"] = now

    def _settle_unrecovered(self) -> None:
        while self._unrecovered:
            worker, end = self._unrecovered[0]
            self._recovery.recover(worker, end)
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

    def _tick(self, now: float) -> None:
        for slot in self._living():
            beat = slot.beat()
            if beat is not None and beat.phase in SERVING:
                slot.policy.ready(now)
            self._credit(slot, beat, now)
            verdict = slot.look(beat, lambda s=slot, b=beat: self._timeout_of(s, b))  # type: ignore[misc]
            if verdict.cause is not None:
                logger.warning("{}: {}: ending it", slot.worker, verdict.sentence)
                slot.abort(verdict.cause, verdict.sentence, now)
            elif slot.policy.must_end and slot.cause is None:
                refunded = self._recovery.refund(slot.spec.name, slot.policy.suspects)
                logger.error(
                    "{} is sick: {}; {} jobs get their attempt back",
                    slot.spec.name,
                    slot.policy.benched,
                    len(refunded),
                )
                slot.kill(Cause.SICK, str(slot.policy.benched))
            elif beat is not None and slot.cause is None and beat.phase in SERVING:
                self._recycle(slot, beat)
        if self._tied and not self._draining:
            self._mind_clients(now)
        write_status(self.spool, self.slots, self._watcher, self._intake.paused, draining=self._draining)

    def _credit(self, slot: Slot, beat: heartbeat.Beat | None, now: float) -> None:
        if beat is not None and beat.jobs_done > slot.jobs_done:
            slot.jobs_done = beat.jobs_done
            slot.policy.finished_job(now)
            for peer in self._same_engine(slot):
                peer.policy.peer_finished(now)

    def _timeout_of(self, slot: Slot, beat: heartbeat.Beat | None) -> float | None:
        """Time limit of the job that a worker runs; read once per job."""
        job_id = beat.job if beat else ""
        if job_id not in self._timeouts:
            limit = slot.spec.engine.task_timeout_s
            for claim in self.spool.claims(slot.worker) if slot.worker else ():
                try:
                    job = self.spool.read_claim(claim, arrays=False)
                except (ProtocolError, OSError):
                    continue
                if job.id == job_id:
                    limit = job.timeout_s or limit
            if len(self._timeouts) > 1000:
                self._timeouts.clear()
            self._timeouts[job_id] = limit
        return self._timeouts[job_id]

    def _recycle(self, slot: Slot, beat: heartbeat.Beat) -> None:
        """Replace a worn-out worker, one of an engine at a time."""
        reason = slot.worn_out(beat)
        if reason is None:
            return
        for peer in self._same_engine(slot):
            other = peer.beat()
            starting = peer.alive and (other is None or other.phase not in SERVING)
            if peer.cause is Cause.RECYCLE or starting:
                return
        logger.info("{} is recycled: {}", slot.worker, reason)
        slot.ask_to_end(Cause.RECYCLE, f"recycled: {reason}", None)

    def _mind_clients(self, now: float) -> None:
        if living_clients(self.spool):
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since >= _CLIENT_GRACE_S:
            self.drain(now, "the last client is gone")

    # ---- arrivals and care

    def _read_arrivals(self, watcher: Watcher, now: float) -> None:
        arrivals = watcher.read()
        if arrivals.rescan:
            self._due.update(intake=now, control=now)
        if "in" in arrivals.names:
            self._intake.arrived(arrivals.names["in"])
            self._due["intake"] = now
        if "control" in arrivals.names:
            self._due["control"] = now
        for name in arrivals.names.get("notes", ()):
            self._on_note(name, now)

    def _on_note(self, name: str, now: float) -> None:
        """An attempt failed: due retries may be nearer, and the slot where it failed may be sick."""
        self._due["deferred"] = min(self._due["deferred"], now)
        parsed = parse_note(name)
        if parsed is None:
            return
        for failure in self.spool.notes(*parsed)[-1:]:
            self._blame(failure, parsed[0], now)

    def _blame(self, failure: Failure, job_id: str, now: float) -> None:
        worker = parse_worker(failure.worker)
        for slot in self.slots:
            if worker is not None and slot.worker == worker:
                slot.policy.failed_job(now, job_id, failure.kind)
            elif worker is not None and slot.spec.engine.name == worker.engine:
                slot.policy.peer_failed(job_id)

    def _care(self, now: float) -> None:
        if self._watcher.verify():
            self._due.update(intake=now, control=now)
        for slot in self._living():
            logs.trim(slot.log, self._config.log.max_bytes, self._config.log.keep)
        self._retention.renew_directories()

    def _farewell(self) -> None:
        write_status(self.spool, self.slots, self._watcher, "", draining=True)
        fsops.unlink(str(self._record), missing_ok=True)
        logger.info("drained")
        self._lock.release()


def _until(upcoming: int | None, now: int, rescan_s: float) -> float:
    return rescan_s if upcoming is None else min(rescan_s, max(0.0, (upcoming - now) / 1e6))


def serve(config: Config, *, tied: bool = False) -> int:
    """Run a supervisor in the foreground; its exit code. Raises SupervisorRunning, ConfigError, SpoolError."""
    os.umask(0o077)
    return Supervisor(config, tied=tied).run()
