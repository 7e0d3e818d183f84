"""Faults from outside, without trusting our own seam: system calls that kill or fail, small files, small disks."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import pytest

from pool.errors import SpoolFull
from pool.job import JobState

from . import outside
from .checker import Spoolview
from .rig import Client, Rig, Temp

pytestmark = pytest.mark.long

FAST = [("rename", 9), ("rename", 25), ("renameat2", 2), ("link", 1), ("unlink", 3), ("fsync", 5), ("fsync", 17)]
CALLS = ("rename", "renameat2", "link", "unlink", "fsync")
OUTSIDE = Path(outside.__file__)


@cache
def _why_not() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed"
    argv = ["strace", "-f", "-o", "/dev/null", "-e", "trace=unlink", "-e", "inject=unlink:error=EIO", "true"]
    tried = subprocess.run(argv, capture_output=True, text=True)
    return f"strace may not trace here: {tried.stderr.strip()[-200:]}" if tried.returncode else ""


def _strace(rig: Rig, call: str, fault: str, number: int) -> int:
    """The jobs of `outside` while the n-th call of each thread has a fault; the exit code."""
    if why := _why_not():
        pytest.skip(why)
    argv = [
        "strace",
        "-f",
        "-o",
        str(rig.folder / "strace"),
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{fault}:when={number}",
        sys.executable,
        str(OUTSIDE),
        str(rig.folder),
    ]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with open(rig.folder / "stderr", "ab") as said:
        return subprocess.run(argv, env=env, stdout=said, stderr=said, timeout=100).returncode


def _survive(tmp_path: Path, call: str, fault: str, number: int) -> bool:
    """Whether the fault came at all."""
    rig = Rig(tmp_path / f"{call}-{number}", generation=100)
    _strace(rig, call, fault, number)
    hit = any(mark in (rig.folder / "strace").read_text() for mark in ("INJECTED", "SIGKILL"))
    rig.verify(drained=False)
    rig.finish()
    rig.verify()
    return hit


@pytest.mark.parametrize(("call", "number"), FAST)
@pytest.mark.invariant(7, 8)
def test_killed_at_a_system_call(tmp_path: Path, call: str, number: int) -> None:
    assert _survive(tmp_path, call, "signal=KILL", number)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_every_system_call(tmp_path: Path, call: str) -> None:
    for number in range(1, 200):
        if not _survive(tmp_path, call, "signal=KILL", number):
            assert number > 1
            return


@pytest.mark.parametrize(
    ("call", "error", "number"),
    [
        ("fsync", "EIO", 2),
        ("fsync", "EIO", 16),
        ("close", "EIO", 150),
        ("write", "ENOSPC", 4),
        ("write", "ENOSPC", 30),
        ("rename", "EIO", 9),
        ("renameat2", "ENOSPC", 2),
    ],
)
@pytest.mark.invariant(16)
def test_a_system_call_that_fails(tmp_path: Path, call: str, error: str, number: int) -> None:
    """Whoever asked is told, or it is tried again; nothing half-written is visible, and nothing is lost."""
    assert _survive(tmp_path, call, f"error={error}", number)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("call", "error"), [("fsync", "EIO"), ("write", "ENOSPC"), ("write", "EDQUOT"), ("rename", "EIO")]
)
def test_every_system_call_that_fails(tmp_path: Path, call: str, error: str) -> None:
    for number in range(1, 400):
        if not _survive(tmp_path, call, f"error={error}", number):
            assert number > 1
            return


@pytest.mark.invariant(16)
def test_files_may_not_grow(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: what is too large fails with kind resource, one reason for each attempt; the rest goes on."""
    rig = Rig(tmp_path, retry_times=1)
    with Client(rig) as client:
        client.submit("large", do="write", params={"mb": 1})
        client.submit("small", do="write")

    def begin() -> Temp:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
        return Temp(launch)

    for _ in range(2):
        assert rig.serve()
        launch = rig.launch()
        assert rig.run(lambda worker: worker.run(), begin=begin)
    rig.finish()
    rig.verify()
    failure = rig.spool.read_record("large").failure
    assert failure is not None
    assert [one.kind for one in failure.attempts] == ["resource", "resource"]
    assert "too large" in failure.message
    assert rig.spool.read_record("small").state is JobState.COMPLETED


@pytest.mark.invariant(16)
def test_a_disk_of_256_kilobytes(small_disk: Path) -> None:
    """It is full before the queue is; who is refused is told; when there is room again, all that was accepted ends."""
    rig = Rig(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (60 << 10))
    with Client(rig) as client, pytest.raises(SpoolFull, match="is full"):  # noqa: PT012
        for number in range(100):
            client.submit(value=f"job {number}", slot="v" * 5000)
    accepted = rig.history.told().accepted
    assert len(accepted) > 5
    assert Spoolview(rig.root).known() == accepted
    threading.Timer(0.5, ballast.unlink).start()
    assert rig.work()  # its first results do not fit
    rig.finish()
    rig.verify()
