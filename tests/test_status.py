"""Status tells the truth: of an empty spool, of a real pool that is hurt, and the verdict for every kind of trouble."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scenarios.world import World, kill, wait_until

from pool.cli.terminal import status_view, type_of
from pool.cli.text import one_line, plain, seconds, size
from pool.client.filepool import FilePool
from pool.client.health import assess, trouble_of
from pool.client.inspection import read_status
from pool.client.status import (
    EngineStatus,
    Health,
    PoolStatus,
    SlotStatus,
    SupervisorStatus,
)
from pool.config.settings import Config, parse_config
from pool.constants import Phase
from pool.job import JobState
from pool.runfiles.heartbeat import Beat
from pool.runfiles.watchers import WatchingStatus
from pool.spool.store import Spool
from pool.system.procfs import Status
from pool.system.procs import Sample


def config(root: Path = Path("/nowhere"), **engine: Any) -> Config:
    fake = {"engine": "inference.fake:Fake", "workers": 2, **engine}
    return parse_config({"min_free_mb": 1, "rescan_s": 0.5, "engines": {"fake": fake}}, root)


SLOT = SlotStatus(
    slot="fake-0",
    engine="fake",
    seat="running",
    spare=False,
    worker="fake-0.1",
    pid=1,
    device="cpu",
    phase="idle",
    phase_s=60.0,
    silent_s=0.1,
    job="",
    stage="",
    percent=None,
    message="",
    serving=True,
    trouble="",
    why="",
    error=None,
    last_death="",
    ended=None,
    row=0,
    next_start_s=None,
    starts=1,
    restarts=0,
    jobs_done=0,
    rss_bytes=0,
    gpu_bytes=0,
)
ENGINE = EngineStatus(
    name="fake",
    configured=True,
    workers=2,
    spares=0,
    serving=2,
    busy=0,
    queued=0,
    held=0,
    deferred=0,
    running=0,
    dead=0,
    oldest_wait_s=None,
    max_ready=100,
)
POOL = PoolStatus(
    at=0,
    spool="/nowhere/spool",
    health=Health("ok", ""),
    supervisor=SupervisorStatus(pid=7, started=0, tied=False, config=None, version="0", stopped=False),
    draining=False,
    intake_paused="",
    watching=WatchingStatus("inotify"),
    engines=(ENGINE,),
    slots=(SLOT, replace(SLOT, slot="fake-1")),
    dropped=0,
    quarantined=0,
    records=0,
    free_bytes=1 << 40,
    total_bytes=1 << 41,
    min_free_bytes=1 << 30,
)
DEAD = replace(SLOT, seat="benched", phase="", serving=False, trouble="benched: model missing", error={"message": "m"})
LOADING = replace(SLOT, phase="loading", phase_s=12.0, serving=False)


def pool(slots: tuple[SlotStatus, ...] = POOL.slots, engine: EngineStatus = ENGINE, **changes: Any) -> PoolStatus:
    engine = replace(engine, serving=sum(slot.serving for slot in slots))
    return replace(POOL, slots=slots, engines=(engine,), **changes)


@pytest.mark.parametrize(
    ("status", "verdict", "sentence"),
    [
        (pool(), "ok", "2 workers ready, 0 jobs running, 0 waiting"),
        (pool((SLOT, DEAD)), "degraded", "fake-0: benched: model missing"),
        (pool((DEAD, DEAD)), "down", "fake: no worker can run (and 2 more)"),
        (pool((LOADING, LOADING)), "degraded", "fake: no worker is ready yet (fake-0 loading for 12 s, fake-0"),
        (pool((SLOT, LOADING)), "degraded", "fake: 1 of 2 workers are ready"),
        (pool((LOADING, DEAD)), "degraded", "no worker is ready yet"),
        (pool(()), "degraded", "fake: no worker is ready yet"),
        (pool(supervisor=None), "degraded", "the supervisor is gone, 2 workers work on for up to 60 s: start one"),
        (pool((), supervisor=None), "down", "no supervisor serves this spool: start one with `python -m pool serve`"),
        (pool((), replace(ENGINE, queued=3, deferred=1), supervisor=None), "down", "4 jobs wait"),
        (pool(draining=True), "degraded", "draining"),
        (pool(intake_paused="the disk is full"), "degraded", "dropped files are not taken in: the disk is full"),
        (pool(free_bytes=1 << 20), "degraded", "1 MB free on the disk"),
        (pool(engine=replace(ENGINE, queued=100)), "degraded", "100 jobs wait, max_ready is 100"),
        (
            pool(engine=replace(ENGINE, queued=1, oldest_wait_s=50.0)),
            "degraded",
            "fake: a job has waited for 50 s although fake-0 is idle: python -m pool logs fake-0",
        ),
        (
            pool((replace(SLOT, phase_s=1.0),) * 2, replace(ENGINE, queued=1, oldest_wait_s=50.0)),
            "ok",
            "2 workers ready, 0 jobs running, 1 waiting",
        ),
        (
            replace(pool(), supervisor=replace(POOL.supervisor, stopped=True)),  # type: ignore[type-var]
            "degraded",
            "the supervisor is stopped: nothing dead is noticed (kill -CONT 7)",
        ),
        (
            replace(pool(), engines=(ENGINE, replace(ENGINE, name="old", configured=False, queued=2))),
            "degraded",
            "2 jobs wait for old, which is not in the configuration",
        ),
    ],
)
def test_the_verdict(status: PoolStatus, verdict: str, sentence: str) -> None:
    found = assess(status, config())
    assert (found.verdict, found.ok) == (verdict, verdict == "ok")
    assert sentence in found.sentence
    assert found.ok == (not found.reasons)


def test_who_polls_for_a_limit_is_named_and_nobody_is_called_sick_for_it() -> None:
    limited, remote = WatchingStatus("polling", "no instance", True), WatchingStatus("polling", "nfs4 sends no events")
    slots = (replace(SLOT, watching=limited), replace(SLOT, slot="fake-1", watching=limited))
    found = assess(pool(slots, watching=limited), config())
    assert found.ok
    assert found.notes == (
        "the supervisor, fake-0, fake-1: looking for arrivals by polling, which is slower: no instance",
    )
    assert assess(pool(slots, draining=True), config()).notes[0].startswith("fake-0, fake-1: looking")
    assert assess(pool(watching=remote), config()).notes == ()  # as it must be there
    from rich.console import Console

    console = Console(record=True, width=200, file=sys.stdout)
    console.print(status_view(replace(pool(slots), health=found)))
    assert "! the supervisor, fake-0" in console.export_text()


BEAT = Beat(7, 0, 0, 1, 0, 0, 0, 0, 0, Phase.IDLE, False, "", "")
ALIVE = Sample(Status.SLEEPING, 1, 0.0)


@pytest.mark.parametrize(
    ("entry", "beat", "usage", "silent_s", "trouble"),
    [
        ({"seat": "running"}, BEAT, ALIVE, 1.0, ""),
        ({"seat": "running"}, BEAT, ALIVE, 31.0, "idle, but no sign of life for 31 s"),
        ({"seat": "running"}, replace(BEAT, phase=Phase.BUSY, job="j"), ALIVE, 100.0, ""),
        ({"seat": "running"}, replace(BEAT, phase=Phase.BUSY, job="j"), ALIVE, 121.0, "no progress for 121 s at job j"),
        ({"seat": "running"}, replace(BEAT, phase=Phase.LOADING), ALIVE, 500.0, ""),
        ({"seat": "running"}, BEAT, replace(ALIVE, status=Status.STOPPED), 1.0, "its process is stopped"),
        ({"seat": "running"}, BEAT, replace(ALIVE, status=Status.ZOMBIE), 1.0, "its process is gone"),
        ({"seat": "running", "pid": 7}, None, None, None, "its process is gone"),
        ({"seat": "running"}, None, None, None, ""),
        ({"seat": "benched", "why": "5 starts failed"}, None, None, None, "benched: 5 starts failed"),
        (
            {"seat": "benched", "why": "exit code 4", "error": {"message": "no model", "hint": "install it"}},
            None,
            None,
            None,
            "benched: exit code 4; no model (install it)",
        ),
        ({"seat": "benched"}, None, None, None, "benched: it failed too often"),
        ({"seat": "waiting", "next_start_s": 8, "last_death": "SIGKILL"}, None, None, None, "again in 8 s: SIGKILL"),
        ({"seat": "waiting", "next_start_s": 0}, None, None, None, "starts"),
        ({"seat": "ending", "why": "it is sick"}, BEAT, ALIVE, 1.0, "being ended: it is sick"),
    ],
)
def test_the_trouble_of_a_slot(
    entry: dict[str, Any], beat: Beat | None, usage: Sample | None, silent_s: float | None, trouble: str
) -> None:
    found = trouble_of({"slot": "fake-0", "engine": "fake", **entry}, beat, usage, silent_s, config())
    assert trouble in found
    assert bool(found) == bool(trouble)


# --- a spool that nobody serves


def test_a_spool_that_nobody_serves(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    with FilePool(chosen, start=False) as client:
        client.submit_many("fake", [{}, {}])
        (tmp_path / "spool" / "in" / "job.json").write_text("{}")
        (tmp_path / "spool" / "in" / ".hidden").write_text("{}")
        (tmp_path / "spool" / "quarantine" / "x.json").write_text("{}")
        (tmp_path / "spool" / "quarantine" / "x.json.reason.txt").write_text("it is no job")
        found = client.status()
        client.close()
    assert found.health.verdict == "down"
    assert "no supervisor serves this spool, 2 jobs wait" in found.health.sentence
    assert found.supervisor is None
    assert found.slots == ()
    assert (found.dropped, found.quarantined, found.records) == (1, 1, 0)
    fake = found.engine("fake")
    assert fake is not None
    assert (fake.queued, fake.serving, fake.workers) == (2, 0, 2)
    assert fake.oldest_wait_s is not None
    assert found.free_bytes > 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"slots": 5}', '{"slots": [3, {}, {"slot": 7}]}', "\0" * 100])
def test_a_status_file_of_a_foreign_hand(tmp_path: Path, content: str) -> None:
    chosen = config(tmp_path)
    spool = Spool.create(chosen.spool)
    (chosen.spool / "run" / "status.json").write_text(content)
    (chosen.spool / "run" / "supervisor.json").write_text(content)
    assert read_status(spool, chosen).health.verdict == "down"


def test_it_becomes_plain_json(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    plain_map = json.loads(json.dumps(read_status(Spool.create(chosen.spool), chosen).to_map()))
    assert plain_map["health"]["verdict"] == "down"
    assert plain_map["engines"][0]["name"] == "fake"
    assert list(plain_map)[:3] == ["at", "spool", "health"]


# --- a real pool


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("status"))
    bad = {"max_concurrent_tasks": 1, "options": {"fail_load": "config"}}
    try:
        world.configure({"fake": {}, "bad": bad}).serve(ready=2)
        yield world
    finally:
        world.close()


def test_a_pool_at_work(served: World) -> None:
    client = served.pool()
    future = client.submit("fake", do="sleep", seconds=30)
    served.worker_of(future.id)
    wait_until(lambda: any(slot.seat == "benched" for slot in client.status().slots))
    wait_until(lambda: any((slot.percent or 0) > 0 for slot in client.status().slots))
    found = client.status()
    busy = next(slot for slot in found.slots if slot.job)
    assert (busy.job, busy.stage, busy.phase, busy.serving, busy.trouble) == (future.id, "inference", "busy", True, "")
    assert " of 30.0 s" in busy.message
    assert busy.rss_bytes > 1 << 20
    assert busy.worker is not None
    assert busy.worker.startswith(busy.slot)
    idle = next(slot for slot in found.of("fake") if slot is not busy)
    assert (idle.phase, idle.serving) == ("idle", True)
    assert found.watching.mode == "inotify"
    assert found.supervisor is not None
    assert (found.supervisor.config, found.supervisor.tied) == (str(served.config), False)
    fake = found.engine("fake")
    assert fake is not None
    assert (fake.serving, fake.busy, fake.running, fake.queued) == (2, 1, 1, 0)
    assert found.health.verdict == "degraded"
    assert any("bad-0: benched: " in reason and "no such model" in reason for reason in found.health.reasons)
    client.cancel(future.id)
    served.record(future.id)


def test_a_stopped_worker_is_alive_but_does_not_work(served: World) -> None:
    client = served.pool()
    pid = next(beat.pid for name, beat in served.loaded().items() if name.startswith("fake-0"))
    os.kill(pid, signal.SIGSTOP)
    slot = wait_until(lambda: next((s for s in client.status().slots if s.slot == "fake-0" and s.trouble), None))
    assert slot is not None
    assert "stopped" in slot.trouble
    assert not slot.serving
    kill(pid, signal.SIGCONT)
    wait_until(lambda: all(s.serving for s in client.status().of("fake")))


def test_workers_whose_supervisor_was_killed(served: World) -> None:
    client = served.pool()
    served.kill_supervisor()
    found = client.status()
    assert found.supervisor is None
    assert found.health.verdict == "degraded"
    assert "the supervisor is gone, 2 workers work on" in found.health.sentence
    assert [slot.seat for slot in found.of("fake")] == ["orphaned", "orphaned"]
    future = client.submit("fake", value=1)  # and they do
    assert served.record(future.id).state is JobState.COMPLETED
    served.serve(ready=2)
    wait_until(lambda: [slot.seat for slot in client.status().of("fake")] == ["running", "running"])


# --- for people's eyes


def test_what_a_terminal_shows() -> None:
    from rich.console import Console

    console = Console(width=120, file=sys.stdout, record=True, markup=False)
    evil = replace(
        SLOT, job="j", phase="busy", stage="run", percent=41.6, message="[red]\x1b[2Jgone\nand", rss_bytes=3 << 20
    )
    console.print(status_view(replace(pool((evil, DEAD)), health=Health("degraded", "two", ("one", "two")))))
    text = console.export_text()
    assert "● degraded" in text
    assert "- one" in text
    assert "run 42 % [red]gone and" in text
    assert "3.0 MB" in text
    assert "model missing" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.004, "4 ms"),
        (3.25, "3.2 s"),
        (59, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
        (None, ""),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_small_words() -> None:
    assert [size(n) for n in (0, 2048, 3 << 20, 300 << 20, 5 << 40)] == ["0 B", "2 KB", "3.0 MB", "300 MB", "5.0 TB"]
    assert plain("a\x1b[31mb\x07\tc\r\nd") == "ab\tc\nd"
    assert one_line(" a \n\n b\x00") == "a b"
    assert type_of({"anyOf": [{"type": "string", "format": "path"}, {"type": "null"}]}, {}) == "path"
    assert type_of({"$ref": "#/$defs/Mode"}, {"$defs": {"Mode": {"enum": ["a", "b"]}}}) == "a | b"
    assert type_of({}, {}) == "any"
