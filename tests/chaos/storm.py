"""The hand that kills, and the account of what it did."""

from __future__ import annotations

import heapq
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crash.checker import FAULTS, Report, Spoolview, check
from crash.rig import History
from scenarios.world import ROOT, World, kill, wait_until

from pool.config.digest import content_digest
from pool.constants import EXIT_DRAINED, EXIT_LOCKED
from pool.errors import UnknownJob
from pool.job import Failure, Record
from pool.policy.death import DIED
from pool.runfiles.server import running
from pool.spool import lookup
from pool.spool.store import Spool
from pool.supervise.judge import INNOCENT
from pool.supervise.retention import sweep_remains, sweep_tmp

from .fairness import Witness

CLIENT = Path(__file__).resolve().parent / "client.py"
STRIKES = {
    "kill worker": 14,
    "stop worker": 3,
    "kill supervisor": 4,
    "stop supervisor": 1,
    "kill client": 2,
    "stop client": 1,
    "drain": 1,
    "rival": 1,
    "reload": 4,
}
SAMPLE_S, SAMPLES = 0.1, 5  # how often how many accepted jobs are looked for
WORKERS, SPARES = (2, 4), (0, 1)  # of a reload, at least and at most
SLOTS = WORKERS[1] + SPARES[1]
OWN_FAULT = frozenset({"engine", "input", "cancelled"})  # kinds of failure that no strike makes


