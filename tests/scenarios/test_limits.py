"""Limits of the system that are met: said where people look, with what mends them; nothing is lost and nobody hangs.

inotify is taken away in a user namespace, which has limits of its own, so that nobody else on this machine notices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pool import FilePool
from pool.client.inspection import read_status
from pool.client.status import PoolStatus
from scenarios.world import ROOT, World, wait_until

_NAMESPACE = ["unshare", "--user", "--map-root-user", "sh", "-c"]
_NO_INSTANCES = "echo 0 > /proc/sys/user/max_inotify_instances"


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """What runs a command where there is no inotify instance, until a file named `go` appears in its folder."""
    if not sys.platform.startswith("linux"):
        pytest.skip("inotify is Linux")
    probe = subprocess.run([*_NAMESPACE, _NO_INSTANCES], stderr=subprocess.PIPE, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no user namespace here: {probe.stderr.strip()}")
    mended = "while [ ! -e go ] && kill -0 $$; do sleep 0.1; done; echo 64 > /proc/sys/user/max_inotify_instances"
    return [*_NAMESPACE, f'{_NO_INSTANCES} && {{ ({mended}) >/dev/null 2>&1 & exec "$@"; }}', "sh"]


def program(world: World, text: str, *before: str) -> dict[str, Any]:
    """What a client's program says in JSON. before: what it is started by."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [*before, sys.executable, "-c", textwrap.dedent(text), str(world.config)]
    done = subprocess.run(argv, cwd=world.folder, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def served(make_shared: Callable[[str], World]) -> World:
    world = make_shared("limits").configure()
    world.serve(ready=2)
    return world


# ---- inotify


def test_a_client_without_events_says_so_once_and_gets_its_results(served: World, namespace: list[str]) -> None:
    said = program(
        served,
        """
        import json, sys, threading, warnings
        from concurrent.futures import wait
        from pool import FilePool, PoolWarning
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            pools = [FilePool(sys.argv[1], start=False) for _ in range(5)]
            values = [pool.submit("fake", value=n).result(60)["value"] for n, pool in enumerate(pools * 4)]
            late = [pool.submit("fake", do="sleep", seconds=0.3) for pool in pools]
            waited = len(wait(late, 60).done)
            many = pools[0].submit_many("fake", [{"value": n} for n in range(200)])
            values += [future.result(60)["value"] for future in many]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pools[0].submit("fake").result(60)
        print(json.dumps({"told": [(w.category.__name__, str(w.message), w.filename) for w in told],
                          "values": values, "waited": waited, "threads": threading.active_count()}))
        """,
        *namespace,
    )
    (category, text, file), *more = said["told"]
    assert not more
    assert (category, file) == ("PoolWarning", "<string>")
    assert "looked for by polling" in text
    assert "sysctl -w user.max_inotify_instances=" in text
    assert said["values"] == [*range(20), *range(200)]
    assert said["waited"] == 5
    assert said["threads"] == 2  # and the one that reads


def test_a_warning_that_is_made_an_error_accepts_nothing(served: World, namespace: list[str]) -> None:
    said = program(
        served,
        """
        import json, sys, warnings
        from pool import FilePool, PoolWarning, UnknownJob
        warnings.simplefilter("error")
        with FilePool(sys.argv[1], start=False) as pool:
            try:
                pool.submit("fake", id="warned")
                first = ""
            except PoolWarning as warning:
                first = str(warning)
            try:
                pool.state("warned")
            except UnknownJob:
                first += " and nothing was accepted"
            print(json.dumps({"first": first, "second": pool.submit("fake", value=1).result(60)["value"]}))
        """,
        *namespace,
    )
    assert said["second"] == 1
    assert said["first"].endswith("and nothing was accepted")


@pytest.mark.parametrize("mended", [False, pytest.param(True, marks=pytest.mark.long)], ids=["met", "mended"])
def test_the_status_says_who_polls_and_why(
    world: World, namespace: list[str], monkeypatch: pytest.MonkeyPatch, mended: bool
) -> None:
    world.configure()
    argv = [*namespace, sys.executable, "-m", "pool", "serve", "--config", str(world.config)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(world.folder / "serve.log", "ab") as log:
        world.serving.append(
            subprocess.Popen(argv, cwd=world.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )
    try:
        world.wait_ready(2)
        with FilePool(world.config, start=False) as pool:

            def look() -> PoolStatus:
                return read_status(pool.spool, pool.config)

            assert [future.result(60)["value"] for future in (pool.submit("fake", value=n) for n in range(20))] == [
                *range(20)
            ]
            wait_until(lambda: all(slot.watching.limited for slot in look().slots), "the workers say it")
            found = look()
            assert (found.watching.mode, found.watching.limited) == ("polling", True)
            assert found.health.verdict == "ok"  # slower, and not sick
            assert found.health.notes[0].startswith(
                "the supervisor, fake-0, fake-1: looking for arrivals by polling, which is slower: "
                "the limit of inotify instances of this user is used up (user.max_inotify_instances is 0): raise it"
            )
            assert [slot.serving for slot in found.slots] == [True, True]
            if mended:
                (world.folder / "go").touch()
                wait_until(lambda: not look().health.notes, "they are woken by events again", 60)
                assert look().watching.mode == "inotify"
                assert not list((world.spool / "run" / "slots").glob("*.watch"))
                assert "watching by inotify" in world.log()
                assert pool.submit("fake", value=1).result(60)["value"] == 1
            assert world.drain() == 0
            assert not list((world.spool / "run" / "slots").glob("*"))
    finally:
        (world.folder / "go").touch()


# ---- file descriptors

_STARVED = """
import json, os, resource, sys, time
from concurrent.futures import wait
from pool import FilePool, PoolError, UnknownJob; from pool.client import results

results._STARVING_S = 0.3
pool = FilePool(sys.argv[1], start=False)
pool.submit("fake", value=0).result(60)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
usual = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
said = {}

def starve():
    "Not one more file may be opened by this process."
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))

def feed():
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual, hard))

def trial(name, call):
    try:
        said[name] = repr(call())
    except PoolError as error:
        said[name] = str(error)

waiting = [pool.submit("fake", do="sleep", seconds=0.2, value=n) for n in range(4)]
starve()
trial("submit", lambda: pool.submit("fake", id="starved"))
trial("submit_many", lambda: pool.submit_many("fake", [{}, {}]))
trial("attach", lambda: pool.attach(waiting[0].id))
trial("cancel", lambda: pool.cancel(waiting[0].id))
trial("another", lambda: FilePool(sys.argv[1], start=False))
trial("with a supervisor", lambda: FilePool(sys.argv[1]))
trial("result", lambda: waiting[0].result(60))
done, rest = wait(waiting[:2], 60)
said["waited"] = [len(done), len(rest)]
trial("second", lambda: waiting[1].result(0))
feed()
said["later"] = [pool.attach(future.id).result(60)["value"] for future in waiting]
said["there"] = waiting[3].exception(60) is None or "attach(" in str(waiting[3].exception())
try:
    pool.state("starved")
except UnknownJob:
    said["starved"] = "nothing was accepted"
trial("again", lambda: pool.submit("fake", id="starved", value=7).result(60)["value"])
said["pending"] = len(pool.pending())
pool.close()
print(json.dumps(said))
"""


@pytest.mark.parametrize("durable", [False, True])
def test_without_descriptors_each_call_says_so_and_nothing_is_lost(world: World, durable: bool) -> None:
    world.configure(durable=durable)
    world.serve(ready=2)
    said = program(world, _STARVED)
    for name in ("submit", "submit_many", "attach", "cancel", "another", "with a supervisor", "result", "second"):
        assert "ulimit -n is 3" in said.pop(name), name
    assert said == {
        "waited": [2, 0],
        "later": [0, 1, 2, 3],
        "there": True,
        "starved": "nothing was accepted",
        "again": "7",
        "pending": 0,
    }
    assert world.names("tmp") == []
    assert world.names("run/ids") in ([], ["starved"])


def test_a_name_is_synced_also_without_a_descriptor(tmp_path: Path) -> None:
    """The last step of a durable submit needs one; when there is none the whole machine is synced instead."""
    text = """
    import json, os, resource, sys
    from pool.spool import fsops
    asked = []
    real, os.sync = os.sync, lambda: asked.append("sync") or real()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    fsops.sync_dir(os.path.dirname(sys.argv[1]))
    print(json.dumps({"asked": asked}))
    """
    assert program(World(tmp_path), text) == {"asked": ["sync"]}
