"""Twenty seconds of storm; `make chaos` makes it half an hour.

FILEPOOL_STORM_SEED repeats one. Afterwards nothing is lost, duplicated, overlapping, or without a reason.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest
from scenarios.world import kill, wait_until

from pool.constants import EXIT_LOCKED

from .storm import Storm, asked_at_once, set_up

SECONDS = float(os.environ.get("FILEPOOL_STORM_S", "20"))


@pytest.mark.long
@pytest.mark.timeout(SECONDS * 1.2 + 240)
@pytest.mark.invariant(1, 7, 8, 9, 15, 27)
def test_storm(tmp_path: Path) -> None:
    seed = int(os.environ.get("FILEPOOL_STORM_SEED", str(random.randrange(10**6))))
    print(f"FILEPOOL_STORM_SEED={seed}")
    world = set_up(tmp_path)
    try:
        world.serve(ready=2)
        storm = Storm(world, seed, clients=2)
        storm.run(SECONDS, print, jobs=50)
        report = storm.settle()
        print(storm.summary(report))
        assert storm.faults(report) == []
        assert report.jobs >= 50
        assert report.recovered == [] or storm.done["kill client"]
    finally:
        world.close()


@pytest.mark.long
def test_a_rival_that_is_slow_to_come_does_not_serve_when_the_storm_is_over(tmp_path: Path) -> None:
    world = set_up(tmp_path)
    try:
        world.serve(ready=1)
        storm = Storm(world, 1)
        (tmp_path / "clients.err").touch()
        rival = world.serve()
        kill(rival.pid, signal.SIGSTOP)
        threading.Timer(2, kill, (rival.pid, signal.SIGCONT)).start()
        assert storm.faults(storm.settle()) == []
        assert rival.poll() == EXIT_LOCKED
    finally:
        world.close()


@pytest.mark.long
def test_an_attempt_that_failed_by_no_strike_is_found(tmp_path: Path) -> None:
    """Two jobs lose their worker, one of them by the hand of the storm."""
    world = set_up(tmp_path)
    try:
        world.serve(ready=3)
        storm, pool = Storm(world, 1), world.pool()
        (tmp_path / "clients.err").touch()
        futures = [pool.submit("fake", do="hang", until_attempt=1) for _ in range(2)]
        for future in futures:
            storm.history.say("offered", id=future.id)
            storm.history.say("accepted", id=future.id)
            name, pid = world.worker_of(future.id)
            if future is futures[0]:
                storm.struck.add(name)
            kill(pid)
        assert [future.result(60)["attempt"] for future in futures] == [2, 2]
        faults = storm.faults(storm.settle())
        assert len(faults) == 1
        assert faults[0].startswith(f"charged: attempt 1 of {futures[1].id}, whose worker nobody struck")
    finally:
        world.close()


@pytest.mark.long
def test_workers_that_are_asked_to_end_together_are_found(tmp_path: Path) -> None:
    """In what a real supervisor says of a reload, and in the same with one line at another place."""
    world = set_up(tmp_path)
    try:
        world.serve(ready=3)
        document = json.loads(world.config.read_text())
        document["engines"]["fake"]["options"]["fingerprint"] = "fake-2"
        world.config.write_text(json.dumps(document))
        futures = [world.pool().submit("fake", do="sleep", seconds=0.6) for _ in range(3)]
        for future in futures:
            world.worker_of(future.id)
        kill(world.serving[0].pid, signal.SIGHUP)
        log = tmp_path / "serve.log"
        wait_until(lambda: "all slots run the new configuration" in log.read_text(), "the roll")
        assert [future.result(20)["attempt"] for future in futures] == [1, 1, 1]
        lines = log.read_text().splitlines()
        asks = [number for number, line in enumerate(lines) if line.endswith(": it may finish its job")]
        assert len(asks) == 4
        assert list(asked_at_once("\n".join(lines))) == []
        lines.insert(asks[0] + 1, lines.pop(asks[1]))
        assert len(list(asked_at_once("\n".join(lines)))) == 1
    finally:
        world.close()
