"""Spares, recycling, engines that cannot load, a slot that is sick: the others go on and status says why."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pool.client.future import JobFuture
from pool.errors import JobFailed
from pool.job import JobState
from pool.policy.death import Ended
from scenarios.world import PATIENCE_S, World, alive, kill, passing, wait_until


def loads(world: World) -> int:
    path = world.folder / "loads"
    return len(path.read_text().split()) if path.exists() else 0


def cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


# ---- spares


@pytest.mark.long
def test_spare_takes_over_without_a_load(world: World) -> None:
    """A killed worker is replaced by one that is loaded already; a new spare is loaded behind it."""
    world.configure(
        {
            "fake": {
                "max_concurrent_tasks": 1,
                "spares": 1,
                "options": {"load_s": 1.5, "loads": str(world.folder / "loads")},
            }
        }
    )
    world.serve(ready=2)
    spare = next(beat for beat in world.loaded().values() if beat.standby)
    worker = next(beat for beat in world.loaded().values() if not beat.standby)
    pool = world.pool()
    assert {pool.submit("fake", value=n).result(30)["pid"] for n in range(5)} == {worker.pid}, "a spare takes no job"
    assert loads(world) == 2
    kill(worker.pid)
    assert pool.submit("fake", value=1).result(30)["pid"] == spare.pid, "no load in between"
    world.wait_ready(2)
    assert loads(world) == 3
    newcomer = next(beat for beat in world.loaded().values() if beat.pid != spare.pid)
    assert newcomer.standby
    roles = lambda: {s["pid"]: s["spare"] for s in world.status()["slots"]}  # noqa: E731
    wait_until(lambda: roles() == {spare.pid: False, newcomer.pid: True}, "status")


@pytest.mark.long
def test_who_has_nothing_to_do_sleeps(world: World) -> None:
    """Jobs that arrive wake the workers, not a spare; a job that failed in one slot and was taken by another leaves
    nothing to be looked for."""
    world.configure({"fake": {"max_concurrent_tasks": 2, "spares": 1}}).serve(ready=3)
    pool = world.pool()
    future = pool.submit("fake", do="raise", until_attempt=1)
    assert future.result(30)["attempt"] == 2
    spare = next(beat for beat in world.loaded().values() if beat.standby)
    before = cpu_s(spare.pid)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        pool.submit("fake", value=1).result(30)
        time.sleep(0.05)
    assert cpu_s(spare.pid) - before < 0.3
    time.sleep(0.7)  # the time for which the job was left to the other slot is over
    idle = {beat.pid: cpu_s(beat.pid) for beat in world.loaded().values()}
    time.sleep(1.2)
    assert max(cpu_s(pid) - spent for pid, spent in idle.items()) < 0.2


# ---- recycling


def test_recycled_one_at_a_time_and_no_job_lost(world: World) -> None:
    world.configure({"fake": {"recycle": {"max_jobs": 10}, "options": {"load_s": 0.3}}}).serve(ready=2)
    pool = world.pool()
    before = {beat.pid for beat in world.loaded().values()}
    futures: list[JobFuture] = []
    fewest, until = 2, time.monotonic() + PATIENCE_S
    while before & {beat.pid for beat in world.loaded().values()}:  # jobs as long as one of the first two is there
        assert time.monotonic() < until, "both are replaced"
        if sum(not future.done() for future in futures) < 4:
            futures.append(pool.submit("fake", do="sleep", seconds=0.05, value=len(futures)))
        fewest = min(fewest, len(world.loaded()))
        time.sleep(0.01)
    assert [future.result(30)["value"] for future in futures] == list(range(len(futures)))
    assert all(future.record is not None and future.record.attempt == 1 for future in futures)
    assert fewest >= 1, "one of two serves always"
    assert len({future.result()["pid"] for future in futures}) >= 3
    assert {world.slot(name)["seat"] for name in ("fake-0", "fake-1")} <= {"running", "waiting"}


@pytest.mark.long
def test_recycled_when_memory_has_grown(world: World) -> None:
    """Between two jobs; the job that made it grow is not hurt."""
    world.configure({"fake": {"max_concurrent_tasks": 1, "recycle": {"memory_growth_mb": 80}}}).serve(ready=1)
    pool = world.pool()
    small = pool.submit("fake", do="leak", mb=20).result(30)
    big = pool.submit("fake", do="leak", mb=120).result(30)
    assert small["pid"] == big["pid"]
    wait_until(lambda: not alive(big["pid"]), "it is replaced")
    assert "memory grew by" in wait_until(lambda: world.slot("fake-0").get("last_death"), "the reason")
    assert pool.submit("fake", value=1).result(30)["attempt"] == 1


@pytest.mark.slow
def test_recycling_with_a_spare_costs_no_load(world: World) -> None:
    world.configure(
        {"fake": {"max_concurrent_tasks": 1, "spares": 1, "recycle": {"max_jobs": 3}, "options": {"load_s": 2.5}}}
    ).serve(ready=2)
    pool = world.pool()
    spare = next(beat for beat in world.loaded().values() if beat.standby)
    pids = [pool.submit("fake", do="sleep", seconds=0.01).result(30)["pid"] for _ in range(3)]
    wait_until(lambda: not alive(pids[0]), "the first one is replaced")
    assert pool.submit("fake", value=1).result(30)["pid"] == spare.pid, "one that was loaded already"


# ---- engines that cannot load

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "damaged": ({"options": {"fail_load": "error"}, "start_limit": 2}, "the model file is damaged"),
    "misled": ({"options": {"fail_load": "config"}}, "option model: no such model"),
    "missing": ({"engine": "no_such_module:Engine"}, "No module named 'no_such_module'"),
    "nameless": ({"engine": "inference.fake:Nothing"}, "has no class 'Nothing'"),
    "halting": ({"options": {"fail_load": "exit"}, "start_limit": 2}, "exit code 1"),
    "crashing": ({"options": {"fail_load": "segfault"}, "start_limit": 2}, "SIGSEGV"),
    "slow": ({"options": {"load_s": 60}, "load_timeout_s": 0.5, "start_limit": 2}, "did not load within"),
}


@pytest.mark.long
def test_broken_engines_are_benched_and_others_go_on(world: World) -> None:
    """Every way not to load, side by side with an engine that is well."""
    engines = {name: {"max_concurrent_tasks": 1, **entry} for name, (entry, _) in BROKEN.items()}
    world.configure({"fake": {}, **engines})
    world.serve()
    pool = world.pool()
    waiting = {name: pool.submit(name, value=1) for name in BROKEN}
    futures = pool.submit_many("fake", [{"value": n} for n in range(50)])
    assert [future.result(60)["value"] for future in futures] == list(range(50))
    for name, (_, reason) in BROKEN.items():
        wait_until(lambda name=name: world.slot(f"{name}-0")["seat"] == "benched", f"{name} is benched")
        slot = world.slot(f"{name}-0")
        assert reason in f"{slot['why']} {slot['last_death']} {slot['error']}", name
        assert slot["starts"] <= 2
        assert pool.state(waiting[name].id) is JobState.QUEUED, "its jobs wait"
        assert not waiting[name].done()
    assert {world.slot(name)["seat"] for name in ("fake-0", "fake-1")} == {"running"}
    health = pool.status().health
    assert health.verdict == "degraded"
    assert any("the model file is damaged" in reason for reason in health.reasons)


def test_benched_slot_is_taken_back(world: World) -> None:
    """The cause is mended, the operator says so: the slot loads again and runs what waited."""
    module = world.folder / "mendable.py"
    module.write_text("raise ImportError('half installed')\n")
    world.configure(
        {"fake": {"engine": "mendable:Fake", "pythonpath": [str(world.folder)], "max_concurrent_tasks": 1}}
    ).serve()
    wait_until(lambda: world.slot("fake-0")["seat"] == "benched", "the bench")
    assert "half installed" in world.slot("fake-0")["error"]["message"]
    pool = world.pool()
    future = pool.submit("fake", value=1)
    module.write_text("from inference.fake import Fake\n")
    (world.spool / "run" / "control" / "fake-0.recover").touch()
    assert future.result(30)["attempt"] == 1
    assert world.slot("fake-0")["error"] is None


def test_bench_ends_by_itself(world: World) -> None:
    """After bench_s it is tried again, on probation."""
    flag = world.folder / "well"
    (world.folder / "moody.py").write_text(
        "import os\nfrom inference.fake import Fake\n"
        "class Moody(Fake):\n"
        "    def load(self, device, options):\n"
        f"        assert os.path.exists({str(flag)!r}), 'not in the mood'\n"
        "        super().load(device, options)\n"
    )
    world.configure(
        {
            "fake": {
                "engine": "moody:Moody",
                "pythonpath": [str(world.folder)],
                "max_concurrent_tasks": 1,
                "start_limit": 2,
                "bench_s": 0.5,
            }
        }
    ).serve()
    wait_until(lambda: world.slot("fake-0")["seat"] == "benched", "the bench")
    assert "starts failed" in world.slot("fake-0")["why"]
    flag.touch()
    assert world.pool().submit("fake", value=1).result(30)["attempt"] == 1


# ---- a sick slot

SICK: dict[str, dict[str, Any]] = {
    "raises": {"do": "raise", "value": "no device"},
    "dies": {"do": "kill"},
    "hangs": {"do": "hang_c"},
}


@pytest.mark.parametrize(
    "how", ["raises", pytest.param("dies", marks=pytest.mark.long), pytest.param("hangs", marks=pytest.mark.slow)]
)
@pytest.mark.invariant(11)
def test_sick_slot_does_not_empty_the_queue(world: World, how: str) -> None:
    """Everything fails in fake-0: a fresh process, and the bench when that did not help; no job reaches dead."""
    (world.folder / "steady.py").write_text(
        "import time\nfrom inference.fake import Fake\n"
        "class Steady(Fake):\n"
        "    def run(self, params, context):\n"
        "        result = super().run(params, context)\n"
        "        time.sleep(0.1)\n"
        "        return result\n"
    )
    world.configure(
        {
            "fake": {
                "engine": "steady:Steady",
                "pythonpath": [str(world.folder)],
                "stall_timeout_s": 1,
                "retry_times": 2,
                "retry_on": ["engine", "infrastructure", "timeout"],
            }
        }
    ).serve(ready=2)
    pool = world.pool()
    futures: list[JobFuture] = []

    def benched() -> bool:
        """Jobs keep coming, so that a fresh process has some to prove itself with."""
        if sum(not future.done() for future in futures) < 8:
            futures.extend(pool.submit_many("fake", [{**SICK[how], "slot": "fake-0"} for _ in range(4)]))
        return world.slot("fake-0")["seat"] == "benched"

    wait_until(benched, "the bench", 100)
    futures += pool.submit_many("fake", [{**SICK[how], "slot": "fake-0"} for _ in range(4)])
    for future in futures:
        future.result(80)
    assert world.names("dead") == []
    assert world.slot("fake-0")["bench"]["reason"] == "sick"
    assert "a restart did not help" in world.slot("fake-0")["why"]
    assert world.slot("fake-0")["starts"] >= 2
    assert world.slot("fake-1")["seat"] == "running"


@pytest.mark.invariant(11)
def test_jobs_without_retries_get_a_second_opinion(world: World) -> None:
    """A slot that breaks everything while the other one is busy: two jobs are lost before it is a suspect, the rest
    wait for the other slot."""
    world.configure({"fake": {"retry_times": 0}}).serve(ready=2)
    pool = world.pool()
    long = pool.submit("fake", do="sleep", seconds=2)
    name, _ = world.worker_of(long.id)
    sick = "fake-1" if name.startswith("fake-0") else "fake-0"
    futures = pool.submit_many("fake", [{"do": "raise", "value": "no device", "slot": sick} for _ in range(8)])
    ends = [future.exception(60) for future in futures]
    assert [end is None for end in ends] == [False, False, *[True] * 6]
    assert [future.record.attempt for future in futures if future.record] == [1, 1, *[2] * 6]
    assert long.result(60)["attempt"] == 1


@pytest.mark.slow
def test_sick_slot_beside_a_busy_one_kills_no_job(world: World) -> None:
    """Nobody can tell yet whether the slot is sick or the jobs are: their last attempt is left to the other slot."""
    world.configure({"fake": {"retry_times": 1}}).serve(ready=2)
    pool = world.pool()
    long = pool.submit("fake", do="sleep", seconds=6)
    name, _ = world.worker_of(long.id)
    sick = "fake-1" if name.startswith("fake-0") else "fake-0"
    futures = pool.submit_many("fake", [{"do": "raise", "value": "no device", "slot": sick} for _ in range(6)])
    assert [future.result(60)["attempt"] for future in futures] == [2] * 6
    assert world.names("dead") == []
    assert long.done()


@pytest.mark.long
def test_a_fresh_process_may_cure_it(world: World) -> None:
    """What is broken in one process and not in the next: no bench."""
    flag = world.folder / "broken"
    (world.folder / "worn.py").write_text(
        "import os\nfrom inference.fake import Fake, _slot\n"
        "class Worn(Fake):\n"
        "    def load(self, device, options):\n"
        "        super().load(device, options)\n"
        f"        self.worn = _slot() == 'fake-0' and not os.path.exists({str(flag)!r})\n"
        f"        open({str(flag)!r}, 'a').close() if self.worn else None\n"
        "    def run(self, params, context):\n"
        "        if self.worn:\n"
        "            raise RuntimeError('the device has a bad day')\n"
        "        return super().run(params, context)\n"
    )
    world.configure({"fake": {"engine": "worn:Worn", "pythonpath": [str(world.folder)]}}).serve(ready=2)
    pool = world.pool()
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.1} for _ in range(12)])
    assert all(future.result(60) for future in futures)
    wait_until(lambda: world.slot("fake-0")["starts"] == 2, "a fresh process")
    assert world.slot("fake-0")["ended"]["cause"] == "sick"
    more = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.02} for _ in range(60)])
    assert all(future.result(60) for future in more)
    wait_until(lambda: world.slot("fake-0")["seat"] == "running", "it serves")
    assert {future.record.worker.rpartition(".")[0] for future in more if future.record} == {"fake-0", "fake-1"}


# ---- bad jobs


@pytest.fixture(scope="module")
def mixed_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two engines alike, so that jobs with and without a crowd can be told apart; times as in production."""
    with passing(tmp_path_factory.mktemp("mixed")) as world:
        plain = {"backoff_s": 1, "backoff_max_s": 60}
        world.configure({"fake": plain, "four": {**plain, "max_concurrent_tasks": 4}}).serve(ready=6)
        yield world


