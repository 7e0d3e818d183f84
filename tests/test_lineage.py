"""Who descends from us, and what a dead worker left: real double forks that left their session and environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from steps import in_child

from pool.system import host, lineage, procs
from pool.system.lineage import Heir

pytestmark = pytest.mark.skipif(not host.LINUX, reason="subreapers are Linux's")


def daemon(note: Path) -> list[str]:
    """A command that leaves a process behind: another session, no environment, its first parent gone."""
    return ["setsid", "-f", "env", "-i", "/bin/sh", "-c", f"echo $$ > {note}.new; mv {note}.new {note}; exec sleep 600"]


def left_by(note: Path) -> int:
    """The process that a daemon's command left behind, once it runs what it shall run."""
    deadline = time.monotonic() + 30
    while not note.exists() or lineage.command_of(int(note.read_text())) != "sleep 600":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return int(note.read_text())


def lives(pid: int) -> bool:
    identity = procs.identity_of(pid)
    return identity is not None and identity.alive()


def alone(life: Callable[[], None], folder: Path) -> None:
    """In a process that has no children yet."""
    note = folder / "complaint"

    def told() -> None:
        try:
            life()
        except BaseException:
            note.write_text(traceback.format_exc())

    assert in_child(told) == 0
    assert not note.exists(), note.read_text()


@pytest.mark.invariant(9)
def test_a_daemon_of_a_dead_worker_is_inherited_ended_and_reaped(tmp_path: Path) -> None:
    def life() -> None:
        heir = Heir()
        assert heir.ends
        assert heir.end(set()) == []
        code = (
            "import subprocess, sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from pool.system.lineage import become_subreaper; assert become_subreaper()\n"
            "subprocess.run(sys.argv[2:], check=True); time.sleep(600)"
        )
        root = str(Path(lineage.__file__).parent.parent)
        worker = subprocess.Popen([sys.executable, "-c", code, root, *daemon(tmp_path / "pid")], start_new_session=True)
        pid = left_by(tmp_path / "pid")
        identity, stray = procs.identity_of(worker.pid), procs.identity_of(pid)
        assert identity is not None
        assert stray is not None
        deadline = time.monotonic() + 30
        while pid not in {member.identity.pid for member in procs.family(identity)}:  # until its first parent is gone
            assert time.monotonic() < deadline
        assert pid not in lineage.children()
        assert heir.end({worker.pid}) == [], "a living worker keeps its own"
        worker.kill()
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        assert not [m for m in procs.family(identity) if m.identity == stray], "nothing else tells whose it was"
        assert pid in lineage.children()
        assert heir.end({worker.pid}) == [f"pid {pid} (sleep 600)"]
        assert not lives(pid)
        assert lineage.children() == {worker.pid}, "reaped, and the worker itself left to who started it"
        worker.wait()

    alone(life, tmp_path)


def test_who_had_children_before_ends_nothing(tmp_path: Path) -> None:
    """sh -c 'something & exec python -m pool serve': that child is nobody's stray."""

    def life() -> None:
        other = subprocess.Popen(["sleep", "600"])
        heir = Heir()
        assert not heir.ends
        assert heir.end(set()) == []
        assert lives(other.pid)
        other.kill()
        other.wait()

    alone(life, tmp_path)


def test_children_are_counted_and_never_reaped_by_looking(tmp_path: Path) -> None:
    def life() -> None:
        assert not lineage.has_children()
        assert lineage.children() == set()
        other = subprocess.Popen(["sleep", "600"])
        assert lineage.has_children()
        assert lineage.children() == {other.pid}
        assert not lineage.is_dead(other.pid)
        assert lineage.command_of(other.pid) in ("sleep 600", "sleep")
        other.send_signal(signal.SIGTERM)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert lineage.has_children()
        assert lineage.children() == {other.pid}
        assert lineage.is_dead(other.pid)
        assert other.wait() == -signal.SIGTERM, "its own exit code is still there to be had"
        assert not lineage.has_children()

    alone(life, tmp_path)
