"""Who is to blame: any mix of bad jobs benches nobody, a slot that breaks every job is found."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.job import Failure
from pool.policy.blame import BENCH_AFTER, RESTART_AFTER, SUSPECT_AFTER, Blame, Remedy, joins_the_row, second_opinion

NO_SLOT = -1


@dataclass
class Job:
    """bad: "", "raise" or "crash", wherever it runs."""

    number: int
    bad: str = ""
    retries: int = 0
    failures: list[Failure] = field(default_factory=list)
    done: str = ""

    @property
    def id(self) -> str:
        return f"job-{self.number}"


@dataclass
class Seat:
    """A slot as the fleet keeps it; generation: of its process, row: as its worker counts."""

    number: int
    blame: Blame = field(default_factory=Blame)
    generation: int = 1
    row: int = 0
    benched: bool = False
    restarts: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        self.name = f"fake-{self.number}"


class Model:
    """A pool of slots in model time. News of successes and accusations come late and in any order."""

    def __init__(self, slots: int, jobs: list[Job], rng: random.Random, sick: int = NO_SLOT) -> None:
        self.seats = [Seat(number) for number in range(slots)]
        self.waiting, self.jobs, self.rng, self.sick = list(jobs), jobs, rng, sick
        self.now = 0
        self.news: list[tuple[str, Seat, str, int, int]] = []

    def run(self) -> None:
        while self.waiting:
            serving = [seat for seat in self.seats if not seat.benched]
            seat = self.rng.choice(serving)
            job = self._pick(seat, len(serving) > 1)
            if job is not None:
                self._attempt(seat, job)
            if self.rng.random() < 0.2:
                self._tell()
        self._tell(everything=True)

    def _pick(self, seat: Seat, others: bool) -> Job | None:
        for job in self.waiting:
            slots = [failure.worker.rpartition(".")[0] for failure in job.failures]
            final = len(slots) >= job.retries and set(slots) == {seat.name}
            theirs = slots and slots[-1] == seat.name and (final or seat.row >= SUSPECT_AFTER)
            if not (theirs and others):
                self.waiting.remove(job)
                return job
        return None

    def _attempt(self, seat: Seat, job: Job) -> None:
        self.now += self.rng.randrange(1, 5)
        if not job.bad and seat.number != self.sick:
            job.done = "completed"
            seat.row = 0
            self.news.append(("success", seat, job.id, self.now, seat.generation))
            for failure in job.failures:
                name, _, generation = failure.worker.rpartition(".")
                if name != seat.name:
                    other = next(s for s in self.seats if s.name == name)
                    self.news.append(("accuse", other, job.id, failure.at, int(generation)))
            return
        earlier = tuple(job.failures)
        kind = "infrastructure" if job.bad == "crash" else "engine"
        seat.row += joins_the_row(earlier, kind)
        spare = second_opinion(seat.name, seat.row, kind, earlier, siblings=len(self.seats) > 1)
        attempt = len(earlier) + 1
        job.failures.append(Failure(kind, "no", attempt=attempt, worker=f"{seat.name}.{seat.generation}", at=self.now))
        if attempt < job.retries + 1 + spare:
            self.waiting.append(job)
            self.waiting.sort(key=lambda other: (any(f.kind == "infrastructure" for f in other.failures), other.number))
        else:
            job.done = "failed"
        if job.bad == "crash":
            seat.generation += 1

    def _tell(self, *, everything: bool = False) -> None:
        self.rng.shuffle(self.news)
        keep = 0 if everything else self.rng.randrange(len(self.news) + 1)
        told, self.news = self.news[keep:], self.news[:keep]
        for what, seat, job_id, at, generation in told:
            if what == "success":
                seat.blame.succeeded(at)
            else:
                seat.blame.accuse(job_id, at, generation)
            self._cure()

    def _cure(self) -> None:
        for seat in self.seats:
            others = any(not other.benched for other in self.seats if other is not seat)
            remedy = Remedy.NONE if seat.benched else seat.blame.remedy(seat.generation, others_serve=others)
            if remedy is Remedy.RESTART:
                seat.restarts += 1
                seat.generation += 1
            elif remedy is Remedy.BENCH:
                seat.benched = True
                seat.blame.forget()


@given(
    slots=st.integers(2, 8),
    share=st.sampled_from([0.05, 0.1, 0.25]),
    how=st.sampled_from(["raise", "crash", "mixed"]),
    retries=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
@pytest.mark.invariant(10, 11)
def test_bad_jobs_bench_nobody(slots: int, share: float, how: str, retries: int, seed: int) -> None:
    rng = random.Random(seed)
    jobs = []
    for number in range(120):
        bad = ("raise", "crash")[rng.randrange(2)] if how == "mixed" else how
        jobs.append(Job(number, bad if rng.random() < share else "", retries))
    model = Model(slots, jobs, rng)
    model.run()
    assert [seat for seat in model.seats if seat.benched or seat.restarts] == []
    assert all(job.done == ("failed" if job.bad else "completed") for job in jobs)
    assert all(len(job.failures) <= retries + 2 for job in jobs), "one more than it has, for a second opinion"
    assert all(not job.failures for job in jobs if not job.bad), "an innocent job is not hurt"


@given(slots=st.integers(2, 6), retries=st.integers(0, 3), seed=st.integers(0, 2**32))
@pytest.mark.invariant(11)
def test_a_slot_that_breaks_every_job_is_found(slots: int, retries: int, seed: int) -> None:
    """A fresh process first; when that breaks them too, the bench. At most two jobs without retries are lost before it
    is a suspect, and none with."""
    jobs = [Job(number, "", retries) for number in range(60 * slots)]
    model = Model(slots, jobs, random.Random(seed), sick=0)
    model.run()
    sick, others = model.seats[0], model.seats[1:]
    assert sick.restarts >= 1
    assert sick.benched
    assert [seat for seat in others if seat.benched or seat.restarts] == []
    lost = [job for job in jobs if job.done != "completed"]
    assert len(lost) <= (SUSPECT_AFTER - 1 if retries == 0 else 0)


def accused(*at: tuple[int, int]) -> Blame:
    blame = Blame()
    for number, (when, generation) in enumerate(at):
        blame.accuse(f"job-{number}", when, generation)
    return blame


def test_a_success_in_between_clears_whatever_is_noticed_first() -> None:
    late = accused((10, 1), (11, 1), (12, 1))
    late.succeeded(13)
    assert late.remedy(1, others_serve=True) is Remedy.NONE
    early = Blame()
    early.succeeded(13)
    for number in range(9):
        early.accuse(f"job-{number}", 10 + number // 3, 1)
    assert early.count() == 0


def test_one_job_accuses_once() -> None:
    blame = Blame()
    for at in range(20):
        blame.accuse("job", at, 1)
    assert blame.remedy(1, others_serve=True) is Remedy.NONE


def test_first_a_fresh_process_then_the_bench() -> None:
    blame = accused(*((n, 1) for n in range(RESTART_AFTER)))
    assert blame.remedy(1, others_serve=False) is Remedy.RESTART, "also of the last one that serves"
    assert blame.remedy(2, others_serve=True) is Remedy.NONE, "that process is gone already"
    for number in range(RESTART_AFTER, BENCH_AFTER):
        assert blame.remedy(2, others_serve=True) is Remedy.NONE
        blame.accuse(f"more-{number}", 100 + number, 2)
    assert blame.remedy(2, others_serve=False) is Remedy.NONE, "the last one that serves is never benched"
    assert blame.remedy(2, others_serve=True) is Remedy.BENCH


def test_late_accusations_of_a_process_that_was_replaced_bench_nobody() -> None:
    """A restart that has not been tried with a job has not failed."""
    blame = accused(*((n, 1) for n in range(50)))
    assert blame.remedy(2, others_serve=True) is Remedy.NONE


def test_crashes_are_restarts_that_did_not_help() -> None:
    blame = accused(*((n, n) for n in range(BENCH_AFTER - 1)))
    assert blame.remedy(9, others_serve=True) is Remedy.NONE
    blame.accuse("one more", 99, 8)
    assert blame.remedy(9, others_serve=True) is Remedy.BENCH


@pytest.mark.parametrize(
    ("kind", "joins"), [("engine", True), ("timeout", True), ("input", False), ("cancelled", False)]
)
def test_the_row_counts_first_failures(kind: str, joins: bool) -> None:
    assert joins_the_row((), kind) is joins
    assert not joins_the_row((Failure("engine", "no", worker="fake-1.3"),), kind)


def test_a_second_opinion_is_for_those_who_have_none() -> None:
    here, there = Failure("engine", "no", worker="fake-0.1"), Failure("engine", "no", worker="fake-1.2")
    for kind in ("engine", "infrastructure", "resource"):
        assert second_opinion("fake-0", SUSPECT_AFTER, kind, (), siblings=True)
        assert second_opinion("fake-0", SUSPECT_AFTER, kind, (here, here), siblings=True)
        assert not second_opinion("fake-0", SUSPECT_AFTER, kind, (here, there), siblings=True)
        assert not second_opinion("fake-0", SUSPECT_AFTER - 1, kind, (), siblings=True)
        assert not second_opinion("fake-0", SUSPECT_AFTER, kind, (), siblings=False)


@pytest.mark.parametrize("kind", ["timeout", "input", "cancelled"])
def test_nobody_pays_a_time_limit_twice_for_a_second_opinion(kind: str) -> None:
    assert not second_opinion("fake-0", SUSPECT_AFTER + 9, kind, (), siblings=True)
