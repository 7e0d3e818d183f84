"""AsyncFilePool: everything a FilePool does, on an event loop whose thread never touches the disk."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from pool.client.aio import AsyncFilePool
from pool.errors import JobFailed, JobRefused, PoolClosed
from pool.job import JobState
from pool.spool import fsops
from scenarios.world import World, wait_until

BLOCKING = (
    "open",
    "stat",
    "lstat",
    "statvfs",
    "listdir",
    "scandir",
    "read",
    "write",
    "fsync",
    "rename",
    "unlink",
    "access",
    "mkdir",
)


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    world = make_shared("async").configure({"fake": {}, "single": {"max_concurrent_tasks": 1}})
    world.serve(ready=3)
    return world


Watch = Callable[[], contextlib.AbstractContextManager[None]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A block on the thread of a loop: whatever touches the disk or sleeps on that thread meanwhile fails the test."""
    loops: set[int] = set()
    seen: list[str] = []

    def guard(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() in loops:
                seen.append(f"{name}{args}")
            return original(*args, **kwargs)

        return call

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        loops.add(threading.get_ident())
        try:
            yield
        finally:
            loops.discard(threading.get_ident())

    for name in BLOCKING:
        monkeypatch.setattr(os, name, guard(f"os.{name}", getattr(os, name)))
    monkeypatch.setattr(time, "sleep", guard("time.sleep", time.sleep))
    monkeypatch.setattr(builtins, "open", guard("open", open))
    fsops.hook = guard("fsops", lambda *_: None)
    yield watch
    assert seen == []


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def everything(shared: World, watch: Watch) -> Callable[[], Coroutine[Any, Any, None]]:
    """A program that uses all of it."""

    async def program() -> None:
        with watch():
            await use()

    async def use() -> None:
        async with AsyncFilePool(shared.config, start=False) as pool:
            future = await pool.submit("fake", do="partials", seconds=0.2, value=1, durable=True)
            said = [update.status async for update in future.progress()]
            assert said[-1] == "completed"
            assert [part["number"] async for part in future.partials()] == [0, 1, 2, 3, 4]
            assert (await future)["value"] == 1
            assert future.record is not None
            many = await pool.submit_many("fake", ({"value": n} for n in range(20)))
            assert [r["value"] for r in await asyncio.gather(*many)] == list(range(20))
            assert [r["value"] async for r in pool.map("fake", [{"value": n} for n in range(9)], chunksize=4)] == [
                *range(9)
            ]
            failed = await pool.submit("fake", do="input")
            with pytest.raises(JobFailed):
                await failed
            assert isinstance(await failed.exception(), JobFailed)
            assert isinstance(await (await pool.retry(failed.id)).exception(), JobFailed)
            slow = await pool.submit("fake", do="sleep", seconds=60)
            assert not slow.done()
            assert (await slow.status()).status
            with pytest.raises(TimeoutError):
                await slow.result(0.01)
            assert not await slow.wait(0.01)
            again = await pool.attach(slow.id)
            assert await pool.state(slow.id) in (JobState.QUEUED, JobState.RUNNING)
            assert await pool.cancel(slow.id)
            with pytest.raises(concurrent.futures.CancelledError):
                await slow
            await again.wait()
            assert again.cancelled()
            with pytest.raises(JobRefused):
                await pool.submit("fake", do="no such thing")
            assert (await pool.status()).engine("fake") is not None

    return program


def test_the_loops_thread_never_touches_the_disk(shared: World, watched: Watch) -> None:
    run(everything(shared, watched)())


def test_two_loops_in_two_threads(shared: World, watched: Watch) -> None:
    problems: list[BaseException] = []

    def live() -> None:
        try:
            run(everything(shared, watched)())
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=live) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert problems == []


def test_under_uvloop(shared: World, watched: Watch) -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(everything(shared, watched)(), 60))
    finally:
        loop.close()


def test_hundreds_are_awaited_on_a_few_threads(shared: World) -> None:
    async def program() -> None:
        async with AsyncFilePool(shared.config, start=False) as pool:
            before = threading.active_count()
            slow = await pool.submit("single", do="sleep", seconds=60)
            behind = await pool.submit_many("single", [{"value": n} for n in range(300)])

            async def follow(future: Any) -> Any:
                async for _ in future.progress(interval=30):
                    pass
                return (await future)["value"]

            tasks = [asyncio.create_task(follow(future)) for future in behind]
            others = [asyncio.create_task(future.result()) for future in behind]
            await asyncio.sleep(0.05)
            assert threading.active_count() <= before + 4
            await slow.cancel()
            assert await asyncio.gather(*tasks) == list(range(300))
            assert len(await asyncio.gather(*others)) == 300

    run(program())


