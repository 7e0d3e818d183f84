"""One SDK in an interpreter of its own: loaded once, then job after job, reached through files.

    python filepool_guest.py FOLDER

Standard library only, and valid for Python 3.6: this is what runs on the other side, started by
`inference.foreign.host`. An SDK of one's own derives from `Sdk`:

    from filepool_guest import Sdk

    class Mine(Sdk):
        def load(self, options):
            import mine
            self.model = mine.load(options["model"])

        def run(self, params, job):
            job.progress("inference", 10.0)
            return {"text": self.model(params["audio"])}

Files in FOLDER; each is written under another name and renamed:

    guest.json           by the host    {"sdk": "module:Class", "options": {...}, "host": pid}
    ready.json           by the guest   {"python": "3.8.18"} or {"failure": {...}}
    job-N.json           by the host    {"id", "attempt", "params", "scratch"}
    cancel-N             by the host    the caller wants job N to stop
    progress-N.json      by the guest   {"status", "percent", "message"}, the newest only
    partial-N-K.json     by the guest   partial records, in order; the host removes them
    end-N.json           by the guest   {"result": {...}}, {"cancelled": true}, or
                                        {"failure": {"type", "kind", "message", "hint"}, "children": as below}
    signs.json           by the guest   {"doing", "children": [{"name", "pid", "end"}]}: what it does, its processes
    stop                 by the host    close the SDK and end

What a result may hold: what JSON can, bytes, and arrays (anything with `dtype`, `shape` and `tobytes`). Bytes and
arrays lie beside the message in files of their own.
"""

import importlib
import multiprocessing.process
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, Dict, List, Optional

from filepool_codec import get, pack, put, unpack
from filepool_probe import explain

POLL_S, IDLE_POLL_S = 0.01, 0.05
WATCH_S = 0.25
_TEXT = 4000  # characters of a message that are kept


class Failure(Exception):
    """Base of what an SDK may raise to say whose fault it is; every other exception is of kind "engine"."""

    kind = "engine"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(Failure):
    """The job asks for something impossible; it is not tried again."""

    kind = "input"


class ResourceError(Failure):
    """Memory, disk or a device ran out; worth another try."""

    kind = "resource"


class Cancelled(BaseException):
    """Raised by `Job.check` once the caller wants the job to stop."""


class Sdk:
    """What a guest runs. One object per process; `load` once, then any number of jobs, one at a time."""

    def load(self, options: Dict[str, Any]) -> None:
        """Load the model. Runs in the working directory and with the search path that the configuration names."""

    def run(self, params: Dict[str, Any], job: "Job") -> Dict[str, Any]:
        """Do one job, in the main thread. What it returns is the result."""
        raise NotImplementedError

    def doing(self) -> str:
        """What it does at this moment, for people, such as the newest line of its log; asked from another thread.

        A change is a sign of life.
        """
        return ""

    def close(self) -> None:
        """Free the model; called when the guest ends in order."""


class Job:
    """One job, as the SDK sees it."""

    def __init__(self, folder: str, number: int, about: Dict[str, Any]) -> None:
        self.id = about["id"]  # type: str
        self.attempt = about["attempt"]  # type: int
        self.scratch = about["scratch"]  # type: str
        self._folder, self._number, self._partials = folder, number, 0

    @property
    def cancelled(self) -> bool:
        """Whether the caller wants the job to stop."""
        return os.path.exists(os.path.join(self._folder, "cancel-%d" % self._number))

    def check(self) -> None:
        """Raise `Cancelled` when the job was cancelled; call it between steps of about a second."""
        if self.cancelled:
            raise Cancelled

    def progress(self, status: str, percent: float, message: str = "") -> None:
        """How far the job is: "face_detecting", "inference", "merging_audio" …, 0.0 to 100.0. A sign of life."""
        body = {"status": str(status), "percent": float(percent), "message": str(message)}
        put(os.path.join(self._folder, "progress-%d.json" % self._number), body)

    def output(self, name: str) -> str:
        """Where to write a file of the result. Its last part names it; it goes to the caller once the job is done."""
        folder = os.path.join(self.scratch, "out")
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, os.path.basename(name))

    def partial(self, record: Dict[str, Any]) -> None:
        """Hand a piece of the result to the caller before the whole is done."""
        put(os.path.join(self._folder, "partial-%d-%06d.json" % (self._number, self._partials)), pack(record))
        self._partials += 1


# ---- children of the SDK


class Children:
    """The processes that the SDK starts with `multiprocessing`, and how those ended that did.

    Nothing is waited for here: that belongs to the SDK. A dead child that nobody has asked for is a zombie, whose
    exit code the kernel shows.
    """

    def __init__(self) -> None:
        self._started = []  # type: List[Any]
        begin = multiprocessing.process.BaseProcess.start
        started = self._started

        def start(process: Any) -> None:
            begin(process)
            started.append(process)

        multiprocessing.process.BaseProcess.start = start  # type: ignore[assignment, method-assign]

    def told(self) -> List[Dict[str, Any]]:
        """[{"name", "pid", "end"}]: `end` is "" while it lives, else "exit code 1" or "SIGKILL"."""
        return [{"name": process.name, "pid": process.pid, "end": _end_of(process)} for process in list(self._started)]

    def forget(self) -> None:
        """Those that have ended."""
        self._started[:] = [process for process in self._started if not _end_of(process)]


