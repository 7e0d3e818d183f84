"""Programs of one spool in containers of their own: a supervisor that cannot be seen is not taken for none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from scenarios.world import ROOT, World

_SPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


def elsewhere(world: World, *argv: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run Python in a process namespace of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*_SPACE, sys.executable, *argv]
    done = subprocess.run(command, cwd=world.folder, env=env, capture_output=True, text=True, timeout=100)
    assert code is None or done.returncode == code, done.stderr
    return done


@pytest.fixture
def served(world: World) -> World:
    if not sys.platform.startswith("linux"):
        pytest.skip("process namespaces are Linux")
    probe = subprocess.run([*_SPACE, "true"], stderr=subprocess.PIPE, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no process namespace here: {probe.stderr.strip()}")
    world.configure().serve(ready=2)
    return world


def test_status_says_where_it_is(served: World) -> None:
    told = json.loads(elsewhere(served, "-m", "pool", "status", "--json", "--config", str(served.config)).stdout)
    assert told["health"]["verdict"] == "down"
    assert "serves this spool from another process namespace" in told["health"]["sentence"]
    assert "DEPLOY.md" in told["unseen"]
    assert served.pool().status().unseen == ""
    doctor = elsewhere(served, "-m", "pool", "doctor", "--config", str(served.config), code=None)
    assert "another process namespace" in " ".join(doctor.stdout.split())
    for command in ("drain", "reload"):
        said = elsewhere(served, "-m", "pool", command, "--config", str(served.config), code=None)
        assert said.returncode not in (0, 1), said.stdout
        assert "another process namespace" in said.stderr


def test_a_pool_says_so_at_once_and_starts_none(served: World) -> None:
    program = """
        import sys, time
        from pool import FilePool
        from pool.errors import SupervisorFailed
        begun = time.monotonic()
        try:
            FilePool(sys.argv[1])
        except SupervisorFailed as error:
            print(time.monotonic() - begun < 20, error)
        attached = FilePool(sys.argv[1], start=False)
        print(attached.submit("fake", value=7).result(60)["value"])
        """
    said = elsewhere(served, "-c", textwrap.dedent(program), str(served.config)).stdout.splitlines()
    assert said[0].startswith("True a supervisor serves this spool from another process namespace")
    assert said[1] == "7", "what it does is there for all"
    assert "another supervisor" not in served.log()


def test_after_its_end_there_is_none(served: World) -> None:
    served.kill_supervisor()
    told = json.loads(elsewhere(served, "-m", "pool", "status", "--json", "--config", str(served.config)).stdout)
    assert told["unseen"] == ""
    assert "no supervisor serves this spool" in told["health"]["sentence"]