def test_a_cancelled_task_leaves_its_job_alone(shared: World) -> None:
    async def program() -> None:
        async with AsyncFilePool(shared.config, start=False) as pool:
            future = await pool.submit("fake", do="sleep", seconds=60)
            for waiting in (future.result(), future.wait()):
                task = asyncio.create_task(waiting)
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await pool.state(future.id) in (JobState.QUEUED, JobState.RUNNING)
            assert await future.cancel()

    run(program())


def test_the_end_of_the_block_waits_without_blocking(shared: World) -> None:
    async def program() -> int:
        async with AsyncFilePool(shared.config, start=False) as pool:
            future = await pool.submit("fake", do="sleep", seconds=0.2, value=6)
            other = asyncio.create_task(asyncio.sleep(0, 1))
        assert future.done()
        with pytest.raises(PoolClosed):
            await pool.submit("fake")
        with pytest.raises(PoolClosed):
            await pool.open()
        assert await other == 1
        return (await future)["value"]  # type: ignore[no-any-return]

    assert run(program()) == 6


def test_an_exception_ends_the_block_at_once_and_the_jobs_go_on(shared: World) -> None:
    async def program() -> str:
        future, blocker = None, ""

        async def block() -> None:
            nonlocal future, blocker
            async with AsyncFilePool(shared.config, start=False) as pool:
                blocker = (await pool.submit("single", do="sleep", seconds=60)).id
                future = await pool.submit("single", value=7)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await block()
        assert future is not None
        with pytest.raises(PoolClosed):
            await future
        assert shared.pool().cancel(blocker)
        return future.id

    assert shared.record(run(program())).value["value"] == 7


def test_a_block_that_is_cancelled_at_its_end_closes_the_pool(shared: World) -> None:
    clients = shared.spool / "run" / "clients"
    before = set(os.listdir(clients))

    async def program() -> None:
        async def block(entered: asyncio.Event) -> None:
            async with AsyncFilePool(shared.config) as pool:
                future = await pool.submit("fake", do="sleep", seconds=60)
                started.append(future.id)
                entered.set()

        started: list[str] = []
        entered = asyncio.Event()
        task = asyncio.create_task(block(entered))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert shared.pool().cancel(started[0])

    run(program())
    wait_until(lambda: set(os.listdir(clients)) <= before, "the client's presence to go")


def test_opening_that_is_cancelled_leaves_no_client_behind(shared: World) -> None:
    clients = shared.spool / "run" / "clients"
    before = set(os.listdir(clients))

    async def program() -> None:
        task = asyncio.create_task(AsyncFilePool(shared.config).open())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(program())
    wait_until(lambda: not any(t.name.startswith("filepool-aio") for t in threading.enumerate()), "its threads to end")
    assert set(os.listdir(clients)) <= before


def test_on_another_loop_it_says_so(shared: World) -> None:
    pool = AsyncFilePool(shared.config, start=False)
    with pytest.raises(PoolClosed, match="async with"):
        run(pool.submit("fake"))

    async def opened() -> None:
        await pool.open()

    asyncio.run(opened())
    with pytest.raises(RuntimeError, match="another event loop"):
        run(pool.submit("fake"))
    pool.pool.close()


def test_the_context_of_the_caller_is_there(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")

    async def program() -> str:
        async with AsyncFilePool(shared.config, start=False) as pool:
            name.set("mine")
            return await pool.run(name.get)

    assert run(program()) == "mine"


def test_a_map_goes_on_after_a_call_that_failed(shared: World) -> None:
    pool = shared.pool()
    calls = [{"value": 0}, {"do": "input"}, {"value": 2}]
    for size in (1, 2, 3):
        mapped, got = pool.map("fake", calls, chunksize=size), []
        for _ in calls:
            try:
                got.append(next(mapped)["value"])
            except JobFailed:
                got.append("failed")
        assert got == [0, "failed", 2]
        assert list(mapped) == []


def test_the_time_of_a_map_is_over(shared: World) -> None:
    async def program() -> None:
        async with AsyncFilePool(shared.config, start=False) as pool:
            with pytest.raises(TimeoutError):
                async for _ in pool.map("fake", [{"do": "sleep", "seconds": 60}], timeout=0.05):
                    pass
            for future in pool.pool.pending():
                future.cancel()

    run(program())
