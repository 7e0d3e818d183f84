"""The policy of a roll: whatever slots there are, one process of an engine at a time, and a failure stops it."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.config.seats import slots as expand
from pool.config.settings import Config, EngineConfig, parse_config
from pool.supervise.rollout import Place, Roll, Stand


def old(engine: str, index: int, **facts: bool) -> Place:
    return Place(f"{engine}-{index}", engine, Stand.OLD, **facts)


def roll_of(places: list[Place], *engines: str) -> Roll:
    return Roll({p.slot: True for p in places if not p.leaving}, engines, leaving=sum(p.leaving for p in places))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.data(),
)
def test_one_at_a_time_until_all_run_it_or_one_fails(
    slots: list[tuple[str, bool, bool, bool]], broken: set[int], data: st.DataObject
) -> None:
    places = [old(e, n, spare=s, busy=b, leaving=gone) for n, (e, s, b, gone) in enumerate(slots)]
    failing = {f"{slots[n][0]}-{n}" for n in broken if n < len(slots) and not slots[n][3]}
    roll = roll_of(places, "a", "b")
    for _ in range(100):
        ended = roll.step(places)
        places = [replace(p, stand=Stand.ENDING) if p.slot in ended else p for p in places]
        for engine in "ab":
            on_the_way = [p for p in places if p.engine == engine and p.stand in (Stand.ENDING, Stand.STARTS)]
            assert len(on_the_way) <= 1
        if not any(p.stand in (Stand.ENDING, Stand.STARTS) for p in places):
            break
        moved = data.draw(st.sampled_from([p for p in places if p.stand in (Stand.ENDING, Stand.STARTS)]))
        after = Stand.STARTS if moved.stand is Stand.ENDING else Stand.SERVES
        if after is Stand.SERVES and moved.slot in failing:
            after = Stand.FAILED
        gone = moved.leaving and moved.stand is Stand.ENDING
        places = [replace(p, stand=after) if p is moved else p for p in places if not (gone and p is moved)]
    assert not roll.moving
    for engine in "ab":
        mine = [p for p in places if p.engine == engine]
        failed = [p for p in mine if p.stand is Stand.FAILED]
        assert len(failed) <= 1
        if failed:
            assert failed[0].slot in roll.failed
        else:
            assert all(p.stand is Stand.SERVES for p in mine)
    assert roll.over == (not roll.failed)


def test_what_costs_least_goes_first() -> None:
    places = [old("a", 0, busy=True), old("a", 1), old("a", 2, busy=True, spare=True), old("a", 3, leaving=True)]
    assert roll_of(places, "a").step(places) == ["a-2"]
    assert roll_of(places[:2] + places[3:], "a").step(places[:2] + places[3:]) == ["a-1"]
    assert roll_of([places[0], places[3]], "a").step([places[0], places[3]]) == ["a-0"], "those that leave help so long"


def test_an_engine_that_is_gone_waits_for_nothing() -> None:
    places = [old("a", n, leaving=True) for n in range(3)]
    assert roll_of(places).step(places) == ["a-0", "a-1", "a-2"]


@pytest.mark.parametrize("was_there", [True, False])
def test_a_slot_that_was_broken_before_stops_nothing(was_there: bool) -> None:
    places = [Place("a-0", "a", Stand.FAILED, why="no model"), old("a", 1)]
    roll = Roll({"a-0": was_there, "a-1": True}, ("a",))
    assert roll.step(places) == ([] if was_there else ["a-1"])
    assert roll.failed == "a-0: no model"
    assert roll.moving is not was_there


def test_it_goes_on_when_the_one_that_failed_starts_after_all() -> None:
    places = [Place("a-0", "a", Stand.FAILED), old("a", 1)]
    roll = Roll({"a-0": True, "a-1": True}, ("a",))
    assert roll.step(places) == []
    assert roll.step([replace(places[0], stand=Stand.SERVES), places[1]]) == ["a-1"]
    assert not roll.failed


# ---- what docs/CONFIG.md says about the effect of each key

TEXT = (Path(__file__).parents[1] / "docs" / "CONFIG.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", TEXT.split("## When a change takes effect")[1].split("\n## ")[0], re.M)
EFFECT = {key: how for how, keys in ROWS for key in re.findall(r"`([a-z_]+)`", keys)}
OTHER: dict[str, Any] = {
    "engine": "a:C",
    "device": "cuda",
    "devices": ["cuda:0", "cuda:1"],
    "env": {"A": "1"},
    "python": "python3",
    "pythonpath": ["there"],
    "cwd": "/",
    "threads": 7,
    "options": {"a": 1},
    "cache_enabled": True,
    "delete_after_transcription": True,
    "recycle": {"max_jobs": 5},
    "concurrency_mode": "lock",
    "memory_limit_mb": 5,
    "durable": False,
    "media_roots": ["there"],
    "spool": "elsewhere",
    "log": {"keep": 9},
    "backoff_max_s": 90,
    "retry_times": 5,
    "retry_on": ["engine"],
    "http": {"port": 1},
    "redis": {"port": 1},
    "cluster": {"lease_s": 9},
    "otel": True,
}
KEYS = [
    field.name
    for kind in (Config, EngineConfig)
    for field in fields(kind)
    if "check" in field.metadata and field.name != "engines"
]


def fingerprints(tmp_path: Path, key: str | None = None) -> set[str]:
    engine: dict[str, Any] = {"engine": "a:B", "max_batch": 2, "threads": 1}
    document: dict[str, Any] = {"engines": {"a": engine}}
    if key is not None:
        of_pool = key in {f.name for f in fields(Config)}
        plain = parse_config(document, tmp_path)
        before = getattr(plain if of_pool else plain.engines["a"], key)
        value = OTHER[key] if key in OTHER else before + 1
        (document if of_pool else engine)[key] = value
    return {slot.fingerprint for slot in expand(parse_config(document, tmp_path), environ={}, cores=2)}


@pytest.mark.parametrize("key", KEYS)
def test_the_effect_of_a_key_is_documented(tmp_path: Path, key: str) -> None:
    """A worker is replaced exactly when the table says so."""
    replaced = fingerprints(tmp_path).isdisjoint(fingerprints(tmp_path, key))
    assert replaced == (EFFECT[key].startswith("by replacing") or key == "spool")
