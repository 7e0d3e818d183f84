"""Twenty seconds of storm; `make chaos` makes it half an hour.

FILEPOOL_STORM_SEED repeats one. Afterwards nothing is lost, duplicated, overlapping, or without a reason.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from .storm import Storm, set_up

SECONDS = float(os.environ.get("FILEPOOL_STORM_S", "20"))


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
