"""Our own children, born ours or left to us: a subreaper is the new parent of what its descendants leave behind.

Each worker is one, so that a daemon it started (`setsid`, forked twice, its environment cleared) still descends from
it; so is the supervisor, which inherits what a dead worker held. Linux only: elsewhere init inherits orphans.
"""

from __future__ import annotations

import contextlib
import os
import time

from pool.system import procfs
from pool.system.host import LINUX
from pool.system.procfs import Status
from pool.system.procs import SIGKILL, identity_of, kill_group

_PR_SET_CHILD_SUBREAPER = 36
_NAME_CHARS = 80
_END_S = 5.0


def become_subreaper() -> bool:
    """Be the parent of all orphans among our descendants from now on; False where the kernel has no such thing."""
    if not LINUX:
        return False
    import ctypes

    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0) == 0)


def has_children() -> bool:
    """Whether there is any child of ours, dead ones included that nobody waited for. A microsecond; reaps nothing."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children() -> set[int]:
    """Pids of our children, dead ones included."""
    found: set[int] = set()
    if not LINUX:
        return found
    own = os.getpid()
    try:
        for thread in os.listdir("/proc/self/task"):  # each child belongs to the thread that forked it
            with open(f"/proc/self/task/{thread}/children", "rb", buffering=0) as file:
                found.update(map(int, (file.readall() or b"").split()))
    except OSError:  # a thread ended meanwhile, or this kernel keeps no such lists
        stats = ((pid, procfs.stat_of(pid)) for pid in procfs.pids())
        found = {pid for pid, stat in stats if stat is not None and stat.parent == own}
    return found


def is_dead(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to ask how it ended."""
    stat = procfs.stat_of(pid)
    return stat is None or stat.status in (Status.ZOMBIE, Status.GONE)


def command_of(pid: int) -> str:
    """What a process runs, for people; "" when it is gone."""
    for name in ("cmdline", "comm"):  # the first is empty when a process wrote over it, or is about to begin
        try:
            with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
                words = (file.readall() or b"").replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            return ""
        if words:
            return words[:_NAME_CHARS]
    return ""


class Heir:
    """What dead workers left to this process, which starts workers and nothing else.

    A child that is no worker's process can only be one that descends from a dead worker, for a living one keeps its
    own. That is not so, and nothing is ended, when we had children before we began (a shell may have made itself us),
    or when we are the first process of a container, which inherits from strangers too.
    """

    def __init__(self) -> None:
        self.ends = os.getpid() != 1 and not has_children() and become_subreaper()

    def end(self, workers: set[int]) -> list[str]:
        """End and reap what was left to us; what it was. workers: pids of the processes in the slots."""
        if os.getpid() == 1:
            _reap(children() - workers)
        ended: dict[int, str] = {}
        deadline = time.monotonic() + _END_S
        while self.ends and (left := children() - workers) and time.monotonic() < deadline:
            for pid in left:
                identity = identity_of(pid)
                if identity is not None and identity.alive():
                    ended.setdefault(pid, f"pid {pid} ({command_of(pid)})")
                    kill_group(identity, SIGKILL)
            _reap(left)
            time.sleep(0.001)  # killed, but not gone yet: what they write must be over before a job runs again
        return list(ended.values())


def _reap(pids: set[int]) -> None:
    """Take those of them that are dead out of the machine's table."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
