"""What the kernel says about processes, read from /proc by hand: one small file, some 20 µs. Linux only.

`portable` has the same functions for other platforms; `procs` decides which one it asks.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_BLOCK = 32768
_BEGINNING_S, _BEGINNING_TRIES = 0.002, 200  # an exec takes less than a millisecond; one from a slow disk longer


class Status(str, enum.Enum):
    """What the scheduler says about a process."""

    RUNNING = "running"
    SLEEPING = "sleeping"  # also: uninterruptible, waiting for a device
    STOPPED = "stopped"  # SIGSTOP, or held by a debugger
    ZOMBIE = "zombie"  # dead, not reaped
    GONE = "gone"


_STATES = {
    b"R": Status.RUNNING,
    b"T": Status.STOPPED,
    b"t": Status.STOPPED,
    b"Z": Status.ZOMBIE,
    b"X": Status.GONE,
}


@dataclass(frozen=True)
class Stat:
    """One process, as far as it matters here."""

    status: Status
    parent: int
    group: int
    session: int
    cpu_s: float  # user + system
    start: str  # clock ticks since boot
    rss: int  # bytes


def pids() -> Iterator[int]:
    """Every pid there is at this moment."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def environments() -> Iterator[tuple[int, bytes]]:
    """Pid and raw environment of every process of our user but ourselves; one that is beginning is waited for."""
    own, user = os.getpid(), os.geteuid()
    tries = _BEGINNING_TRIES
    for pid in pids():
        if pid == own:
            continue
        try:
            block = _environment(pid, user)
            beginning = not block
            while not block and beginning and tries:
                # RACE: it may begin after the look at its environment, so what is_beginning says is of the next look
                if beginning := is_beginning(pid):
                    tries -= 1
                    time.sleep(_BEGINNING_S)
                block = _environment(pid, user)
        except OSError:  # ended, or another user's
            continue
        if block:
            yield pid, block


def _environment(pid: int, user: int) -> bytes:
    descriptor = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != user:
            raise PermissionError
        block = os.read(descriptor, _BLOCK)
        while more := os.read(descriptor, _BLOCK) if len(block) % _BLOCK == 0 and block else b"":
            block += more
        return block
    finally:
        os.close(descriptor)


def is_beginning(pid: int) -> bool:
    """Whether a process of our user is between exec and its first instruction: it has memory, and no environment in it
    yet."""
    try:
        fields = _fields(pid)
    except OSError:
        return False
    return int(fields[20]) > 0 and int(fields[48]) == 0  # vsize; env_end; see proc_pid_stat(5)


def _fields(pid: int) -> list[bytes]:
    """Those of /proc/PID/stat from field 3, the state, on."""
    descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.read(descriptor, 1024)
    finally:
        os.close(descriptor)
    return line[line.rindex(b")") + 2 :].split()  # the name in parentheses may hold anything, ")" included


def read_stat(pid: int) -> Stat:
    """Raises FileNotFoundError or ProcessLookupError when there is none, other OSErrors when unsure."""
    fields = _fields(pid)
    status = _STATES.get(fields[0], Status.SLEEPING)
    if status is Status.ZOMBIE and int(fields[17]) > 1:
        status = Status.RUNNING  # only its first thread ended; the others still run
    return Stat(
        status,
        int(fields[1]),
        int(fields[2]),
        int(fields[3]),
        (int(fields[11]) + int(fields[12])) / _TICK,
        fields[19].decode("ascii"),
        int(fields[21]) * _PAGE,
    )


def stat_of(pid: int) -> Stat | None:
    """The same, None when the process is gone or may not be seen."""
    try:
        return read_stat(pid)
    except OSError:
        return None


def private_bytes(pid: int) -> int:
    """Memory that a process shares with nobody; 0 when it is gone, or the kernel (before 4.14) does not say."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith((b"Private_Clean:", b"Private_Dirty:")))
