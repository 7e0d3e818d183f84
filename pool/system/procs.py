"""Processes: who one is, starting one, ending one with everything it started, and what it uses.

Identity is pid + start time + boot. A pid alone names no process: the kernel reuses it. Every signal
goes through a pidfd that was opened before the identity was checked, so it cannot reach another process.

On Linux the facts are read from /proc by hand (`procfs`), elsewhere psutil is asked (`portable`). Reduced
there: no pidfd (the caller polls `proved_dead`; a pid reused between check and signal could be hit) and no
parent-death signal.

The worker's side (identities, `end_soon_after_parent`, `resident_bytes`) runs on Python 3.8 without psutil.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pool.constants import ENV_SPOOL, ENV_WORKER
from pool.errors import OperatorError
from pool.system.host import LINUX, boot_id
from pool.system.procfs import Status

if sys.platform == "linux":
    from pool.system import procfs as _facts
else:  # pragma: no cover - other platforms
    from pool.system import portable as _facts

SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows: SIGTERM ends a process at once
_KILL_ROUNDS = 8  # a fork bomb may outrun us; eight scans are some 20 ms
_PR_SET_PDEATHSIG = 1


class SpawnError(OperatorError):
    """A worker's interpreter could not be started; the message names the file and the fix."""


@dataclass(frozen=True)
class Identity:
    """One process, for ever: no other one equals it, on this boot or a later one."""

    pid: int
    start: str  # clock ticks since boot (Linux), else the date of its start in seconds
    boot: str

    def to_map(self) -> dict[str, object]:
        """As it is stored."""
        return {"pid": self.pid, "start": self.start, "boot": self.boot}

    @classmethod
    def from_map(cls, data: Mapping[str, object]) -> Identity:
        """Raises ValueError when the map is no identity."""
        pid, start, boot = data.get("pid"), data.get("start"), data.get("boot")
        if type(pid) is not int or pid <= 0 or not isinstance(start, str) or not isinstance(boot, str):
            raise ValueError(f"no process identity: {dict(data)!r}")
        return cls(pid, start, boot)

    def alive(self) -> bool:
        """Whether it may still run. A zombie is dead, and so is one of another boot or with a reused pid."""
        return not proved_dead(self)


@dataclass(frozen=True)
class Member:
    """A live process that carries a spool's tag in its environment, or descends from one that does."""

    identity: Identity
    worker: str  # "transcribe-0.17"; empty when it carries no tag of its own
    parent: int
    group: int
    session: int


@dataclass(frozen=True)
class Sample:
    """What one process uses at this moment; zeros when it is gone."""

    status: Status
    rss_bytes: int  # its own resident memory
    cpu_s: float  # user + system time since its start
    children_bytes: int | None = None  # memory of all its descendants' own, only when asked


def identity_of(pid: int) -> Identity | None:
    """The identity of a process, a zombie included; None when there is none of that pid."""
    stat = _facts.stat_of(pid)
    return None if stat is None else Identity(pid, stat.start, boot_id())


def proved_dead(identity: Identity) -> bool:
    """True only on evidence: no such pid, a zombie, another start time, another boot.

    What cannot be read counts as alive: a claim must never be taken from a process that may still hold it.
    """
    if identity.boot != boot_id():
        return True
    try:
        stat = _facts.read_stat(identity.pid)
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return stat.status in (Status.ZOMBIE, Status.GONE) or stat.start != identity.start


