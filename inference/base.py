"""What an engine is, what it is given, and how it fails.

    EngineError        something in the engine or its set-up is broken       kind "engine"
    ├── InputError     the caller must change something; never retried       kind "input"
    └── ResourceError  memory, disk or device ran out; worth another try     kind "resource"
    Cancelled          not an error: the caller wants the work to stop

The pool reads only the attributes ``kind`` and ``hint`` of an exception, so an engine of your own may
raise classes of its own that carry them. This module needs the standard library and pydantic, nothing
else, and keeps to the syntax of old interpreters.
"""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import pydantic

M = TypeVar("M", bound=pydantic.BaseModel)

#: What a job may be doing, in the words its callers already know. Engines use the middle five.
STATUSES = (
    "queued",
    "processing",
    "downloading",
    "face_detecting",
    "inference",
    "merging_audio",
    "completed",
    "failed",
    "cancelled",
)


class EngineError(Exception):
    """The engine, its weights or its settings are broken. ``hint`` says what to do about it."""

    kind: ClassVar[str] = "engine"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(EngineError):
    """The job asks for something impossible: a missing file, no sound in it, an unknown parameter."""

    kind: ClassVar[str] = "input"


class ResourceError(EngineError):
    """Memory, disk or a device ran out; the same job may succeed later."""

    kind: ClassVar[str] = "resource"


class Cancelled(BaseException):
    """Raised by ``context.check()`` once the job was cancelled.

    Derives from BaseException so that an engine's ``except Exception`` cannot swallow it.
    """


@dataclass(frozen=True)
class Files:
    """The files one job reads and writes, as far as the engine can tell from its parameters."""

    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()


class Stream(Protocol):
    """A file that clients may read while it grows. Its methods raise OSError, such as for a full disk."""

    def write(self, data: bytes) -> None:
        """Append; readers see it at once."""
        ...

    def finish(self) -> None:
        """It is whole."""
        ...

    def drop(self) -> None:
        """It will not be whole: remove it; those who read it are told."""
        ...


class Context(Protocol):
    """What ``run`` may use while it works on one job."""

    job_id: str
    attempt: int
    scratch: Path  #: a directory of this attempt, removed afterwards
    cache: Path  #: a directory that outlives jobs, private to this engine
    log_context: Mapping[str, Any]  #: as submitted; in each line that is logged meanwhile
    traceparent: str  #: W3C trace context for services that are called; "" for none
    tracestate: str

    @property
    def cancelled(self) -> bool:
        """Whether the caller has asked for the work to stop."""
        ...

    def check(self) -> None:
        """Raise :class:`Cancelled` when the job was cancelled; call it between steps of about a second."""
        ...

    def progress(self, status: str, percent: float, message: str = "") -> None:
        """Tell how far the job is: a word of :data:`STATUSES`, 0.0 to 100.0. Also a sign of life."""
        ...

    def partial(self, record: Mapping[str, object]) -> None:
        """Hand a piece of the result to the caller before the whole is done."""
        ...

    def checkpoint(self, state: Mapping[str, object]) -> None:
        """Save how far the job is, over what was saved before: at most 64 MiB of what msgpack holds, and arrays."""
        ...

    def restore(self) -> Any:
        """What an attempt of this job that did not end well saved last; None when there is nothing to go on from."""
        ...

    def output(self, path: Path | None, name: str) -> Path:
        """Where to write a file of the result.

        With a ``path`` given by the caller: a hidden ``.…part`` file beside it that becomes ``path`` by an
        atomic rename once the job has succeeded. With None: a file that ends as ``out/<job id>/<name>``.
        """
        ...

    def stream(self, name: str) -> Stream:
        """A file to watch while the job runs; it goes with the attempt. Its suffix tells what it is."""
        ...


class Engine(Protocol):
    """One kind of inference. Made without arguments, then ``load`` once, then any number of jobs.

    Optional, found by name when present: ``warmup()``, ``run_batch(batch, contexts)`` returning one result
    or exception per job, ``files(params) -> Files`` (cache key, media roots, deletion), ``fingerprint() ->
    str`` (changes when weights or options that shape the result change; turns the result cache on),
    ``memory() -> {"gpu_bytes": …}``, and, as a static method, ``diagnose(device, options)``, which looks at what
    ``load`` would need and yields an :class:`inference.finding.Finding` for each thing.
    """

    Params: type[pydantic.BaseModel]  #: the job's parameters; unknown keys forbidden

    def load(self, device: str, options: Mapping[str, object]) -> None:
        """Load the model onto ``device`` ("cpu", "cuda:0"). Heavy imports happen here."""
        ...

    def check(self, params: Mapping[str, object]) -> pydantic.BaseModel:
        """Cheap checks before the model is used: types, files, duration. Raises :class:`InputError`."""
        ...

    def run(self, params: Any, context: Context) -> Mapping[str, object]:
        """Do the job. The result holds what msgpack can hold, and numpy arrays."""
        ...

    def close(self) -> None:
        """Free the model; called once, when the worker ends."""
        ...


