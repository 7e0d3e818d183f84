"""Every way to wait for a future, alone and beside others: result(), wait, as_completed, callbacks, asyncio, polling.

`result()` reads the spool on the caller's thread; the others need the pool's own thread. Each must be told within
a moment, not at the next look once a second.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, as_completed, wait

import pytest

from pool.client import FilePool
from pool.errors import JobFailed, PoolClosed
from scenarios.world import World

SOON_S = 0.7  # less than the look once a second that would find a result in any case


@pytest.fixture(scope="module")
def pool(make_shared: Callable[[str], World]) -> FilePool:
    world = make_shared("waiting").configure()
    world.serve(ready=2)
    return world.pool()


def soon(call: Callable[[], object]) -> None:
    """The best of three: the machine may be busy with other things."""
    spent = []
    for _ in range(3):
        begun = time.monotonic()
        call()
        spent.append(time.monotonic() - begun)
        if spent[-1] < SOON_S:
            return
    raise AssertionError(f"took {spent} s")


def test_one_after_the_other(pool: FilePool) -> None:
    for number in range(50):
        soon(lambda n=number: pool.submit("fake", value=n).result(20))  # type: ignore[misc]


def test_a_job_that_was_awaited_when_nothing_else_was_for_a_while(pool: FilePool) -> None:
    pool.submit("fake").result(20)
    time.sleep(2.2)  # the pool's thread has gone to sleep
    soon(lambda: wait([pool.submit("fake")], 20))
    time.sleep(2.2)
    soon(lambda: pool.submit("fake").result(20))


def test_wait_and_as_completed(pool: FilePool) -> None:
    def all_of_them() -> None:
        futures = pool.submit_many("fake", [{"value": n} for n in range(20)])
        done, rest = wait(futures, 20)
        assert len(done) == 20
        assert not rest

    def one_by_one() -> None:
        futures = pool.submit_many("fake", [{"value": n} for n in range(20)])
        assert {future.result()["value"] for future in as_completed(futures, 20)} == set(range(20))

    def the_first() -> None:
        slow = pool.submit("fake", do="sleep", seconds=3)
        quick = pool.submit("fake")
        done, _ = wait([slow, quick], 20, FIRST_COMPLETED)
        assert quick in done
        slow.cancel()

    for way in (all_of_them, one_by_one, the_first):
        soon(way)


def test_callbacks_and_asyncio(pool: FilePool) -> None:
    def called() -> None:
        told = threading.Event()
        pool.submit("fake").add_done_callback(lambda _: told.set())
        assert told.wait(20)

    async def gather() -> list[int]:
        futures = pool.submit_many("fake", [{"value": n} for n in range(10)])
        return [r["value"] for r in await asyncio.gather(*map(asyncio.wrap_future, futures))]

    soon(called)
    soon(lambda: asyncio.run(gather()) == list(range(10)))


def test_asking_again_and_again(pool: FilePool) -> None:
    def poll() -> None:
        future = pool.submit("fake")
        while not future.done():
            time.sleep(0.001)
        assert future.result()["attempt"] == 1

    soon(poll)


def test_several_threads_at_once(pool: FilePool) -> None:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(30):
                assert pool.submit("fake", value=number).result(20)["value"] == number
        except BaseException as error:
            problems.append(error)

    def together() -> None:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert not problems

    begun = time.monotonic()
    together()
    assert time.monotonic() - begun < 20  # 120 jobs; a result found only by a look would take a second each


def test_one_caller_reads_while_another_waits_otherwise(pool: FilePool) -> None:
    def both() -> None:
        slow = pool.submit("fake", do="sleep", seconds=0.3)
        told = threading.Event()
        reader = threading.Thread(target=slow.result, args=(20,))
        reader.start()
        pool.submit("fake").add_done_callback(lambda _: told.set())
        assert told.wait(20)
        reader.join(20)

    soon(both)


def test_a_timeout_is_kept_and_the_result_comes_later(pool: FilePool) -> None:
    future = pool.submit("fake", do="sleep", seconds=0.6)
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        future.result(0.1)
    assert 0.09 < time.monotonic() - begun < 0.5
    with pytest.raises(TimeoutError):
        future.exception(0)
    assert future.exception(20) is None
    assert future.result(0)["attempt"] == 1


def test_failures_and_cancellations_are_raised_here(pool: FilePool) -> None:
    failed = pool.submit("fake", do="input")
    with pytest.raises(JobFailed):
        failed.result(20)
    assert isinstance(failed.exception(), JobFailed)


def test_closing_lets_go_of_those_who_wait(make_shared: Callable[[str], World]) -> None:
    world = make_shared("closing").configure()
    pool = world.pool()  # nobody serves: the job stays where it is
    future = pool.submit("fake")
    errors: list[BaseException | None] = []
    waiting = threading.Thread(target=lambda: errors.append(future.exception(20)))
    waiting.start()
    time.sleep(0.1)
    begun = time.monotonic()
    pool.close()
    waiting.join(20)
    assert time.monotonic() - begun < 3
    assert isinstance(errors[0], PoolClosed)


def test_a_worker_that_came_too_late_takes_the_next_job(pool: FilePool) -> None:
    """It looks away for some milliseconds after losing a race; a job that only it can take must not wait longer."""

    def beside_a_busy_one() -> None:
        pool.submit("fake").result(20)  # one of the two workers was too late for it
        slow = pool.submit("fake", do="sleep", seconds=5)
        assert pool.submit("fake").result(4)["attempt"] == 1
        slow.cancel()
        wait([slow], 20)

    soon(beside_a_busy_one)
