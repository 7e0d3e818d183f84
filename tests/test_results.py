"""Futures: resolved by records, however they are awaited, whatever happens to events, records and descriptors."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, as_completed, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from steps import claim_next, failing, record_of, seat

from pool import FilePool, JobFailed, PoolClosed, SpoolFull, SupervisorFailed, UnknownJob
from pool.client import results
from pool.config.settings import Config
from pool.constants import ARRAY_FILE_BYTES
from pool.errors import ProtocolError
from pool.format import codec
from pool.job import Failure, JobState
from pool.spool import fsops
from pool.spool.store import Claim, Spool
from pool.system.watch import Watcher


@pytest.fixture
def pool(spool: Spool, config: Config) -> Iterator[FilePool]:
    made = FilePool(config, start=False)
    yield made
    made.close()


class Hand:
    """Does by hand what a worker does."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.worker = seat(spool)

    def claim(self) -> Claim:
        return claim_next(self.spool, self.worker)

    def finish(self, value: Any = None, state: JobState = JobState.COMPLETED) -> str:
        claim = self.claim()
        self.spool.finish(claim, record_of(claim, state, {"n": 1} if value is None else value))
        return claim.name.id

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        threading.Timer(seconds, action).start()


@pytest.fixture
def hand(spool: Spool) -> Hand:
    return Hand(spool)


# ---- the three ends


def test_a_result_arrives_by_its_event(pool: FilePool, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_RESCAN_S", 3600.0)  # no look finds it before
    for _ in range(20):
        future = pool.submit("echo", a=1)
        claim = hand.claim()

        def finish(claim: Claim = claim) -> None:
            hand.spool.finish(claim, record_of(claim, value={"answer": 42}))

        hand.later(0.02, finish)
        assert future.result(timeout=10) == {"answer": 42}
    assert future.record is not None
    assert (future.record.attempt, future.record.worker) == (1, "echo-0.1")


def test_a_failure_is_raised_with_its_record_and_the_remote_trace(pool: FilePool, hand: Hand) -> None:
    future = pool.submit("echo")
    claim = hand.claim()
    failure = Failure(
        "engine",
        "division by zero",
        "inference",
        1,
        "ZeroDivisionError",
        traceback="Traceback …\n  x = 1 / 0\n",
        worker="echo-0.1",
    )
    hand.spool.finish(claim, replace(record_of(claim, JobState.FAILED), failure=failure))
    with pytest.raises(JobFailed, match="division by zero") as caught:
        future.result(timeout=10)
    assert caught.value.failure == failure
    assert caught.value.job_id == future.id
    assert any("x = 1 / 0" in note for note in getattr(caught.value, "__notes__", ["x = 1 / 0"]))
    error = future.exception()
    assert error is caught.value


def test_a_cancelled_job_is_a_cancelled_future(pool: FilePool, hand: Hand) -> None:
    future = pool.submit("echo")
    hand.finish(state=JobState.CANCELLED)
    with pytest.raises(CancelledError):
        future.result(timeout=10)
    assert future.cancelled()
    assert future.done()
    assert future.cancel() is True


def test_a_record_that_was_there_before(pool: FilePool, hand: Hand, config: Config) -> None:
    job_id = pool.submit("echo").id
    hand.finish({"n": 7})
    with FilePool(config, start=False) as later:  # after a restart of the caller
        assert later.attach(job_id).result(timeout=10) == {"n": 7}
        assert later.submit("echo", id="mine").id == "mine"
        hand.finish({"n": 8})
        assert later.submit("echo", id="mine").result(timeout=10) == {"n": 8}
        with pytest.raises(UnknownJob):
            later.attach("nobody")


def test_large_arrays_come_mapped(pool: FilePool, hand: Hand) -> None:
    future = pool.submit("echo", consume=True)
    hand.finish({"array": np.full(ARRAY_FILE_BYTES, 7, "u1")})
    array = future.result(timeout=10)["array"]
    assert isinstance(array, np.memmap)
    deadline = time.monotonic() + 40
    while os.listdir(hand.spool.root / "out"):  # consumed
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert int(array.sum()) == 7 * ARRAY_FILE_BYTES  # and still readable


# ---- every way of waiting


def test_wait_as_completed_callbacks_and_asyncio(pool: FilePool, hand: Hand) -> None:
    futures = [pool.submit("echo", n=n) for n in range(30)]
    called: list[str] = []
    futures[0].add_done_callback(lambda future: called.append(future.id))  # type: ignore[attr-defined]
    hand.later(0.05, lambda: [hand.finish() for _ in range(30)])
    assert {future.result(timeout=0) for future in as_completed(futures[:0])} == set()
    done, pending = wait(futures[:10], timeout=10)
    assert (len(done), len(pending)) == (10, 0)
    assert len(list(as_completed(futures, timeout=10))) == 30
    assert called == [futures[0].id]

    async def gather() -> list[Any]:
        mine = [pool.submit("echo") for _ in range(5)]
        hand.later(0.05, lambda: [hand.finish({"n": 5}) for _ in range(5)])
        return await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, mine)), 10)

    assert asyncio.run(gather()) == [{"n": 5}] * 5


