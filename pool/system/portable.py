"""What psutil says about processes, with the surface of `procfs`: for platforms without /proc.

Slower (a millisecond where /proc costs 20 µs), and a start is a date there, not ticks since boot. The only
module that needs psutil; `listener` is asked for on all platforms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil

from pool.system.procfs import Stat, Status

_STATES = {
    psutil.STATUS_RUNNING: Status.RUNNING,
    psutil.STATUS_STOPPED: Status.STOPPED,
    psutil.STATUS_TRACING_STOP: Status.STOPPED,
    psutil.STATUS_ZOMBIE: Status.ZOMBIE,
    psutil.STATUS_DEAD: Status.GONE,
}


def pids() -> Iterator[int]:
    """Every pid there is at this moment."""
    return iter(psutil.pids())


def environments() -> Iterator[tuple[int, bytes]]:
    """Pid and environment, as /proc would show it, of every process we may look into but ourselves."""
    own = os.getpid()
    for process in psutil.process_iter():
        if process.pid == own:
            continue
        try:
            if hasattr(os, "geteuid") and process.uids().effective != os.geteuid():
                continue
            variables = process.environ()
        except (psutil.Error, OSError):
            continue
        yield process.pid, "\0".join(f"{key}={value}" for key, value in variables.items()).encode()


def read_stat(pid: int) -> Stat:
    """Raises ProcessLookupError when there is no such process, PermissionError when unsure."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            status = _STATES.get(process.status(), Status.SLEEPING)
            start = repr(process.create_time())
            parent = process.ppid()
            dead = status in (Status.ZOMBIE, Status.GONE)
            cpu = None if dead else process.cpu_times()
            rss = 0 if dead else int(process.memory_info().rss)
    except psutil.ZombieProcess:
        return Stat(Status.ZOMBIE, 0, 0, 0, 0.0, "", 0)
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(f"no process {pid}") from error
    except psutil.AccessDenied as error:
        raise PermissionError(f"process {pid} may not be looked into") from error
    group = os.getpgid(pid) if hasattr(os, "getpgid") else 0
    session = os.getsid(pid) if hasattr(os, "getsid") else 0
    return Stat(status, parent, group, session, cpu.user + cpu.system if cpu else 0.0, start, rss)


def stat_of(pid: int) -> Stat | None:
    """The same, None when the process is gone or may not be seen."""
    try:
        return read_stat(pid)
    except OSError:
        return None


def private_bytes(pid: int) -> int:
    """Memory that a process shares with nobody; 0 when it is gone or may not be seen."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


def listener(port: int) -> tuple[int, str] | None:
    """Pid and name of the process that listens on a TCP port; None where that cannot be known."""
    try:
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port and connection.pid:
                return connection.pid, psutil.Process(connection.pid).name()
    except (psutil.Error, OSError):
        pass
    return None
