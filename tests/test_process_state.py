"""What a job changes in its process is put back, told by name, and costs next to nothing when nothing changed.

Each case runs in a process of its own, whose state it may ruin.
"""

from __future__ import annotations

import faulthandler
import gc
import locale
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steps import in_child

from pool.system import host
from pool.work.process_state import NOTHING, ProcessState

pytestmark = pytest.mark.skipif(not host.LINUX, reason="proved on Linux")


def nothing(*_: object) -> None:
    pass


def soft(which: int, value: int) -> None:
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


def onto(path: str, fd: int) -> None:
    other = os.open(path, os.O_RDWR)
    os.dup2(other, fd)
    os.close(other)


def environment() -> None:
    os.environ["ODD"] = "secret"
    del os.environ["PATH"]
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()


def in_new_folder(folder: Path) -> None:
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    os.rmdir(folder / "gone")


#: What a job does, and the name under which it is told.
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "alarm": (lambda _: signal.alarm(100), "timers"),
    "mask": (lambda _: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]), "blocked signals"),
    "handlers": (lambda _: [signal.signal(n, nothing) for n in (15, 10, 2)], "SIGINT, SIGUSR1, SIGTERM"),
    "ignored": (lambda _: signal.signal(signal.SIGTERM, signal.SIG_IGN), "signal handlers (SIGTERM)"),
    "wakeup": (lambda _: signal.set_wakeup_fd(-1), "signal.set_wakeup_fd"),
    "trace": (lambda _: sys.setprofile(nothing), "the profile function"),
    "recursion": (lambda _: sys.setrecursionlimit(5000), "sys.setrecursionlimit"),
    "soft limit": (lambda _: soft(resource.RLIMIT_NOFILE, 20), "RLIMIT_NOFILE"),
    "closed 0-2": (lambda _: [os.close(fd) for fd in (0, 1, 2)], "descriptors 0 to 2"),
    "onto": (lambda _: onto("/dev/null", 2), "descriptors 0 to 2"),
    "no stdout": (lambda _: setattr(sys, "stdout", None), "sys.stdout"),
    "replaced stderr": (lambda folder: setattr(sys, "stderr", open(folder / "x", "w")), "sys.stderr"),  # noqa: SIM115
    "closed stderr": (lambda _: sys.stderr.close(), "sys.stderr"),
    "detached stdout": (lambda _: sys.stdout.detach(), "sys.stdout"),
    "no faulthandler": (lambda _: faulthandler.disable(), "faulthandler"),
    "cwd": (lambda _: os.chdir("/"), "the working directory (/)"),
    "cwd that is gone": (in_new_folder, "the working directory"),
    "umask": (lambda _: os.umask(0), "umask (0000)"),
    "environment": (lambda _: environment(), "environment (ODD, PATH, TZ)"),
    "os.environ": (lambda _: setattr(os, "environ", {}), "environment (os.environ itself)"),
    "locale": (lambda _: locale.setlocale(locale.LC_ALL, "C.UTF-8"), "locale"),
    "sys.path": (lambda _: sys.path.insert(0, "/nowhere"), "sys.path"),
    "path object": (lambda _: setattr(sys, "path", ["/nowhere"]), "sys.path"),
    "nice": (lambda _: os.nice(1), "niceness"),
    "gc": (lambda _: gc.disable(), "gc.disable"),
    "start method": (lambda _: multiprocessing.set_start_method("spawn", force=True), "start method"),
}