class Storm:
    """One storm over a world. real: jobs for real engines, mixed in."""

    def __init__(self, world: World, seed: int, *, clients: int = 3, real: list[dict[str, Any]] | None = None) -> None:
        self.world, self.seed, self.rng = world, seed, random.Random(seed)
        self.history = History(world.folder / "history")
        self.witness, self.outputs = world.folder / "witness", world.folder / "outputs"
        for path in (self.witness, self.outputs):
            path.mkdir(exist_ok=True)
        self.real = real or []
        self.clients: list[subprocess.Popen[bytes]] = []
        self.started = 0
        self.wanted = clients
        self.done: Counter[str] = Counter()
        self.missing: list[str] = []
        self.wrong: list[str] = []  # what processes did that they must not do
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = 0
        self._over = False
        self._rivals: list[subprocess.Popen[bytes]] = []
        self._drained: subprocess.Popen[bytes] | None = None
        self._reloads: list[subprocess.Popen[bytes]] = []
        self.struck: set[str] = set()  # workers
        self._queue: Witness | None = None
        self._begun = time.monotonic()

    # ---- the storm

    def run(self, seconds: float, told: Callable[[str], None] = lambda text: None, jobs: int = 0) -> None:
        """Strike for so long, and until clients have so many jobs; then let what waits come to its end."""
        watcher = threading.Thread(target=self._watch)
        self._queue = Witness(self.world.spool / "ready" / "fake")
        until, tell_at = time.monotonic() + seconds, time.monotonic() + 30
        try:
            for _ in range(self.wanted):
                self._start_client()
            watcher.start()
            due = time.monotonic()
            while time.monotonic() < until or len(self.history.told().accepted) < jobs:
                due += self.rng.uniform(0.05, 0.5)  # what a strike costs is no rest
                self._sleep(due - time.monotonic())
                due = max(due, time.monotonic() - 1)
                self.strike()
                self._look_after()
                if time.monotonic() > tell_at:
                    tell_at += 30
                    told(f"{time.monotonic() - self._begun:.0f} s: {dict(self.done)}")
            self._calm()
            told(f"the storm is over; {len(self.world.held())} jobs are on their way")
            self._await_the_end(120 + seconds / 10)
        finally:
            self._over = True
            if watcher.ident:
                watcher.join()
            self._queue.close()
            for client in self.clients:
                kill(client.pid)
                client.wait()

    def strike(self) -> None:
        """One misfortune."""
        what = self.rng.choices(list(STRIKES), list(STRIKES.values()))[0]
        verb, _, whom = what.partition(" ")
        if whom:
            pid = self._victim(whom)
            if pid is None:
                return
            kill(pid, signal.SIGKILL if verb == "kill" else signal.SIGSTOP)
            if verb == "stop":
                self._at(self.rng.uniform(0.1, 6), lambda: kill(pid, signal.SIGCONT))
            elif whom == "supervisor":
                self._at(self.rng.uniform(0, 1), self._serve)
        elif what == "drain":
            if self._drained is not None or self._serving() is None:
                return
            self._drained = self._serving()
            assert self._drained is not None
            self._drained.terminate()
            if self.rng.random() < 0.5:
                self._at(self.rng.uniform(0, 0.5), self._drained.terminate)
        elif what == "reload":
            serving = self._serving()
            if serving is None:
                return
            self._reload(serving.pid)
        else:
            self._rivals.append(self.world.serve())
        self.done[what] += 1

    def _reload(self, serving: int) -> None:
        """Another configuration on disk, and every other time the command instead of the signal."""
        document = json.loads(self.world.config.read_text())
        engine = document["engines"]["fake"]
        options = {"fingerprint": f"fake-{self.rng.randint(1, 2)}", "load_s": self.rng.choice([0.0, 0.2])}
        engine["options"] = {**engine["options"], **options}
        engine["max_concurrent_tasks"], engine["spares"] = self.rng.randint(*WORKERS), self.rng.randint(*SPARES)
        engine["stall_timeout_s"], engine["task_timeout_minutes"] = self.rng.randint(30, 90), self.rng.randint(1, 30)
        written = self.world.config.with_suffix(".new")
        written.write_text(json.dumps(document))
        written.replace(self.world.config)
        if self.done["reload"] % 2:
            argv = [sys.executable, "-m", "pool", "reload", "--config", str(self.world.config)]
            with open(self.world.folder / "reloads.err", "ab") as said:
                self._reloads.append(subprocess.Popen(argv, cwd=ROOT, stdout=said, stderr=said))
        else:
            kill(serving, signal.SIGHUP)

    def _victim(self, whom: str) -> int | None:
        if whom == "worker":
            processes = self.world.processes()
            pids = sorted(processes)
        elif whom == "supervisor":
            serving = self._serving()
            pids = [serving.pid] if serving is not None else []
        else:
            pids = [client.pid for client in self.clients if client.poll() is None and self.history.heard(client.pid)]
        pid = self.rng.choice(pids) if pids else None
        if whom == "worker" and pid is not None:
            self.struck.add(processes[pid])
        return pid

    def _serving(self) -> subprocess.Popen[bytes] | None:
        """The process that holds the spool."""
        identity = self.world.supervisor()
        return next((p for p in self.world.serving if identity and p.pid == identity.pid and p.poll() is None), None)

    def _look_after(self) -> None:
        """Start what has ended, and look how it ended."""
        for client in [client for client in self.clients if client.poll() is not None]:
            self.clients.remove(client)
            if client.returncode != -signal.SIGKILL:
                self.wrong.append(f"a client ended with {client.returncode}")
            self._start_client()
        for rival in [rival for rival in self._rivals if rival.poll() is not None]:
            self._rivals.remove(rival)
            self.done[f"rival ended with {rival.returncode}"] += 1
        self._look_after_reloads()
        if self._drained is not None and self._drained.poll() is not None:
            if self._drained.returncode not in (EXIT_DRAINED, -signal.SIGKILL):
                self.wrong.append(f"a drained supervisor ended with {self._drained.returncode}")
            self._drained = None
            self._serve()
        for process in [process for process in self.world.serving if process.poll() is not None]:
            if process.returncode not in (EXIT_DRAINED, EXIT_LOCKED, -signal.SIGKILL):
                self.wrong.append(f"a supervisor ended with {process.returncode}: {self.world.log()[-1500:]}")
            self.world.serving.remove(process)
        if not self.world.serving and not self._later:
            self._serve()

    def _look_after_reloads(self) -> None:
        for command in [command for command in self._reloads if command.poll() is not None]:
            self._reloads.remove(command)
            self.done[f"reload ended with {command.returncode}"] += 1
            if command.returncode not in (0, 2):  # 2: nobody serves, or who does is killed or drained meanwhile
                self.wrong.append(f"a reload ended with {command.returncode}")

    def _serve(self) -> None:
        self.world.serve()

    def _start_client(self) -> None:
        self.started += 1
        argv = [
            sys.executable,
            str(CLIENT),
            str(self.world.config),
            str(self.history.folder),
            f"c{self.seed}-{self.started}",
            str(self.outputs),
            json.dumps(self.real),
        ]
        with open(self.world.folder / "clients.err", "ab") as errors:
            self.clients.append(subprocess.Popen(argv, cwd=ROOT, stderr=errors))

    def _at(self, seconds: float, action: Callable[[], object]) -> None:
        self._serial += 1
        heapq.heappush(self._later, (time.monotonic() + seconds, self._serial, action))

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until or (self._later and self._later[0][0] <= now):
            if self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
                continue
            time.sleep(max(0.0, min(until, self._later[0][0] if self._later else until) - now))

    def _watch(self) -> None:
        """Accepted jobs are somewhere at every instant."""
        spool, rng = Spool(self.world.spool), random.Random(self.seed)
        known: list[str] = []
        read: dict[Path, int] = {}
        while not self._over:
            for path in self.history.folder.iterdir():
                with open(path, "rb") as file:
                    file.seek(read.get(path, 0))
                    whole = file.read().rpartition(b"\n")[0]
                read[path] = read.get(path, 0) + len(whole) + bool(whole)
                events = (json.loads(line) for line in whole.splitlines())
                known += [event["id"] for event in events if event["what"] == "accepted"]
            for job_id in rng.sample(known[-2000:], min(SAMPLES, len(known[-2000:]))):
                try:
                    lookup.find(spool, job_id)
                except UnknownJob:
                    self.missing.append(job_id)
            time.sleep(SAMPLE_S)

    # ---- the end

    def _calm(self) -> None:
        for client in self.clients:
            kill(client.pid)
            client.wait()
        while self._later:
            heapq.heappop(self._later)[2]()
        for pid in (*self.world.processes(), *(p.pid for p in self.world.serving if p.poll() is None)):
            kill(pid, signal.SIGCONT)

    def _await_the_end(self, seconds: float) -> None:
        def over() -> bool:
            if self.world.supervisor() is None and all(p.poll() is not None for p in self.world.serving):
                self.world.serve()
            return not os.listdir(self.world.spool / "in") and not self.world.held()  # as jobs flow

        wait_until(over, f"the end of what waits ({dict(self.done)})", seconds)

    def _one_serves(self) -> bool:
        """A rival that is slow to come would serve after the last drain; who came when nobody served is the pool."""
        living = [process.pid for process in self.world.serving if process.poll() is None]
        if not living:
            self._serve()
        identity = self.world.supervisor()
        return identity is not None and living == [identity.pid]

    def _reloaded(self) -> bool:
        """What was last written is what all slots run."""
        serves, roll = running(self.world.spool), self.world.status().get("roll", {})
        digest = content_digest(self.world.config.read_bytes())
        told = serves is not None and serves.digest == roll.get("digest") == digest
        return told and roll["rolled"] == roll["slots"] and not roll["leaving"]

    def settle(self) -> Report:
        """Drain the pool, sweep, and hold the spool against what clients were told."""
        for command in self._reloads:
            command.wait(120)
        wait_until(self._one_serves, "one supervisor, and no other on its way", 120)
        wait_until(self._reloaded, "all slots run the configuration on disk", 120)
        self._look_after_reloads()
        if self.world.drain() != EXIT_DRAINED:
            self.wrong.append("the last drain failed")
        spool = Spool(self.world.spool)
        sweep_tmp(spool)
        sweep_remains(spool)
        if self.world.processes():
            self.wrong.append(f"left over: {self.world.processes()}")
        for path in self.world.folder.glob("*.err"):
            if "Error" in path.read_text():
                self.wrong.append(path.read_text()[-1500:])
        self.wrong += [f"{path.name} is left beside the outputs" for path in self.outputs.glob(".*part*")]
        return check(self.world.spool, self.history.told(), self.witness, counted=False)

    def summary(self, report: Report) -> dict[str, Any]:
        """What happened, for machines and for docs."""
        view = Spoolview(self.world.spool)
        states = Counter(record.state.value for record in view.records.values() if record)
        attempts = Counter(record.attempt for record in view.records.values() if record)
        faults = report.faults()
        counts = {kind: len(faults.get(kind, ())) for kind in FAULTS}
        told = self.history.told()
        return {
            "seed": self.seed,
            "seconds": round(time.monotonic() - self._begun),
            "jobs": report.jobs,
            "states": dict(states),
            "attempts": {str(number): attempts[number] for number in sorted(attempts)},
            "clients": self.started,
            "drops": len(told.dropped),
            "drops that were no job": len(told.refused),
            "kills": sum(count for what, count in self.done.items() if what.startswith("kill")),
            "stops": sum(count for what, count in self.done.items() if what.startswith("stop")),
            "strikes": dict(sorted(self.done.items())),
            "configurations": self._log().count(" to be replaced or started, "),
            "workers asked to end by one": self._log().count(": it may finish its job\n"),
            "recovered": len(report.recovered),
            "fairness": self._queue.order.summary(SLOTS) if self._queue else {},
            **counts,
            "nowhere for a moment": len(self.missing),
            "wrong": len(self.wrong),
        }

    def _log(self) -> str:
        """What all supervisors said."""
        return (self.world.folder / "serve.log").read_text(errors="replace")

    def _charged(self) -> Iterator[str]:
        """Attempts that failed by no fault of their job and by no strike of ours."""
        told = self.history.told()
        view, innocent = Spoolview(self.world.spool), told.accepted - told.bad
        for record in view.records.values():
            for failure in _failed(record) if record is not None and record.engine == "fake" else ():
                if failure.kind not in OWN_FAULT and failure.cause in {cause.value for cause in INNOCENT}:
                    yield f"{failure.attempt} of {record.id}: {failure.message}"
                elif record.id in innocent and failure.kind not in OWN_FAULT and failure.worker not in self.struck:
                    yield f"{failure.attempt} of {record.id}, whose worker nobody struck: {failure.message}"

    def _unexplained(self) -> Iterator[str]:
        """Failures that do not say what, where, in which attempt and how."""
        for record in Spoolview(self.world.spool).records.values():
            for failure in _failed(record) if record is not None else ():
                how = (
                    failure.exception,
                    failure.exit_code is not None,
                    failure.signal,
                    failure.cause not in ("", DIED),
                )
                how_told = any(how) or failure.kind in OWN_FAULT or "exit status unknown" in failure.message
                ran = (failure.attempt >= 1 and how_told) or not failure.worker
                if record is not None and not (failure.message.strip() and failure.stage and ran):
                    yield f"{record.id}: {failure}"

    def faults(self, report: Report) -> list[str]:
        """Everything that must not be, as sentences."""
        found = [f"{kind}: {sentence}" for kind, sentences in report.faults().items() for sentence in sentences]
        found += [f"missing: {job_id} was nowhere for a moment" for job_id in self.missing]
        found += [f"charged: attempt {what}" for what in self._charged()]
        found += [f"unexplained: {what}" for what in self._unexplained()]
        found += [f"not one by one: {what}" for what in asked_at_once(self._log())]
        if self._queue is not None:
            cancelled = self.history.told().cancelled
            unfair = self._queue.order.unfair(SLOTS, cancelled, _first_takers(self.world.spool))
            found += [f"unfair: {what}" for what in unfair]
        return found + [f"wrong: {what}" for what in self.wrong]