@pytest.mark.parametrize(
    ("engine", "share", "how", "retries"),
    [
        ("fake", 0.25, "raise", 1),
        ("fake", 0.1, "kill", 0),
        ("four", 0.25, "raise", 0),
        pytest.param("four", 0.1, "kill", 2, marks=pytest.mark.long),
        pytest.param("fake", 0.05, "exit", 3, marks=pytest.mark.long),
        pytest.param("four", 0.25, "exit", 1, marks=pytest.mark.long),
    ],
)
@pytest.mark.invariant(10, 11)
def test_bad_jobs_bench_nobody(mixed_world: World, engine: str, share: float, how: str, retries: int) -> None:
    """Jobs that raise or crash wherever they run are to blame themselves; good ones among them are not hurt."""
    pool, rng = mixed_world.pool(), random.Random(7)
    before = {slot["slot"]: slot["starts"] for slot in mixed_world.status()["slots"]}
    bad, good = [], []
    for number in range(200 if how == "raise" else 60):
        if rng.random() < share:
            bad.append(pool.submit(engine, do=how, value=number, retry_times=retries))
        else:
            good.append(pool.submit(engine, do="sleep", seconds=0.01, value=number))
    for future in good:
        assert future.result(60)["attempt"] == 1
    for future in bad:
        assert future.exception(90) is not None
        assert future.record is not None
        assert 1 <= future.record.attempt <= retries + 2
    slots = {slot["slot"]: slot for slot in mixed_world.status()["slots"] if slot["engine"] == engine}
    assert {slot["seat"] for slot in slots.values()} == {"running"}
    assert "sick" not in {slot["ended"]["cause"] for slot in slots.values() if slot["ended"]}
    if how == "raise":
        assert {name: slot["starts"] for name, slot in slots.items()} == {name: before[name] for name in slots}


