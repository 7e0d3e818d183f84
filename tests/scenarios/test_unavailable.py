"""Nobody waits for what cannot come: every way to wait, every way in which no worker can come, and every repair."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed, wait
from pathlib import Path
from typing import Any

import pytest

from pool import EngineUnavailable, FilePool, JobFailed, JobFuture, NestedDeadlock
from pool.job import JobState
from scenarios.world import ROOT, World, kill, wait_until

LIMIT_S = 60  # a wait that would last for ever fails the test instead
BROKEN: dict[str, Any] = {"engine": "nomodule:E", "max_concurrent_tasks": 2}
REASON = "ModuleNotFoundError: No module named 'nomodule'"


@pytest.fixture(scope="module")
def broken(make_shared: Callable[[str], World]) -> World:
    """An engine that cannot be imported beside one that is well."""
    world = make_shared("unavailable").configure({"fake": {}, "broken": BROKEN})
    world.serve(ready=2)
    wait_until(lambda: all(world.slot(f"broken-{n}")["seat"] == "benched" for n in range(2)), "the benches")
    return world


@pytest.fixture
def pool(broken: World) -> Iterator[FilePool]:
    made = FilePool(broken.config, start=False, patience=0)
    yield made
    made.close()


def said(error: BaseException | None, future: JobFuture) -> bool:
    """Whether it is the typed error, with all that one needs to know."""
    assert isinstance(error, EngineUnavailable)
    assert (error.engine, error.job_id) == ("broken", future.id)
    assert error.reason == f"broken-0, broken-1: {REASON}"
    assert "recover" in error.hint
    assert f"attach({future.id!r})" in str(error)
    return True


# ---- every way to wait


def by_result(future: JobFuture) -> BaseException | None:
    with pytest.raises(EngineUnavailable) as caught:
        future.result(LIMIT_S)
    return caught.value


def by_wait(future: JobFuture) -> BaseException | None:
    assert wait([future], LIMIT_S).done == {future}
    return future.exception(0)


def by_as_completed(future: JobFuture) -> BaseException | None:
    (done,) = as_completed([future], LIMIT_S)
    return done.exception(0)


def by_asyncio(future: JobFuture) -> BaseException | None:
    async def main() -> BaseException | None:
        return (await asyncio.gather(asyncio.wait_for(asyncio.wrap_future(future), LIMIT_S), return_exceptions=True))[0]

    return asyncio.run(main())


def by_polling(future: JobFuture) -> BaseException | None:
    wait_until(future.done)
    return future.exception(0)


def by_progress(future: JobFuture) -> BaseException | None:
    words = list(future.progress())
    assert words[-1].status == "queued"
    assert REASON in words[-1].message
    return future.exception(0)


def by_partials(future: JobFuture) -> BaseException | None:
    with pytest.raises(EngineUnavailable) as caught:
        list(future.partials())
    return caught.value


@pytest.mark.parametrize(
    "way",
    [
        by_result,
        lambda f: f.exception(LIMIT_S),
        by_wait,
        by_as_completed,
        by_asyncio,
        by_polling,
        by_progress,
        by_partials,
    ],
)
def test_every_way_to_wait_ends_with_the_reason(
    pool: FilePool, way: Callable[[JobFuture], BaseException | None]
) -> None:
    future = pool.submit("broken", value=1)
    assert said(way(future), future)
    assert future.done()
    assert pool.state(future.id) is JobState.QUEUED, "its job waits"
    assert REASON in future.status().message


def test_a_job_behind_one_that_cannot_run_says_why(broken: World, pool: FilePool) -> None:
    """However far behind it: nobody waits for ever for a job that is held by a broken engine."""
    first = pool.submit("broken", value=1)
    second = pool.submit("fake", value=first["value"])
    third = pool.submit("fake", value=2, depends_on=[pool.submit("fake", value=1).id, second])
    for future in (third, second):
        assert f"no worker of broken can run: broken-0, broken-1: {REASON}" in future.status().message
        error = by_result(future)
        assert isinstance(error, EngineUnavailable)
        assert (error.engine, error.job_id) == ("broken", future.id)
        assert error.reason.startswith(f"broken-0, broken-1: {REASON} (job {first.id}, ")
        assert f"attach({future.id!r})" in str(error)
        assert pool.state(future.id) is JobState.HELD
    words = ("fake", "--after", first.id, "--patience", "0", "--config", str(broken.config))
    argv = [sys.executable, "-m", "pool.submit", *words]
    said = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert said.returncode != 0
    assert REASON in said.stderr


@pytest.mark.long
def test_a_job_behind_one_that_runs_is_waited_for(world: World) -> None:
    """Also while its engine has no other worker, and none will come."""
    flag = world.folder / "loaded"
    (world.folder / "once.py").write_text(
        "import os\nfrom inference.fake import Fake\n"
        "class Once(Fake):\n"
        "    def load(self, device, options):\n"
        f"        os.close(os.open({str(flag)!r}, os.O_CREAT | os.O_EXCL))\n"
        "        super().load(device, options)\n"
    )
    once = {"engine": "once:Once", "pythonpath": [str(world.folder)], "start_limit": 1}
    world.configure({"once": once, "fake": {"max_concurrent_tasks": 1}}).serve(ready=2)
    wait_until(lambda: sorted(slot["seat"] for slot in world.status()["slots"]) == ["benched", "running", "running"])
    pool = FilePool(world.config, start=False, patience=0)
    running = pool.submit("once", do="sleep", seconds=60)
    world.worker_of(running.id)
    behind = pool.submit("fake", value=2, depends_on=[running])
    with pytest.raises(TimeoutError):
        behind.result(1.5)
    kill(world.worker_of(running.id)[1])
    error = behind.exception(LIMIT_S)
    assert isinstance(error, EngineUnavailable)
    assert error.engine == "once"
    pool.close()


def test_map_and_the_end_of_a_block(broken: World, pool: FilePool) -> None:
    with pytest.raises(EngineUnavailable, match="nomodule"):
        list(pool.map("broken", [{"value": 1}]))
    with pytest.raises(EngineUnavailable, match="nomodule"), FilePool(broken.config, start=False, patience=0) as block:
        future = block.submit("broken", value=1)
    assert future.done()
    with FilePool(broken.config, start=False, patience=0) as block:  # told before, so the end says nothing
        assert by_result(block.submit("broken", value=1))


def test_what_nobody_waits_for_is_left_alone(pool: FilePool) -> None:
    """Submitted, and asked for much later: what became of it meanwhile counts, not what was."""
    left = pool.submit("broken", value=1)
    for _ in range(2):
        by_result(pool.submit("broken", value=1))
    assert not left.decided
    assert by_result(left)


def test_patience_is_of_the_one_who_waits(pool: FilePool) -> None:
    patient, other = pool.submit("broken", value=1), pool.submit("broken", value=1)
    patient.patience = None
    done, rest = wait([patient, other], return_when="FIRST_COMPLETED", timeout=LIMIT_S)
    assert (done, rest) == ({other}, {patient})
    with pytest.raises(TimeoutError):
        patient.result(2.5)
    assert not patient.decided


@pytest.mark.parametrize("patience", [float("nan"), "10", True])
def test_a_patience_that_is_none(broken: World, patience: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"patience: .* number of seconds"):
        FilePool(broken.config, start=False, patience=patience)


# ---- repairs


def test_a_repair_is_noticed_by_who_still_waits_and_by_attach(world: World) -> None:
    module = world.folder / "mendable.py"
    module.write_text("import half_installed\n")
    engine = {"engine": "mendable:Fake", "pythonpath": [str(world.folder)], "max_concurrent_tasks": 1}
    world.configure({"fake": engine}).serve()
    pool = FilePool(world.config, start=False, patience=0)
    future = pool.submit("fake", value=7)
    patient = pool.attach(future.id)
    patient.patience = None
    assert isinstance(future.exception(LIMIT_S), EngineUnavailable)
    module.write_text("from inference.fake import Fake\n")
    (world.spool / "run" / "control" / "fake-0.recover").touch()
    assert patient.result(LIMIT_S)["value"] == 7
    assert pool.attach(future.id).result(LIMIT_S)["value"] == 7
    assert isinstance(future.exception(0), EngineUnavailable), "no Future changes its mind"
    pool.close()


def test_no_supervisor_and_none_to_be_started(world: World) -> None:
    world.configure()
    pool = FilePool(world.config, start=False, patience=0)
    future = pool.submit("fake", value=7)
    with pytest.raises(EngineUnavailable, match="no supervisor serves this spool; start one with"):
        future.result(LIMIT_S)
    world.serve()
    again = pool.attach(future.id)
    again.patience = 30
    assert again.result(LIMIT_S)["value"] == 7
    pool.close()


def test_a_supervisor_that_cannot_start_again(world: World) -> None:
    """Killed with -9 while config.json is broken: the reason is that of the one that we tried to start."""
    world.configure(orphan_grace_s=0)
    good = world.config.read_text()
    pool = FilePool(world.config, patience=0)
    assert pool.submit("fake", value=1).result(LIMIT_S)["value"] == 1
    world.config.write_text(good.replace('"fake"', '"fake" oops'))
    world.kill_supervisor()
    wait_until(lambda: not world.processes(), "the end of its workers")
    future = pool.submit("fake", value=7)
    error = future.exception(LIMIT_S)
    assert isinstance(error, EngineUnavailable)
    assert "none can be started: it ended at its start" in error.reason
    assert "config.json" in error.reason
    world.config.write_text(good)
    again = pool.attach(future.id)
    again.patience = None
    assert again.result(LIMIT_S)["value"] == 7, "started again as soon as it can be"
    pool.close()


def test_an_engine_that_the_supervisor_does_not_have(world: World) -> None:
    world.configure().serve(ready=2)
    other = world.folder / "other.json"
    document = json.loads(world.config.read_text())
    document["engines"]["more"] = document["engines"]["fake"]
    other.write_text(json.dumps(document))
    pool = FilePool(other, start=False, patience=0)
    error = pool.submit("more", value=1).exception(LIMIT_S)
    assert isinstance(error, EngineUnavailable)
    assert f"read from {world.config}, without an engine 'more', only fake" in error.reason
    pool.close()


@pytest.mark.long
def test_a_pool_that_drains_for_good(world: World) -> None:
    """What runs may finish, and its caller waits for it; what is queued will not start."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}, drain_grace_s=60).serve(ready=1)
    pool = FilePool(world.config, start=False, patience=0)
    running = pool.submit("fake", do="sleep", seconds=6, value="done")
    world.worker_of(running.id)
    queued = pool.submit("fake", value=1)
    world.serving[0].terminate()
    error = queued.exception(LIMIT_S)
    assert isinstance(error, EngineUnavailable)
    assert "the pool is draining" in error.reason
    assert running.result(LIMIT_S)["value"] == "done"
    pool.close()