def _end_of(process: Any) -> str:
    popen = getattr(process, "_popen", None)
    code = getattr(popen, "returncode", None)
    if code is None and process.pid is not None:
        code = _code_of_zombie(process.pid)
    return "" if code is None else end_words(code)


def end_words(code: int) -> str:
    """An exit code for people: below zero is the number of a signal."""
    if code >= 0:
        return "exit code %d" % code
    try:
        return signal.Signals(-code).name
    except ValueError:
        return "signal %d" % -code


def _code_of_zombie(pid: int) -> Optional[int]:
    try:
        with open("/proc/%d/stat" % pid) as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return None
    if not fields or fields[0] not in "ZX":
        return None
    status = int(fields[-1])
    return -(status & 0x7F) if status & 0x7F else status >> 8


# ---- life


class Guest:
    """The main loop of a guest."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        about = get(os.path.join(folder, "guest.json"))
        self._host = about["host"]
        self._spec, self._options = about["sdk"], unpack(about["options"])
        self._sdk = None  # type: Optional[Sdk]
        self._children = Children()
        self._told = None  # type: Any
        self._telling = threading.Lock()

    def run(self) -> int:
        """The whole life; the exit code."""
        threading.Thread(target=self._watch, name="filepool-watch", daemon=True).start()
        ready = os.path.join(self._folder, "ready.json")
        try:
            module, _, name = self._spec.partition(":")
            sdk = getattr(importlib.import_module(module), name)()
            sdk.load(self._options)
            self._sdk = sdk
        except BaseException as error:
            traceback.print_exc()
            put(ready, {"failure": _failure(error)})
            return 1
        put(ready, {"python": sys.version.split()[0]})
        number = 0
        while True:
            job = self._next(number)
            if job is None:
                break
            self._do(number, job)
            number += 1
        sdk.close()
        return 0

    def _next(self, number: int) -> Optional[Dict[str, Any]]:
        stop, path = os.path.join(self._folder, "stop"), os.path.join(self._folder, "job-%d.json" % number)
        pause = POLL_S
        while not os.path.exists(stop):
            about = get(path)
            if about is not None:
                os.remove(path)
                return about  # type: ignore[no-any-return]
            time.sleep(pause)
            pause = min(IDLE_POLL_S, pause * 1.1)
        return None

    def _do(self, number: int, about: Dict[str, Any]) -> None:
        assert self._sdk is not None
        job = Job(self._folder, number, about)
        try:
            result = self._sdk.run(unpack(about["params"]), job)
            if not isinstance(result, dict):
                raise TypeError("run() of %s returned %s instead of a dict" % (self._spec, type(result).__name__))
            body = {"result": pack(result)}  # type: Dict[str, Any]
        except Cancelled:
            body = {"cancelled": True}
        except BaseException as error:
            traceback.print_exc()
            # RACE: signs.json is soon told without those that are forgotten below
            body = {"failure": _failure(error), "children": self._children.told()}
        sys.stdout.flush()
        sys.stderr.flush()
        self._tell()
        put(os.path.join(self._folder, "end-%d.json" % number), body)
        self._children.forget()

    def _watch(self) -> None:
        """Tell what the SDK does, and end with the host."""
        while True:
            if os.getppid() != self._host:
                os.killpg(0, signal.SIGKILL)  # the guest leads a group of its own, with what it started
            self._tell()
            time.sleep(WATCH_S)

    def _tell(self) -> None:
        with self._telling:  # RACE: else what one thread saw first is told last
            try:
                doing = self._sdk.doing() if self._sdk is not None else ""
            except Exception as error:
                doing = "doing() failed: %s" % error
            signs = {"doing": doing[:_TEXT], "children": self._children.told()}
            if signs != self._told:
                self._told = signs
                put(os.path.join(self._folder, "signs.json"), signs)


def _failure(error: BaseException) -> Dict[str, Any]:
    """A failure for the host; the message is never empty."""
    try:
        said = str(error).strip()
    except Exception:
        said = ""
    kind = getattr(error, "kind", "")
    hint = str(getattr(error, "hint", "") or "")
    if isinstance(error, (ImportError, SyntaxError)) and not hint:
        hint = explain(error)[1]
    return {
        "type": type(error).__name__,
        "kind": kind if kind in ("input", "resource") else "resource" if _ran_out(error) else "engine",
        "message": said[:_TEXT] or "no message%s" % _where(error),
        "hint": hint,
    }


def _ran_out(error: BaseException) -> bool:
    """Whether memory or the disk ran out: torch and the system say so in classes of their own."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "No space left" in repr(error)
    )


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return ", raised at %s:%d in %s" % (frames[-1][0], frames[-1][1], frames[-1][2]) if frames else ""


def main(argv: List[str]) -> int:
    """Run one guest from its folder; the process's exit code, 2 for wrong arguments."""
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    # SDKs import this module by its name, and so do the processes they spawn; it must be one module, not two.
    sys.modules["filepool_guest"] = sys.modules["__main__"]
    code = Guest(argv[1]).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # libraries that hang in their atexit handlers must not keep a worker


if __name__ == "__main__":
    main(sys.argv)
