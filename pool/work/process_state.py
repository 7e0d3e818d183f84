"""What a job may change in its worker's process, and how it is put back before the next one.

The state is saved once when the engine is ready (what load() and warmup() set up belongs to the engine) and compared
after every job. That takes fifteen microseconds when nothing changed, because it reads below the wrappers of the
standard library where these are slow. Each part is read and, when it has changed, written; what cannot be put back (a
lowered hard limit, a closed descriptor of ours) is a reason to replace the process.

Not here, because only the engine knows what it wants: the state of libraries (random seeds, thread counts, default
devices), and what native code changes behind the interpreter's back.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]
import faulthandler
import gc
import locale
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from pool.system.stdio import duplicate, file_of, mode_of, text_stream, usable

#: Those that a program handles; the rest are faults, which faulthandler has, or stop and continue it.
_SIGNALS = tuple(
    int(getattr(signal, f"SIG{name}"))
    for name in ("HUP", "INT", "QUIT", "ABRT", "USR1", "USR2", "PIPE", "ALRM", "TERM", "CHLD", "VTALRM", "PROF", "XFSZ")
)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
#: Those that stop a job; the others change nothing that an engine does.
_LIMITS = {
    getattr(resource, name): name
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC")
    if hasattr(resource, name)
}
_STANDARD = (0, 1, 2)


def _ask(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        return error


@dataclass(frozen=True)
class _Part:
    """name: for the log. read: what holds now. write: make `saved` hold again; None: not possible."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None
    show: Callable[[Any, Any], str] = lambda saved, found: ""


@dataclass(frozen=True)
class Restored:
    """done: parts that a job had changed and that are as before. lost: those that could not be put back."""

    done: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


NOTHING = Restored()


class ProcessState:
    """The state of this process as it is now. own: descriptors that must stay as they are.

    Only in the main thread, which is where engines run.
    """

    def __init__(self, own: Sequence[int] = ()) -> None:
        self._pid, self._parent = os.getpid(), os.getppid()
        self._own = own
        self._copies = {fd: copied for fd in _STANDARD if (copied := duplicate(fd)) is not None}
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._wakeup = signal.set_wakeup_fd(-1)
        self._set_wakeup()
        self._environ = os.environ
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self.log_end = 0  # bytes in the file behind descriptor 2 when it was looked at
        # The order matters: first what could interrupt us, then what is needed to say anything.
        self._parts = (
            _Part("timers (signal.alarm, setitimer)", self._timers, self._stop_timers),
            _Part("blocked signals", _blocked, lambda saved: signal.pthread_sigmask(signal.SIG_SETMASK, saved)),
            _Part("signal handlers", _handlers, _set_handlers, _show_handlers),
            _Part("signal.set_wakeup_fd", self._set_wakeup, lambda saved: self._set_wakeup()),
            _Part("the trace function", sys.gettrace, sys.settrace),
            _Part("the profile function", sys.getprofile, sys.setprofile),
            _Part("sys.setrecursionlimit", sys.getrecursionlimit, sys.setrecursionlimit),
            _Part("resource limits", _limits, _set_limits, _show_limits),
            _Part("descriptors 0 to 2", self._standard_files, self._reopen),
            _Part("sys.stdin, sys.stdout, sys.stderr", self._streams_kept, self._set_streams),
            _Part("faulthandler", self._dumps_stacks, lambda saved: faulthandler.enable(2)),
            _Part("the working directory", _cwd, os.chdir, lambda saved, found: str(found)),
            _Part("umask", self._swap_umask, lambda saved: os.umask(self._umask), lambda saved, found: f"{found:04o}"),
            _Part("environment", self._environment, self._set_environment, _show_environment),
            _Part("locale", _locale_now, _set_locale, lambda saved, found: str(found)),
            _Part("sys.path", lambda: sys.path, _set_path),
            _Part("niceness", _niceness, _set_niceness),
            _Part("gc.disable", gc.isenabled, lambda saved: gc.enable() if saved else gc.disable()),
            _Part("start method of multiprocessing", _start_method, _set_start_method, lambda saved, found: str(found)),
            _Part("the worker's own descriptors", self._own_files, None),
        )
        self._reads = tuple(part.read for part in self._parts)
        self._saved = [copy(now) if isinstance(now, (list, dict)) else now for now in (read() for read in self._reads)]

    def restore(self) -> Restored:
        """Put back what is not as it was. Never raises."""
        try:
            found = [read() for read in self._reads]
            if found == self._saved:
                return NOTHING
        except Exception:  # a part that cannot be read has changed
            found = [_ask(read) for read in self._reads]
        done: list[str] = []
        lost: list[str] = []
        for part, saved, now in zip(self._parts, self._saved, found):  # noqa: B905 - old interpreters
            if now == saved:
                continue
            try:
                shown = part.show(saved, now)
            except Exception as error:
                shown = type(error).__name__
            name = f"{part.name} ({shown})" if shown else part.name
            (done if self._put_back(part, saved) else lost).append(name)
        return Restored(tuple(done), tuple(lost)) if done or lost else NOTHING

    @staticmethod
    def _put_back(part: _Part, saved: Any) -> bool:
        if part.write is None:
            return False
        try:
            part.write(saved)
            return bool(part.read() == saved)
        except Exception:
            return False

    # ---- parts that need the saved state

    def _timers(self) -> tuple[bool, ...]:
        """A job that sets one of the other two has a handler for its signal, or ends by it."""
        real = signal.getitimer(signal.ITIMER_REAL)[0] > 0
        if _signal.getsignal(signal.SIGPROF) == _signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL:
            return real, False, False
        return real, signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 0, signal.getitimer(signal.ITIMER_PROF)[0] > 0

    def _stop_timers(self, saved: tuple[bool, ...]) -> None:
        if os.getppid() != self._parent:
            return  # the timer that runs ends this process after the death of its parent
        for which, was in zip(_TIMERS, saved):  # noqa: B905 - old interpreters
            if not was:
                signal.setitimer(which, 0)

    def _set_wakeup(self) -> int:
        """Set our descriptor; the one that was set before."""
        return signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False) if self._wakeup >= 0 else -1

    def _swap_umask(self) -> int:
        """Set our umask; the one before. Only to read it would change it for a moment, for all threads."""
        return os.umask(self._umask)

    def _reopen(self, saved: tuple[Any, ...]) -> None:
        found = self._standard_files()
        for fd, was, now in zip(_STANDARD, saved, found):  # noqa: B905 - old interpreters
            if was is not None and was != now:
                os.dup2(self._copies[fd], fd)
            elif was is None and now is not None:
                os.close(fd)

    def _standard_files(self) -> tuple[Any, ...]:
        """Descriptors 0 to 2. Of the last one also where its file ends: the next job writes behind that."""
        try:
            stat = os.fstat(2)
        except OSError:
            return mode_of(0), file_of(1), None
        self.log_end = stat.st_size
        return mode_of(0), file_of(1), (stat.st_dev, stat.st_ino)

    def _streams_kept(self) -> bool:
        one, two, three = self._streams
        if sys.stdin is not one or sys.stdout is not two or sys.stderr is not three:
            return False
        return not ((one and one.closed) or (two and two.closed) or (three and three.closed))

    def _set_streams(self, saved: bool) -> None:
        streams = [kept if usable(kept) else text_stream(fd) for fd, kept in enumerate(self._streams)]
        self._streams = (streams[0], streams[1], streams[2])
        sys.stdin, sys.stdout, sys.stderr = self._streams

    def _dumps_stacks(self) -> bool:
        faulthandler.cancel_dump_traceback_later()
        enabled = faulthandler.is_enabled()
        if enabled:
            faulthandler.enable(2)  # back to descriptor 2, wherever a job pointed it
        return enabled

    def _environment(self) -> Any:
        return _pairs(self._environ) if os.environ is self._environ else None

    def _set_environment(self, saved: dict[Any, Any]) -> None:
        os.environ = self._environ  # noqa: B003 - the object that was there, not a new one
        now = dict(_pairs(self._environ))
        decode = getattr(self._environ, "decodekey", lambda key: key)
        value = getattr(self._environ, "decodevalue", lambda key: key)
        for key in now.keys() - saved.keys():
            del self._environ[decode(key)]
        for key, text in saved.items():
            if now.get(key) != text:
                self._environ[decode(key)] = value(text)
        time.tzset()

    def _own_files(self) -> tuple[Any, ...]:
        return tuple(map(mode_of, self._own))