@pytest.mark.invariant(10)
def test_poison_waits_behind(mixed_world: World) -> None:
    """Six jobs that kill their worker, submitted first: of what they run again nothing comes before an ordinary job."""
    pool = mixed_world.pool()
    gates = [pool.submit("fake", do="sleep", seconds=60, priority=9) for _ in range(2)]
    for gate in gates:
        mixed_world.worker_of(gate.id)
    poison = [pool.submit("fake", do="kill", value=number, priority=5) for number in range(6)]
    ordinary = pool.submit_many("fake", [{"value": number} for number in range(300)])
    assert all(gate.cancel() for gate in gates)
    assert [future.result(60)["value"] for future in ordinary] == list(range(300))
    assert all(future.exception(90) is not None for future in poison)
    last = max(future.record.started for future in ordinary if future.record)
    retries = [
        failure.at
        for future in poison
        if future.record and future.record.failure
        for failure in future.record.failure.attempts
        if failure.attempt > 1
    ]
    assert len(retries) >= 12
    assert min(retries) > last


def test_why_a_worker_ended_is_data(mixed_world: World) -> None:
    """Cause, exit code, signal and limit as fields: in the record, in status."""
    pool = mixed_world.pool()
    future = pool.submit("fake", do="exit", code=9, retry_times=0)
    error = future.exception(60)
    assert isinstance(error, JobFailed)
    assert (error.failure.cause, error.failure.exit_code, error.failure.limit) == ("died", 9, None)
    where = error.failure.worker.rpartition(".")[0]

    def told() -> Ended | None:
        ended = next(slot for slot in pool.status().slots if slot.slot == where).ended
        return ended if ended is not None and ended.job == future.id else None

    ended = wait_until(told, "the supervisor's word")
    assert ended is not None
    assert (ended.cause, ended.exit_code, ended.stage) == ("died", 9, "run")
    late = pool.submit("fake", do="hang_c", timeout_s=0.5, retry_times=0)
    error = late.exception(60)
    assert isinstance(error, JobFailed)
    assert error.failure.cause == "overdue"
    assert error.failure.limit is not None
    assert (error.failure.limit["key"], error.failure.limit["value"]) == ("timeout_s", 0.5)
    assert error.failure.limit["measured"] > 0.5
