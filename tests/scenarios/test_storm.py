"""A seeded storm: clients submit while workers, supervisors and clients are killed and stopped at random.

FILEPOOL_STORM_SEED repeats one, FILEPOOL_STORM_S makes it longer. Afterwards: lost = duplicated = overlapping = 0.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pool import lookup
from pool.errors import UnknownJob
from pool.job import JobState
from pool.retention import sweep_remains, sweep_tmp
from pool.spool import Spool
from scenarios.world import ROOT, World, history, kill, overlaps, wait_until

SECONDS = float(os.environ.get("FILEPOOL_STORM_S", "30"))

#: Submits without end; what it wrote into its log was acknowledged: "<id> <value>" per line.
CLIENT = """
import os, random, sys, time
from pool import FilePool
config, log, seed, folder = sys.argv[1:]
rng = random.Random(seed)
pool = FilePool(config, start=False)
with open(log, "a", buffering=1) as acknowledged:
    for number in range(10**6):
        value = f"{seed}-{number}"
        more = {}
        kind = rng.random()
        if kind < 0.1:
            more = {"do": "kill", "until_attempt": 1}
        elif kind < 0.2:
            more = {"do": "raise", "until_attempt": 1}
        elif kind < 0.3:
            more = {"do": "write", "output": os.path.join(folder, value)}
        elif kind < 0.9:
            more = {"do": "sleep", "seconds": rng.uniform(0.0, 0.15)}
        name = value if rng.random() < 0.3 else None
        future = pool.submit("fake", id=name, value=value, priority=rng.randint(-5, 5), params=more)
        acknowledged.write(f"{future.id} {value}\\n")
        if name and rng.random() < 0.5:
            assert pool.submit("fake", id=name, value=value, params=more).id == name
        time.sleep(rng.uniform(0, 0.12))
"""


class Storm:
    """The clients, the acknowledgements, and the hand that kills."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.rng = world, random.Random(seed)
        self.clients: list[subprocess.Popen[bytes]] = []
        self.outputs = world.folder / "outputs"
        self.outputs.mkdir()
        self.cancelled: set[str] = set()
        self.done: Counter[str] = Counter()
        self.missing: list[str] = []
        self.over = False

    def acknowledged(self) -> dict[str, str]:
        found = {}
        for path in self.world.folder.glob("client-*.log"):
            lines = path.read_text().split("\n")[:-1]  # the last one may be cut
            found.update(line.split(" ") for line in lines)
        return found

    def start_client(self) -> None:
        number = len(self.clients)
        log = self.world.folder / f"client-{number}.log"
        argv = [sys.executable, "-c", CLIENT, str(self.world.config), str(log), f"c{number}", str(self.outputs)]
        with open(self.world.folder / "clients.err", "ab") as errors:
            self.clients.append(subprocess.Popen(argv, cwd=ROOT, stderr=errors))

    def watch(self) -> None:
        """Accepted jobs are somewhere at every instant."""
        spool, rng = Spool(self.world.spool), random.Random(1)
        while not self.over:
            known = list(self.acknowledged())
            for job_id in rng.sample(known, min(10, len(known))):
                try:
                    lookup.find(spool, job_id)
                except UnknownJob:
                    self.missing.append(job_id)
            time.sleep(0.05)

    def strike(self) -> None:
        """One misfortune."""
        what = self.rng.choices(
            ["worker", "stop", "supervisor", "client", "cancel", "drain"], [10, 3, 4, 2, 4, 1]
        )[0]  # fmt: skip
        self.done[what] += 1
        if what in ("worker", "stop"):
            pids = sorted(self.world.processes())
            if pids:
                pid = self.rng.choice(pids)
                kill(pid, signal.SIGKILL if what == "worker" else signal.SIGSTOP)
                if what == "stop":
                    threading.Timer(self.rng.uniform(0.1, 6), kill, (pid, signal.SIGCONT)).start()
        elif what == "supervisor":
            identity = self.world.supervisor()
            if identity is not None:
                kill(identity.pid)
                time.sleep(self.rng.uniform(0, 1))
                self.world.serve()
        elif what == "drain":
            self.world.serving[-1].terminate()
            if self.rng.random() < 0.5:
                time.sleep(self.rng.uniform(0, 0.5))
                self.world.serving[-1].terminate()
            self.world.serving[-1].wait(60)
            self.world.serve()
        elif what == "client":
            kill(self.clients[-1].pid)
            self.clients[-1].wait()
            self.start_client()
        elif what == "cancel":
            known = [job for job in self.acknowledged() if self.world.state(job) in (JobState.QUEUED, JobState.RUNNING)]
            if known:
                job_id = self.rng.choice(known)
                (self.world.spool / "run" / "control" / f"{job_id}.cancel").touch()
                self.cancelled.add(job_id)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_storm(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("FILEPOOL_STORM_SEED", str(random.randrange(10**6))))
    print(f"FILEPOOL_STORM_SEED={seed}")
    witness = world.folder / "witness"
    witness.mkdir()
    world.configure(
        {"fake": {"options": {"witness": str(witness)}, "max_concurrent_tasks": 3, "spares": 1, "retry_times": 90,
                  "start_limit": 1000, "bench_s": 2}}, drain_grace_s=2,
    ).serve(ready=2)  # fmt: skip
    storm = Storm(world, seed)
    watcher = threading.Thread(target=storm.watch)
    try:
        for _ in range(2):
            storm.start_client()
        watcher.start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            time.sleep(storm.rng.uniform(0.05, 0.5))
            storm.strike()
        for client in storm.clients:
            kill(client.pid)
            client.wait()
        if world.supervisor() is None:
            world.serve()
        wait_until(lambda: not world.held(), f"the end of what waits ({storm.done})", 150)
    finally:
        storm.over = True
        if watcher.ident:
            watcher.join()
        for client in storm.clients:
            kill(client.pid)
            client.wait()
    check(world, storm, witness)
    print(f"{len(storm.acknowledged())} jobs, {dict(storm.done)}, {len(storm.cancelled)} cancellations")


