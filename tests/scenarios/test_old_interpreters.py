"""Workers in an older Python: 3.8 with the packages of a worker does all that ours do; what does not fit says why."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import old_python
import psutil
import pytest

from pool.errors import EngineUnavailable
from scenarios.world import World, wait_until

pytestmark = pytest.mark.long

ENGINE = '''
import os, subprocess, sys, time


class Old:
    """Valid for Python 3.8; imports nothing of ours."""

    def load(self, device, options):
        self.version = list(sys.version_info[:2])

    def check(self, params):
        return params

    def run(self, params, context):
        if params.get("do") == "raise":
            raise KeyError("voice")
        if params.get("do") == "crash":
            os.abort()
        if params.get("do") == "wait":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            while True:
                context.progress("inference", 25.0, "working")
                context.check()
                time.sleep(0.02)
        context.partial({"part": 1})
        return {"version": self.version, "value": params.get("value"), "attempt": context.attempt}

    def close(self):
        pass
'''


def configure(world: World, python: str, **more: Any) -> World:
    (world.folder / "engines").mkdir(exist_ok=True)
    (world.folder / "engines" / "old_engine.py").write_text(ENGINE)
    about = {
        "engine": "old_engine:Old",
        "python": python,
        "pythonpath": ["engines"],
        "max_concurrent_tasks": 1,
        "retry_times": 1,
        **more,
    }
    return world.configure({"old": about})


@pytest.fixture
def served(world: World) -> World:
    configure(world, old_python.with_packages("3.8", *old_python.WORKER)).serve(ready=1)
    return world


def test_a_worker_in_python_38_does_what_ours_do(served: World) -> None:
    pool = served.pool()
    future = pool.submit("old", value=[1, "ü", b"\x00"])
    assert future.result(30) == {"version": [3, 8], "value": [1, "ü", b"\x00"], "attempt": 1}
    failed = pool.submit("old", do="raise")
    assert failed.exception(30) is not None
    assert failed.record is not None
    assert failed.record.failure is not None
    assert "voice" in failed.record.failure.message
    assert [record.attempt for record in failed.record.attempts] == [1]


def test_crash_kill_and_cancel_in_python_38(served: World) -> None:
    """Each with its reason; grandchildren end, too."""
    pool = served.pool()
    crashed = pool.submit("old", do="crash", retry_times=0)
    assert crashed.exception(30) is not None
    assert crashed.record is not None
    assert crashed.record.failure is not None
    assert crashed.record.failure.signal == "SIGABRT"
    assert "old_engine.py" in crashed.record.failure.stderr_tail

    killed = pool.submit("old", do="wait", retry_times=0)
    _, pid = served.worker_of(killed.id)
    wait_until(lambda: psutil.Process(pid).children(), "its child runs")
    children = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    assert killed.exception(30) is not None
    assert killed.record is not None
    assert killed.record.failure is not None
    assert killed.record.failure.signal == "SIGKILL"
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    cancelled = pool.submit("old", do="wait")
    served.worker_of(cancelled.id)
    assert cancelled.cancel()
    wait_until(cancelled.done, "the cancelled job ends")
    assert pool.submit("old", value=1).result(30)["value"] == 1


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3.8", "has no package msgpack, which a worker needs"),
        ("3.7", "is Python 3.7.{}; a worker needs 3.8 or newer"),
        ("3.6", "is Python 3.6.{}; a worker needs 3.8 or newer"),
    ],
)
def test_an_interpreter_that_does_not_fit_says_why(version: str, words: str, world: World, tmp_path: Path) -> None:
    """At once, in the error of the job, in `status` and for everybody who waits."""
    configure(world, old_python.bare(version)).serve()
    future = world.pool().submit("old", value=1)
    with pytest.raises(EngineUnavailable) as caught:
        future.result(60)
    first, _, rest = words.partition("{}")
    for text in (str(caught.value), str(world.slot("old-0")["last_death"])):
        assert first in text
        assert rest in text
    assert "msgpack watchdog filelock" in str(caught.value) or "inference.foreign:Foreign" in str(caught.value)
