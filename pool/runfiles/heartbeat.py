"""The sign of life of a worker: one small file, written in place by the job loop, read by the supervisor.

Written by the loop itself at every change of phase and at every progress of the engine; a thread that ticks while
the loop is stuck would prove nothing. A checksum tells a torn read from a whole one. Times are of the boot clock.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from dataclasses import dataclass

from pool.constants import HEARTBEAT_MAGIC, Phase
from pool.system.clock import boot_ns

_BODY = struct.Struct("<4sIQQQQQQQIBB2x104s32s")
_CRC = struct.Struct("<I")
SIZE = _BODY.size + _CRC.size
_PHASES = frozenset(int(phase) for phase in Phase)
_READS = 10  # a write takes a microsecond, unless its process is put aside in the middle of it


@dataclass(frozen=True)
class Beat:
    """One heartbeat. beat_ns, phase_ns: boot clock at the write and at the start of the phase. progress: counter
    that rises with every progress of the engine. baseline: resident bytes after warm-up. standby: a spare that
    waits. job: id, '' when idle; stage: what it is doing. succeeded_at: µs of the spool clock when the last job
    completed, 0 before the first; row: jobs in a row since then whose first failure was here (see `blame`)."""

    pid: int
    beat_ns: int
    phase_ns: int
    progress: int
    jobs_done: int
    baseline: int
    gpu_bytes: int
    succeeded_at: int
    row: int
    phase: Phase
    standby: bool
    job: str
    stage: str


class Heartbeat:
    """Writer side; belongs to one worker process."""

    def __init__(self, path: str, row: int = 0) -> None:
        self._path = path
        self.reopen()
        self._pid = os.getpid()
        self._phase = Phase.BOOTING
        self._phase_ns = boot_ns()
        self._progress = 0
        self._job = b""
        self._stage = b""
        self.jobs_done = 0
        self.baseline = 0
        self.gpu_bytes = 0
        self.succeeded_at = 0
        self.row = row
        self.standby = False

    def phase(self, phase: Phase, job: str = "", stage: str = "") -> None:
        """Enter a phase, with the job and the stage it is about, and write it."""
        self._phase, self._phase_ns = phase, boot_ns()
        self._job, self._stage = job.encode(), stage.encode()[:32]
        self.write()

    def succeeded(self, at: int) -> None:
        """A job completed at that time (µs of the spool clock); written with the next phase."""
        self.jobs_done += 1
        self.succeeded_at, self.row = at, 0

    def advance(self, stage: str) -> None:
        """The engine made progress."""
        self._progress += 1
        self._stage = stage.encode()[:32]
        self.write()

    def reopen(self) -> None:
        """Also after an engine closed our descriptor: its number may lead to another file by now."""
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def fileno(self) -> int:
        """The descriptor of the file."""
        return self._fd

    def write(self) -> None:
        """Write one sign of life in place. In a forked child: nothing."""
        if os.getpid() != self._pid:
            return  # a fork of the worker, as an engine's own pool of processes: its life is no sign of ours
        body = _BODY.pack(
            HEARTBEAT_MAGIC,
            self._pid,
            boot_ns(),
            self._phase_ns,
            self._progress,
            self.jobs_done,
            self.baseline,
            self.gpu_bytes,
            self.succeeded_at,
            self.row,
            self._phase,
            self.standby,
            self._job,
            self._stage,
        )
        try:
            os.pwrite(self._fd, body + _CRC.pack(zlib.crc32(body)), 0)
        except OSError:
            pass  # a full disk must not end the job; the supervisor sees an old beat and asks the process itself

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read(path: str) -> Beat | None:
    """The latest beat; None when there is none, or the file is damaged."""
    for attempt in range(_READS):
        if attempt:
            time.sleep(0.001)
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.read(SIZE)
        except OSError:
            return None
        if not data:
            return None
        body = data[: _BODY.size]
        if len(data) == SIZE and _CRC.unpack_from(data, _BODY.size)[0] == zlib.crc32(body):
            return _unpack(body)
        # RACE: torn, we read while it was written. "No beat" would be taken for a worker that never came up.
    return None


def _unpack(body: bytes) -> Beat | None:
    (magic, pid, beat_ns, phase_ns, progress, jobs, baseline, gpu, succeeded_at, row, phase, standby, job, stage) = (
        _BODY.unpack(body)
    )
    if magic != HEARTBEAT_MAGIC or phase not in _PHASES:
        return None
    return Beat(
        pid,
        beat_ns,
        phase_ns,
        progress,
        jobs,
        baseline,
        gpu,
        succeeded_at,
        row,
        Phase(phase),
        bool(standby),
        job.rstrip(b"\0").decode(errors="replace"),
        stage.rstrip(b"\0").decode(errors="replace"),
    )
