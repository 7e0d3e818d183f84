"""A slot at run time: the process in it, how it is started, watched and ended.

Ending is a ladder: a request (SIGTERM) or, for one that hangs, SIGABRT so that faulthandler leaves the stack in the
log; then SIGKILL to the whole family after a grace. Only `reap` says that it is dead, and only with proof.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pool.config.seats import PROJECT, SlotSpec
from pool.config.settings import Config, EngineConfig
from pool.constants import ENV_SPOOL, ENV_WORKER, EXIT_RECYCLE, Phase
from pool.format.names import WorkerName, parse_worker
from pool.policy.blame import Blame
from pool.policy.death import DIED, Death, Ended, death_of
from pool.policy.prospects import load_error
from pool.runfiles import heartbeat
from pool.runfiles.launch import Launch
from pool.spool import fsops
from pool.spool.store import Spool
from pool.supervise.ending import reason_of
from pool.supervise.judge import WELL, Cause, Limit, Verdict, judge
from pool.supervise.remains import group_of, last_beat, launch_path, launched_with, log_begin, read_error
from pool.supervise.restart import Limits, Recycle, SlotPolicy
from pool.system import cgroup, host, logs, procs
from pool.system.clock import boot_ns
from pool.system.procfs import Status
from pool.system.procs import Identity

_FAMILY_S = 5.0


class Slot:
    """One seat and, while `worker` is set, the process in it."""

    def __init__(self, spool: Spool, config: Config, spec: SlotSpec, rng: random.Random, now: float) -> None:
        self.spec, self._spool, self._config, self._rng = spec, spool, config, rng
        self.policy = SlotPolicy(_limits(spec.engine), rng, now)
        self.log = spool.root / "run" / "logs" / f"{spec.name}.log"
        self.worker: WorkerName | None = None
        self.identity: Identity | None = None
        self.descriptor: int | None = None  # pidfd
        self.standby = False
        self.leaving = False  # it has no place in the configuration any more
        self.fingerprint = ""  # what its process was started with; '' fits nothing
        self.verdict = WELL  # why it is being ended
        self.blame = Blame()
        self.row = 0  # jobs in a row whose first failure was here, up to the process before this one
        self.rss = 0
        self.jobs_done = 0
        self.error: dict[str, Any] | None = None
        self.ended: Ended | None = None  # the process before this one
        self.last_death = ""
        self.restarts: Counter[str] = Counter()  # by reason, see `ending`
        self._process: subprocess.Popen[bytes] | None = None
        self._started_ns = 0
        self._stopped_ns = 0
        self._kill_at: float | None = None
        self._sent: int | None = None  # the last deadly signal that we sent
        self._log_mark = 0
        self._oom: int | None = None
        self._recycle = self._new_recycle()

    # ---- configuration

    def use(self, spec: SlotSpec, config: Config) -> bool:
        """Go over to another configuration; whether anything changes here. Limits hold at once, also for the process
        that is in the slot; what it was started with does not, and makes it `old`."""
        changed = spec.fingerprint != self.spec.fingerprint or spec.engine != self.spec.engine
        self.spec, self._config = spec, config
        if changed:
            self.policy.adjust(_limits(spec.engine))
            self._recycle = self._new_recycle()
        return changed

    @property
    def old(self) -> bool:
        """Whether its process does not fit the configuration."""
        return self.alive and (self.leaving or self.fingerprint != self.spec.fingerprint)

    # ---- life

    def start(self, generation: int, *, standby: bool) -> None:
        """Launch an interpreter. Raises SpawnError or OSError; nothing is left behind then."""
        parsed = parse_worker(f"{self.spec.name}.{generation}")
        assert parsed is not None
        engine, config = self.spec.engine, self._config
        fsops.make_dir(self._spool.work_dir(parsed))
        logs.rotate(self.log, config.log.keep, over=config.log.max_bytes)
        self._log_mark = logs.mark(self.log)
        launch = Launch(
            spool=str(self._spool.root),
            worker=str(parsed),
            spec=engine.engine,
            device=self.spec.device,
            options=engine.options,
            durable=config.durable,
            standby=standby,
            retry_times=engine.retry_times,
            retry_on=engine.retry_on,
            cache_enabled=engine.cache_enabled,
            delete_inputs=engine.delete_after_transcription,
            max_batch=engine.max_batch,
            batch_wait_ms=engine.batch_wait_ms,
            orphan_grace_s=config.orphan_grace_s,
            rescan_s=config.rescan_s,
            media_roots=tuple(os.path.realpath(root) for root in config.media_roots),
            log=str(self.log),
            log_begin=self._log_mark,
            otel=config.otel,
            cgroup=cgroup.make(self._spool.id, str(parsed)),
            fingerprint=self.spec.fingerprint,
            row=self.row,
        )
        file = launch_path(self._spool, parsed)
        temp = self._spool.temp()
        fsops.write_new(temp, [launch.to_json()], sync=False)
        fsops.replace(temp, str(file))
        env = {**self.spec.env, ENV_SPOOL: self._spool.id, ENV_WORKER: str(parsed)}
        script = PROJECT / "worker_main.py"
        self._process = procs.spawn(
            [self.spec.python, str(script), str(file)], env=env, cwd=self.spec.cwd, log=self.log
        )
        identity = procs.identity_of(self._process.pid)
        self._take(parsed, identity or Identity(self._process.pid, "0", host.boot_id()))
        self.fingerprint = self.spec.fingerprint
        self.standby, self._started_ns = standby, boot_ns()

    def count_start(self) -> None:
        """A process was started, or could not be: a restart when there was one before."""
        if self.ended is not None or self.policy.starts:
            self.restarts[reason_of(self.ended)] += 1

    def adopt(self, worker: WorkerName, identity: Identity) -> None:
        """Take over a process that an earlier supervisor started: its model stays loaded, its job goes on."""
        self._take(worker, identity)
        self.fingerprint = launched_with(self._spool, worker)
        beat = self.beat()
        self.standby = beat is not None and beat.standby
        self._started_ns = boot_ns() if beat is None else beat.phase_ns
        self.jobs_done = 0 if beat is None else beat.jobs_done
        self._log_mark = log_begin(self._spool, worker)

    def _take(self, worker: WorkerName, identity: Identity) -> None:
        self.worker, self.identity = worker, identity
        self.descriptor = procs.pidfd(identity)
        self.verdict, self._kill_at, self._sent = WELL, None, None
        self._stopped_ns = self.rss = self.jobs_done = 0
        self.error = None
        self._oom = host.oom_kills()
        self._recycle = self._new_recycle()

    def _new_recycle(self) -> Recycle:
        limits = self.spec.engine.recycle
        return Recycle(
            self._rng,
            max_jobs=limits.max_jobs,
            growth_bytes=limits.memory_growth_bytes,
            gpu_bytes=limits.gpu_memory_bytes,
        )

    # ---- watching

    @property
    def cause(self) -> Cause | None:
        """Why it is being ended; None while it is not."""
        return self.verdict.cause

    @property
    def alive(self) -> bool:
        """Whether there is a process in the slot."""
        return self.worker is not None

    def dead(self) -> bool:
        """Whether the process in the slot is proven dead."""
        return self.identity is not None and procs.proved_dead(self.identity)

    def beat(self) -> heartbeat.Beat | None:
        """The latest heartbeat of its process, None without one."""
        if self.worker is None:
            return None
        return last_beat(self._spool, self.worker)

    def look(
        self, beat: heartbeat.Beat | None, since: Callable[[int], float], timeout_s: Callable[[], float | None]
    ) -> Verdict:
        """Judge the process now. since: see `judge`. timeout_s: asked only while it is busy."""
        assert self.identity is not None
        engine = self.spec.engine
        counts = engine.memory_limit_mb is not None or engine.recycle.memory_growth_mb is not None
        facts = procs.sample(self.identity, children=counts)
        self.rss = facts.rss_bytes + (facts.children_bytes or 0)
        if facts.status is Status.STOPPED:
            self._stopped_ns = self._stopped_ns or boot_ns()
        else:
            self._stopped_ns = 0
        if self.cause is not None and not self._may_finish:
            return WELL
        busy = beat is not None and beat.phase is Phase.BUSY
        return judge(
            self.spec.engine,
            beat,
            since,
            started_ns=self._started_ns,
            stopped_s=since(self._stopped_ns) if self._stopped_ns else 0.0,
            rss_bytes=self.rss,
            timeout_s=timeout_s() if busy else None,
        )

    def worn_out(self, beat: heartbeat.Beat) -> Limit | None:
        """The limit for which this process should be replaced between two jobs, or None."""
        return self._recycle.met(
            beat.jobs_done,
            warm_rss=beat.baseline,
            rss=self.rss if beat.baseline else 0,
            gpu_bytes=beat.gpu_bytes,
        )

    # ---- ending

    @property
    def _may_finish(self) -> bool:
        """It was asked to end after its job, and has the time that the job may take: it can still hang."""
        return self.cause in (Cause.RECYCLE, Cause.OUTDATED) and self._kill_at is None

    def ask_to_end(self, verdict: Verdict, kill_at: float | None) -> None:
        """Finish the job, then end. kill_at: time when patience is over, None for never."""
        if self.identity is not None and (self.cause is None or self._may_finish):
            self.verdict, self._kill_at = verdict, kill_at
            procs.signal_process(self.identity, signal.SIGTERM)

    def abort(self, verdict: Verdict, now: float) -> None:
        """It hangs: have it write its stack, then kill it and all that it started."""
        if self.identity is not None:
            self.verdict = verdict
            self._kill_at = now + self.spec.engine.stop_grace_s
            self._sent = signal.SIGABRT
            procs.signal_process(self.identity, signal.SIGABRT)
            procs.signal_process(self.identity, signal.SIGCONT)  # a stopped one dies only when it goes on

    def kill(self, verdict: Verdict = WELL) -> None:
        """End it at once with its whole family. verdict: why, when that was not said before."""
        if self.identity is not None and self.worker is not None:
            self.verdict = self.verdict if verdict.cause is None else verdict
            self._kill_at = None
            self._sent = signal.SIGKILL
            procs.kill_group(self.identity, signal.SIGKILL, spool_id=self._spool.id, worker=str(self.worker))

    def press(self, now: float) -> None:
        """Kill it when the patience after ask_to_end or abort is over."""
        if self._kill_at is not None and now >= self._kill_at:
            self.kill()

    def promote(self) -> None:
        """A spare becomes a worker."""
        if self.identity is not None:
            self.standby = False
            procs.signal_process(self.identity, signal.SIGUSR1)

    def reap(self, stage: str, job: str) -> Death:
        """The process is dead: end what it left running, reap it, free the slot. Returns how it died.

        stage, job: what it was doing, for `ended`.
        """
        assert self.identity is not None
        assert self.worker is not None
        cgroup.end(group_of(self._spool, self.worker), self._spool.id)
        # RACE: before the reap, while the pid cannot belong to another process
        hit = procs.kill_group(self.identity, signal.SIGKILL, spool_id=self._spool.id, worker=str(self.worker))
        deadline = time.monotonic() + _FAMILY_S
        # RACE: killed, but not gone yet. What they write must be over, and what they hold of a GPU given back, before
        # the job runs again. One that has given up its memory has lost its tag with it, and still holds its files.
        while self._lives(hit) and time.monotonic() < deadline:
            time.sleep(0.001)
        code = self._process.wait() if self._process is not None else None
        death = death_of(code, sent=self._sent, oom_before=self._oom, oom_now=host.oom_kills())
        if self.descriptor is not None:
            os.close(self.descriptor)
        self._process = self.descriptor = self.identity = None
        if self.cause is None and code == EXIT_RECYCLE and stage == Phase.DRAINING.label:
            self.verdict = Verdict(Cause.RECYCLE)  # it had served, and found itself unfit to go on
        self.error = read_error(self._spool, self.worker)
        self.ended = Ended(
            **{"cause": DIED, **({} if self.cause is None else self.verdict.to_map())},
            exit_code=death.exit_code,
            signal=death.signal or "",
            out_of_memory=death.out_of_memory,
            stage=stage,
            job=job,
            at=self._spool.now(),
        )
        reason = load_error(self.error) or self.verdict.sentence
        self.last_death = f"{reason}; {death}" if reason else str(death)
        self.standby = False
        self.worker = None
        return death

    def _lives(self, family: Sequence[Identity]) -> bool:
        """Whether anything that the process started is still there."""
        return any(each.alive() for each in family) or bool(procs.members(self._spool.id, str(self.worker)))

    def log_tail(self) -> str:
        """The end of what this process wrote."""
        return logs.tail(self.log, since=self._log_mark)


def _limits(engine: EngineConfig) -> Limits:
    return Limits(
        engine.start_limit, engine.start_limit_window_s, engine.bench_s, engine.backoff_s, engine.backoff_max_s
    )