def asked_at_once(log: str) -> Iterator[str]:
    """Workers that a reload asked to end while another one that it had asked was not gone. log: of supervisors."""
    asked = ""
    for line in log.splitlines():
        if " serving " in line or f" {asked} ended in " in line:
            asked = ""
        if line.endswith(": it may finish its job"):
            worker = line.split()[3].rstrip(":")
            if asked:
                yield f"{worker}, before {asked} had ended"
            asked = worker


def _first_takers(spool: Path) -> dict[str, str]:
    """Which worker had a job in its first attempt that is told, by id."""
    records = Spoolview(spool).records.values()
    return {
        record.id: (*(failure.worker for failure in _failed(record)), record.worker)[0] for record in records if record
    }


def _failed(record: Record) -> tuple[Failure, ...]:
    """Every attempt of a job that failed."""
    return (*record.attempts, *((record.failure,) if record.failure is not None else ()))


ENGINE = {
    "max_concurrent_tasks": 3,
    "threads": 1,  # else they are shared out among all workers, and another number of these changes every one
    "spares": 1,
    "retry_times": 90,
    "start_limit": 1000,
    "bench_s": 2,
}
TOP = {"drain_grace_s": 2, "orphan_grace_s": 20}


def set_up(folder: Path, extra: dict[str, dict[str, Any]] | None = None) -> World:
    """A world for a storm. extra: sections of real engines."""
    world = World(folder)
    engine = {**ENGINE, "options": {"witness": str(folder / "witness")}}
    os.makedirs(folder / "witness", exist_ok=True)
    return world.configure({"fake": engine, **(extra or {})}, **TOP)
