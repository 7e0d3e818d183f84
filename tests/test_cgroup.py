"""A control group per worker, in the real kernel, where this machine lets us make one."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_lineage import daemon, left_by, lives

from pool.system import cgroup


@pytest.fixture
def group() -> Iterator[tuple[str, str]]:
    """A group and the id of the spool it is of."""
    if not cgroup.home():
        pytest.skip("no control group here that we may divide")
    spool_id = uuid.uuid4().hex
    path = cgroup.make(spool_id, "echo-0.1")
    assert path
    yield path, spool_id
    cgroup.end(path, spool_id)


def inside(path: str, *argv: str) -> subprocess.Popen[bytes]:
    """A program that moves into the group before it begins."""
    return subprocess.Popen(["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', f"{path}/cgroup.procs", *argv])


def test_nothing_that_was_started_inside_gets_out(group: tuple[str, str], tmp_path: Path) -> None:
    """Another session, no environment, another parent: one order ends it, and the group is gone."""
    path, spool_id = group
    inside(path, *daemon(tmp_path / "a")).wait()
    worker = inside(path, "sleep", "600")
    stray = left_by(tmp_path / "a")
    deadline = time.monotonic() + 30
    while len(Path(f"{path}/cgroup.procs").read_text().split()) != 2:
        assert time.monotonic() < deadline
    cgroup.end(path, spool_id)
    assert not lives(stray)
    assert not os.path.exists(path)
    assert worker.wait() == -9


def test_a_process_moves_itself(group: tuple[str, str]) -> None:
    path, _ = group
    pid = os.fork()
    if pid == 0:
        trouble = cgroup.enter(path)
        os._exit(0 if not trouble and os.path.basename(path) in Path("/proc/self/cgroup").read_text() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_empty_group_goes(group: tuple[str, str]) -> None:
    path, spool_id = group
    cgroup.end(path, spool_id)
    assert not os.path.exists(path)
    cgroup.end(path, spool_id)
    assert "No such file" in cgroup.enter(path)


def test_groups_of_others_are_left_alone(group: tuple[str, str]) -> None:
    path, _ = group
    child = inside(path, "sleep", "600")
    for other in ("", path, os.path.dirname(path), "/"):
        cgroup.end(other, uuid.uuid4().hex)
    assert lives(child.pid)
    child.kill()
    child.wait()


def test_what_is_not_ours_to_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain folder, which root may write, stands for a group that systemd keeps for itself."""
    (tmp_path / "cgroup.procs").touch()
    monkeypatch.setattr(cgroup, "_own", lambda: str(tmp_path))
    for user, found in ((0, ""), (1000, "")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert cgroup.home.__wrapped__() == found
        assert os.listdir(tmp_path) == ["cgroup.procs"]
    monkeypatch.setattr(cgroup, "_own", lambda: "")
    assert cgroup.home.__wrapped__() == ""