# ---- parts that need no saved state


def _blocked() -> set[int]:
    return _signal.pthread_sigmask(signal.SIG_BLOCK, ())  # type: ignore[no-any-return]


def _handlers() -> tuple[Any, ...]:
    return tuple(map(_signal.getsignal, _SIGNALS))


def _set_handlers(saved: tuple[Any, ...]) -> None:
    for number, handler in zip(_SIGNALS, saved):  # noqa: B905 - old interpreters
        if handler is not None and signal.getsignal(number) != handler:  # None: installed by native code
            signal.signal(number, handler)


def _show_handlers(saved: tuple[Any, ...], found: tuple[Any, ...]) -> str:
    changed = [n for n, was, now in zip(_SIGNALS, saved, found) if was != now]  # noqa: B905 - old interpreters
    return ", ".join(signal.Signals(number).name for number in changed)


def _limits() -> tuple[tuple[int, int], ...]:
    return tuple(map(resource.getrlimit, _LIMITS))


def _set_limits(saved: tuple[tuple[int, int], ...]) -> None:
    for which, wanted in zip(_LIMITS, saved):  # noqa: B905 - old interpreters
        if resource.getrlimit(which) != wanted:
            try:
                resource.setrlimit(which, wanted)
            except (ValueError, OSError):  # no right to raise the hard limit again
                hard = resource.getrlimit(which)[1]
                resource.setrlimit(which, (hard, hard))


def _show_limits(saved: tuple[Any, ...], found: tuple[Any, ...]) -> str:
    names = zip(_LIMITS.values(), saved, found)  # noqa: B905 - old interpreters
    return ", ".join(name for name, was, now in names if was != now)


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _pairs(environ: Any) -> Any:
    """The raw mapping below os.environ, compared in a microsecond without decoding each name."""
    return getattr(environ, "_data", environ)


def _show_environment(saved: Any, found: Any) -> str:
    """Names only: values may be secrets."""
    if found is None:
        return "os.environ itself"
    changed = [key for key in {**saved, **found} if saved.get(key) != found.get(key)]
    return ", ".join(sorted(os.fsdecode(key) for key in changed)[:20])


def _locale_now() -> Any:
    return _locale.setlocale(locale.LC_ALL)


def _set_locale(saved: str) -> None:
    locale.setlocale(locale.LC_ALL, saved)


def _set_path(saved: list[str]) -> None:
    sys.path[:] = saved


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def _set_niceness(saved: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, saved)


def _start_method() -> str:
    """ "" for the platform's own, also when none was chosen."""
    loaded = sys.modules.get("multiprocessing")
    if loaded is None:
        return ""
    method = loaded.get_start_method(allow_none=True)
    return "" if method in (None, loaded.get_all_start_methods()[0]) else str(method)


def _set_start_method(saved: str) -> None:
    sys.modules["multiprocessing"].set_start_method(saved or None, force=True)
