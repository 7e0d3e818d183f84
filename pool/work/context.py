"""What an engine's run() gets: progress, partial results, scratch, outputs, cancellation.

Structurally the Context of `inference.base`; engines never import this.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pool.constants import MAX_CHECKPOINT_BYTES, PROGRESS_INTERVAL_S, STATUSES
from pool.format import codec
from pool.format.names import JobName
from pool.format.trace_context import TraceContext
from pool.job import Job, Progress
from pool.runfiles.heartbeat import Heartbeat
from pool.spool import attempts, checkpoints, fsops, growing
from pool.spool.store import Spool
from pool.stages import NO_STAGES, STAGES_MOST, Stage, Stages
from pool.work.joblog import say

_CANCEL_POLL_S = 0.05


class JobCancelled(BaseException):
    """Raised by check() unless another type is configured. BaseException: `except Exception` must not swallow it."""


class RefusedInput(Exception):
    """The caller must change something; the job is not tried again."""

    kind = "input"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def check_path(path: Path) -> None:
    """Raise RefusedInput when no file can have this path: it has a NUL, is too long, or cannot be encoded."""
    try:
        os.lstat(path)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            return
        why = error.strerror if isinstance(error, OSError) else ascii(str(error))[1:-1]
        shown = ascii(str(path))[:200]
        raise RefusedInput(f"{shown}: no file can have this path ({why})", "give another one") from None


class JobContext:
    """One attempt at one job."""

    def __init__(
        self,
        spool: Spool,
        job: Job,
        name: JobName,
        beat: Heartbeat,
        *,
        cancelled_type: type[BaseException] = JobCancelled,
        trace: TraceContext | None = None,
    ) -> None:
        self.job_id = job.id
        self.attempt = name.attempts
        self.stage = "check"
        self.log_context: Mapping[str, Any] = job.terms.log_context or {}
        self.trace = trace
        self.ran = 0  # µs of the spool clock when run() had returned
        self._spool = spool
        self._job = job
        self._beat = beat
        self._cancelled_type = cancelled_type
        self._cancelled = False
        self._looked = 0.0
        self._beaten = 0.0
        self._written = 0.0
        self._status = ""
        self._changes: list[Stage] = []  # of the status
        self._left_out = 0
        self._scratch: Path | None = None
        self._partial_fd = -1
        self.key: Callable[[], bytes] | None = None  # of its checkpoints, computed once; None: it has none
        self._key = b""
        self._streams: list[growing.StreamWriter] = []
        self.saved = False  # whether a checkpoint may be there
        self._outputs: list[tuple[Path, Path]] = []  # (part, final)
        self._files: list[Mapping[str, Any]] = []  # outputs that have their final name

    # ---- whose job it is

    @property
    def traceparent(self) -> str:
        """W3C trace context for what the engine calls; "" when the job belongs to no trace."""
        return self.trace.traceparent if self.trace else ""

    @property
    def tracestate(self) -> str:
        """W3C tracestate beside `traceparent`, "" without one."""
        return self.trace.tracestate if self.trace else ""

    @property
    def log_fields(self) -> Mapping[str, Any]:
        """The fields that end each of its log lines."""
        if self.trace is None:
            return self.log_context
        return {**self.log_context, "trace_id": self.trace.traceparent[3:35]}

    # ---- places

    @property
    def scratch(self) -> Path:
        """A directory of this attempt alone; removed afterwards."""
        if self._scratch is None:
            self._scratch = attempts.scratch_dir(self._spool, self.job_id, self.attempt)
            fsops.make_dir(str(self._scratch))
        return self._scratch

    @property
    def cache(self) -> Path:
        """A directory that outlives jobs, shared by the workers of this engine: write with rename."""
        path = self._spool.root / "cache" / self._job.engine
        fsops.make_dir(str(path))
        return path

    def output(self, path: Path | None, name: str) -> Path:
        """Where to write a file that becomes `path` (or out/<id>/<name>) by rename when the job succeeded."""
        _require_plain(name)
        if path is None:
            final = self._spool.files_dir(self.job_id) / name
            part = self.scratch / name
        else:
            final = Path(os.path.abspath(path))
            check_path(final)
            if not final.parent.is_dir():
                raise RefusedInput(f"output {final}: the folder {final.parent} does not exist", "create it first")
            if final.is_dir():
                raise RefusedInput(f"output {final} is a folder", "name a file in it")
            if not os.access(final.parent, os.W_OK):
                raise RefusedInput(f"output {final}: the folder {final.parent} is not writable")
            part = final.parent / _part_name(final, self.job_id)
            # so that a later attempt, or the supervisor, can sweep what a killed worker left beside the caller's files
            with open(self.scratch / attempts.OUTPUTS, "a", encoding="utf-8", errors="surrogateescape") as listing:
                listing.write(f"{part}\0")
        self._outputs.append((part, final))
        return part

    def stream(self, name: str) -> growing.StreamWriter:
        """A file that clients may read while it grows; `GET /jobs/{id}/stream` of the gateway sends it.

        name: a plain file name; its suffix tells the media type. The first bytes are told as a partial record. Raises
        OSError, as its methods do: a job does without its stream when the disk is full.
        """
        _require_plain(name)
        path = growing.stream_path(self.scratch, name)
        self._streams.append(growing.StreamWriter(path, lambda: self.partial(growing.told(path, self.attempt))))
        return self._streams[-1]

    # ---- signs of life

    def progress(self, status: str, percent: float, message: str = "") -> None:
        """Tell how far the job is. status: one of the pool's statuses; percent: 0 … 100. Cheap: call it often."""
        if status not in STATUSES:
            raise ValueError(f"{status!r} is not a status: {', '.join(STATUSES)}")
        now = time.monotonic()
        self.stage = status
        if now - self._beaten >= 0.05 or status != self._status:
            self._beaten = now
            self._beat.advance(status)
        if now - self._written < PROGRESS_INTERVAL_S and status == self._status:
            return
        at = self._spool.now()
        if status != self._status:
            self._change(status, at)
        self._written, self._status = now, status
        percent = min(100.0, max(0.0, float(percent)))
        word = Progress(status, percent, str(message)[:500], self.attempt, at, self.stages)
        try:
            path = f"{self._spool.root}/progress/{self.job_id}"
            fsops.put(self._spool.temp(), path, [word.to_bytes()], sync=False)
        except OSError:
            pass  # the disk is full: progress is optional, the job goes on

    def _change(self, status: str, at: int) -> None:
        if len(self._changes) < STAGES_MOST:
            self._changes.append(Stage(status, at))
        else:
            self._left_out += 1

    @property
    def stages(self) -> Stages:
        """Which statuses the engine has reported in this attempt."""
        return Stages(tuple(self._changes), self._left_out) if self._changes else NO_STAGES

    def partial(self, record: Mapping[str, Any]) -> None:
        """Stream a part of the result to clients that follow the job."""
        body = codec.encode(dict(record))
        frame = attempts.frame(body)
        try:
            if self._partial_fd < 0:
                path = attempts.partial_path(self._spool, self.job_id, self.attempt)
                self._partial_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            begin = os.fstat(self._partial_fd).st_size
            if os.write(self._partial_fd, frame) < len(frame):  # the disk is full: half a frame would spoil the rest
                os.ftruncate(self._partial_fd, begin)
        except OSError:
            pass  # the disk is full: partial results are optional, the whole result comes at the end

    # ---- going on where an attempt ended

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Save how far the job is, for the next attempt, over what was saved before.

        state: what msgpack can hold, and numpy arrays; at most 64 MiB when encoded. More than that, and what a full
        disk has no room for, is not saved, and the log says so: the job goes on. A call of a map job saves nothing.
        Raises ProtocolError for what cannot be encoded.
        """
        if self.key is None:
            return
        body = codec.encode(dict(state))
        if len(body) > MAX_CHECKPOINT_BYTES:
            say(
                f"job {self.job_id}: a checkpoint of {len(body)} bytes is not saved; {MAX_CHECKPOINT_BYTES} are allowed"
            )
            return
        try:
            checkpoints.save(self._spool, self.job_id, self._key_of(self.key), self.attempt, body)
            self.saved = True
        except OSError as error:
            say(f"job {self.job_id}: a checkpoint was not saved: {error}")

    def restore(self) -> Any:
        """What the attempt before this one saved last; None at the first attempt, and where it cannot be used.

        It is used only for the same parameters, input files (size, time, inode), device, options and version of the
        engine. The log says why one was not used.
        """
        if self.key is None or not os.path.lexists(checkpoints.checkpoint_path(self._spool, self.job_id)):
            return None
        self.saved = True
        state, reason = checkpoints.load(self._spool, self.job_id, self._key_of(self.key), self.attempt)
        if reason:
            say(f"job {self.job_id} begins at the beginning: {reason}")
        return state

    def _key_of(self, key: Callable[[], bytes]) -> bytes:
        self._key = self._key or key()
        return self._key

    # ---- cancellation

    @property
    def cancelled(self) -> bool:
        """Whether a client asked to stop this job; looks at the disk at most every 50 ms."""
        now = time.monotonic()
        if not self._cancelled and now - self._looked >= _CANCEL_POLL_S:
            self._looked = now
            self._cancelled = os.path.lexists(attempts.cancel_path(self._spool, self.job_id))
        return self._cancelled

    def check(self) -> None:
        """Raise when the job was cancelled."""
        if self.cancelled:
            raise self._cancelled_type()

    # ---- end of the attempt

    def publish_outputs(self, *, sync: bool) -> tuple[Mapping[str, Any], ...]:
        """Rename every output to its final name, before the record is published. Size and digest of each.

        After an OSError (a full disk) call it again: outputs that were renamed are still reported.
        """
        self.stage = "publish"
        while self._outputs:
            part, final = self._outputs[0]
            if part.exists():
                size, digest = _digest(part)
                if sync:
                    fsops.sync_file(str(part))
                if final.parent == self._spool.files_dir(self.job_id):
                    self._spool.make_files_dir(self.job_id, sync=sync)
                fsops.replace(str(part), str(final))
                self._files.append({"path": str(final), "size": size, "sha256": digest})
            self._outputs.pop(0)
        if sync:
            for folder in {os.path.dirname(str(file["path"])) for file in self._files}:
                fsops.sync_dir(folder)
        return tuple(self._files)

    def close(self) -> None:
        """Remove what this attempt leaves behind."""
        if self._partial_fd >= 0:
            with contextlib.suppress(OSError):  # the engine may have closed this descriptor
                os.close(self._partial_fd)
            self._partial_fd = -1
        for stream in self._streams:
            stream.close()
        if self._scratch is not None:
            attempts.sweep_attempt(self._spool, self.job_id, self.attempt)
            self._scratch = None

    @property
    def told(self) -> bool:
        """Whether progress or partial files of this attempt exist."""
        return bool(self._status)


def _require_plain(name: str) -> None:
    if not name or os.path.basename(name) != name or name.startswith("."):
        raise ValueError(f"{name!r} is not a plain file name")


def _part_name(final: Path, job_id: str) -> str:
    """A hidden name beside `final` with its suffix, which tells a writer the format; at most 255 bytes."""
    suffix = final.suffix if len(os.fsencode(final.suffix)) <= 20 else ""
    tail = f".{job_id}.part{suffix}"
    stem = os.fsencode(final.stem)[: 254 - len(os.fsencode(tail))].decode("utf-8", "ignore")
    return f".{stem}{tail}"


def _digest(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
