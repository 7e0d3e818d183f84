"""The host of a guest: an SDK in another interpreter, loaded once, kept warm, spoken to by files.

A guest is one process that leads a group of its own, and whatever it starts. Its folder is the host's own, under the
temporary directory; what a host that was killed left there is removed by the next one. How it ended is said in words:
the exit code or signal, what the SDK was doing, which of its processes died, the end of what it printed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from inference.base import Cancelled, EngineError, InputError, ResourceError
from inference.foreign.guest.filepool_codec import get, pack, put, unpack

GUEST = Path(__file__).with_name("guest")
MARK = "FILEPOOL_GUEST"  #: environment variable that what belongs to a guest carries
PREFIX = "filepool-guest-"
POLL_S = 0.01
LOAD_S, STALL_S, GRACE_S, CHILD_S = 540.0, 90.0, 2.0, 15.0  #: shorter than the pool's own, which know less
KEPT_LINES = 30
LOG_BYTES = 4 << 20  #: the guest's own log is emptied beyond that; all of it went on to ours
FAMILY_S = 1.0  #: between two looks at what the guest has started
REAP_S = 5.0
_KILL_ROUNDS = 50


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


@dataclass(frozen=True)
class Patience:
    """Seconds. How long the host waits before it ends a guest."""

    load: float = LOAD_S
    stall: float = STALL_S  #: without any sign of life during a job
    child: float = CHILD_S  #: the same, once a process of the SDK has died with an error
    cancel: float = GRACE_S  #: for the SDK to end a cancelled job by itself; 0: it cannot


class Guest:
    """One guest. `start` once, then `run` for each job; `close` at the end. Not for several threads."""

    def __init__(
        self, home: Home, options: Mapping[str, Any], patience: Patience | None = None, folder: Path | None = None
    ) -> None:
        """folder: one that :func:`make_folder` made, which is the guest's from now on; None: it makes its own."""
        self._home, self._options, self._patience = home, options, patience or Patience()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._mark = ""
        self._number = 0
        self._talk = Talk()
        self._family: dict[int, psutil.Process] = {}
        self._counted = 0.0
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
        self._talk, self._mark, self._number = Talk(), secrets.token_hex(8), 0
        self._family = {}
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
                    env={**environment(self._home), MARK: self._mark},
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
            raise self._failure(found["failure"], "cannot load")
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
            failure = self._failure(end["failure"], "failed")
            if not isinstance(failure, InputError):
                self.end()  # nobody knows in what state a failed job leaves an SDK
            raise failure
        if "cancelled" in end:
            context.check()
            raise GuestError(f"{self._who} gave up a job that nobody cancelled")
        return unpack(end["result"])

    def _follow(self, number: int, context: Watching, tick: Callable[[], bool]) -> dict[str, Any]:
        """Until the job has ended: progress and partials handed on, life watched."""
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
            self._count_family(FAMILY_S if end is None else 0.0)
            if end is not None:
                return end
            if dead:
                raise self._obituary(f"during a job; last it {_doing(signs)}")
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
        children = tuple(Child(each["name"], each["pid"], each["end"]) for each in found.get("children", ()))
        told = "" if progress is None else f"{progress['status']} {progress['percent']:g} %: {progress['message']}"
        return Signs(str(found.get("doing", "")) or told.rstrip(": "), children)

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

    def _count_family(self, every_s: float) -> None:
        """Remember what the guest has started: once it has ended, the line from it to them is cut."""
        if self._process is not None and time.monotonic() - self._counted >= every_s:
            self._counted = time.monotonic()
            self._family.update((each.pid, each) for each in _descendants(self._process.pid))

    # ---- ending

    def end(self) -> None:
        """Kill the guest and all that it started; its folder stays."""
        self._count_family(0.0)
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for _ in range(_KILL_ROUNDS):
            family = [*filter(_lives, self._family.values()), *_marked(self._mark)]
            for member in family:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            psutil.wait_procs(family, timeout=1)
            if not family:
                break
        _reap(self._family)
        self._listen()

    def close(self) -> None:
        """Have the SDK let go of its model, end it, remove its folder."""
        self._count_family(0.0)
        if self.running and self._process is not None:
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

    def _failure(self, about: Mapping[str, Any], verb: str) -> EngineError:
        kind = {"input": InputError, "resource": ResourceError}.get(about["kind"], GuestError)
        dead = [str(child) for child in self.signs().children if child.failed]
        message = str(about["message"])
        if kind is GuestError:
            message = f"{self._who} {verb}: {about['type']}: {message}"
        if dead:
            message += f" (of its processes, {', '.join(dead)} ended)"
        return kind(message, hint=about["hint"])