class Streams:
    """A process as a worker has it: standard descriptors that lead to a log, and streams on them."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(fd, standard)
        onto("/dev/null", 0)
        streams = [open(fd, mode, closefd=False) for fd, mode in enumerate("rww")]  # noqa: SIM115 - never closed
        sys.stdin, sys.stdout, sys.stderr = streams
        locale.setlocale(locale.LC_ALL, "C")
        faulthandler.enable(2)
        self.wake = os.pipe()
        os.set_blocking(self.wake[1], False)
        signal.set_wakeup_fd(self.wake[1], warn_on_full_buffer=False)


def facts() -> dict[str, Any]:
    """All of it, asked in another way than the code under test does where there is one."""
    status = Path("/proc/self/status").read_text()
    words = {line.split(":")[0]: line.split(":")[1].strip() for line in status.splitlines() if ":" in line}
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    return {
        "files": [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)],
        "streams": [not stream.closed for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "status": [words[key] for key in ("Umask", "SigBlk", "SigIgn", "SigCgt")],
        "handlers": [signal.getsignal(number) for number in (2, 10, 14, 15)],
        "wakeup": wakeup,
        "timers": [signal.getitimer(which) for which in (0, 1, 2)],
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "zone": time.tzname,
        "locale": locale.setlocale(locale.LC_ALL),
        "path": list(sys.path),
        "nice": os.nice(0),
        "limits": Path("/proc/self/limits").read_text(),
        "others": (sys.getrecursionlimit(), sys.getprofile(), gc.isenabled(), faulthandler.is_enabled()),
        "start": multiprocessing.get_start_method(allow_none=True) in (None, "fork"),
    }


@pytest.mark.parametrize("name", CASES)
def test_what_a_job_changes_is_put_back_and_told(name: str, tmp_path: Path) -> None:
    change, told = CASES[name]
    if name == "nice" and os.geteuid() != 0:
        pytest.skip("only root may lower the niceness again")

    def life() -> None:
        world = Streams(tmp_path)
        state = ProcessState()
        before = facts()
        assert state.restore() is NOTHING
        change(tmp_path)
        restored = state.restore()
        assert restored.lost == ()
        assert len(restored.done) == 1
        assert told in restored.done[0]
        assert "secret" not in restored.done[0]
        assert facts() == before
        assert state.restore() is NOTHING
        print("to stdout", flush=True)
        sys.stderr.write("to stderr\n")
        sys.stderr.flush()
        assert world.log.read_text().endswith("to stdout\nto stderr\n")

    assert _said(life, tmp_path) == ""


def test_a_profiler_that_was_left_on(tmp_path: Path) -> None:
    """Its timer goes with its handler."""

    def life() -> None:
        Streams(tmp_path)
        state = ProcessState()
        signal.signal(signal.SIGPROF, nothing)
        signal.setitimer(signal.ITIMER_PROF, 100)
        done = state.restore().done
        assert [what.partition(" (")[0] for what in done] == ["timers", "signal handlers"]
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGPROF) is signal.SIG_DFL
        assert state.restore() is NOTHING

    assert _said(life, tmp_path) == ""


def test_a_profiler_that_load_turned_on_stays(tmp_path: Path) -> None:
    """One that cannot be copied, as that of cProfile."""

    class Profiler:
        def __call__(self, *_: object) -> None:
            pass

        def __reduce_ex__(self, _: object) -> str:
            raise TypeError("it cannot be copied")

    def life() -> None:
        Streams(tmp_path)
        sys.setprofile(profiler := Profiler())
        state = ProcessState()
        assert state.restore() is NOTHING
        sys.setprofile(None)
        assert state.restore().done == ("the profile function",)
        assert sys.getprofile() is profiler

    assert _said(life, tmp_path) == ""


def test_what_load_set_up_stays(tmp_path: Path) -> None:
    def life() -> None:
        Streams(tmp_path)
        os.environ["FROM_LOAD"] = "1"
        signal.setitimer(signal.ITIMER_REAL, 1000, 1000)
        signal.signal(signal.SIGUSR2, nothing)
        sys.path.append("/from/load")
        state = ProcessState()
        os.environ["FROM_LOAD"] = "2"
        assert "environment (FROM_LOAD)" in state.restore().done
        assert os.environ["FROM_LOAD"] == "1"
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert sys.path[-1] == "/from/load"
        assert signal.getsignal(signal.SIGUSR2) is nothing

    assert _said(life, tmp_path) == ""


def test_what_cannot_be_put_back_is_said(tmp_path: Path) -> None:
    """A lowered hard limit (when we are not allowed to raise it), descriptors of ours, a folder that is gone."""

    def life() -> None:
        (tmp_path / "home").mkdir()
        os.chdir(tmp_path / "home")
        world = Streams(tmp_path)
        state = ProcessState(world.wake)
        os.close(world.wake[0])
        os.chdir("/")
        os.rmdir(tmp_path / "home")
        os.umask(0)
        restored = state.restore()
        assert any("the worker's own descriptors" in what for what in restored.lost)
        assert any("the working directory" in what for what in restored.lost)
        assert restored.done == ("umask (0000)",)

    assert _said(life, tmp_path) == ""


def test_a_descriptor_that_now_leads_elsewhere_is_lost_too(tmp_path: Path) -> None:
    def life() -> None:
        world = Streams(tmp_path)
        state = ProcessState(world.wake)
        onto("/dev/null", world.wake[1])
        assert any("own descriptors" in what for what in state.restore().lost)

    assert _said(life, tmp_path) == ""


def test_a_hard_limit(tmp_path: Path) -> None:
    def life() -> None:
        Streams(tmp_path)
        state = ProcessState()
        soft_limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        restored = state.restore()
        now = resource.getrlimit(resource.RLIMIT_FSIZE)
        if now == (soft_limit, hard):
            assert restored.lost == ()
            assert restored.done == ("resource limits (RLIMIT_FSIZE)",)
        else:
            assert restored.lost == ("resource limits (RLIMIT_FSIZE)",)

    assert _said(life, tmp_path) == ""


def test_a_timer_that_strikes_no_more(tmp_path: Path) -> None:
    """Stopped before its handler could raise into the next job."""

    def life() -> None:
        Streams(tmp_path)
        state = ProcessState()
        struck = threading.Event()
        before = signal.getsignal(signal.SIGALRM)
        signal.signal(signal.SIGALRM, lambda *_: struck.set())
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        state.restore()
        assert signal.getsignal(signal.SIGALRM) == before
        signal.signal(signal.SIGALRM, lambda *_: struck.set())
        struck.clear()
        assert not struck.wait(0.2)

    assert _said(life, tmp_path) == ""


def _said(life: Callable[[], None], folder: Path) -> str:
    """Run it in a child whose complaints do not go where the child's streams lead; what it complained of."""
    import traceback

    note = folder / "complaint"

    def told() -> None:
        try:
            life()
        except BaseException:
            note.write_text(traceback.format_exc())

    code = in_child(told)
    return note.read_text() if note.exists() else "" if code == 0 else f"exit code {code}"