def check(world: World, storm: Storm, witness: Path) -> None:
    spool = Spool(world.spool)
    assert storm.missing == [], "an accepted job was nowhere for a moment"
    errors = (world.folder / "clients.err").read_text()
    assert "Error" not in errors, errors[-3000:]
    acknowledged = storm.acknowledged()
    assert len(acknowledged) > 20
    wrong = []
    for job_id, value in acknowledged.items():
        try:
            record = spool.read_record(job_id)
        except FileNotFoundError:
            wrong.append(f"{job_id} is lost")
            continue
        if record.state is JobState.CANCELLED:
            if job_id not in storm.cancelled:
                wrong.append(f"{job_id} was cancelled by nobody")
        elif record.state is not JobState.COMPLETED:
            wrong.append(f"{job_id} is {record.state}: {record.failure}")
        elif record.value["value"] != value:
            wrong.append(f"{job_id} has the result of {record.value}")
        if record.state is JobState.COMPLETED and record.value["attempt"] != record.attempt:
            wrong.append(f"{job_id}: attempt {record.attempt}, run as {record.value['attempt']}")
        if any(not one.message for one in record.attempts):
            wrong.append(f"{job_id}: an attempt without a reason")
    assert not wrong, "\n".join(wrong[:20])
    assert overlaps(witness) == []
    ended = Counter(job for _, _, what, job, _, _ in history(witness) if what == "end")
    starts = Counter(job for _, _, what, job, _, _ in history(witness) if what == "start")
    assert set(ended) <= set(starts)
    assert world.names("dead") == []
    assert world.names("quarantine") == []
    left = [path.name for path in storm.outputs.iterdir() if ".part" in path.name]
    assert left == [], "half-written outputs"
    assert all(path.read_bytes() == b"x" * 11 for path in storm.outputs.iterdir())
    assert world.drain() == 0
    sweep_tmp(spool)
    sweep_remains(spool)
    for folder in ("tmp", "run/scratch", "run/attempts", "run/control", "work"):
        assert world.names(folder) == [], folder
    assert not world.processes()