def read_params(model: type[M], params: Mapping[str, object]) -> M:
    """What a job asks for; :class:`InputError` naming the key that is wrong."""
    try:
        return model.model_validate(dict(params))
    except pydantic.ValidationError as error:
        raise InputError(_first_problem(error, model), hint=f"parameters: {', '.join(model.model_fields)}") from error


def read_options(model: type[M], options: Mapping[str, object]) -> M:
    """An engine's ``options`` in config.json; :class:`EngineError` naming the key that is wrong."""
    try:
        return model.model_validate(dict(options))
    except pydantic.ValidationError as error:
        hint = f"known options: {', '.join(model.model_fields)}"
        raise EngineError(f"options.{_first_problem(error, model)}", hint=hint) from error


def _first_problem(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> str:
    """The first complaint of pydantic as one line naming the key: ``speakers: should be …``."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "parameters"
    more = error.error_count() - 1
    return f"{where}: {_complaint(problem, where, model)}" + (f" (and {more} more)" if more else "")


def _complaint(problem: Mapping[str, object], where: str, model: type[pydantic.BaseModel]) -> str:
    if problem["type"] == "missing":
        return "is required"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, model.model_fields, 1)
        return f"is an unknown key; did you mean {near[0]!r}?" if near else "is an unknown key"
    return str(problem["msg"]).replace("Value error, ", "", 1).replace("Input should be", "should be", 1)


class LocalStream:
    """A stream without the pool. ``whole``: it was finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole = False
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by its end

    def write(self, data: bytes) -> None:
        """Append."""
        self._file.write(data)

    def finish(self) -> None:
        """Note that it is whole."""
        self.whole = True
        self._file.close()

    def drop(self) -> None:
        """Remove it."""
        self._file.close()
        if self.path.exists():
            self.path.unlink()


class LocalContext:
    """A real context for running an engine without the pool.

    ``on_progress(status, percent, message)`` is called for every update; partial records are collected in
    ``partials``; output files appear at their final place when the ``with`` block ends without an error.
    Files without a path from the caller go to ``folder``, by default the scratch directory.
    """

    job_id = "local"
    attempt = 1
    log_context: Mapping[str, Any] = {}
    traceparent = tracestate = ""

    def __init__(
        self,
        on_progress: Callable[[str, float, str], None] | None = None,
        folder: str | Path | None = None,
        cache: str | Path | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="engine-"))
        self.cache = Path(cache) if cache is not None else self.scratch / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.folder = Path(folder) if folder is not None else self.scratch
        self.partials: list[dict[str, object]] = []
        self.updates: list[tuple[str, float, str]] = []
        self.streams: list[LocalStream] = []  #: in the order in which they began
        self.saved: dict[str, object] | None = None  #: the last checkpoint; what the job goes on from when set before
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._pending: list[tuple[Path, Path]] = []

    @property
    def cancelled(self) -> bool:
        """Whether ``is_cancelled`` says so."""
        return self._is_cancelled is not None and self._is_cancelled()

    def check(self) -> None:
        """Raise :class:`Cancelled` when the work shall stop."""
        if self.cancelled:
            raise Cancelled

    def progress(self, status: str, percent: float, message: str = "") -> None:
        """Note an update, 0.0 to 100.0 per cent, and hand it to ``on_progress``."""
        self.updates.append((status, percent, message))
        if self._on_progress is not None:
            self._on_progress(status, percent, message)

    def partial(self, record: Mapping[str, object]) -> None:
        """Collect a partial record."""
        self.partials.append(dict(record))

    def checkpoint(self, state: Mapping[str, object]) -> None:
        """Keep the state in ``saved``."""
        self.saved = dict(state)

    def restore(self) -> Any:
        """What ``saved`` holds."""
        return self.saved

    def output(self, path: Path | None, name: str) -> Path:
        """Where to write a file of the result: a ``.part`` that ``publish`` renames."""
        final = path if path is not None else self.folder / name
        part = final.with_name(f".{final.name}.part")
        self._pending.append((part, final))
        return part

    def stream(self, name: str) -> LocalStream:
        """A file ``name`` in ``folder``/stream, which is kept."""
        place = self.folder / "stream"
        place.mkdir(exist_ok=True)
        self.streams.append(LocalStream(place / name))
        return self.streams[-1]

    def publish(self) -> None:
        """Rename every output to its final place."""
        for part, final in self._pending:
            part.replace(final)
        self._pending.clear()

    def __enter__(self) -> LocalContext:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.publish()
        for part, _ in self._pending:
            if part.exists():
                part.unlink()
        shutil.rmtree(str(self.scratch), ignore_errors=True)


__all__: Sequence[str] = (
    "STATUSES",
    "Cancelled",
    "Context",
    "Engine",
    "EngineError",
    "Files",
    "InputError",
    "LocalContext",
    "ResourceError",
    "Stream",
    "read_options",
    "read_params",
)
