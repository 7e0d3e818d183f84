"""Signs of life: what is read is what was written, never a mixture, and never None because of bad timing."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.constants import HEARTBEAT_MAGIC, NEXT_PHASES, Phase
from pool.runfiles import heartbeat
from pool.runfiles.heartbeat import SIZE, Heartbeat
from pool.system.clock import boot_ns


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "echo-0.1")


def test_a_beat_comes_back(path: str) -> None:
    before = boot_ns()
    beat = Heartbeat(path)
    beat.jobs_done, beat.baseline, beat.gpu_bytes, beat.standby = 7, 1 << 33, 1 << 40, True
    beat.phase(Phase.BUSY, "x" * 100, "face_detecting")
    beat.advance("merging_audio")
    read = heartbeat.read(path)
    assert read is not None
    assert (read.pid, read.phase, read.job, read.stage) == (os.getpid(), Phase.BUSY, "x" * 100, "merging_audio")
    assert (read.jobs_done, read.baseline, read.gpu_bytes, read.standby) == (7, 1 << 33, 1 << 40, True)
    assert read.progress == 1
    assert before <= read.phase_ns <= read.beat_ns <= boot_ns()
    assert os.stat(path).st_size == SIZE
    assert os.stat(path).st_mode & 0o777 == 0o600
    beat.close()


def test_progress_moves_the_beat_and_not_the_phase(path: str) -> None:
    beat = Heartbeat(path)
    beat.phase(Phase.BUSY, "job", "run")
    first = heartbeat.read(path)
    time.sleep(0.002)
    beat.advance("inference")
    second = heartbeat.read(path)
    assert first is not None
    assert second is not None
    assert second.phase_ns == first.phase_ns
    assert second.beat_ns > first.beat_ns
    assert second.progress == first.progress + 1
    beat.phase(Phase.IDLE)
    third = heartbeat.read(path)
    assert third is not None
    assert (third.job, third.stage, third.phase) == ("", "", Phase.IDLE)
    assert third.phase_ns > second.phase_ns
    beat.close()


@pytest.mark.parametrize("stage", ["ü" * 40, "録" * 20, "x" * 100, ""])
def test_a_long_stage_is_cut(path: str, stage: str) -> None:
    beat = Heartbeat(path)
    beat.phase(Phase.BUSY, "job", stage)
    read = heartbeat.read(path)
    assert read is not None
    assert len(read.stage.encode()) <= 34
    beat.close()


# ---- what is no beat


def test_missing_empty_and_foreign_files_are_no_beat(tmp_path: Path, path: str) -> None:
    assert heartbeat.read(path) is None
    Path(path).touch()
    assert heartbeat.read(path) is None
    assert heartbeat.read(str(tmp_path)) is None
    Path(path).write_bytes(b"x" * SIZE)
    assert heartbeat.read(path) is None
    Path(path).write_bytes(b"x" * 10_000)
    assert heartbeat.read(path) is None


def _whole(path: str) -> bytes:
    beat = Heartbeat(path)
    beat.phase(Phase.BUSY, "job", "run")
    beat.close()
    return Path(path).read_bytes()


def test_a_cut_or_changed_beat_is_none(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    good = _whole(path)
    for at in range(SIZE):
        for damaged in (good[:at], good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]):
            Path(path).write_bytes(damaged)
            assert heartbeat.read(path) is None, at
    Path(path).write_bytes(good)
    assert heartbeat.read(path) is not None


def test_a_beat_of_another_version_is_none(path: str) -> None:
    """The checksum is right, and still it is not ours."""
    body = bytearray(_whole(path)[:-4])
    for at, value in ((0, ord("x")), (68, len(Phase)), (68, 255)):
        other = bytes(body[:at]) + bytes([value]) + bytes(body[at + 1 :])
        Path(path).write_bytes(other + struct.pack("<I", zlib.crc32(other)))
        assert heartbeat.read(path) is None, (at, value)


@given(st.binary(min_size=SIZE - 4, max_size=SIZE - 4))
def test_any_bytes_with_a_right_checksum_are_a_beat_or_none(path: str, body: bytes) -> None:
    for data in (body, HEARTBEAT_MAGIC + body[4:]):
        Path(path).write_bytes(data + struct.pack("<I", zlib.crc32(data)))
        heartbeat.read(path)


# ---- torn

_WRITE = """
import sys, time
from pool.constants import Phase
from pool.runfiles.heartbeat import Heartbeat

beat = Heartbeat(sys.argv[1])
number = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    number += 1
    beat.jobs_done = beat.baseline = beat.gpu_bytes = number
    beat.phase(Phase.BUSY, f"job-{number}", f"stage-{number}")
"""


def test_a_reader_never_sees_a_mixture_and_never_nothing(path: str, child_env: dict[str, str]) -> None:
    """A writer far busier than any worker; every single read must give a whole beat, or the supervisor would take
    a busy worker for one that never came up."""
    Heartbeat(path).write()
    child = subprocess.Popen([sys.executable, "-c", _WRITE, path, "1.5"], env=child_env)
    reads, last = 0, 0
    while child.poll() is None:
        beat = heartbeat.read(path)
        assert beat is not None
        assert beat.jobs_done == beat.baseline == beat.gpu_bytes
        if beat.jobs_done:
            assert (beat.job, beat.stage) == (f"job-{beat.jobs_done}", f"stage-{beat.jobs_done}")
        assert beat.jobs_done >= last
        reads, last = reads + 1, beat.jobs_done
    assert reads > 100
    assert last > 1000


def test_a_torn_beat_is_read_again(path: str) -> None:
    good = _whole(path)
    with open(path, "r+b", buffering=0) as file:
        file.write(good[:100] + b"\xff" * 30)

        def finish() -> None:
            time.sleep(0.003)
            os.pwrite(file.fileno(), good, 0)

        thread = threading.Thread(target=finish)
        thread.start()
        read = heartbeat.read(path)
        thread.join()
    assert read is not None
    assert read.job == "job"


# ---- a full disk


def test_a_full_disk_ends_no_worker(small_disk: Path) -> None:
    early = Heartbeat(str(small_disk / "early"))
    early.phase(Phase.IDLE)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(b"x" * 300_000)
    late = Heartbeat(str(small_disk / "late"))
    for beat in (early, late):
        beat.phase(Phase.BUSY, "job", "run")
        beat.advance("inference")
    read = heartbeat.read(str(small_disk / "early"))
    assert read is not None
    assert read.stage == "inference"  # it is written in place
    assert heartbeat.read(str(small_disk / "late")) is None
    (small_disk / "ballast").unlink()
    late.write()
    assert heartbeat.read(str(small_disk / "late")) is not None
    early.close()
    late.close()


# ---- phases


def test_phases_lead_to_the_end_and_never_back_to_the_start() -> None:
    assert set(NEXT_PHASES) == set(Phase)
    assert NEXT_PHASES[Phase.GONE] == frozenset()
    for phase, following in NEXT_PHASES.items():
        assert phase not in following
        assert not following & {Phase.BOOTING}
        if phase < Phase.DRAINING:
            assert Phase.DRAINING in following
    assert [phase.label for phase in Phase] == ["booting", "loading", "warming", "idle", "busy", "draining", "gone"]
