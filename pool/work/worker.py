"""The worker: one process, one engine, one job (or batch) at a time.

    booting -> loading -> warming -> idle <-> busy -> draining -> gone

The loop waits for names in ready/<engine>/, claims when it is idle, runs, publishes, and looks again. It runs
without a supervisor; that judges it, replaces it and tells it to stop.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any

from pool import tracing
from pool.constants import (
    BEAT_S,
    EXIT_CONFIG,
    EXIT_CRASH,
    EXIT_DRAINED,
    EXIT_LOAD,
    EXIT_MISSING,
    EXIT_ORPHAN,
    EXIT_RECYCLE,
    NEXT_PHASES,
    Phase,
)
from pool.errors import ConfigError, SpoolError
from pool.job import FailureKind
from pool.policy.blame import SUSPECT_AFTER
from pool.runfiles.heartbeat import Heartbeat
from pool.runfiles.launch import Launch
from pool.runfiles.watchers import WatchNote
from pool.spool import fsops
from pool.spool.store import NO_SPACE, Claim, Spool
from pool.system.forked import handle_here_only
from pool.system.procs import resident_bytes
from pool.system.watch import Watcher
from pool.work.attempt import Draining, Executor
from pool.work.context import JobCancelled
from pool.work.engine import Engine
from pool.work.joblog import say
from pool.work.keeper import Keeper
from pool.work.missing import is_missing
from pool.work.orphan import OrphanWatch
from pool.work.picker import Picker
from pool.work.process_state import ProcessState
from pool.work.reason import hint_of, kind_of, message_of, name_of, traceback_of
from pool.work.siblings import Siblings

_VERIFY_S = 10.0  # how often the watcher itself is looked at


class Worker:
    """One worker process. cancelled_type: what context.check() raises, so that engines can catch it by name."""

    def __init__(self, launch: Launch, cancelled_type: type[BaseException] = JobCancelled) -> None:
        self._launch = launch
        self._name = launch.name
        self._cancelled_type = cancelled_type
        self._spool = Spool(launch.spool, durable=launch.durable)
        self._beat = Heartbeat(f"{launch.spool}/run/heartbeats/{launch.worker}", launch.row)
        self._beat.standby = launch.standby
        self._phase = Phase.BOOTING
        self._draining = False
        self._verify_at = 0.0
        self._load_begun = self._spool.now()
        self._late = False  # others were faster
        self._siblings = Siblings(self._spool, self._name)
        self._watch_note = WatchNote(self._spool, self._name)
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._beat.write()

    def run(self) -> int:
        """Run until the worker ends; the exit code."""
        try:
            return self._live()
        finally:
            tracing.stop()

    def _live(self) -> int:
        self._arm_signals()
        if self._launch.otel:
            tracing.start(say, **{"service.instance.id": self._launch.worker})
        record = self._spool.root / "run" / "supervisor.json"
        OrphanWatch(record, self._launch.orphan_grace_s, say, self._spool.lost).start()
        try:
            engine = self._prepare()
            keeper = Keeper(ProcessState((self._beat.fileno(),)))
            executor = Executor(
                self._spool,
                self._launch,
                engine,
                self._beat,
                keeper=keeper,
                cancelled_type=self._cancelled_type,
                draining=lambda: self._draining,
                siblings=self._siblings.there,
            )
        except BaseException as error:
            return self._refuse(error)
        try:
            self._serve(engine, executor, keeper)
        except Draining:
            pass
        except SpoolError as error:
            say(f"{error}: ending")
            return EXIT_ORPHAN
        except BaseException as error:
            if not keeper.recycle:  # else what we worked with is gone, and the job has its record
                say(traceback_of(error))  # an error of ours: the heartbeat stays, and says where it happened
                return EXIT_CRASH
        self._enter(Phase.DRAINING)
        try:
            engine.close()
        except BaseException as error:
            say(f"close() of the engine failed:\n{traceback_of(error)}")
        return EXIT_RECYCLE if keeper.recycle else EXIT_DRAINED

    # ---- start

    def _prepare(self) -> Engine:
        engine = Engine(self._launch.spec)
        self._describe(engine.factory)
        self._load_begun = self._spool.now()
        self._enter(Phase.LOADING)
        engine.load(self._launch.device, self._launch.options)
        if engine.has("warmup"):
            self._enter(Phase.WARMING)
            engine.warmup()
        engine.ready()
        tracing.loaded(self._launch.worker, self._name.engine, self._load_begun, self._spool.now())
        self._beat.baseline = resident_bytes()
        return engine

    def _describe(self, factory: Any) -> None:
        """Tell clients what the engine accepts, so that a wrong key is refused at submit."""
        params: Any = getattr(factory, "Params", None)
        schema = params.model_json_schema() if hasattr(params, "model_json_schema") else None
        body = {"engine": self._launch.spec, "schema": schema, "doc": (factory.__doc__ or "").strip()}
        self._leave(f"run/engines/{self._name.engine}.json", body)

    def _refuse(self, error: BaseException) -> int:
        """The engine cannot load: leave the reason where the supervisor and people find it."""
        if self._draining:
            return EXIT_DRAINED
        say(traceback_of(error))
        message = f"{name_of(error)}: {message_of(error)}"
        tracing.loaded(self._launch.worker, self._name.engine, self._load_begun, self._spool.now(), message)
        body = {
            "message": message,
            "stage": self._phase.label,
            "hint": "" if self._names(error) else hint_of(error),
        }
        self._leave(f"run/slots/{self._launch.worker}.error", body)
        if isinstance(error, ConfigError) or kind_of(error) == FailureKind.INPUT.value or self._names(error):
            return EXIT_CONFIG
        return EXIT_MISSING if isinstance(error, ImportError) or is_missing(error) else EXIT_LOAD

    def _names(self, error: BaseException) -> bool:
        """Whether the module that is not found is the one that the configuration names."""
        module = self._launch.spec.partition(":")[0]
        return isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")

    def _leave(self, name: str, body: Mapping[str, Any]) -> None:
        """Write a note for others; on a full disk it is left out."""
        temp = self._spool.temp()
        try:
            fsops.write_new(temp, [json.dumps(body).encode()], sync=False)
            fsops.replace(temp, f"{self._spool.root}/{name}")
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise

    # ---- work

    def _serve(self, engine: Engine, executor: Executor, keeper: Keeper) -> None:
        """Run jobs until the worker is asked to end or must be replaced."""
        spool, launch = self._spool, self._launch
        spool.make_ready_dir(self._name.engine)
        picker = Picker(
            spool,
            self._name,
            launch.rescan_s,
            siblings=self._siblings.there,
            retries=launch.retries,
            suspect=lambda: self._beat.row >= SUSPECT_AFTER,
        )
        batching = launch.max_batch > 1 and engine.has("run_batch")
        with Watcher({"ready": spool.ready_dir(self._name.engine)}) as watcher:
            self._enter(Phase.IDLE)
            while not self._draining:
                claim = None if self._beat.standby else self._next(picker, watcher)
                if claim is None:
                    self._wait(picker, watcher)
                    continue
                self._enter(Phase.BUSY)
                if batching and claim.name.attempts == 1:
                    executor.run_batch(self._gather(claim, picker, watcher))
                else:
                    executor.run(claim)
                self._report_memory(engine, keeper, claim.name.id)
                if keeper.recycle:
                    say(f"this worker ends to be replaced: {keeper.recycle}")
                    self._beat.reopen()
                self._enter(Phase.IDLE)
                if keeper.recycle:
                    return

    def _next(self, picker: Picker, watcher: Watcher) -> Claim | None:
        arrivals = watcher.read()
        if arrivals.rescan or (self._late and arrivals):  # other workers have taken most of them
            picker.rescan()
        elif arrivals:
            picker.feed(arrivals.names.get("ready", []))
        claim = picker.take()
        self._late = claim is None and bool(arrivals)
        return claim

    def _wait(self, picker: Picker, watcher: Watcher) -> None:
        """Sleep until something arrives, a signal comes, or the rescan is due.

        After other workers were faster, sleep for a millisecond: with jobs that take microseconds, every
        idle worker would wake up for each of them and be late again.
        """
        if self._beat.standby:
            self._stand_by(picker, watcher)
            return
        if self._late:
            self._sleep(0.0)
            return
        if said := self._watch_note.update(watcher):
            say(said)
        now = time.monotonic()
        if now >= self._verify_at:
            self._verify_at = now + _VERIFY_S
            if watcher.verify():
                picker.rescan()
                return
        pause = min(picker.next_look() - now, BEAT_S)
        if pause > 0 and self._sleep(pause, watcher.fileno()):
            return
        if time.monotonic() >= picker.next_look():
            picker.rescan()
        self._beat.write()

    def _stand_by(self, picker: Picker, watcher: Watcher) -> None:
        """A spare sleeps until it is promoted, which may be at any moment; what arrives meanwhile is not for it."""
        picker.forget()
        self._sleep(min(self._launch.rescan_s, BEAT_S))
        watcher.read()
        self._beat.write()

    def _sleep(self, seconds: float, descriptor: int | None = None) -> bool:
        """Until a signal comes, or the descriptor is readable; whether something did within that time."""
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        ready = poll.poll(max(0.0, seconds) * 1000 + 1)
        if any(fd == self._wake_reader for fd, _ in ready):
            os.read(self._wake_reader, 512)
        return bool(ready)

    def _gather(self, first: Claim, picker: Picker, watcher: Watcher) -> list[Claim]:
        """More jobs for one call of the engine, as many as come within the batch wait. Retries run alone."""
        claims = [first]
        deadline = time.monotonic() + self._launch.batch_wait_ms / 1000
        while len(claims) < self._launch.max_batch and not self._draining:
            claim = self._next(picker, watcher)
            if claim is not None and claim.name.attempts > 1:
                self._spool.release(claim)
                break
            if claim is not None:
                claims.append(claim)
            elif (left := deadline - time.monotonic()) <= 0 or not watcher.wait(left):
                break
        return claims

    def _report_memory(self, engine: Engine, keeper: Keeper, job_id: str) -> None:
        if not engine.counts_memory:
            return
        try:
            self._beat.gpu_bytes = engine.gpu_bytes()
        except BaseException as error:
            keeper.tell("memory", f"memory() of the engine failed: {name_of(error)}: {message_of(error)}")
        keeper.tidy(job_id)

    # ---- phases and signals

    def _enter(self, phase: Phase) -> None:
        if phase not in NEXT_PHASES[self._phase]:
            if phase is self._phase is Phase.DRAINING:
                return
            raise RuntimeError(f"a worker cannot go from {self._phase.label} to {phase.label}")
        self._phase = phase
        if phase is not Phase.BUSY:  # the executor says busy together with the job
            self._beat.phase(phase)

    def _arm_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        handle_here_only(signal.SIGTERM, self._on_term)
        handle_here_only(signal.SIGUSR1, self._on_promote)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_term(self, *_: object) -> None:
        self._draining = True
        if self._phase in (Phase.BOOTING, Phase.LOADING, Phase.WARMING):
            os._exit(EXIT_DRAINED)  # it holds no job, and a library may be deep in its load

    def _on_promote(self, *_: object) -> None:
        self._beat.standby = False
