"""A new configuration without a drain: who is replaced, who is not, what is refused, and what no job notices."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from pool.client.status import PoolStatus
from pool.errors import JobFailed, UnknownEngine
from pool.job import JobState
from pool.policy.blame import SUSPECT_AFTER
from scenarios.world import ROOT, World, alive, kill, wait_until


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    """A pool that is reloaded by one test after the other; each begins with its own configuration."""
    world = make_shared("reload").configure()
    world.serve(ready=2)
    return world


def command(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pool", *words, "--config", str(world.config)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)


def reloaded(world: World, engines: dict[str, dict[str, Any]] | None = None, **top: Any) -> None:
    """Write config.json, send SIGHUP, return when all slots run it, loaded: also one that died just before, and was
    started again with what fits."""
    world.configure(engines, **top)
    hang_up(world)
    wait_until(lambda: over(world), "the end of the roll")
    wait_until(lambda: len(pids(world)) == roll(world).get("slots"), "loaded workers")


def hang_up(world: World) -> None:
    """SIGHUP, taken."""
    supervisor = world.supervisor()
    assert supervisor is not None
    before = record(world)["asked"]
    kill(supervisor.pid, signal.SIGHUP)
    wait_until(lambda: world.supervisor() is None or record(world)["asked"] > before, "the file is read")
    assert world.supervisor() is not None, "SIGHUP ended the pool"


def record(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world.spool / "run" / "supervisor.json").read_bytes())
    return found


def roll(world: World) -> dict[str, Any]:
    """How far the roll to what was read last is; {} before that is told."""
    found: dict[str, Any] = world.status().get("roll", {})
    return found if found.get("digest") == record(world)["digest"] else {}


def over(world: World) -> bool:
    now = roll(world)
    return bool(now) and now["rolled"] == now["slots"] and not now["leaving"]


def pids(world: World) -> dict[str, int]:
    """Slot -> pid of its loaded process."""
    return {name.rpartition(".")[0]: beat.pid for name, beat in world.loaded().items()}


def look(world: World) -> PoolStatus:
    return world.pool().status()


def test_more_and_fewer_workers_and_the_others_stay(shared: World) -> None:
    """A job that runs in a slot that goes is finished there; slots that fit keep their processes."""
    threads = {"threads": 1}  # else they are shared out anew among all workers, which changes every one
    reloaded(shared, {"fake": {**threads, "max_concurrent_tasks": 2}})
    before = pids(shared)
    reloaded(shared, {"fake": {**threads, "max_concurrent_tasks": 3}})
    after = pids(shared)
    assert set(after) == {"fake-0", "fake-1", "fake-2"}
    assert before.items() <= after.items()
    futures = [shared.pool().submit("fake", do="sleep", seconds=1.0) for _ in range(3)]
    for future in futures:
        shared.worker_of(future.id)
    reloaded(shared, {"fake": {**threads, "max_concurrent_tasks": 1}})
    assert pids(shared) == {"fake-0": before["fake-0"]}
    assert [future.result(30)["attempt"] for future in futures] == [1, 1, 1]
    assert {future.result(0)["pid"] for future in futures} == set(after.values())
    assert [slot["slot"] for slot in shared.status()["slots"]] == ["fake-0"]


def test_a_worker_that_is_kept_knows_of_its_siblings(shared: World) -> None:
    """The third job in a row that fails in it gets a second opinion where there is a peer now, and none without."""
    engine = {"threads": 1, "options": {"fingerprint": "fake-kept"}}  # so the first reload starts it anew, alone
    kept = ""
    for workers in (1, 2, 1):
        reloaded(shared, {"fake": {**engine, "max_concurrent_tasks": workers}})
        kept = kept or next(iter(shared.loaded()))
        assert kept in shared.loaded()
        pool = shared.pool()
        gates = [pool.submit("fake", do="sleep", seconds=60) for _ in range(workers - 1)]
        while gates and shared.worker_of(gates[0].id)[0] == kept:  # the peer is to be busy, not the one that was kept
            gates.append(pool.submit("fake", do="sleep", seconds=60))
            shared.worker_of(gates[-1].id)
            gates.pop(0).cancel()
        pool.submit("fake", value=1).result(30)  # a row begins after a success
        wait_until(lambda: shared.beats()[kept].row == 0, "no row")  # noqa: B023  RACE: it is told after the result
        bad = [pool.submit("fake", do="raise", value=[workers, n], retry_times=0) for n in range(SUSPECT_AFTER)]
        wait_until(lambda: shared.beats()[kept].row >= SUSPECT_AFTER, "the row")  # noqa: B023
        for gate in gates:
            gate.cancel()
        ends = [future.exception(60) for future in bad]
        attempts = [error.failure.attempt for error in ends if isinstance(error, JobFailed)]
        assert attempts == [1, 1, workers], "the last one was run by the peer as well"


def test_changed_options_reach_one_worker_after_the_other(shared: World) -> None:
    """Under a stream of jobs one worker serves at every moment, and no job notices; engines that did not change keep
    their workers."""
    other = {"max_concurrent_tasks": 1, "threads": 1}
    fake = {"threads": 1, "options": {"load_s": 0.3}}
    reloaded(shared, {"fake": fake, "other": other})
    before, pool = pids(shared), shared.pool()
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.02} for _ in range(100)])
    shared.configure({"fake": {**fake, "options": {"load_s": 0.3, "fingerprint": "fake-2"}}, "other": other})
    hang_up(shared)
    serving = []

    def rolled() -> bool:
        serving.append(sum(name.startswith("fake") for name in shared.loaded()))
        return over(shared)

    wait_until(rolled, "the roll")
    assert min(serving) >= 1
    after = pids(shared)
    assert set(after) == set(before)
    assert after["other-0"] == before["other-0"]
    assert {before["fake-0"], before["fake-1"]}.isdisjoint(after.values())
    assert all(future.result(60)["attempt"] == 1 for future in futures)
    status = look(shared)
    assert (status.configuration.disk, status.configuration.rolled, status.configuration.slots) == ("same", 3, 3)


def test_a_limit_holds_at_once(shared: World) -> None:
    """Also for a job that runs already, without another process."""
    engine = {"threads": 1, "max_concurrent_tasks": 1}
    reloaded(shared, {"fake": engine})
    before, pool = pids(shared), shared.pool()
    wait_until(lambda: shared.slot("fake-0")["rss_bytes"], "a first judgement")
    small = shared.slot("fake-0")["rss_bytes"]
    future = pool.submit("fake", do="leak", mb=64, seconds=600, retry_times=0)
    wait_until(lambda: shared.slot("fake-0")["rss_bytes"] > small + (48 << 20), "it is judged by the old limit")
    reloaded(shared, {"fake": {**engine, "task_timeout_minutes": 0.001}})
    assert pids(shared) == before
    error = future.exception(60)
    assert isinstance(error, JobFailed)
    assert error.failure.kind == "timeout"
    assert error.failure.cause == "overdue"


def test_engines_come_and_go_under_a_client(shared: World) -> None:
    """A FilePool that was there before uses a new engine and is told of one that is gone; what waited for it stays."""
    one = {"threads": 1, "max_concurrent_tasks": 1}
    reloaded(shared, {"fake": one})
    pool = shared.pool(start=True)
    with pytest.raises(UnknownEngine, match="no engine 'late'"):
        pool.submit("late")
    reloaded(shared, {"fake": one, "late": one})
    assert pool.submit("late", value=7).result(30)["value"] == 7
    assert [engine.name for engine in pool.status().engines if engine.configured] == ["fake", "late"]
    running = pool.submit("late", do="sleep", seconds=1.0)
    shared.worker_of(running.id)
    waiting = pool.submit("late", value=8)
    reloaded(shared, {"fake": one})
    assert running.result(30)["attempt"] == 1
    assert pool.state(waiting.id) is JobState.QUEUED
    assert "1 job wait for late, which is not in the configuration" in pool.status().health.sentence
    wait_until(lambda: refused(pool.submit, "late"), "the client learns that it is gone")
    pool.cancel(waiting.id)
    wait_until(lambda: pool.state(waiting.id).terminal, "the cancellation")


def refused(call: Callable[..., Any], *words: Any) -> bool:
    with suppress(UnknownEngine):
        call(*words).cancel()
        return False
    return True


def test_a_broken_file_is_refused_and_what_runs_goes_on(shared: World) -> None:
    one = {"threads": 1, "max_concurrent_tasks": 1}
    reloaded(shared, {"fake": one})
    before, good = pids(shared), shared.config.read_text()
    shared.configure({"fake": {**one, "options": {"fingerprint": "fake-3"}}})
    assert look(shared).configuration.disk == "changed"
    wait_until(lambda: look(shared).health.ok, "a file that was not asked for is no trouble")
    shown = " ".join(command(shared, "status").stdout.split())
    assert "the file has changed: `python -m pool reload` loads it" in shown
    attached = shared.pool()
    shared.config.write_text(good.replace('"stop_grace_s": 2', '"stop_grace_s": "two"'))
    said = command(shared, "reload", "--json")
    assert said.returncode == 2
    assert json.loads(said.stdout)["error"]["path"] == "engines.fake.stop_grace_s"
    status = attached.status()
    assert status.configuration.disk == "wrong"
    assert "the configuration on disk is wrong: engines.fake.stop_grace_s: must be" in status.health.sentence
    assert "still runs" in status.health.sentence
    said = command(shared, "status")  # although the command cannot read it either
    assert "engines.fake.stop_grace_s" in said.stderr
    assert "fake-0" in said.stdout
    shared.config.write_text(good.replace(str(shared.spool), str(shared.folder / "elsewhere")))
    hang_up(shared)
    wait_until(lambda: "cannot change from" in attached.status().configuration.problem, "a spool cannot be changed")
    shared.config.write_text(good + "}")
    assert command(shared, "reload").returncode == 2
    assert pids(shared) == before
    shared.config.write_text(good)
    said = command(shared, "reload", "--wait")
    assert said.returncode == 0, said.stderr
    assert "1 of 1 slots run it" in said.stderr
    assert look(shared).health.ok
    assert pids(shared) == before


def test_a_replacement_that_cannot_load_stops_the_roll(shared: World) -> None:
    """The other worker goes on with what it has; once the file is mended, the benched slot is taken back at once."""
    reloaded(shared, {"fake": {"threads": 1}})
    before = pids(shared)
    shared.configure({"fake": {"threads": 1, "options": {"fail_load": "config"}}})
    said = command(shared, "reload", "--wait", "--json")
    assert said.returncode == 1
    answer = json.loads(said.stdout)
    assert (answer["rolled"], answer["slots"], answer["moving"]) == (0, 2, False)
    assert "no such model" in answer["failed"]
    (left,) = pids(shared).items()
    assert left in before.items()
    assert shared.pool().submit("fake", value=1).result(30)["pid"] == left[1]
    (gone,) = before.keys() - {left[0]}
    wait_until(lambda: shared.slot(gone)["seat"] == "benched", "the bench")
    reasons = " ".join(look(shared).health.reasons)
    assert f"the new configuration does not start: {gone}: " in reasons
    assert "0 of 2 slots run it" in reasons
    reloaded(shared, {"fake": {"threads": 1}})
    assert left in pids(shared).items(), "it fits again, so nobody touched it"
    assert set(pids(shared)) == {"fake-0", "fake-1"}


def test_a_second_reload_takes_the_place_of_the_first(shared: World) -> None:
    one = {"threads": 1, "max_concurrent_tasks": 1}
    reloaded(shared, {"fake": one})
    future = shared.pool().submit("fake", do="sleep", seconds=1.5)
    shared.worker_of(future.id)
    shared.configure({"fake": {**one, "options": {"load_s": 600}}})
    hang_up(shared)
    wait_until(lambda: (shared.slot("fake-0")["ending"] or {}).get("cause") == "outdated", "the roll waits for the job")
    reloaded(shared, {"fake": {**one, "options": {"fingerprint": "fake-4"}}})
    assert future.result(30)["attempt"] == 1
    assert shared.pool().submit("fake", value=1).result(30)["attempt"] == 1


def test_spares_take_over_while_workers_are_replaced(shared: World) -> None:
    """A spare becomes a worker, a worker a spare, and nobody is loaded more often than needed."""
    one = {"threads": 1, "max_concurrent_tasks": 1, "spares": 1}
    reloaded(shared, {"fake": one})
    wait_until(lambda: len(pids(shared)) == 2, "a worker and its spare")
    before = pids(shared)
    reloaded(shared, {"fake": {**one, "max_concurrent_tasks": 2, "spares": 0}})
    wait_until(lambda: not any(beat.standby for beat in shared.loaded().values()), "no spare")
    assert pids(shared) == before
    reloaded(shared, {"fake": one})
    wait_until(lambda: sorted(beat.standby for beat in shared.loaded().values()) == [False, True], "one spare")
    assert len(before.items() & pids(shared).items()) == 1


def test_a_drain_wins(world: World) -> None:
    """Over a roll that waits for a job, and over a reload that comes later."""
    one = {"max_concurrent_tasks": 1}
    world.configure({"fake": one}, drain_grace_s=600).serve(ready=1)
    future = world.pool().submit("fake", do="sleep", seconds=60)
    world.worker_of(future.id)
    world.configure({"fake": {**one, "options": {"load_s": 600}}}, drain_grace_s=600)
    hang_up(world)
    wait_until(lambda: (world.slot("fake-0")["ending"] or {}).get("cause") == "outdated", "the roll")
    world.serving[-1].terminate()
    wait_until(lambda: (world.slot("fake-0")["ending"] or {}).get("cause") == "drain", "the drain")
    world.serving[-1].send_signal(signal.SIGHUP)
    assert "draining" in command(world, "reload", "--wait").stderr
    assert future.cancel()
    assert world.serving[-1].wait(40) == 0
    assert not world.processes()
    assert future.cancelled()


@pytest.mark.long
def test_killed_in_the_middle_of_a_roll(world: World) -> None:
    """The next supervisor goes on from its own file: every job is done once, every worker runs what the file says."""
    world.configure({"fake": {"options": {"load_s": 0.2}}}).serve(ready=2)
    before, pool = pids(world), world.pool()
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.05} for _ in range(60)])
    world.configure({"fake": {"options": {"load_s": 0.2, "fingerprint": "fake-2"}}})
    hang_up(world)
    wait_until(lambda: len(pids(world).items() & before.items()) < 2, "the first replacement")
    world.kill_supervisor()
    world.serve()
    assert all(future.result(60)["attempt"] == 1 for future in futures)
    wait_until(lambda: len(pids(world)) == 2 and not pids(world).items() & before.items(), "the new configuration")


def test_a_terminal_that_is_closed_drains(world: World) -> None:
    """SIGHUP of a terminal that hung up is no wish for another configuration."""
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    leader, follower = pty.openpty()
    code = (  # whoever runs the tests under nohup has SIGHUP ignored
        "import fcntl,os,signal,sys,termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    argv = [sys.executable, "-c", code, sys.executable, "-m", "pool", "serve", "--config", str(world.config)]
    with open(world.folder / "serve.log", "ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdin=follower, stdout=log, stderr=log, start_new_session=True)
    world.serving.append(process)
    os.close(follower)
    try:
        world.wait_ready(1)
        before = record(world)["asked"]
        kill(process.pid, signal.SIGHUP)
        wait_until(lambda: record(world)["asked"] > before, "a reload while the terminal is there")
    finally:
        os.close(leader)
    assert process.wait(40) == 0
    assert not any(alive(pid) for pid in world.processes())
