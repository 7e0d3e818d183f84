"""Jobs leave the queue in the order of their names, but for what the bound allows; a job that starves breaks it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scenarios.world import World

from pool.format.names import FIRST_BEHIND, job_name

from .fairness import BEHIND_S, Order, Witness

SLOTS = 2


def name(number: int, priority: int = 0, *, behind: bool = False) -> str:
    """Of the job submitted as the n-th. behind: it has ended a worker."""
    made = job_name(priority, 10**15 + number, f"j{number}")
    return str(made.claimed().behind() if behind else made)


def test_what_workers_had_chosen_before_it_came_may_go_first() -> None:
    order = Order()
    for number in (1, 2, 3):
        order.came(name(number), 0.0)
    order.came(name(4, priority=5), 1.0)
    for number in (1, 2):
        order.went(name(number), 1.0)
    order.went(name(4, priority=5), 1.1)
    order.went(name(3), 1.2)
    assert order.unfair(SLOTS) == []
    assert [stay.ordinary for stay in order.over] == [[], [], ["j1", "j2"], []]
    assert order.summary(SLOTS)["longest wait"] == {"seconds": 1.2, "were before it": 2, "began meanwhile": 3}


def test_the_newest_first_breaks_the_bound() -> None:
    order = Order()
    for number in range(5):
        order.came(name(number), 0.0)
    for number in (4, 3, 2, 1, 0):
        order.went(name(number), 1.0)
    assert [text.split()[0] for text in order.unfair(SLOTS)] == [name(1), name(0)]
    assert order.unfair(SLOTS, not_taken=("j4", "j3")) == []
    told = order.unfair(SLOTS, takers={"j4": "fake-0.1", "j3": "fake-1.2"})[0]
    assert told.endswith(": j4 by fake-0.1, j3 by fake-1.2, j2 by nobody known")


@pytest.mark.parametrize(("seconds", "most"), [(BEHIND_S - 1, SLOTS), (BEHIND_S + 1, 2 * SLOTS)])
def test_jobs_that_ended_a_worker_go_first_once_per_slot_and_half_a_minute(seconds: float, most: int) -> None:
    for count, fair in ((most, True), (most + 1, False)):
        order = Order()
        order.came(name(100), 0.0)
        for number in range(count):
            assert name(number, behind=True) > FIRST_BEHIND
            order.came(name(number, behind=True), 0.0)
            order.went(name(number, behind=True), 0.5)
        order.went(name(100), seconds)
        assert (order.unfair(SLOTS) == []) is fair


def test_events_that_were_lost_judge_nobody() -> None:
    order = Order()
    order.came(name(1), 0.0)
    order.anew([name(2), "no job"], 1.0)
    order.went(name(1), 1.5)
    order.went(name(2), 2.0)
    assert [stay.name for stay in order.over] == [name(2)]
    assert order.lost == 1


@pytest.mark.long
def test_a_real_queue_is_left_in_order_while_jobs_kill_their_workers(tmp_path: Path) -> None:
    world = World(tmp_path).configure({"fake": {"max_concurrent_tasks": SLOTS, "start_limit": 100}})
    try:
        world.serve(ready=SLOTS)
        witness, rng, pool = Witness(world.spool / "ready" / "fake"), random.Random(5), world.pool()
        try:
            pool.submit_many("fake", [{"do": "kill"}] * 4, retry_times=1)
            futures = []
            for _ in range(40):
                calls = [{"do": "sleep", "seconds": 0.002}] * 5
                futures += pool.submit_many("fake", calls, priority=rng.randint(-3, 3))
            assert all(future.result(60)["attempt"] == 1 for future in futures)
        finally:
            witness.close()
        assert witness.order.unfair(SLOTS) == []
        assert witness.order.lost == 0
        assert len(witness.order.over) == 204
    finally:
        world.close()
