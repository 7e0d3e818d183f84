"""The host of a guest: an SDK in another interpreter, loaded once, kept loaded, reached through files.

A guest is one process that leads a group of its own, and whatever it starts. Its folder is the host's own, under the
temporary directory; what a host that was killed left there is removed by the next one. The error says in words how a
guest ended: the exit code or signal, what the SDK was doing, which of its processes died, the end of what it printed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from inference.base import Cancelled, EngineError, InputError, ResourceError
from inference.foreign.family import FAMILY_S, MARK, Family
from inference.foreign.guest.filepool_codec import get, pack, put, unpack
from inference.foreign.life import Child, Life, Patience, Signs, Talk

GUEST = Path(__file__).with_name("guest")
PREFIX = "filepool-guest-"
POLL_S = 0.01


class GuestError(EngineError):
    """The SDK, its interpreter or one of its processes ended, hung or failed; a fresh one serves the next job."""


class Watching(Protocol):
    """What a host needs of :class:`inference.base.Context`."""

    job_id: str
    attempt: int
    scratch: Path

    def check(self) -> None:
        """Raise when the caller wants the job to stop."""
        ...

    def progress(self, status: str, percent: float, message: str = "") -> None:
        """Tell how far the job is."""
        ...

    def partial(self, record: Mapping[str, object]) -> None:
        """Hand a piece of the result to the caller."""
        ...


@dataclass(frozen=True)
class Home:
    """Where an SDK lives."""

    python: str  #: path of the interpreter
    sdk: str  #: "module:Class", a class derived from `filepool_guest.Sdk`
    folder: Path  #: working directory
    path: tuple[Path, ...] = ()  #: where modules are searched for, before the interpreter's own places
    env: Mapping[str, str] = field(default_factory=dict)  #: more environment variables
    name: str = ""  #: what messages call it; default: `sdk`


class Guest:
    """One guest. `start` once, then `run` for each job; `close` at the end. Not for several threads."""

    def __init__(
        self, home: Home, options: Mapping[str, Any], patience: Patience | None = None, folder: Path | None = None
    ) -> None:
        """folder: one that :func:`make_folder` made, which is the guest's from now on; None: it makes its own."""
        self._home, self._options, self._patience = home, options, patience or Patience()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._number = 0
        self._talk = Talk()
        self._family = Family()
        self.python = ""  #: version of the interpreter, once it is loaded

    @property
    def running(self) -> bool:
        """Whether the SDK is loaded."""
        return self._process is not None and self._process.poll() is None

    @property
    def folder(self) -> Path:
        """A folder of this guest's own, which goes with it."""
        if self._folder is None:
            self._folder = make_folder()
        return self._folder

    def start(self, tell: Callable[[], None] = lambda: None) -> None:
        """Start the interpreter and wait until the SDK is loaded. `tell` is called meanwhile, and may raise.

        Raises :class:`GuestError` that says why there is none.
        """
        self.end()
        self._talk, self._number = Talk(), 0
        self._family = Family()
        folder = self.folder
        for left in folder.glob("*.json"):
            left.unlink()
        about = {"sdk": self._home.sdk, "options": pack(self._options), "host": os.getpid()}
        put(folder / "guest.json", about)
        (folder / "output.log").unlink(missing_ok=True)
        with open(folder / "output.log", "ab") as log:  # appending, so that it can be emptied while it is written
            try:
                self._process = subprocess.Popen(
                    [self._home.python, "-u", str(GUEST / "filepool_guest.py"), str(folder)],
                    cwd=self._home.folder,
                    env={**environment(self._home), MARK: self._family.mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                raise GuestError(f"{self._home.python} cannot be started: {error.strerror or error}") from error
        try:
            self._await_load(tell)
        except BaseException:
            self.end()
            raise

    def _await_load(self, tell: Callable[[], None]) -> None:
        ready, until = self.folder / "ready.json", time.monotonic() + self._patience.load
        while True:
            dead = self._process is None or self._process.poll() is not None
            self._listen()
            found = get(ready)
            if found is not None:
                break
            if dead:
                raise self._obituary("while its SDK was loaded")
            if time.monotonic() > until:
                raise GuestError(f"{self._who} has not loaded its SDK within {self._patience.load:g} s{self._said()}")
            tell()
            time.sleep(POLL_S)
        if "failure" in found:
            raise self._failure(found["failure"], "cannot load", self.signs().children)
        self.python = found["python"]

    def run(self, params: Mapping[str, Any], context: Watching, tick: Callable[[], bool] = lambda: False) -> Any:
        """Have one job done; what the SDK's `run` returned.

        `tick` is called again and again meanwhile, and says whether it saw a sign of life. Progress, partial records
        and cancellation go through `context`. Raises :class:`GuestError`, or what the SDK raised as
        :class:`inference.base.InputError` or :class:`inference.base.ResourceError`. The guest is loaded first if
        there is none, and ended when it is not fit for another job.
        """
        try:
            packed = pack(params)
        except TypeError as error:
            raise InputError(str(error), hint="an SDK gets what JSON can hold, bytes, and arrays of numbers") from error
        if not self.running:
            self.start(_telling(context))
        folder, number = self.folder, self._number
        self._number += 1
        about = {"id": context.job_id, "attempt": context.attempt, "scratch": str(context.scratch)}
        put(folder / f"job-{number}.json", {**about, "params": packed})
        try:
            end = self._follow(number, context, tick)
        except BaseException as error:
            if isinstance(error, Cancelled) and self._ends_by_itself(number):
                raise
            self.end()
            raise
        finally:
            for left in (
                *folder.glob(f"*-{number}.json"),
                *folder.glob(f"partial-{number}-*"),
                folder / f"cancel-{number}",
            ):
                left.unlink(missing_ok=True)
        self._talk.trim(self.folder / "output.log")
        if "failure" in end:
            failure = self._failure(end["failure"], "failed", _children(end))
            if not isinstance(failure, InputError):
                self.end()  # a failed job may leave the SDK in any state
            raise failure
        if "cancelled" in end:
            context.check()
            raise GuestError(f"{self._who} gave up a job that nobody cancelled")
        return unpack(end["result"])

    def _follow(self, number: int, context: Watching, tick: Callable[[], bool]) -> dict[str, Any]:
        """Wait until the job has ended; hand on progress and partial records, and watch that the guest lives."""
        life = Life(self._patience)
        seen: object = None
        partials = 0
        while True:
            dead = self._process is None or self._process.poll() is not None
            progress = get(self.folder / f"progress-{number}.json")
            signs = self.signs(progress)
            end: dict[str, Any] | None = get(self.folder / f"end-{number}.json")
            talked = self._listen()
            if progress is not None and progress != seen:
                context.progress(progress["status"], progress["percent"], progress["message"])
            more = self._take_partials(number, partials, context)
            alive = tick() or talked or progress != seen or more > partials
            seen, partials = progress, more
            if self._process is not None:
                self._family.count(self._process.pid, every_s=FAMILY_S if end is None else 0.0)
            if end is not None:
                return end
            if dead:
                raise self._obituary(f"during a job; last it {signs.words}")
            said = life.over(signs, alive)
            if said:
                raise GuestError(f"{self._who} {said}{self._said()}")
            context.check()
            time.sleep(POLL_S)

    def _take_partials(self, number: int, count: int, context: Watching) -> int:
        while (found := get(path := self.folder / f"partial-{number}-{count:06}.json")) is not None:
            path.unlink()
            context.partial(unpack(found))
            count += 1
        return count

    def signs(self, progress: Mapping[str, Any] | None = None) -> Signs:
        """What the SDK does, and its processes. progress: what it told last, for one that does not say more."""
        found = get(self.folder / "signs.json") or {}
        told = "" if progress is None else f"{progress['status']} {progress['percent']:g} %: {progress['message']}"
        return Signs(str(found.get("doing", "")) or told.rstrip(": "), _children(found))

    def _ends_by_itself(self, number: int) -> bool:
        """Ask the SDK to end the job; whether it did."""
        (self.folder / f"cancel-{number}").touch()
        until = time.monotonic() + self._patience.cancel
        while self.running and time.monotonic() < until:
            self._listen()
            if (self.folder / f"end-{number}.json").exists():
                return True
            time.sleep(POLL_S)
        return False

    # ---- ending

    def end(self) -> None:
        """Kill the guest and all that it started; its folder stays."""
        process, self._process = self._process, None
        if process is None:
            return
        self._family.end(process)
        self._listen()

    def close(self) -> None:
        """Have the SDK free its model, end it, remove its folder."""
        if self.running and self._process is not None:
            self._family.count(self._process.pid)
            (self.folder / "stop").touch()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._patience.cancel + 1)
        self.end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    # ---- words

    @property
    def _who(self) -> str:
        return f"{self._home.name or self._home.sdk} in {self._home.python}"

    def _listen(self) -> bool:
        """Hand on what the guest printed since; whether there was anything."""
        return self._talk.read(self.folder / "output.log")

    def _said(self) -> str:
        lines = self._talk.end()
        return f". The end of what it printed:\n{lines}" if lines else ""

    def _obituary(self, when: str) -> GuestError:
        process = self._process
        code = None if process is None else process.returncode
        self._listen()
        return GuestError(f"{self._who} ended with {_end_words(code)} {when}{self._said()}")

    def _failure(self, about: Mapping[str, Any], verb: str, children: Sequence[Child]) -> EngineError:
        kind = {"input": InputError, "resource": ResourceError}.get(about["kind"], GuestError)
        dead = [str(child) for child in children if child.failed]
        message = str(about["message"])
        if kind is GuestError:
            message = f"{self._who} {verb}: {about['type']}: {message}"
        if dead:
            message += f" (of its processes, {', '.join(dead)} ended)"
        return kind(message, hint=about["hint"])


def _children(told: Mapping[str, Any]) -> tuple[Child, ...]:
    return tuple(Child(each["name"], each["pid"], each["end"]) for each in told.get("children", ()))


def environment(home: Home) -> dict[str, str]:
    """The environment of an SDK's interpreter: ours, what the options name, and where modules are found."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    env.update(home.env, PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1")
    places = [str(GUEST), *(str(place) for place in home.path), *home.env.get("PYTHONPATH", "").split(os.pathsep)]
    env["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
    return env


def _telling(context: Watching) -> Callable[[], None]:
    """What is called while the SDK is loaded for a job: the job lives, and may be cancelled."""
    told = 0.0

    def tell() -> None:
        nonlocal told
        context.check()
        if time.monotonic() - told >= 1.0:
            told = time.monotonic()
            context.progress("processing", 0.0, "loading the SDK")

    return tell


def _end_words(code: int | None) -> str:
    if code is None:
        return "unknown exit code"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"{signal.Signals(-code).name} (signal {-code})"
    except ValueError:
        return f"signal {-code}"


def make_folder() -> Path:
    """A folder of our own; those of hosts that are dead are removed."""
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, _, start = (left / "host").read_text().partition(" ")
            if left.stat().st_uid == os.getuid() and _started(int(pid)) != start:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    (folder / "host").write_text(f"{os.getpid()} {_started(os.getpid())}")
    return folder


def _started(pid: int) -> str:
    """When a process began, which together with its pid names it; "" when there is none.

    In clock ticks since boot where the kernel tells them: a date moves when the machine's clock is set.
    """
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""