@dataclass(frozen=True)
class Child:
    """A process that the SDK started with `multiprocessing`."""

    name: str
    pid: int
    end: str  #: "" while it lives, else "exit code 1" or "SIGKILL"

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.end not in ("", "exit code 0")

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) with {self.end}" if self.end else f"{self.name} (pid {self.pid})"


@dataclass(frozen=True)
class Signs:
    """What an SDK shows of itself."""

    doing: str
    children: tuple[Child, ...]


class Life:
    """Whether a guest that works on a job still lives."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._signs: Signs | None = None
        self._at = time.monotonic()

    def over(self, signs: Signs, alive: bool) -> str:
        """Why the wait is over, "" while it is not. alive: whether anything else was seen since the last call."""
        now = time.monotonic()
        if alive or signs != self._signs:
            self._signs, self._at = signs, now
        silent = now - self._at
        dead = [str(child) for child in signs.children if child.failed]
        if dead and silent > self._patience.child:
            return f"waits for a process that is dead: {', '.join(dead)}; last it {_doing(signs)}"
        if silent > self._patience.stall:
            living = ", ".join(str(child) for child in signs.children if not child.end)
            about = f"; its processes: {living}" if living else ""
            return f"hangs: no sign of life for {silent:.0f} s, last it {_doing(signs)}{about}"
        return ""


class Talk:
    """What a guest prints: handed on to our stderr as it comes, its end kept for messages."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._offset = 0

    def read(self, path: Path) -> bool:
        """What was printed since the last call; whether there was anything."""
        try:
            with open(path, "rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return False
        if data:
            self._offset += len(data)
            sys.stderr.write(data.decode("utf-8", "backslashreplace"))
            sys.stderr.flush()
            self._lines.extend(data.decode("utf-8", "replace").splitlines())
        return bool(data)

    def trim(self, path: Path) -> None:
        """Empty a log that has grown long. Between jobs: what is printed between a read and this is lost."""
        if self._offset > LOG_BYTES and not self.read(path):
            os.truncate(path, 0)
            self._offset = 0

    def end(self) -> str:
        """The last lines."""
        return "\n".join(line for line in self._lines if line.strip())


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


def _doing(signs: Signs) -> str:
    return f"was at: {signs.doing}" if signs.doing else "had not said what it does"


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


def _descendants(pid: int) -> list[psutil.Process]:
    """What a process has started and what that has started, as far as the line holds."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _marked(mark: str) -> list[psutil.Process]:
    """Every living process of a guest, whatever group or session it is in."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and _lives(process):
                found.append(process)
    return found


def _reap(family: Mapping[int, psutil.Process]) -> None:
    """Wait until those that were killed are gone: a worker inherits orphans, and has to ask how they ended."""
    pending, until = set(family), time.monotonic() + REAP_S
    while pending and time.monotonic() < until:
        for pid in list(pending):
            try:
                gone = os.waitpid(pid, os.WNOHANG)[0] != 0
            except ChildProcessError:  # another's, or not left to us yet
                gone = not _lives(family[pid])
            if gone:
                pending.discard(pid)
        if pending:
            time.sleep(0.002)