def spawn(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, its output appended to `log`; `env` is its whole environment.

    Only from the main thread (RuntimeError otherwise): the kernel sends the parent-death signal when the
    *thread* that started a child ends. Raises SpawnError when the interpreter or the directory is not there.
    """
    _only_main_thread("spawn")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        output = os.open(log, flags, 0o600)
    except OSError as error:
        raise SpawnError(f"cannot open the log {log}: {error.strerror}") from error
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            close_fds=True,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    except OSError as error:
        what = f"its directory {cwd}" if str(error.filename) == str(cwd) else f"the program {argv[0]}"
        raise SpawnError(
            f"cannot start a worker: {what}: {error.strerror}; check `python` and `cwd` of this engine in config.json"
        ) from error
    finally:
        os.close(output)


def pidfd(process: int | Identity) -> int | None:
    """A descriptor that becomes readable when the process is dead, child or not; the caller closes it.

    None where the kernel has none, or when the process is gone already: poll `proved_dead` then.
    """
    pid = process if isinstance(process, int) else process.pid
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        descriptor: int = os.pidfd_open(pid)
    except OSError:
        return None
    # RACE: the pid may have been reused before the open; from here on it cannot be.
    if isinstance(process, Identity) and identity_of(pid) != process:
        os.close(descriptor)
        return None
    return descriptor


def signal_process(identity: Identity, number: int) -> bool:
    """Send a signal to exactly this process; False when it is dead or not ours to signal."""
    descriptor = pidfd(identity)
    try:
        if proved_dead(identity):
            return False
        if descriptor is not None and hasattr(signal, "pidfd_send_signal"):
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(identity.pid, number)
    except OSError:
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def kill_group(identity: Identity, number: int, *, spool_id: str = "", worker: str = "") -> list[Identity]:
    """Signal a worker with all that it started; returns what was signalled, never ourselves.

    Found are its process group and session, all descendants, and every process with the worker's tag in its
    environment, wherever it went. With SIGKILL the search is repeated until nothing new turns up. Call it
    before the worker is reaped: while its pid is taken, its session is known to be ours; afterwards only tags
    are believed.
    """
    hit: list[Identity] = []
    for _ in range(_KILL_ROUNDS if number == SIGKILL else 1):
        found = [m.identity for m in family(identity, spool_id=spool_id, worker=worker)]
        fresh = [each for each in found if each not in hit and signal_process(each, number)]
        hit += fresh
        if not fresh:
            break
    return hit


def family(identity: Identity, *, spool_id: str = "", worker: str = "") -> list[Member]:
    """A worker and all that it started, the living only, without ourselves."""
    own = os.getpid()
    stats = {pid: s for pid in _facts.pids() if pid != own and (s := _facts.stat_of(pid)) is not None}
    leader = stats.get(identity.pid)
    ours = leader is not None and leader.start == identity.start and identity.boot == boot_id()
    found = {m.identity.pid: m for m in members(spool_id, worker)} if spool_id and worker else {}
    taken = set(found)
    if ours:  # else the number may belong to another group by now
        taken |= {pid for pid, s in stats.items() if identity.pid in (pid, s.group, s.session)}
    grown = True
    while grown:
        more = {pid for pid, s in stats.items() if pid not in taken and s.parent in taken}
        taken |= more
        grown = bool(more)
    untagged = [
        Member(Identity(pid, (s := stats[pid]).start, boot_id()), "", s.parent, s.group, s.session)
        for pid in sorted(taken - set(found))
        if stats[pid].status not in (Status.ZOMBIE, Status.GONE)
    ]
    return [*found.values(), *untagged]


def members(spool_id: str, worker: str | None = None) -> list[Member]:
    """The live processes of our user that carry this spool's tag (and this worker's), without ourselves.

    The tag is in the environment a process was started with, so it is inherited by all that a worker starts.
    One that cleared or overwrote its environment is not found here; `family` finds it by session and parent.
    """
    spool_tag = f"\0{ENV_SPOOL}={spool_id}\0".encode()
    worker_key = f"\0{ENV_WORKER}=".encode()
    found = []
    for pid, environ in _facts.environments():
        block = b"\0" + environ + b"\0"
        if spool_tag not in block:
            continue
        name = block.partition(worker_key)[2].partition(b"\0")[0].decode("utf-8", "replace")
        if worker is not None and name != worker:
            continue
        member = _member(pid, name)
        if member is not None:
            found.append(member)
    return found


def sample(identity: Identity, *, children: bool = False) -> Sample:
    """State, memory and processor time of a process; `children` adds the memory of what it started (slower)."""
    stat = _facts.stat_of(identity.pid)
    if stat is None or stat.start != identity.start or identity.boot != boot_id():
        return Sample(Status.GONE, 0, 0.0, 0 if children else None)
    below = memory_below(identity.pid) if children else None
    return Sample(stat.status, stat.rss, stat.cpu_s, below)


def memory_below(pid: int) -> int:
    """Bytes that all descendants of a process have for themselves: what they share with it is not counted twice."""
    children: dict[int, list[int]] = {}
    for each in _facts.pids():
        stat = _facts.stat_of(each)
        if stat is not None:
            children.setdefault(stat.parent, []).append(each)
    below: list[int] = list(children.get(pid, ()))
    for each in below:  # which grows meanwhile
        below.extend(children.get(each, ()))
    return sum(map(_facts.private_bytes, below))


def set_parent_death_signal(number: int, parent: int | None = None) -> bool:
    """Have the kernel send us `number` when our parent dies (0: never mind); only a check outside Linux.

    `parent` is the pid that started us. Returns False when it is gone already: it may have died before this
    call, and then no signal will ever come. Only from the main thread.
    """
    _only_main_thread("set_parent_death_signal")
    expected = os.getppid() if parent is None else parent
    if LINUX:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot arm the parent-death signal: {os.strerror(error)}")
    # RACE: a parent that died before the call above sends nothing; being adopted by another shows it.
    return os.getppid() == expected


def end_soon_after_parent(parent: int | None = None) -> bool:
    """Have the kernel end us one second after our parent's death, whatever we are doing; only a check outside Linux.

    That second is for a thread that ends our children first; SIGKILL as the parent-death signal would leave it
    none. A thread cannot do it alone: native code may hold the interpreter for ever. Returns False when the parent
    is gone already. Only from the main thread.
    """
    if LINUX:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        # The handler is alarm(2) itself, called with the number of the signal: 1, the seconds until SIGALRM ends us.
        libc.signal(int(signal.SIGHUP), ctypes.cast(libc.alarm, ctypes.c_void_p))
    return set_parent_death_signal(int(getattr(signal, "SIGHUP", 1)), parent)


def resident_bytes() -> int:
    """Memory in bytes of ourselves and all that we have started: what a worker puts into its heartbeat."""
    own = os.getpid()
    stat = _facts.stat_of(own)
    return 0 if stat is None else stat.rss + memory_below(own)


def _only_main_thread(name: str) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"call {name}() from the main thread: the parent-death signal is tied to the thread")


def _member(pid: int, worker: str) -> Member | None:
    stat = _facts.stat_of(pid)
    if stat is None or stat.status in (Status.ZOMBIE, Status.GONE):
        return None
    return Member(Identity(pid, stat.start, boot_id()), worker, stat.parent, stat.group, stat.session)
