"""The grammar of names: what is built can be taken apart, what is foreign is not touched, the order is the queue."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.errors import JobRefused
from pool.format import names
from pool.format.names import MAX_ATTEMPTS, JobName, WorkerName, job_name, parse_job, parse_worker

ALNUM = string.ascii_letters + string.digits
IDS = st.builds(lambda first, rest: first + rest, st.sampled_from(ALNUM), st.text(ALNUM + "_-", max_size=99))
BORN = st.integers(0, 10**16 - 1)
JOBS = st.builds(JobName, st.integers(400, 600), BORN, IDS, st.integers(0, MAX_ATTEMPTS))
ENGINES = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True, alphabet=st.characters(max_codepoint=127))
WORKERS = st.builds(WorkerName, ENGINES, st.integers(0, 9999), st.integers(0, 10**10 - 1))


# ---- what is built can be taken apart


@given(JOBS)
def test_job_names(name: JobName) -> None:
    assert parse_job(str(name)) == name
    assert len(str(name)) <= 132
    assert parse_job(str(name.claimed())) == name.claimed()


@given(WORKERS)
def test_worker_names(worker: WorkerName) -> None:
    assert parse_worker(str(worker)) == worker
    assert str(worker).startswith(f"{worker.slot}.")


@given(JOBS, ENGINES, BORN)
def test_deferred_dead_and_note_names(name: JobName, engine: str, due: int) -> None:
    assert names.parse_deferred(f"{due:016d}.{engine}.{name}") == (due, engine, name)
    assert names.parse_dead(f"{engine}.{name}") == (engine, name)
    assert names.parse_note(f"{name.id}.{name.attempts:02d}.msgpack") == (name.id, name.attempts)
    assert names.parse_record(f"{name.id}.msgpack") == name.id
    longest = f"{due:016d}.{engine}.{name}.reason.txt"
    assert len(longest.encode()) <= 255


@given(IDS)
def test_ids(job_id: str) -> None:
    assert names.is_id(job_id)
    assert names.check_id(job_id) == job_id


# ---- the order of names is the order of work


@given(st.lists(st.tuples(st.integers(-100, 100), st.integers(0, 10**16 - 1)), min_size=2, max_size=20, unique=True))
def test_names_sort_by_priority_then_age(entries: list[tuple[int, int]]) -> None:
    built = sorted(str(job_name(priority, born, "job")) for priority, born in entries)
    parsed = [parse_job(name) for name in built]
    assert [(p.priority, p.born) for p in parsed if p] == sorted(entries, key=lambda entry: (-entry[0], entry[1]))


def test_a_retry_keeps_its_place() -> None:
    old, young = job_name(0, 1, "old"), job_name(0, 2, "young")
    assert str(old.claimed().claimed()) < str(young)


@pytest.mark.parametrize("priority", [-101, 101, 10**9])
def test_priorities_out_of_range(priority: int) -> None:
    with pytest.raises(JobRefused, match=r"priority: .* is not between -100 and 100"):
        job_name(priority, 1, "job")


# ---- attempts


@pytest.mark.invariant(6)
def test_attempts_go_up_at_the_claim_and_back_only_at_release() -> None:
    name = job_name(0, 1, "job")
    assert name.claimed().attempts == 1
    assert name.claimed().claimed().released().attempts == 1
    assert name.released().attempts == 0
    assert name.claimed().claimed().fresh() == name
    last = JobName(500, 1, "job", MAX_ATTEMPTS)
    assert parse_job(str(last.claimed())) == last  # two digits, for ever


# ---- what is foreign

NO_IDS: list[Any] = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a.b",
    "-a",
    "_a",
    "a b",
    "a\n",
    "\na",
    "a\0",
    "ä",
    "１",
    "²",
    "a" * 101,
    "a\\b",
    "a'b",
    'a"b',
    "a;b",
    "$(a)",
    "\udcff",
    "\u202e",
    None,
    7,
    b"abc",
    ["a"],
    True,
]


@pytest.mark.parametrize("job_id", NO_IDS, ids=ascii)
@pytest.mark.invariant(23)
def test_what_is_no_id(job_id: Any) -> None:
    assert not names.is_id(job_id)
    with pytest.raises(JobRefused, match=r"^id: .* is not an id") as caught:
        names.check_id(job_id)
    assert caught.value.path == "id"
    assert str(caught.value).isascii()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "engine", ["", "Echo", "e cho", "e-cho", "e.cho", "../e", "1echo", "e" * 33, "échó", "echo\n", None, 7]
)
def test_what_is_no_engine(engine: Any) -> None:
    with pytest.raises(JobRefused, match=r"^engine: "):
        names.check_engine(engine)


GOOD = "500.0000000000000001.job.01.msgpack"
FOREIGN = [
    "",
    GOOD + "\n",
    "\n" + GOOD,
    GOOD + ".part",
    "." + GOOD,
    GOOD.upper(),
    GOOD.replace("job", "../job"),
    GOOD.replace("job", "j.b"),
    GOOD.replace("500", "50"),
    GOOD.replace("500", "+50"),
    GOOD.replace("500", "５００"),
    GOOD.replace(".01.", ".1."),
    GOOD.replace(".01.", ".001."),
    GOOD.replace("msgpack", "json"),
    "README.md",
    GOOD.replace("0000000000000001", "²" * 16),
    GOOD.replace("0000000000000001", "١" * 16),
    GOOD.replace("job", "\udcff"),
]


@pytest.mark.parametrize("name", FOREIGN, ids=ascii)
def test_foreign_names_are_not_parsed(name: str) -> None:
    assert parse_job(name) is None
    assert names.parse_dead(f"echo.{name}") is None
    assert names.parse_deferred(f"0000000000000001.echo.{name}") is None


@pytest.mark.parametrize("due", ["", "1", "0" * 17, "²" * 16, "１" * 16, "-000000000000001", "000000000000000x"])
def test_due_times_that_are_none(due: str) -> None:
    assert names.parse_deferred(f"{due}.echo.{GOOD}") is None


@pytest.mark.parametrize("engine", ["", "Echo", "-", "e-0", "\n", "é"])
def test_engines_that_are_none(engine: str) -> None:
    assert names.parse_deferred(f"0000000000000001.{engine}.{GOOD}") is None
    assert names.parse_dead(f"{engine}.{GOOD}") is None
    assert parse_worker(f"{engine}-0.1") is None


@given(st.text() | st.binary().map(os.fsdecode))
def test_any_name_is_parsed_or_foreign(name: str) -> None:
    for parse in (parse_job, parse_worker, names.parse_note, names.parse_deferred, names.parse_dead):
        parse(name)
    names.parse_record(name)
    names.is_id(name)


@pytest.mark.parametrize(
    "name", ["echo-0", "echo-0.", "echo.1", "echo-0.1.2", "echo-00000.1", "echo-0.1\n", "echo--1.1"]
)
def test_what_is_no_worker(name: str) -> None:
    assert parse_worker(name) is None


# ---- ids made of what people drop


@given(st.text() | st.binary().map(os.fsdecode))
def test_the_stem_of_any_file_becomes_an_id_or_nothing(stem: str) -> None:
    job_id = names.id_from_stem(stem)
    assert job_id == "" or (names.is_id(job_id) and len(job_id) <= 80)


def test_stems_people_use(hostile_names: tuple[bytes, ...]) -> None:
    assert names.id_from_stem("meeting 2024-05-01") == "meeting-2024-05-01"
    assert names.id_from_stem("../../etc/passwd") == "etc-passwd"
    assert names.id_from_stem("会議") == ""
    for name in hostile_names:
        job_id = names.id_from_stem(os.path.splitext(os.fsdecode(name))[0])
        assert job_id == "" or names.is_id(job_id)


# ---- fresh ids


@given(BORN)
def test_fresh_ids_are_ids_and_sort_by_time(born: int) -> None:
    job_id = names.new_id(born)
    assert names.is_id(job_id)
    assert len(job_id) == 25
    assert names.new_id(born + 1)[:11] > job_id[:11]


_FORGE = """
import random, sys, time
random.seed(0)
from pool.format.names import new_id
print("\\n".join(new_id(1_700_000_000_000_000) for _ in range(2000)))
"""


@pytest.mark.invariant(4)
def test_processes_with_the_same_clock_and_seed_make_different_ids(child_env: dict[str, str], tmp_path: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", _FORGE], env=child_env, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    made = [line for child in children for line in child.communicate(timeout=60)[0].split()]
    assert len(made) == 8000
    assert len(set(made)) == 8000
    assert len({name.lower() for name in made}) == 8000  # also where case does not count


@given(st.integers(-100, 100), st.integers(0, 99))
def test_behind_keeps_priority_and_sorts_after_all_others(priority: int, attempts: int) -> None:
    name = names.job_name(priority, 1, "a")._replace(attempts=attempts)
    behind = name.behind()
    assert (behind.priority, behind.waits_behind, name.waits_behind) == (priority, True, False)
    assert behind.behind() == behind
    assert behind.fresh() == name.fresh()
    assert parse_job(str(behind)) == behind
    assert str(behind) > str(names.job_name(-100, 10**16 - 1, "z"))
    assert behind.claimed().waits_behind
    assert behind.released().waits_behind