@pytest.mark.long
def test_what_may_still_come_is_waited_for(world: World) -> None:
    """A slow load, and one that fails at first, are not hopeless, even for one without any patience."""
    flag = world.folder / "second"
    (world.folder / "moody.py").write_text(
        "import os\nfrom inference.fake import Fake\n"
        "class Moody(Fake):\n"
        "    def load(self, device, options):\n"
        f"        there = os.path.exists({str(flag)!r}); open({str(flag)!r}, 'w').close()\n"
        "        assert there, 'not in the mood'\n"
        "        super().load(device, options)\n"
    )
    moody = {"engine": "moody:Moody", "pythonpath": [str(world.folder)], "backoff_s": 2, "backoff_max_s": 2}
    slow = {"options": {"load_s": 3}, "max_concurrent_tasks": 1}
    world.configure({"slow": slow, "moody": {**moody, "max_concurrent_tasks": 1}}).serve()
    wait_until(world.supervisor, "a supervisor")
    pool = FilePool(world.config, start=False, patience=0)
    futures = [pool.submit("slow", value=1), pool.submit("moody", value=1)]
    wait(futures, LIMIT_S)
    assert [future.result(0)["value"] for future in futures] == [1, 1]
    pool.close()


# ---- jobs that wait for jobs

NEST = """
from pool import FilePool
class Nest:
    def load(self, device, options):
        self.config = options["config"]
    def check(self, params):
        return params
    def run(self, params, context):
        way = list(params.get("way", ()))
        if not way:
            return {"done": True}
        pool = FilePool(self.config, start=False)
        try:
            return {"inner": pool.submit(way[0], way=way[1:]).result(60)}
        finally:
            pool.close()
"""


