"""The restart policy with a clock of plain floats: nothing is started, nothing waits."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.constants import EXIT_CONFIG, EXIT_DRAINED, EXIT_LOAD, EXIT_MISSING, EXIT_RECYCLE
from pool.policy.backoff import Backoff, retry_delay
from pool.supervise.judge import Limit
from pool.supervise.restart import OCCUPIED, Bench, BenchReason, End, Limits, Recycle, Seat, SlotPolicy


class Middle(random.Random):
    """No jitter: always the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def policy(**limits: float) -> SlotPolicy:
    return SlotPolicy(Limits(**limits), Middle())  # type: ignore[arg-type]


def run(slot: SlotPolicy, now: float, code: int | None = None, signal: str | None = None, **how: object) -> End:
    slot.started(now)
    return slot.exited(now, code, signal, **how)  # type: ignore[arg-type]


def test_backoff_doubles_to_its_ceiling_and_resets() -> None:
    backoff = Backoff(1.0, 60.0, Middle())
    assert [backoff.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next() == 1


@given(st.integers(), st.integers(0, 80))
def test_jitter_stays_within_a_fifth(seed: int, tries: int) -> None:
    backoff = Backoff(1.0, 60.0, random.Random(seed))
    delays = [backoff.next() for _ in range(tries)]
    assert all(0.8 * min(60, 2.0**n) <= delay <= 1.2 * min(60, 2.0**n) for n, delay in enumerate(delays))


def test_two_slots_do_not_come_back_together() -> None:
    rng = random.Random(1)
    a, b = SlotPolicy(Limits(), rng), SlotPolicy(Limits(), rng)
    for slot in (a, b):
        run(slot, 0.0, EXIT_LOAD)
    assert a.next_start_at != b.next_start_at


@pytest.mark.invariant(30)
def test_load_failures_start_exactly_as_often_as_the_limit() -> None:
    slot, now, starts = policy(), 0.0, []
    while slot.seat is not Seat.BENCHED:
        assert slot.due(now)
        starts.append(now)
        run(slot, now + 3, EXIT_LOAD)
        now = slot.next_start_at
    assert starts == [0, 4, 9, 16, 27]
    assert slot.benched is not None
    assert slot.benched.reason is BenchReason.START_LIMIT
    assert (slot.benched.count, slot.benched.exit_code) == (5, EXIT_LOAD)
    assert "5 starts failed" in str(slot.benched)
    assert "the engine failed to load" in str(slot.benched)
    assert slot.next_start_at == 27 + 3 + 900


def test_slow_loads_count_however_long_they_take() -> None:
    slot, now = policy(), 0.0
    for _ in range(5):
        slot.started(now)
        now += 600  # ten minutes, then it fails
        slot.exited(now, EXIT_LOAD)
        now = max(now, slot.next_start_at)
    assert slot.seat is Seat.BENCHED


def test_deaths_after_ready_age_out_and_reset_the_backoff() -> None:
    slot, now = policy(), 0.0
    for _ in range(20):  # an idle worker that somebody kills every ten minutes
        slot.started(now)
        slot.ready(now)
        slot.ready(now + 500)  # said again: no difference
        now += 600
        assert slot.exited(now, None, "SIGKILL") is End.FAILED_START
        assert slot.seat is Seat.WAITING
        assert slot.next_start_at == now + 1
        now = slot.next_start_at


def test_flapping_after_ready_is_benched() -> None:
    slot, now = policy(), 0.0
    for _ in range(5):
        slot.started(now)
        slot.ready(now)
        slot.exited(now + 1, None, "SIGSEGV")
        now = slot.next_start_at
    assert slot.seat is Seat.BENCHED
    assert "SIGSEGV" in str(slot.benched)


def test_configuration_error_benches_at_once() -> None:
    slot = policy(bench_s=10)
    assert run(slot, 5.0, EXIT_CONFIG) is End.CONFIG
    assert run(policy(), 5.0, EXIT_CONFIG, job_id="a") is End.CRASHED_JOB
    assert "config.json" in str(slot.benched)
    assert not slot.due(14.9)
    assert slot.due(15.0)


def test_what_is_not_installed_benches_at_once_and_blames_no_configuration() -> None:
    slot = policy(bench_s=10)
    assert run(slot, 5.0, EXIT_MISSING) is End.MISSING
    assert run(policy(), 5.0, EXIT_MISSING, job_id="a") is End.CRASHED_JOB
    assert slot.benched is not None
    assert slot.benched.reason is BenchReason.MISSING
    assert "config" not in str(slot.benched)
    assert slot.due(15.0)


@pytest.mark.parametrize("code", [EXIT_DRAINED, EXIT_RECYCLE])
def test_planned_codes_are_believed_only_after_a_finished_job(code: int) -> None:
    slot = policy()
    slot.started(0)
    slot.finished_job(1)
    assert slot.exited(2, code) is End.PLANNED
    assert slot.due(2)
    assert run(slot, 3, code) is End.FAILED_START  # an engine that calls exit(0) while loading
    assert run(slot, 10, code, job_id="a") is End.CRASHED_JOB  # or in the middle of a job


def test_an_engine_that_exits_0_at_load_is_benched() -> None:
    slot = policy()
    for n in range(5):
        run(slot, float(n), EXIT_DRAINED)
    assert slot.seat is Seat.BENCHED


def test_ended_on_purpose_is_at_once_and_free() -> None:
    slot = policy()
    for n in range(50):
        assert run(slot, float(n), None, "SIGKILL", planned=True) is End.PLANNED
        assert slot.due(float(n))


def test_jobs_that_end_their_worker_neither_count_nor_delay() -> None:
    """Only failed starts wait: a crash is no fault of the slot."""
    slot, now = policy(), 0.0
    for n in range(50):
        assert run(slot, now, None, "SIGSEGV", job_id=f"poison-{n // 3}") is End.CRASHED_JOB
        assert slot.seat is Seat.WAITING
        assert slot.due(now)
        now += 1
    assert run(slot, now, EXIT_LOAD) is End.FAILED_START
    assert slot.next_start_at == now + 1


def test_probation_benches_at_the_first_failed_start() -> None:
    slot = policy(bench_s=100)
    run(slot, 0, EXIT_CONFIG)
    run(slot, 100, EXIT_LOAD)
    assert slot.seat is Seat.BENCHED
    assert slot.next_start_at == 200
    slot.started(200)
    slot.finished_job(201)
    slot.exited(202, None, "SIGSEGV")
    assert slot.seat is Seat.WAITING


def test_the_operator_brings_a_slot_back_with_a_clean_slate() -> None:
    slot = policy()
    for n in range(5):
        run(slot, float(n), EXIT_LOAD)
    slot.recover(50)
    assert slot.benched is None
    assert slot.due(50)
    assert run(slot, 50, EXIT_LOAD) is End.FAILED_START
    assert slot.next_start_at == 51


# --- the bench of a sick slot; when, is decided in `blame`


def test_benched_while_its_process_lives() -> None:
    slot = policy(bench_s=100)
    slot.started(0)
    slot.bench(20, Bench(BenchReason.SICK, 6))
    assert slot.seat is Seat.ENDING
    assert "6 different jobs" in str(slot.benched)
    slot.exited(25, None, "SIGKILL", planned=True)
    assert slot.seat is Seat.BENCHED
    assert not slot.due(119)
    assert slot.due(120)


def test_benched_between_two_processes() -> None:
    slot = policy(bench_s=100)
    slot.bench(20, Bench(BenchReason.SICK, 6))
    assert slot.seat is Seat.BENCHED
    assert not slot.due(119)
    slot.bench(30, Bench(BenchReason.SICK, 7))  # it is already
    assert slot.due(120)


def test_recover_spares_a_slot_that_is_about_to_end() -> None:
    slot = policy()
    slot.started(0)
    slot.bench(20, Bench(BenchReason.SICK, 6))
    slot.recover(21)
    assert slot.seat is Seat.RUNNING
    assert slot.benched is None


# --- transitions


def test_retired_slots_stay_off_until_wanted() -> None:
    slot = policy()
    slot.started(0)
    slot.retire()
    slot.retire()
    slot.exited(1, EXIT_DRAINED)
    assert not slot.due(1e9)
    slot.recover(5)
    assert slot.due(5)


def test_guarded_transitions() -> None:
    slot = policy()
    slot.started(0)
    with pytest.raises(AssertionError, match="running to running"):
        slot.started(1)
    waiting = policy()
    with pytest.raises(AssertionError, match="waiting to waiting"):
        waiting.exited(0, 3)


def test_adoption_is_no_start() -> None:
    slot = policy()
    slot.adopted(0)
    assert (slot.seat, slot.starts) == (Seat.RUNNING, 0)


EVENTS = ["start", "load", "crash", "job", "done", "bench", "planned", "recover", "wait"]


@given(st.lists(st.sampled_from(EVENTS), max_size=60))
@pytest.mark.invariant(30)
def test_any_history_keeps_its_promises(history: list[str]) -> None:
    slot, now = policy(), 0.0
    for jobs, event in enumerate(history):
        now += 1
        if event == "start" and slot.due(now):
            slot.started(now)
        elif event in ("load", "crash", "job", "planned") and slot.seat in OCCUPIED:
            slot.exited(
                now,
                EXIT_LOAD if event == "load" else None,
                None if event == "load" else "SIGSEGV",
                planned=event == "planned",
                job_id=str(jobs) if event == "job" else None,
            )
        elif event == "done" and slot.seat is Seat.RUNNING:
            slot.finished_job(now)
        elif event == "bench":
            slot.bench(now, Bench(BenchReason.SICK, 6))
        elif event == "recover":
            slot.recover(now)
        elif event == "wait":
            now += 1000
        if slot.seat in (Seat.BENCHED, Seat.ENDING):
            assert slot.benched
        if slot.seat is Seat.WAITING:
            assert slot.benched is None
            assert slot.next_start_at <= now + 72
        assert slot.due(now + 1000) or slot.seat in OCCUPIED  # nobody is forgotten


# --- recycling and retries


def test_recycle_for_each_reason() -> None:
    recycle = Recycle(Middle(0), max_jobs=9, growth_bytes=100 << 20, gpu_bytes=2 << 30)
    assert recycle.max_jobs == 9
    assert recycle.met(8, warm_rss=500 << 20, rss=600 << 20, gpu_bytes=2 << 30) is None
    assert recycle.met(9) == Limit("recycle.max_jobs", 9, 9)
    assert recycle.met(1, warm_rss=500 << 20, rss=601 << 20) == Limit("recycle.memory_growth_mb", 100, 101)
    assert recycle.met(1, gpu_bytes=(2 << 30) + (1 << 20)) == Limit("recycle.gpu_memory_mb", 2048, 2049)
    assert Recycle(Middle()).met(10**9, rss=10**15, gpu_bytes=10**15) is None


def test_recycling_is_spread() -> None:
    rng = random.Random(4)
    drawn = {Recycle(rng, max_jobs=1000).max_jobs for _ in range(50)}
    assert len(drawn) > 20
    assert all(m is not None and 900 <= m <= 1000 for m in drawn)
    assert Recycle(rng, max_jobs=1).max_jobs == 1


def test_retry_delays() -> None:
    rng = Middle()
    assert [retry_delay(n, "infrastructure", rng) for n in (1, 2, 3, 4)] == [0, 1, 2, 4]
    assert [retry_delay(n, "engine", rng) for n in (1, 2, 3)] == [1, 2, 4]
    assert [retry_delay(n, "resource", rng) for n in (1, 2)] == [5, 10]
    assert retry_delay(500, "timeout", rng) == 60
    assert retry_delay(1, "input", rng) is None
    assert retry_delay(1, "cancelled", rng) is None
    jittered = [retry_delay(3, "engine", random.Random(n)) for n in range(20)]
    assert all(d is not None and 3.2 <= d <= 4.8 for d in jittered)
    assert all(a != b for a, b in pairwise(jittered))
