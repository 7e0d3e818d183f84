"""Time in which the supervisor could not look is counted against nobody."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.supervise.attention import TURN_NS, Attention

S = 1_000_000_000
START = 5_000 * S


class Boot:
    """A boot clock that tests drive."""

    def __init__(self) -> None:
        self.ns = START

    def __call__(self) -> int:
        return self.ns


def _turns(boot: Boot, attention: Attention, seconds: float, each: float = 1.0) -> None:
    end = boot.ns + int(seconds * S)
    while boot.ns < end:
        boot.ns = min(end, boot.ns + int(each * S))
        attention.turn()


def test_turns_in_time_count_all() -> None:
    boot = Boot()
    attention = Attention(boot)
    _turns(boot, attention, 100, each=2.9)
    assert attention.since(START) == attention.now() - START / S == 100
    assert attention.away_s == 0


@pytest.mark.invariant(29)
def test_a_standstill_counts_as_one_turn() -> None:
    boot = Boot()
    attention = Attention(boot)
    _turns(boot, attention, 10)
    boot.ns += 3600 * S
    assert attention.left(attention.now() + 60) == 0, "not known before the next turn"
    assert attention.turn() == 3599
    assert attention.since(START) == 11
    assert attention.since(START + 10 * S) == 1
    assert attention.since(START + 1000 * S) == 0, "in the middle of it"
    assert attention.left(attention.now() + 60) == 60
    _turns(boot, attention, 5)
    assert attention.since(START) == 16
    assert attention.since(boot.ns - 5 * S) == 5, "after it"
    assert attention.away_s == 3599


def test_what_stands_still_within_a_turn_is_not_judged() -> None:
    boot = Boot()
    attention = Attention(boot)
    _turns(boot, attention, 10)
    boot.ns += 3600 * S
    assert attention.since(START) == attention.now() - START / S == 10


def test_the_time_before_the_first_turn_counts() -> None:
    boot = Boot()
    attention = Attention(boot)
    boot.ns += 30 * S
    attention.start()
    _turns(boot, attention, 1)
    assert (attention.since(START), attention.away_s) == (31, 0)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=30), st.floats(0, 1))
def test_any_turns(steps: list[float], where: float) -> None:
    """The time awake never runs backwards, never faster than the clock, and pieces of it add up."""
    boot = Boot()
    attention = Attention(boot)
    moments, seen = [boot.ns], [attention.now()]
    for step in steps:
        boot.ns += int(step * S)
        away = attention.turn()
        assert away == (pytest.approx(step - TURN_NS / S, abs=1e-6) if step * S >= 3 * TURN_NS else 0)
        moments.append(boot.ns)
        seen.append(attention.now())
    assert all(0 <= after - before < 3 for before, after in itertools.pairwise(seen))
    for moment, then in zip(moments, seen, strict=True):
        assert attention.since(moment) == pytest.approx(seen[-1] - then, abs=1e-5)
    between = START + int((boot.ns - START) * where)
    assert -1e-6 <= attention.since(boot.ns) <= attention.since(between) <= attention.since(START) + 1e-6
