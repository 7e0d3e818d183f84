"""After what a job is tried again, how often, and what is said when it is not: the table, and properties of it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.format.names import MAX_ATTEMPTS
from pool.job import FailureKind
from pool.policy.retries import KINDS, NEVER, Retries, left, why_not

ALL = [kind.value for kind in FailureKind]
RETRIES = st.builds(
    Retries,
    st.none() | st.integers(0, MAX_ATTEMPTS - 1),
    st.none() | st.lists(st.sampled_from(KINDS), unique=True).map(tuple),
)


def attempts(kinds: list[str], retries: Retries, spare: int = 0) -> tuple[int, str]:
    """How many attempts a job gets that fails with these kinds one after another, and why no more."""
    for number, kind in enumerate(kinds, 1):
        reason = why_not(kind, number, kinds[: number - 1], retries, spare)
        if reason:
            return number, reason
    raise AssertionError("more failures are wanted")


@pytest.mark.parametrize(
    ("retries", "most"),
    [
        (Retries(), {"infrastructure": 3, "resource": 3, "engine": 2, "timeout": 1}),
        (Retries(0), {"infrastructure": 1, "resource": 1, "engine": 1, "timeout": 1}),
        (Retries(5), {"infrastructure": 6, "resource": 6, "engine": 6, "timeout": 1}),
        (Retries(None, ("timeout",)), {"infrastructure": 1, "resource": 1, "engine": 1, "timeout": 3}),
        (Retries(1, ("timeout", "engine")), {"infrastructure": 1, "resource": 1, "engine": 2, "timeout": 2}),
        (Retries(98, KINDS), {"infrastructure": 99, "resource": 99, "engine": 99, "timeout": 99}),
        (Retries(7, ()), {"infrastructure": 1, "resource": 1, "engine": 1, "timeout": 1}),
    ],
)
def test_the_table(retries: Retries, most: dict[str, int]) -> None:
    for kind in KINDS:
        assert attempts([kind] * 100, retries)[0] == most[kind], kind
    for kind in NEVER:
        assert attempts([kind], retries)[0] == 1


def test_a_job_says_it_for_itself() -> None:
    engine = Retries(4, ("engine",))
    assert engine.under(None, None) == engine
    assert engine.under(0, None) == Retries(0, ("engine",))
    assert engine.under(None, ("timeout",)) == Retries(4, ("timeout",))
    assert engine.under(None, ()) == Retries(4, ())


@pytest.mark.parametrize(
    ("kinds", "retries", "reason"),
    [
        (["timeout"], Retries(5), "a timeout is retried only when retry_on names it"),
        (["timeout", "timeout"], Retries(1, ("timeout",)), "retry_times is 1"),
        (["engine", "engine"], Retries(), "an error of the engine is retried once; retry_times or retry_on allow more"),
        (["engine", "engine"], Retries(1), "retry_times is 1"),
        (["engine"], Retries(2, ("resource", "timeout")), "retry_on names resource, timeout"),
        (["resource"], Retries(2, ()), "retry_on names nothing"),
        (["infrastructure", "engine", "infrastructure"], Retries(), "retry_times is 2"),
        (["input"], Retries(5, KINDS), "the same input is refused again"),
    ],
)
def test_why_there_is_no_further_attempt(kinds: list[str], retries: Retries, reason: str) -> None:
    assert attempts(kinds, retries) == (len(kinds), reason)


FAILURES = st.lists(st.sampled_from(ALL), min_size=MAX_ATTEMPTS, max_size=MAX_ATTEMPTS)


@given(FAILURES, RETRIES, st.integers(0, 1))
def test_it_ends_and_nobody_gets_more_than_was_said(kinds: list[str], retries: Retries, spare: int) -> None:
    number, reason = attempts(kinds, retries, spare)
    assert number <= min(retries.most + 1 + spare, MAX_ATTEMPTS)
    assert reason
    retried = Counter(kinds[: number - 1])
    assert not retried.keys() & NEVER
    for kind, count in retried.items():
        assert count <= retries.after(kind) + spare
    if not spare and (retries.on is None or "timeout" not in retries.on):
        assert "timeout" not in retried, "30 minutes never become 90 silently"


@given(FAILURES, st.integers(0, 97), st.lists(st.sampled_from(KINDS), unique=True).map(tuple))
def test_asking_for_more_never_gives_less(kinds: list[str], times: int, on: tuple[str, ...]) -> None:
    assert attempts(kinds, Retries(times + 1, on))[0] >= attempts(kinds, Retries(times, on))[0]
    assert attempts(kinds, Retries(times, KINDS))[0] >= attempts(kinds, Retries(times, on))[0]
    assert attempts(kinds, Retries(times, on), 1)[0] >= attempts(kinds, Retries(times, on))[0]


@given(FAILURES, RETRIES)
def test_what_is_left_is_what_comes(kinds: list[str], retries: Retries) -> None:
    """When each further attempt fails as the last one did."""
    number, _ = attempts(kinds, retries)
    for begun in range(1, number + 1):
        same = [*kinds[:begun], *([kinds[begun - 1]] * MAX_ATTEMPTS)]
        ends, _ = attempts(same, retries)
        assert max(0, left(begun, kinds[:begun], retries)) == ends - begun
