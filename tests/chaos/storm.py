"""The hand that kills, and the account of what it did."""

from __future__ import annotations

import bisect
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash.checker import FAULTS, Report, Spoolview, check
from crash.rig import History
from scenarios.world import ROOT, World, kill, wait_until

from pool import lookup
from pool.constants import EXIT_DRAINED, EXIT_LOCKED
from pool.errors import UnknownJob
from pool.job import JobState
from pool.retention import sweep_remains, sweep_tmp
from pool.spool import Spool

CLIENT = Path(__file__).resolve().parent / "client.py"
STRIKES = {"kill worker": 14, "stop worker": 3, "kill supervisor": 4, "stop supervisor": 1, "kill client": 2,
           "stop client": 1, "drain": 1, "rival": 1}  # fmt: skip
SAMPLE_S, SAMPLES = 0.1, 5  # how often how many accepted jobs are looked for


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
        self._begun = time.monotonic()

    # ---- the storm

    def run(self, seconds: float, told: Callable[[str], None] = lambda text: None) -> None:
        """Strike for so long, then let what waits come to its end."""
        watcher = threading.Thread(target=self._watch)
        until, tell_at = time.monotonic() + seconds, time.monotonic() + 30
        try:
            for _ in range(self.wanted):
                self._start_client()
            watcher.start()
            due = time.monotonic()
            while time.monotonic() < until:
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
        else:
            self._rivals.append(self.world.serve())
        self.done[what] += 1

    def _victim(self, whom: str) -> int | None:
        if whom == "worker":
            pids = sorted(self.world.processes())
        elif whom == "supervisor":
            serving = self._serving()
            pids = [serving.pid] if serving is not None else []
        else:
            pids = [client.pid for client in self.clients if client.poll() is None]
        return self.rng.choice(pids) if pids else None

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

    def _serve(self) -> None:
        self.world.serve()

    def _start_client(self) -> None:
        self.started += 1
        argv = [sys.executable, str(CLIENT), str(self.world.config), str(self.history.folder),
                f"c{self.seed}-{self.started}", str(self.outputs), json.dumps(self.real)]  # fmt: skip
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

    def settle(self) -> Report:
        """Drain the pool, sweep, and hold the spool against what clients were told."""
        wait_until(self._one_serves, "one supervisor, and no other on its way", 120)
        if self.world.drain() != EXIT_DRAINED:
            self.wrong.append("the last drain failed")
        spool = Spool(self.world.spool)
        sweep_tmp(spool)
        sweep_remains(spool)
        if self.world.processes():
            self.wrong.append(f"left over: {self.world.processes()}")
        errors = self.world.folder / "clients.err"
        if "Error" in errors.read_text():
            self.wrong.append(errors.read_text()[-1500:])
        self.wrong += [f"{path.name} is left beside the outputs" for path in self.outputs.glob(".*part*")]
        return check(self.world.spool, self.history.told(), self.witness, counted=False)

    def summary(self, report: Report) -> dict[str, Any]:
        """What happened, for machines and for docs."""
        view = Spoolview(self.world.spool)
        states = Counter(record.state.value for record in view.records.values() if record)
        attempts = Counter(record.attempt for record in view.records.values() if record)
        faults = report.faults()
        counts = {kind: len(faults.get(kind, ())) for kind in FAULTS}
        told, overtaken = self.history.told(), self.fairness() or [0]
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
            "recovered": len(report.recovered),
            "overtaken": {"median": overtaken[len(overtaken) // 2], "most": overtaken[-1]},
            **counts,
            "nowhere for a moment": len(self.missing),
            "wrong": len(self.wrong),
        }

    def fairness(self) -> list[int]:
        """By how many jobs that come after it in order each innocent one was overtaken, the most last.

        Innocent: it did what it was told, at its first attempt. Order: priority, then age. With several workers some
        jobs begin side by side, and a job that was just submitted is not yet seen by all: a handful is fair.
        """
        view, order = Spoolview(self.world.spool), self.history.priorities()
        records = [record for record in view.records.values() if record and record.started and record.engine == "fake"]
        keys = {}
        for record in records:
            value = record.value.get("value") if isinstance(record.value, dict) else None
            keys[record.id] = (-order.get(str(value), 0), record.created) if value in order else None
        known = sorted((record for record in records if keys[record.id]), key=lambda record: record.started)
        begun = [record.started for record in known]
        found = []
        for record in known:
            if record.state is JobState.COMPLETED and record.attempt == 1:
                window = known[bisect.bisect_left(begun, record.created) : bisect.bisect_left(begun, record.started)]
                found.append(sum(1 for other in window if other.attempt == 1 and keys[other.id] > keys[record.id]))
        return sorted(found)

    def faults(self, report: Report) -> list[str]:
        """Everything that must not be, as sentences."""
        found = [f"{kind}: {sentence}" for kind, sentences in report.faults().items() for sentence in sentences]
        found += [f"missing: {job_id} was nowhere for a moment" for job_id in self.missing]
        return found + [f"wrong: {what}" for what in self.wrong]


ENGINE = {"max_concurrent_tasks": 3, "spares": 1, "retry_times": 90, "start_limit": 1000, "bench_s": 2}
TOP = {"drain_grace_s": 2, "orphan_grace_s": 20}


def set_up(folder: Path, extra: dict[str, dict[str, Any]] | None = None) -> World:
    """A world for a storm. extra: sections of real engines."""
    world = World(folder)
    engine = {**ENGINE, "options": {"witness": str(folder / "witness")}}
    os.makedirs(folder / "witness", exist_ok=True)
    return world.configure({"fake": engine, **(extra or {})}, **TOP)
