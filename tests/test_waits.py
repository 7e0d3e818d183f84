"""Jobs that wait for jobs: which of them never end. Scenes by hand, and every small world by simulation."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.constants import ENV_SPOOL, ENV_WORKER
from pool.policy.prospects import PoolFacts
from pool.runfiles.waits import Scene, Wait, inside, read_notes, sweep
from pool.spool.store import Spool
from pool.system import procs

A, A2, B = Wait("a-0.1", "a1", {"x": "a"}), Wait("a-1.2", "a2", {"y": "a"}), Wait("b-0.3", "b1", {"x": "a"})


@pytest.mark.parametrize(
    ("scene", "stuck"),
    [
        (Scene([A], {"a1": "a-0.1"}, {"a": ["a-0.1"]}), {"x"}),
        (Scene([A], {"a1": "a-0.1"}, {"a": ["a-0.1", "a-1.2"]}), set()),
        (Scene([A], {"a1": "a-0.1"}, {"a": ["a-0.1"]}, frozenset("a")), set()),
        (Scene([A], {"a1": "a-0.1", "x": "a-1.2"}, {"a": ["a-0.1", "a-1.2"]}), set()),
        (Scene([A], {"a1": "a-0.1"}, {"a": ["a-0.1"]}, decided=frozenset("x")), set()),
        (Scene([A, A2], {"a1": "a-0.1", "a2": "a-1.2"}, {"a": ["a-0.1", "a-1.2"]}), {"x", "y"}),
        # a1 waits for b1, which runs; b1 waits for x, which only a-0 could take
        (
            Scene(
                [Wait("a-0.1", "a1", {"b1": "b"}), B], {"a1": "a-0.1", "b1": "b-0.3"}, {"a": ["a-0.1"], "b": ["b-0.3"]}
            ),
            {"b1", "x"},
        ),
        # one of two that it waits for runs elsewhere: the benefit of the doubt
        (Scene([Wait("a-0.1", "a1", {"x": "a", "z": "b"})], {"a1": "a-0.1"}, {"a": ["a-0.1"], "b": ["b-0.3"]}), set()),
        # two threads of one worker: one of them goes on
        (Scene([A, Wait("a-0.1", "a1", {"z": "b"})], {"a1": "a-0.1"}, {"a": ["a-0.1"], "b": ["b-0.3"]}), set()),
        (Scene([]), set()),
    ],
)
def test_what_is_stuck(scene: Scene, stuck: set[str]) -> None:
    found = scene.stuck()
    assert set(found) == stuck
    for wait in scene.waits:
        assert all(other in found for _, _, other in scene.chain(wait, found))


def test_the_chain_is_named_link_by_link() -> None:
    outer = Wait("a-0.1", "a1", {"b1": "b"})
    scene = Scene([outer, B], {"a1": "a-0.1", "b1": "b-0.3"}, {"a": ["a-0.1"], "b": ["b-0.3"]})
    stuck = scene.stuck()
    assert scene.chain(B, stuck) == [("b1", "b-0.3", "x"), ("a1", "a-0.1", "b1")]
    assert scene.chain(outer, stuck) == [("a1", "a-0.1", "b1"), ("b1", "b-0.3", "x")]


WORKERS = ["a-0.1", "a-1.1", "b-0.1"]


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Up to three workers that run one job each and wait for one more, which is queued or held by another one."""
    busy = draw(st.lists(st.sampled_from(WORKERS), unique=True))
    held = {f"job-of-{worker}": worker for worker in busy}
    waits = []
    for worker in draw(st.lists(st.sampled_from(busy), unique=True)) if busy else []:
        own = f"job-of-{worker}"
        others = [job for job in held if job != own]
        target = draw(st.sampled_from([*others, f"queued-by-{worker}"]))
        engine = held[target][0] if target in held else draw(st.sampled_from("ab"))
        waits.append(Wait(worker, own, {target: engine}))
    return Scene(waits, held, {"a": WORKERS[:2], "b": WORKERS[2:]})


@given(scene=scenes())
def test_what_a_simulation_cannot_end_is_stuck_and_nothing_else(scene: Scene) -> None:
    awaits = {wait.worker: next(iter(wait.awaits.items())) for wait in scene.waits}
    done: set[str] = set()
    free = {worker for worker in WORKERS if worker not in scene.held.values()}
    for _ in range(20):
        for engine in {worker[0] for worker in free}:  # a free one does all that is queued
            done |= {job for job, wanted in awaits.values() if wanted == engine and job not in scene.held}
        for job, worker in scene.held.items():
            if job not in done and (worker not in awaits or awaits[worker][0] in done):
                done.add(job)
                free.add(worker)
    assert set(scene.stuck()) == {job for job, _ in awaits.values()} - done


# ---- notes


def test_a_note_of_the_dead_says_nothing(spool: Spool) -> None:
    me = procs.identity_of(os.getpid())
    assert me is not None
    folder = spool.root / "run" / "waits"
    body = {"worker": "a-0.1", "job": "a1", "identity": me.to_map(), "awaits": {"x": "a"}}
    (folder / "a-0.1.1.0.json").write_text(json.dumps(body))
    (folder / "a-0.1.2.0.json").write_text(json.dumps({**body, "identity": {**me.to_map(), "start": "1"}}))
    for number, text in enumerate(["", "{", "[]", '{"awaits": 3}', json.dumps({**body, "awaits": []})]):
        (folder / f"odd.{number}").write_text(text)
    sweep(spool)  # as the supervisor does now and then
    assert list(read_notes(spool)) == [A]
    assert sorted(os.listdir(folder)) == ["a-0.1.1.0.json", *(f"odd.{number}" for number in range(5))]


def test_only_a_process_inside_a_worker_of_this_spool_leaves_notes(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inside(spool) is None
    monkeypatch.setenv(ENV_WORKER, "a-0.1")
    monkeypatch.setenv(ENV_SPOOL, "another one")
    assert inside(spool) is None
    monkeypatch.setenv(ENV_SPOOL, spool.id)
    found = inside(spool)
    assert found is not None
    assert list(found.deadlocks({"x": "a"}, PoolFacts(served=True))) == []  # its worker runs no job
    assert os.listdir(spool.root / "run" / "waits") == []
