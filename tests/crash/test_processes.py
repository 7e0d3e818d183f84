"""Real supervisors and real workers, each killed at a later operation than the one before, at the same time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from scenarios.world import ROOT, World, kill, wait_until

from pool.spool.store import Spool
from pool.supervise.retention import sweep_remains, sweep_tmp

from .checker import check
from .rig import History

pytestmark = pytest.mark.long

DOOMED = Path(__file__).with_name("doomed.py")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        yield made


def _serve_until_killed(world: World, number: int, patience: float) -> bool:
    """A supervisor that dies at operation `number`; False when it did not come that far in `patience` seconds."""
    argv = [sys.executable, str(DOOMED), str(world.config), str(number), str(world.folder / f"supervisor-{number}")]
    with open(world.folder / "serve.log", "ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    world.serving.append(process)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        kill(process.pid)
        process.wait()
        return False
    return True


@pytest.mark.invariant(7, 8, 9)
@pytest.mark.parametrize(
    ("stride", "last", "patience"),
    [(9, 6, 4), pytest.param(1, 60, 20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
    ids=["some", "all"],
)
def test_workers_and_supervisors_are_killed_at_once(world: World, stride: int, last: int, patience: float) -> None:
    witness, media, history = world.folder / "witness", world.folder / "media", History(world.folder / "history")
    for path in (witness, media):
        path.mkdir()
    options = {"witness": str(witness), "stride": stride, "last": last, "notes": str(world.folder)}
    engine = {
        "engine": "crash.doomed:Doomed",
        "pythonpath": [str(ROOT / "tests")],
        "options": options,
        "retry_times": 90,
        "start_limit": 1000,
        "bench_s": 1,
    }
    world.configure({"fake": engine}, durable=True)
    pool = world.pool()
    jobs = ({"do": "sleep", "seconds": 0.02}, {"do": "raise", "until_attempt": 1}, {"do": "write"}, {"do": "input"})
    number = 1
    while number < last * stride:
        for params in (*jobs, {"do": "write", "output": str(media / f"{number}.bin")}):
            value = f"{number}-{params['do']}-{len(params)}"
            history.say("offered", value=value)
            history.say("accepted", id=pool.submit("fake", params={"value": value, **params}).id)
        came = _serve_until_killed(world, number, patience)
        number += stride if came else last * stride
    world.serve(ready=1)
    wait_until(lambda: not world.held(), "the end of what waits", 100)
    killed = [path.name for path in world.folder.glob("worker-*")]
    assert killed, "no worker came to its operation"
    assert world.drain() == 0
    spool = Spool(world.spool)
    sweep_tmp(spool)
    sweep_remains(spool)
    report = check(world.spool, history.told(), witness)
    assert report.faults() == {}, (killed, world.log())
    assert not list(media.glob(".*"))
