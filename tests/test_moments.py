"""Moments as people give them: what is taken, what is refused with its key and the fix, and where it lies."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pool.errors import JobRefused, ProtocolError
from pool.job import Job
from pool.job.moments import SpoolTime, fix
from pool.job.terms import Terms

NOW = 1_900_000_000_000_000
HOUR = 3_600_000_000


@pytest.mark.parametrize(
    "given",
    [3600, 3600.0, np.float32(3600), Fraction(3600), timedelta(hours=1), "3600", "3600s", "60m", "60 min", "1.0h"],
)
def test_from_now(given: Any) -> None:
    assert fix(given, NOW, "expires") == NOW + HOUR


def test_dates_by_the_wall_clock_whatever_the_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)  # the spool clock says otherwise: only distances count
    date = datetime.fromtimestamp(1_800_003_600, timezone.utc)
    for zone in (timezone.utc, timezone(timedelta(hours=9)), timezone(timedelta(hours=-3, minutes=-30))):
        assert fix(date.astimezone(zone), NOW, "expires") == NOW + HOUR
        assert fix(date.astimezone(zone).isoformat(), NOW, "expires") == NOW + HOUR
    assert fix(date.strftime("%Y-%m-%dT%H:%M:%SZ"), NOW, "expires") == NOW + HOUR
    assert fix(datetime.fromtimestamp(1_799_996_400, timezone.utc), NOW, "expires") == NOW - HOUR
    assert fix(SpoolTime(7), NOW, "expires") == 7


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (datetime(2030, 1, 1), r"no time zone.*astimezone\(\)"),
        ("2030-01-01T00:00:00", "no time zone"),
        ("2030-01-01", "no time zone"),
        (True, "is no moment"),
        ("", "is no moment"),
        ("soon", "is no moment"),
        ("-1h", "is no moment"),
        ("0.5h 30m", "is no moment"),
        ([1], "is no moment"),
        (datetime(2030, 1, 1).date(), "is no moment"),
        (-1, "is not between 0 and"),
        (float("nan"), "is not between 0 and"),
        (float("inf"), "is not between 0 and"),
        (10**400, "is not between 0 and"),
        (1e10, "is not between 0 and"),
        (timedelta(seconds=-1), "is not between 0 and"),
        (datetime(9999, 1, 1, tzinfo=timezone.utc), "more than 1e"),
    ],
)
@pytest.mark.parametrize("key", ["not_before", "expires"])
def test_what_is_refused(given: Any, why: str, key: str) -> None:
    with pytest.raises(JobRefused, match=f"^{key}: .*{why}"):
        Terms(**{key: given}).fixed(NOW)


def test_a_job_that_would_never_begin_is_refused() -> None:
    for end in (1, 3600, "1h"):
        with pytest.raises(JobRefused, match=r"^expires: .*not_before"):
            Terms(not_before="1h", expires=end).fixed(NOW)
    assert Terms(not_before="1h", expires="2h").fixed(NOW).not_before == NOW + HOUR


def test_they_are_in_the_job_file_as_they_are_fixed() -> None:
    job = Job("a", "echo", {}, created=NOW, terms=Terms(durable=True, not_before=3600, expires="2h").fixed(NOW))
    stored = job.to_map()
    assert (stored["not_before"], stored["expires"]) == (NOW + HOUR, NOW + 2 * HOUR)
    again = Job.from_map(stored)
    assert again == job
    assert (again.not_before, again.expires) == (NOW + HOUR, NOW + 2 * HOUR)
    assert again.file_name.born == NOW
    for wrong in ("1h", 1.5, -1, 10**16, True, [1]):
        with pytest.raises(ProtocolError):
            Job.from_map({**stored, "not_before": wrong})
