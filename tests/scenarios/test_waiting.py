"""Every way to wait for a future, alone and beside others: result(), wait, as_completed, callbacks, asyncio, polling.

`result()` reads the spool on the caller's thread; the others need the pool's own thread. Each must be told by an event:
the looks of clients and workers that would find everything in any case are put off by an hour here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, as_completed, wait

import pytest

from pool.client import results
from pool.client.filepool import FilePool
from pool.client.future import JobFuture
from pool.errors import JobFailed, PoolClosed
from scenarios.world import World, wait_until

HOUR_S = 3600


@pytest.fixture(scope="module")
def world(make_shared: Callable[[str], World]) -> World:
    made = make_shared("waiting").configure(rescan_s=HOUR_S)
    made.serve(ready=2)
    return made


@pytest.fixture(scope="module")
def pool(world: World) -> Iterator[FilePool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_RESCAN_S", HOUR_S)
        yield world.pool()


def test_one_after_the_other(pool: FilePool) -> None:
    for number in range(50):
        assert pool.submit("fake", value=number).result(20)["value"] == number


@pytest.mark.parametrize("way", [lambda future: wait([future], 20), lambda future: future.result(20)])
def test_a_job_that_was_awaited_when_nothing_else_was_for_a_while(
    world: World, way: Callable[[JobFuture], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_RESCAN_S", 0.01)
    pool = world.pool()
    pool.submit("fake").result(20)
    pool.read_elsewhere()  # the thread wakes, and finds nothing to do
    wait_until(lambda: pool._results._dozing, "the pool's thread goes to sleep")
    monkeypatch.setattr(results, "_RESCAN_S", HOUR_S)
    future = pool.submit("fake")
    way(future)
    assert future.result(0)["attempt"] == 1


def test_wait_and_as_completed(pool: FilePool) -> None:
    done, rest = wait(pool.submit_many("fake", [{"value": n} for n in range(20)]), 20)
    assert (len(done), len(rest)) == (20, 0)
    futures = pool.submit_many("fake", [{"value": n} for n in range(20)])
    assert {future.result()["value"] for future in as_completed(futures, 20)} == set(range(20))
    slow, quick = pool.submit("fake", do="sleep", seconds=60), pool.submit("fake")
    assert wait([slow, quick], 20, FIRST_COMPLETED).done == {quick}
    slow.cancel()


def test_callbacks_and_asyncio(pool: FilePool) -> None:
    told = threading.Event()
    pool.submit("fake").add_done_callback(lambda _: told.set())
    assert told.wait(20)

    async def gather() -> list[int]:
        futures = pool.submit_many("fake", [{"value": n} for n in range(10)])
        values = await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, futures)), 20)
        return [value["value"] for value in values]

    assert asyncio.run(gather()) == list(range(10))


def test_asking_again_and_again(pool: FilePool) -> None:
    future = pool.submit("fake")
    wait_until(future.done, "done() says so", 20)
    assert future.result(0)["attempt"] == 1


def test_several_threads_at_once(pool: FilePool) -> None:
    values: list[int] = []

    def work(thread: int) -> None:
        values.extend(pool.submit("fake", value=[thread, n]).result(20)["value"] for n in range(30))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(values) == [[thread, n] for thread in range(4) for n in range(30)]


def test_one_caller_reads_while_another_waits_otherwise(pool: FilePool) -> None:
    slow, told = pool.submit("fake", do="sleep", seconds=60), threading.Event()

    def read() -> None:
        with pytest.raises(CancelledError):
            slow.result(40)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: slow.blocking, "somebody reads")
    pool.submit("fake").add_done_callback(lambda _: told.set())
    assert told.wait(20)
    assert not slow.decided
    slow.cancel()
    reader.join(20)
    assert not reader.is_alive()


def test_a_timeout_is_kept_and_the_result_comes_later(pool: FilePool) -> None:
    gates = [pool.submit("fake", do="sleep", seconds=60) for _ in range(2)]
    future = pool.submit("fake")
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        future.result(0.1)
    assert time.monotonic() - begun >= 0.1
    with pytest.raises(TimeoutError):
        future.exception(0)
    assert not any(gate.decided for gate in gates)
    for gate in gates:
        gate.cancel()
    assert future.exception(20) is None
    assert future.result(0)["attempt"] == 1


def test_failures_and_cancellations_are_raised_here(pool: FilePool) -> None:
    failed = pool.submit("fake", do="input")
    with pytest.raises(JobFailed):
        failed.result(20)
    assert isinstance(failed.exception(), JobFailed)


def test_closing_lets_go_of_those_who_wait(
    make_shared: Callable[[str], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next look, not when their own patience is over."""
    monkeypatch.setattr(results, "_RESCAN_S", 0.2)
    world = make_shared("closing").configure()
    pool = world.pool()  # nobody serves: the job stays where it is
    future = pool.submit("fake")
    errors: list[BaseException | None] = []
    waiting = threading.Thread(target=lambda: errors.append(future.exception(HOUR_S)), daemon=True)
    waiting.start()
    wait_until(lambda: future.blocking, "somebody waits")
    pool.close()
    waiting.join(40)
    assert isinstance(errors[0], PoolClosed)


def test_a_worker_that_came_too_late_takes_the_next_job(pool: FilePool) -> None:
    """It looks away for some milliseconds after losing a race, and must not miss what comes meanwhile: a job that only
    it can take."""
    for _ in range(3):
        pool.submit("fake").result(20)  # one of the two workers was too late for it
        slow = pool.submit("fake", do="sleep", seconds=60)
        assert pool.submit("fake").result(20)["attempt"] == 1
        assert not slow.decided
        slow.cancel()
        assert wait([slow], 20).done
