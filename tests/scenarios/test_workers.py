"""A worker is killed, or stopped: its job runs again elsewhere, once, after everything it had started is gone."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from pool.constants import Phase
from pool.job import JobState
from pool.spool.attempts import partial_path, read_partials
from pool.spool.store import Spool
from scenarios.world import World, alive, history, kill, overlaps, wait_until

FAMILY = '''
import os, signal, subprocess, sys
from inference.fake import Fake

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def lives(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(") ")[2][0] not in "ZX"  # a zombie does nothing any more
    except OSError:
        return False


class Parent(Fake):
    """Attempt 1 starts children and hangs about; attempt 2 says which of them it still sees."""

    def run(self, params, context):
        notes = params.value
        if context.attempt > 1:
            pids = [int(word) for word in open(notes).read().split()]
            return {"attempt": context.attempt, "alive": [pid for pid in pids if lives(pid)]}
        middle = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {DEAF!r}]); p.wait()"
        grandchild = subprocess.Popen([sys.executable, "-c", middle])
        children = [
            grandchild,
            subprocess.Popen([sys.executable, "-c", DEAF]),
            subprocess.Popen([sys.executable, "-c", DEAF], start_new_session=True),
        ]
        with open(notes, "w") as file:
            file.write(" ".join(str(child.pid) for child in children))
        params.do, params.seconds = "sleep", 60
        return super().run(params, context)
'''


def children_of(world: World, job_id: str) -> list[int]:
    """Pids that do=children told of."""
    path = partial_path(Spool(world.spool), job_id, 1)
    records = wait_until(lambda: read_partials(path, 0)[0], "the children")
    return [int(pid) for pid in records[0]["children"]]


def test_killed_worker_costs_one_attempt_and_leaves_no_children(world: World, tmp_path: Path) -> None:
    """kill -9 in the middle: attempt 2 elsewhere, the record says why, all descendants gone before it begins."""
    (tmp_path / "family.py").write_text(FAMILY)
    witness = tmp_path / "witness"
    witness.mkdir()
    world.configure(
        {"fake": {"engine": "family:Parent", "pythonpath": [str(tmp_path)], "options": {"witness": str(witness)}}}
    )
    world.serve(ready=2)
    pool = world.pool()
    notes = tmp_path / "children.txt"
    future = pool.submit("fake", value=str(notes))
    name, pid = world.worker_of(future.id)
    wait_until(lambda: notes.exists() and len(notes.read_text().split()) == 3, "children")
    wait_until(lambda: len([w for w in world.processes().values() if w == name]) == 5, "worker, 3 children, grandchild")
    kill(pid)
    begun = Spool(world.spool).now()
    result = future.result(30)
    assert result == {"attempt": 2, "alive": []}
    record = future.record
    assert record is not None
    assert (record.state, record.attempt) == (JobState.COMPLETED, 2)
    assert record.worker != name
    (why,) = record.attempts
    assert (why.kind, why.attempt, why.signal, why.worker) == ("infrastructure", 1, "SIGKILL", name)
    assert "SIGKILL" in why.message
    assert overlaps(witness) == []
    assert name not in world.processes().values()
    wait_until(lambda: len(world.loaded()) == 2, "the slot is filled again")
    assert record.started - begun < 2e6, "it ran again soon"


@pytest.mark.long
@pytest.mark.invariant(7, 9)
def test_many_kills_lose_nothing_and_nothing_runs_twice_at_once(world: World, tmp_path: Path) -> None:
    """Six kills of busy workers while 40 jobs run: every job has one result, attempts say what was lost."""
    witness = tmp_path / "witness"
    witness.mkdir()
    world.configure({"fake": {"options": {"witness": str(witness)}, "retry_times": 8}})
    world.serve(ready=2)
    pool = world.pool()
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.1, "value": n} for n in range(40)])
    killed = 0
    while killed < 6 and not all(future.done() for future in futures):
        busy = [(name, beat) for name, beat in world.beats().items() if beat.phase is Phase.BUSY]
        if busy:
            kill(busy[0][1].pid)
            killed += 1
            wait_until(lambda gone=busy[0][1].pid: not alive(gone))
        time.sleep(0.15)
    assert [future.result(60)["value"] for future in futures] == list(range(40))
    assert overlaps(witness) == []
    starts = [job for _, _, what, job, _, _ in history(witness) if what == "start"]
    for future in futures:
        record = future.record
        assert record is not None
        assert record.attempt == len(record.attempts) + 1
        assert starts.count(future.id) <= record.attempt
    assert killed == 6


def test_idle_worker_killed_is_replaced(world: World) -> None:
    world.configure().serve(ready=2)
    before = {beat.pid for beat in world.loaded().values()}
    for pid in before:
        kill(pid)
    wait_until(lambda: len(world.loaded()) == 2 and not before & {b.pid for b in world.loaded().values()})
    assert world.pool().submit("fake", value=1).result(30)["attempt"] == 1
    assert "SIGKILL" in wait_until(lambda: world.slot("fake-0").get("last_death"))


@pytest.mark.invariant(9)
def test_stopped_worker_is_noticed_ended_and_its_job_retried(world: World, tmp_path: Path) -> None:
    """kill -STOP: past the deadline it is ended before the job runs again; a SIGCONT afterwards wakes nobody."""
    witness = tmp_path / "witness"
    witness.mkdir()
    world.configure({"fake": {"options": {"witness": str(witness)}}})
    world.serve(ready=2)
    pool = world.pool()
    future = pool.submit("fake", do="sleep", seconds=1.5)
    name, pid = world.worker_of(future.id)
    kill(pid, signal.SIGSTOP)
    quick = pool.submit_many("fake", [{"value": n} for n in range(20)])
    assert [one.result(30)["value"] for one in quick] == list(range(20)), "the other slot goes on"
    while not future.done():
        kill(pid, signal.SIGCONT if not alive(pid) else 0)
        time.sleep(0.05)
    assert future.result()["attempt"] == 2
    assert future.record is not None
    (why,) = future.record.attempts
    assert why.kind == "infrastructure"
    assert "stopped (SIGSTOP)" in why.message
    assert why.worker == name
    assert overlaps(witness) == []
    assert not alive(pid)


@pytest.mark.long
def test_short_stop_is_forgiven(world: World) -> None:
    """A person with a debugger: stopped for a second and continued, the job goes on in the same attempt."""
    world.configure().serve(ready=2)
    future = world.pool().submit("fake", do="sleep", seconds=2.5)
    _, pid = world.worker_of(future.id)
    kill(pid, signal.SIGSTOP)
    time.sleep(1.2)
    kill(pid, signal.SIGCONT)
    result = future.result(30)
    assert (result["attempt"], result["pid"]) == (1, pid)


@pytest.mark.slow
def test_stopped_idle_worker_is_replaced(world: World) -> None:
    world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
    (beat,) = world.loaded().values()
    kill(beat.pid, signal.SIGSTOP)
    assert world.pool().submit("fake", value=7).result(30)["value"] == 7
    assert not alive(beat.pid)
