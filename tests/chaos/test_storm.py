"""Twenty seconds of storm; `make chaos` makes it half an hour.

FILEPOOL_STORM_SEED repeats one. Afterwards nothing is lost, duplicated, overlapping, or without a reason.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest
from scenarios.world import kill

from pool.constants import EXIT_LOCKED

from .storm import Storm, set_up

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
        storm.run(SECONDS, print)
        report = storm.settle()
        print(storm.summary(report))
        assert storm.faults(report) == []
        assert report.jobs > 50
        assert report.recovered == [] or storm.done["kill client"]
    finally:
        world.close()


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
