"""Cancelling: whatever the job is doing, its record says cancelled, and no other job is hit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_all

import pytest

from pool.client.future import JobFuture
from pool.constants import Phase
from pool.job import JobState, Record
from scenarios.test_workers import children_of
from scenarios.world import World, alive, wait_until


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    world = make_shared("cancel")
    world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
    return world


def cancelled(future: JobFuture) -> Record:
    """The record of a job that must end as cancelled."""
    with pytest.raises(CancelledError):
        future.result(30)
    record = future.record
    assert record is not None
    assert record.state is JobState.CANCELLED
    assert record.failure is not None
    assert record.failure.kind == "cancelled"
    assert "cancelled" in record.failure.message
    return record


def test_queued(shared: World) -> None:
    """It never starts; one behind it does."""
    pool = shared.pool()
    first = pool.submit("fake", do="sleep", seconds=60)
    shared.worker_of(first.id)
    victim = pool.submit("fake", value="victim")
    last = pool.submit("fake", value="last")
    assert victim.cancel()
    assert cancelled(victim).attempt == 0
    assert not victim.cancel() or victim.cancelled()
    first.cancel()
    assert last.result(30)["attempt"] == 1
    wait_until(lambda: not shared.names("run/control"), "the request is taken away")
    assert pool.state(victim.id) is JobState.CANCELLED


def test_deferred(shared: World) -> None:
    """A retry that waits for its time is cancelled at once, with the reason of the attempt before on record."""
    pool = shared.pool()
    victim = pool.submit("fake", do="resource")
    wait_until(lambda: pool.state(victim.id) is JobState.DEFERRED, "the retry waits")
    victim.cancel()
    record = cancelled(victim)
    assert [one.kind for one in record.attempts] == ["resource"]
    wait_until(lambda: not shared.held(), "its file is gone")


def test_running_and_listening(shared: World) -> None:
    """An engine that looks at the request ends by itself; the worker and its model stay."""
    pool = shared.pool()
    (before,) = shared.loaded()
    victim = pool.submit("fake", do="sleep", seconds=60)
    behind = pool.submit("fake", value="behind")
    shared.worker_of(victim.id)
    victim.cancel()
    assert cancelled(victim).worker == before
    assert behind.result(30)["value"] == "behind"
    assert list(shared.loaded()) == [before]


def test_running_and_deaf_with_children(shared: World) -> None:
    """One that does not listen is killed with its grandchildren; the next job on that slot is not."""
    pool = shared.pool()
    victim = pool.submit("fake", do="deaf", seconds=60)
    behind = pool.submit_many("fake", [{"value": n} for n in range(5)])
    name, pid = shared.worker_of(victim.id)
    victim.cancel()
    record = cancelled(victim)
    assert record.worker == name
    assert not alive(pid)
    assert [one.result(30)["value"] for one in behind] == list(range(5))
    assert all(one.record is not None and not one.record.attempts for one in behind)


def test_children_go_with_a_cancelled_job(shared: World) -> None:
    """do=children listens, but what it started does not: gone with the process that the cancellation ends."""
    pool = shared.pool()
    deaf = pool.submit("fake", do="children", seconds=60)
    children = children_of(shared, deaf.id)
    _, pid = shared.worker_of(deaf.id)
    deaf.cancel()
    cancelled(deaf)
    after = pool.submit("fake", do="kill", until_attempt=1)  # ends the worker, and with it whatever it has left
    assert after.result(30)["attempt"] == 2
    assert not alive(pid)
    assert not any(alive(child) for child in children)


@pytest.mark.long
def test_the_next_job_is_never_hit(shared: World) -> None:
    """Cancelling what is just finishing, again and again: either it was done, or it is cancelled; nobody else is."""
    pool = shared.pool()
    victims, others = [], []
    for number in range(8):
        victims.append(pool.submit("fake", do="deaf", seconds=0.30 + 0.004 * number))
        others.append(pool.submit("fake", do="deaf", seconds=0.02, value=number))
        wait_until(lambda victim=victims[-1]: victim.running() or victim.done(), "it has begun")  # type: ignore[misc]
        victims[-1].cancel()  # the grace of 0.3 s is over just as the job ends
        if number % 4 == 3:
            wait_all(victims, 30)
    assert [other.result(30)["value"] for other in others] == list(range(8))
    assert all(other.record is not None and not other.record.attempts for other in others)
    states = [pool.state(victim.id) for victim in victims]
    assert set(states) <= {JobState.CANCELLED, JobState.COMPLETED}
    wait_until(lambda: not shared.names("run/control"), "no request is left")


def test_cancel_from_another_process_by_id_and_when_it_is_over(shared: World) -> None:
    pool, other = shared.pool(), shared.pool()
    victim = pool.submit("fake", do="sleep", seconds=60)
    shared.worker_of(victim.id)
    assert other.cancel(victim.id)
    cancelled(victim)
    assert other.cancel(victim.id), "it is cancelled already"
    done = pool.submit("fake", value=1)
    done.result(30)
    assert not other.cancel(done.id)
    assert pool.state(done.id) is JobState.COMPLETED


def test_one_of_a_batch(world: World) -> None:
    """The others of its batch are not lost, and not charged."""
    (world.folder / "batcher.py").write_text(
        "import time\nfrom inference.fake import Fake\n"
        "class Batcher(Fake):\n"
        "    def run_batch(self, batch, contexts):\n"
        "        for _ in range(500):\n"
        "            for context in contexts:\n"
        "                context.check()\n"
        "                context.progress('inference', 50, f'{len(batch)} at once')\n"
        "            time.sleep(0.02)\n"
    )
    world.configure(
        {
            "fake": {
                "engine": "batcher:Batcher",
                "pythonpath": [str(world.folder)],
                "max_concurrent_tasks": 1,
                "max_batch": 4,
                "batch_wait_ms": 300,
            }
        }
    ).serve(ready=1)
    pool = world.pool()
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.2, "value": n} for n in range(4)])
    wait_until(lambda: pool.progress_of(futures[3].id).message == "4 at once", "the batch")
    futures[1].cancel()
    cancelled(futures[1])
    for number in (0, 2, 3):
        result = futures[number].result(30)
        assert (result["value"], result["attempt"]) == (number, 1)


def test_while_draining(world: World) -> None:
    """A drain waits for a long job; a cancellation of that job lets it end."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}, drain_grace_s=600).serve(ready=1)
    pool = world.pool()
    running = pool.submit("fake", do="sleep", seconds=600)
    waiting = pool.submit("fake", do="sleep", seconds=600)
    world.worker_of(running.id)
    world.serving[-1].terminate()
    wait_until(lambda: world.status().get("draining"), "the drain")
    assert {beat.phase for beat in world.beats().values()} == {Phase.BUSY}
    waiting.cancel()
    running.cancel()
    cancelled(running)
    cancelled(waiting)
    assert world.serving[-1].wait(40) == 0
    assert world.held() == []
