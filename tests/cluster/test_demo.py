"""examples/cluster.py: real engines on three nodes; nothing of it is left, whenever it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scenarios.world import ROOT, kill, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def begin(folder: Path) -> subprocess.Popen[bytes]:
    """The short demo. TMPDIR tells its processes from all others."""
    (folder / "tmp").mkdir()
    argv = [sys.executable, str(ROOT / "examples" / "cluster.py"), "--short", "--output", str(folder / "made")]
    with open(folder / "said", "wb") as said:
        return subprocess.Popen(argv, cwd=ROOT, stdout=said, stderr=said, env={**os.environ, "TMPDIR": f"{folder}/tmp"})


def of_it(folder: Path) -> list[int]:
    """Processes that name its temporary folder."""
    mark, found = f"TMPDIR={folder}/tmp".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def said(folder: Path) -> Callable[[], str]:
    return lambda: (folder / "said").read_text()


def lines(subtitles: Path) -> list[str]:
    """What is said, without numbers and times."""
    text = subtitles.read_text().splitlines()
    return [line for line in text if line and not line.isdecimal() and " --> " not in line]


def test_who_did_what(tmp_path: Path) -> None:
    demo = begin(tmp_path)
    try:
        assert demo.wait(400) == 0, said(tmp_path)()
    finally:
        for pid in of_it(tmp_path) if demo.poll() is None else ():
            kill(pid)
    text = said(tmp_path)()
    wanted = {"portrait": "c/portrait-0", "lipsync": "b/lipsync-0", "transcribe": "[ac]/transcribe-0"}
    for engine, worker in wanted.items():
        assert re.search(rf"^{engine} .* {worker}\.\d+ +\d+\.\d ", text, re.MULTILINE), text
    made = {path.name: path.stat().st_size for path in (tmp_path / "made").iterdir()}
    assert made.keys() == {"cluster-portrait.mp4", "cluster-talking.mp4", "cluster-address.srt"}
    assert "ask not what your country can do for you" in " ".join(lines(tmp_path / "made" / "cluster-address.srt"))
    assert made["cluster-talking.mp4"] > 10_000
    assert of_it(tmp_path) == []
    assert list((tmp_path / "tmp").glob("filepool-*")) == []


@pytest.mark.parametrize("when", ["Starting a server", "Ready after"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing(tmp_path: Path, when: str, number: signal.Signals) -> None:
    demo = begin(tmp_path)
    try:
        wait_until(lambda: when in said(tmp_path)(), when, 200)
        wait_until(lambda: len(of_it(tmp_path)) > 3, "its processes")
        demo.send_signal(number)
        assert demo.wait(120) == 130, said(tmp_path)()
        wait_until(lambda: not of_it(tmp_path), "the end of all")
    finally:
        for pid in of_it(tmp_path):
            kill(pid)
    assert list((tmp_path / "tmp").glob("filepool-*")) == []