def test_many_threads_wait_for_one_future_and_for_many(pool: FilePool, hand: Hand) -> None:
    shared = pool.submit("echo")
    own = [pool.submit("echo") for _ in range(8)]
    values: list[Any] = []
    threads = [
        threading.Thread(target=lambda f=future: values.append(f.result(timeout=10)))  # type: ignore[misc]
        for future in [shared] * 8 + own
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    for _ in range(9):
        hand.finish()
    for thread in threads:
        thread.join(10)
    assert values == [{"n": 1}] * 16
    assert pool.pending() == []


def test_asking_again_and_again_sees_the_end(pool: FilePool, hand: Hand) -> None:
    future = pool.submit("echo")
    hand.later(0.1, hand.finish)
    deadline = time.monotonic() + 10
    while not future.done():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert future.result(timeout=0) == {"n": 1}


def test_a_timeout_is_a_timeout_and_the_job_goes_on(pool: FilePool, hand: Hand) -> None:
    future = pool.submit("echo")
    for seconds in (0, 0.1):
        begun = time.monotonic()
        with pytest.raises(FutureTimeout):
            future.result(timeout=seconds)
        assert time.monotonic() - begun >= seconds
    hand.finish()
    assert future.result(timeout=10) == {"n": 1}


def test_two_futures_of_one_job(pool: FilePool, hand: Hand) -> None:
    one, two = pool.submit("echo", id="mine"), pool.submit("echo", id="mine")
    hand.finish()
    assert one.result(timeout=10) == two.result(timeout=10) == {"n": 1}


def test_one_thread_is_enough(pool: FilePool, hand: Hand) -> None:
    before = threading.active_count()
    futures = [pool.submit("echo") for _ in range(50)]
    wait(futures[:1], timeout=0.05)
    assert threading.active_count() <= before + 1
    for _ in futures:
        hand.finish()
    assert len(wait(futures, timeout=10).done) == 50


# ---- when something is wrong


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No event ever comes. How long each sleep was to be, in seconds."""
    slept: list[float] = []

    def sleep(self: Watcher, timeout: float) -> bool:
        slept.append(timeout)
        time.sleep(timeout)
        return False

    monkeypatch.setattr(Watcher, "wait", sleep)
    return slept


@pytest.mark.parametrize("count", [1, results._LIST_FROM + 5])
@pytest.mark.parametrize("how", ["result", "wait"])
@pytest.mark.invariant(19)
def test_without_events_the_rescan_finds_everything(
    pool: FilePool, hand: Hand, deaf: list[float], count: int, how: str
) -> None:
    futures = [pool.submit("echo") for _ in range(count)]
    for _ in futures:
        hand.finish()
    deaf.clear()
    if how == "wait":
        assert len(wait(futures, timeout=10).done) == count
    else:
        assert [future.result(timeout=10) for future in futures] == [{"n": 1}] * count
    assert sum(deaf) <= 2 * results._RESCAN_S, "one look finds them all"


@pytest.mark.invariant(19)
def test_spurious_events_change_nothing(pool: FilePool, hand: Hand, hostile_names: tuple[bytes, ...]) -> None:
    future = pool.submit("echo")
    out = hand.spool.root / "out"
    for name in hostile_names:
        if not name.endswith(b".msgpack"):
            os.close(os.open(os.path.join(os.fsencode(out), name), os.O_CREAT))
    (out / "another-job.msgpack").write_bytes(b"\xc1")
    (out / future.id).mkdir()
    with pytest.raises(FutureTimeout):
        future.result(timeout=0.1)
    hand.finish()
    assert future.result(timeout=10) == {"n": 1}


def test_a_record_without_a_reason_is_the_end_of_its_future_alone(pool: FilePool, hand: Hand, spool: Spool) -> None:
    first, second = pool.submit("echo", id="first"), pool.submit("echo", id="second")
    claim = hand.claim()
    bare = record_of(claim, JobState.FAILED).to_map()
    del bare["failure"]
    assert spool.put_first(spool.record_path("first"), codec.encode(bare), False)
    with pytest.raises(ProtocolError, match="without a reason"):
        first.result(20)
    hand.finish({"n": 2})
    assert second.result(20) == {"n": 2}


def test_a_damaged_record_is_the_end_of_its_future_alone(pool: FilePool, hand: Hand) -> None:
    bad, good = pool.submit("echo", n=1), pool.submit("echo", n=2)
    Path(hand.spool.record_path(bad.id)).write_bytes(b"\xc1")
    with pytest.raises(ProtocolError, match="not valid msgpack"):
        bad.result(timeout=10)
    hand.claim()
    hand.finish()
    assert good.result(timeout=10) == {"n": 1}


def test_an_array_file_that_is_gone_is_the_end_of_its_future_alone(pool: FilePool, hand: Hand) -> None:
    bad, good = pool.submit("echo", n=1), pool.submit("echo", n=2)
    claim = hand.claim()
    record = record_of(claim, value={"array": np.zeros(ARRAY_FILE_BYTES, "u1")})

    def hook(operation: str, path: str) -> None:
        if operation == "publish":
            fsops.remove_tree(str(hand.spool.files_dir(bad.id)))

    fsops.hook = hook
    hand.spool.finish(claim, record)
    fsops.hook = None
    with pytest.raises(ProtocolError, match="array file"):
        bad.result(timeout=10)
    hand.finish()
    assert good.result(timeout=10) == {"n": 1}


@pytest.mark.parametrize("how", ["result", "wait"])
def test_a_moment_without_descriptors_is_no_failed_job(
    pool: FilePool, hand: Hand, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    future = pool.submit("echo")
    real, refused = Spool.read_record, []

    def refuse(self: Spool, job_id: str, **more: Any) -> Any:
        if len(refused) < 2:
            refused.append(job_id)
            raise OSError(errno.EMFILE, "Too many open files")
        return real(self, job_id, **more)

    monkeypatch.setattr(Spool, "read_record", refuse)
    hand.finish()
    if how == "wait":
        wait([future], timeout=10)
    assert future.result(timeout=10) == {"n": 1}
    assert len(refused) == 2


@pytest.mark.parametrize("error", [SupervisorFailed("no"), OSError(errno.EAGAIN, "no more processes")])
@pytest.mark.parametrize("how", ["result", "wait"])
def test_a_supervisor_that_cannot_be_started_ends_no_waiting(
    pool: FilePool, hand: Hand, monkeypatch: pytest.MonkeyPatch, error: Exception, how: str
) -> None:
    asked = []

    def fail(_: object) -> None:
        asked.append(1)
        raise error

    monkeypatch.setattr(pool, "on_look", fail)
    future = pool.submit("echo")
    hand.later(1.5, hand.finish)
    if how == "wait":
        wait([future], timeout=10)
    assert future.result(timeout=10) == {"n": 1}
    assert asked


def test_the_directory_of_records_is_renewed_under_our_feet(pool: FilePool, hand: Hand) -> None:
    future = pool.submit("echo")
    fsops.renew_dir(str(hand.spool.root / "out"), hand.spool.temp())
    hand.later(0.1, hand.finish)
    assert future.result(timeout=10) == {"n": 1}


@pytest.mark.parametrize("how", ["submit", "submit_many", "map"])
def test_what_was_not_accepted_is_not_waited_for(spool: Spool, config: Config, how: str) -> None:
    """Else the end of the `with` block would wait for ever."""
    calls: dict[str, Callable[[FilePool], object]] = {
        "submit": lambda pool: pool.submit("echo", n=1),
        "submit_many": lambda pool: pool.submit_many("echo", [{"n": n} for n in range(5)]),
        "map": lambda pool: pool.map("echo", [{"n": n} for n in range(5)]),
    }
    with FilePool(config, start=False) as pool:
        for number in range(1, 12):
            failing(number, lambda path: OSError(errno.ENOSPC, "No space left", path))
            try:
                calls[how](pool)
                break
            except (SpoolFull, OSError):
                assert pool.pending() == []
            finally:
                fsops.hook = None
        assert number > 1
        pool.close()


# ---- consuming


@pytest.mark.parametrize("after_s", [results._TIDY_S / 2, 5 * results._TIDY_S], ids=["soon", "later"])
@pytest.mark.parametrize("others", [False, True], ids=["nothing else awaited", "something else awaited"])
def test_a_consumed_record_leaves_nothing_once_its_claim_is_gone(
    pool: FilePool, hand: Hand, after_s: float, others: bool
) -> None:
    """Also of a worker that is slow to tidy, on a crowded machine."""
    future = pool.submit("echo", consume=True)
    claim = hand.claim()
    if others:
        pool.submit("echo")
    record = record_of(claim)
    kept = Path(claim.path).read_bytes()
    hand.spool.finish(claim, record)
    Path(claim.path).write_bytes(kept)  # RACE: the record is out, the claim not yet gone
    hand.later(after_s, lambda: os.unlink(claim.path))
    future.result(timeout=10)
    deadline = time.monotonic() + 40
    while hand.spool.decided(future.id):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_record_whose_claim_stays_is_kept(pool: FilePool, hand: Hand) -> None:
    """Its worker was killed in that moment: without the record, recovery would run the job again."""
    future = pool.submit("echo", consume=True)
    claim = hand.claim()
    kept = Path(claim.path).read_bytes()
    hand.spool.finish(claim, record_of(claim))
    Path(claim.path).write_bytes(kept)
    future.result(timeout=10)
    time.sleep(2 * results._TIDY_S)
    assert hand.spool.decided(future.id)


# ---- the end of the pool


def test_closing_resolves_what_waits_and_the_job_goes_on(spool: Spool, config: Config, hand: Hand) -> None:
    pool = FilePool(config, start=False)
    futures = [pool.submit("echo") for _ in range(3)]
    errors: list[BaseException | None] = []
    threads = [threading.Thread(target=lambda f=f: errors.append(f.exception(timeout=10))) for f in futures]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    pool.close()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in errors] == [PoolClosed] * 3
    with pytest.raises(PoolClosed):
        pool.submit("echo")
    with FilePool(config, start=False) as later:
        again = later.attach(futures[0].id)
        hand.finish()
        assert again.result(timeout=10) == {"n": 1}
        later.close(wait=False)


def test_closing_leaves_no_descriptor_and_no_thread(spool: Spool, config: Config) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        pool = FilePool(config, start=False)
        pool.submit("echo").add_done_callback(lambda _: None)
        pool.close()
    deadline = time.monotonic() + 40
    while descriptors() > before or threading.active_count() > threads:
        assert time.monotonic() < deadline, (descriptors(), before, threading.enumerate())
        time.sleep(0.01)
