"""The protocol: the jobs that clients push, the messages that they receive, the names of all keys.

A job is one JSON object. `task_id`, `session_id`, `ref_image_id` and `audio_id` are required strings; `steps`, `cfg`,
`seed` and `frames_num` are optional. With `engine` it is a job for another engine: file ids under their keys, all
other parameters in `params`. Unknown keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pool.errors import JobRefused
from pool.format.names import check_engine, is_id
from pool.job import Progress

MAX_JOB_BYTES = 64 * 1024
_MAX_TEXT = 512
FILE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\Z", re.ASCII)  # neither a path nor a URL
#: Key of a file id in the job -> parameter of the engine.
FILES = {"ref_image_id": "image", "audio_id": "audio", "video_id": "video"}
_REQUIRED = ("ref_image_id", "audio_id")
_VALUES = ("steps", "cfg", "seed", "frames_num")
_STATUSES = frozenset({"processing", "downloading", "face_detecting", "inference", "merging_audio"})


class BadJob(JobRefused):
    """An element of the list is not a valid job. task_id, session_id: "" when they could not be read."""

    def __init__(self, message: str, key: str = "", task_id: str = "", session_id: str = "") -> None:
        super().__init__(message, key)
        self.task_id, self.session_id = task_id, session_id


@dataclass(frozen=True)
class Order:
    """One job of a client. files: parameter -> (key in the job, file id). named: the client named the engine."""

    task_id: str
    session_id: str
    engine: str
    named: bool
    files: Mapping[str, tuple[str, str]]
    params: Mapping[str, Any]

    @property
    def job_id(self) -> str:
        """The id of the pool's job."""
        return job_id_of(self.task_id)

    def reason(self, error: Exception) -> str:
        """Why the job is refused, with the key as the client wrote it: `frames_num`, not `params.frames_num`."""
        key = error.path.removeprefix("params.") if isinstance(error, JobRefused) else ""
        written = {param: name for param, (name, _) in self.files.items()} | {name: name for name in _VALUES}
        if not isinstance(error, JobRefused) or key == error.path or key not in written:
            return str(error)
        return f"{written[key]}: {error.reason}"


def job_id_of(task_id: str) -> str:
    """The id of the pool's job: the task's id where that is a valid job id, else a hash of it."""
    return task_id if is_id(task_id) else f"task-{hashlib.sha256(task_id.encode()).hexdigest()[:32]}"


def read_job(raw: bytes, engine: str) -> Order:
    """Parse an element of the list. engine: for jobs that name none. Raises BadJob."""
    if len(raw) > MAX_JOB_BYTES:
        raise BadJob(f"the job has {len(raw)} bytes, more than {MAX_JOB_BYTES}: send ids of files, not files")
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadJob(f"is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadJob("is not a JSON object {…}")
    task_id, session_id = _readable(body.get("task_id")), _readable(body.get("session_id"))
    try:
        return _order(body, engine)
    except JobRefused as error:
        message = str(error).removeprefix(f"{error.path}: ")
        raise BadJob(message, error.path, task_id, session_id) from None


def _order(body: Mapping[str, Any], engine: str) -> Order:
    task_id, session_id = _text(body, "task_id"), _text(body, "session_id")
    named = body.get("engine") is not None
    files = {}
    for key, param in FILES.items():
        if body.get(key) is not None or (key in _REQUIRED and not named):
            file_id = _text(body, key)
            if not FILE_ID.match(file_id):
                raise JobRefused("is not an id of the temporary-file service: paths and URLs are refused", key)
            files[param] = (key, file_id)
    more = body.get("params") if named else None
    if more is not None and not isinstance(more, dict):
        raise JobRefused("must be an object {…}", "params")
    values = {key: body[key] for key in _VALUES if body.get(key) is not None}
    wanted = check_engine(body["engine"]) if named else engine
    return Order(task_id, session_id, wanted, named, files, {**(more or {}), **values})


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if value is None:
        raise JobRefused("is missing", key)
    if not isinstance(value, str) or not value:
        raise JobRefused("must be a string that is not empty", key)
    if len(value) > _MAX_TEXT or value != _readable(value):
        raise JobRefused(f"must be a string of at most {_MAX_TEXT} characters without lone surrogates", key)
    return value


def _readable(value: object) -> str:
    """An id in a form that messages can hold; "" when it is not a string or an integer."""
    if isinstance(value, str):
        return value[:_MAX_TEXT].encode("utf-8", "replace").decode()
    return str(value)[:_MAX_TEXT] if isinstance(value, int) and not isinstance(value, bool) else ""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def message(
    task_id: str,
    session_id: str,
    status: str,
    progress: float,
    text: str,
    **more: Any,
) -> bytes:
    """One message of the channel. progress: 0.0-100.0, also sent as `percentage`, which some clients read.

    more: further keys; None is left out.
    """
    percent = round(min(100.0, max(0.0, progress)), 1)
    body = {
        "task_id": task_id,
        "session_id": session_id,
        "status": status,
        "progress": percent,
        "percentage": percent,
        "message": text,
        **{key: value for key, value in more.items() if value is not None},
    }
    return json.dumps(body).encode()


def with_error(body: bytes) -> list[bytes]:
    """A last message as it is published: a failure also with the status "error", which some clients wait for."""
    known = json.loads(body)
    return [body, json.dumps({**known, "status": "error"}).encode()] if known["status"] == "failed" else [body]


def describe(progress: Progress) -> tuple[str, float, str]:
    """(status, progress, message) of a job that is not over, with a status of the protocol."""
    if progress.status in _STATUSES:
        return progress.status, progress.percent, progress.message
    return "processing", 0.0, f"queued: {progress.message}" if progress.message else "queued"


@dataclass(frozen=True)
class Keys:
    """Names of keys in Redis. spool: the id of the spool, because several pools may take from one list."""

    channel: str
    spool: str

    def processing(self, queue: str) -> str:
        """List of elements that were taken and are not known to be in the spool."""
        return f"{queue}:processing:{self.spool}"

    def accepted(self, queue: str) -> str:
        """Hash, job id -> note: jobs in the spool whose end is not published yet."""
        return f"{queue}:accepted:{self.spool}"

    def adopted(self, queue: str, spool: str = "") -> str:
        """Hash, job id -> spool: jobs of a host (default: this one) that others took over when it seemed dead."""
        return f"{queue}:adopted:{spool or self.spool}"

    def hosts(self, queue: str) -> str:
        """Hash, spool -> mark: the heartbeats of the hosts that take from a list."""
        return f"{queue}:hosts"

    def last(self, task_id: str) -> str:
        """Key of the last message about a task, for clients that were not subscribed."""
        return f"{self.channel}:{task_id}"

    def gpu(self, gpu_id: int, spool: str = "") -> str:
        """Key of the state of a queue: "idle" or "busy"; it expires without a gateway. spool: of this host alone, then
        also "dead"."""
        return f"gpu_status:{gpu_id}:{spool}" if spool else f"gpu_status:{gpu_id}"
