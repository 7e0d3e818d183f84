"""The history of a pool: every job counts once, over restarts, in whatever moment the gateway dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios.world import World, wait_until

from gateways.gateway import Gateway, configure
from pool.client.stats import KEPT_S, STEP_S, Sums, Window, of_records, stretches, window
from pool.gateways.http.history import History
from pool.gateways.http.ledger import Entry
from pool.spool.store import Spool

pytestmark = pytest.mark.long

NOW = 1_800_000_000


def job(number: int, ended_s: float, state: str = "completed", engine: str = "e", ran: bool = True) -> Entry:
    """A job that waited for 2 s and ran for 3 s."""
    end = int(ended_s * 1e6)
    return Entry(f"j{number}", engine, state, 1, end - 5_000_000, end - 3_000_000 if ran else 0, end)


def test_sums_are_kept_and_nothing_counts_twice(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    jobs = [job(0, NOW - 100), job(1, NOW - 3, "failed"), job(2, NOW - 1, "cancelled", ran=False)]
    first = History(path)
    for one in jobs:
        first.add(one)
    first.save(NOW * 1_000_000)
    killed = History(path)  # counts more and dies before it writes
    killed.add(job(3, NOW + 50))
    later = [*jobs, job(3, NOW + 50), job(4, NOW - 2), job(5, NOW + 70, engine="other")]  # 4: its record came late
    again = History(path)
    for one in later:
        again.add(one)
    again.save((NOW + 100) * 1_000_000)
    third = History(path)
    for one in later:
        third.add(one)
    third.save((NOW + 100) * 1_000_000)
    for history in (again, third, History(path)):
        whole: dict[str, Sums] = {}
        for engine, _, sums in history.within(Window(0, STEP_S)):
            whole.setdefault(engine, Sums()).add(sums)
        assert whole == {
            "e": Sums(3, 1, 1, ran=4, wait_s=8.0, wait_most_s=2.0, run_s=12.0, run_most_s=3.0),
            "other": Sums(1, ran=1, wait_s=2.0, wait_most_s=2.0, run_s=3.0, run_most_s=3.0),
        }
    third.add(job(6, NOW + KEPT_S + 5000))
    third.save((NOW + KEPT_S + 6000) * 1_000_000)
    assert sum(sums.completed for _, _, sums in History(path).within(Window(0, STEP_S))) == 1  # the rest is too old
    path.write_text('{"version": 1, "upto": "x"}')
    assert list(History(path).within(Window(0, STEP_S))) == []


def test_stretches_are_put_together(tmp_path: Path) -> None:
    history = History(tmp_path / "none.json")
    hour = NOW // 3600 * 3600
    for number in range(6):
        history.add(job(number, hour + 600 * number + 10))
    history.add(job(9, hour - 10))
    assert [(at, sums.completed) for _, at, sums in history.within(Window(hour, 3600))] == [(hour, 6)]
    assert [sums.completed for _, _, sums in history.within(Window(hour, 600))] == [1] * 6


def test_a_gateway_that_is_killed_and_one_that_ends_lose_nothing(world: World) -> None:
    configure(world, "echo")
    world.serve(ready=1)

    def completed(gate: Gateway) -> int:
        return sum(one["completed"] for one in gate.get("/stats", params={"since": "6h"}).json()["stretches"])

    with Gateway(world) as gate:
        gate.start()
        for job_id in [gate.submit("echo", value=number) for number in range(4)]:
            gate.result(job_id)
        wait_until(lambda: completed(gate) == 4, "four jobs in the history")
        gate.kill()  # before it has written anything, or after
        gate.start()
        wait_until(lambda: completed(gate) == 4, "the same four jobs")
        gate.result(gate.submit("echo", value=5))
        wait_until(lambda: completed(gate) == 5, "five jobs")
        spool = Spool(world.spool)
        chosen = window(spool.now(), 6 * 3600)  # as `python -m pool stats` counts
        counted = stretches(of_records(spool, chosen), chosen)
        told = gate.get("/stats", params={"since": "6h"}).json()["stretches"]
        both = zip(counted, told, strict=True)
        assert all(
            {"engine": engine, "at": at, **sums.to_map()} == pytest.approx(its) for (engine, at, sums), its in both
        )
        assert gate.stop() == 0
        for record in (world.spool / "out").glob("*.msgpack"):
            record.unlink()  # as retention does
        gate.start()
        assert completed(gate) == 5
        (stretch, *_) = gate.get("/stats").json()["stretches"]
        assert (stretch["engine"], stretch["failed"], stretch["run_most_s"] >= stretch["run_s"] >= 0) == (
            "echo",
            0,
            True,
        )
        for wrong in ("15d", "0", "soon"):
            assert gate.get("/stats", params={"since": wrong}).json()["error"]["path"] == "since"