def nest(folder: Path, config: Path, workers: int) -> dict[str, Any]:
    (folder / "nest.py").write_text(NEST)
    return {
        "engine": "nest:Nest",
        "pythonpath": [str(folder)],
        "max_concurrent_tasks": workers,
        "retry_times": 0,
        "options": {"config": str(config)},
    }


@pytest.fixture(scope="module")
def nested(make_shared: Callable[[str], World]) -> World:
    world = make_shared("nested")
    counts = {"one": 1, "two": 2, "b": 1}
    engines = {name: nest(world.folder, world.config, workers) for name, workers in counts.items()}
    world.configure(engines).serve(ready=4)
    return world


@pytest.mark.parametrize("way", [["one"], ["b", "one"]])
def test_a_job_that_waits_for_its_own_full_engine_is_named(nested: World, way: list[str]) -> None:
    """Directly, and round a corner: the job fails with the chain and what mends it; the inner one then runs."""
    pool = nested.pool()
    future = pool.submit("one", way=way)
    error = future.exception(LIMIT_S)
    assert isinstance(error, JobFailed)
    text = str(error)
    assert "deadlock" in text
    cause = NestedDeadlock if len(way) == 1 else JobFailed  # then it is the middle one that failed of it
    assert error.failure.exception.endswith(cause.__name__)
    assert f"one-0.{nested.slot('one-0')['worker'].rpartition('.')[2]} runs {future.id} and waits for" in text
    assert "max_concurrent_tasks" in text
    if len(way) > 1:
        assert "b-0." in text
    assert pool.submit("one").result(LIMIT_S) == {"done": True}, "the pool goes on"
    wait_until(lambda: nested.names("run/waits") == [], "no note left")


def test_a_nested_job_that_can_run_is_no_deadlock(nested: World) -> None:
    pool = nested.pool()
    deep = pool.submit("two", way=["b", "two"])
    assert deep.result(LIMIT_S) == {"inner": {"inner": {"done": True}}}
    futures = [pool.submit("one", way=["two"]) for _ in range(3)]
    assert [future.result(LIMIT_S) for future in futures] == [{"inner": {"done": True}}] * 3


def test_of_two_that_block_each_other_one_gives_way(world: World) -> None:
    """Both workers wait for jobs of their own engine: the one that came last fails, which frees the other one."""
    world.configure({"two": nest(world.folder, world.config, 2)}).serve(ready=2)
    pool = world.pool()
    outer = pool.submit_many("two", [{"way": ["two"]}, {"way": ["two"]}])
    ends = sorted(type(future.exception(LIMIT_S)).__name__ for future in outer)
    assert ends in (["JobFailed", "NoneType"], ["NoneType", "NoneType"])
