"""A control group (cgroup v2) for each worker, where the machine lets us make one: nothing that it starts gets out.

    <our own group>/filepool-<spool id>-<worker>/     cgroup.procs, cgroup.kill

The worker moves itself in before it loads an engine. At its end one write to cgroup.kill ends whatever is left, at
once, however it was started; then the group is removed. Nothing is limited or counted by it. Where there is no
cgroup v2, or the group we run in was not handed to us to divide, there are no groups, and what a worker started is
found by descent (`lineage`), session and tag (`procs`) alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from pathlib import Path

from pool.system.host import LINUX, mounts

_END_S = 5.0
_OLD_S = 600.0  # a worker moves into its group long before
_DELEGATED = ("user.delegate", "trusted.delegate")  # how systemd marks a group that is handed over (Delegate=yes)


@functools.lru_cache(maxsize=1)
def home() -> str:
    """The group in which we may make others, "" when there is none. The first call removes what is long empty in it."""
    own = _own()
    if not own or not _handed_over(own):
        return ""
    probe = f"{own}/filepool-probe-{os.getpid()}"
    try:
        os.mkdir(probe)
    except OSError:  # mounted read-only, as in most containers
        return ""
    try:
        _remove_old(own, os.stat(probe).st_mtime - _OLD_S)
        return own if os.path.exists(f"{probe}/cgroup.kill") else ""  # since Linux 5.14
    finally:
        os.rmdir(probe)


def make(spool_id: str, worker: str) -> str:
    """A new group; "" where there are none."""
    if not home():
        return ""
    path = f"{home()}/filepool-{spool_id}-{worker}"
    try:
        os.mkdir(path)
    except OSError:  # as many as there may be (cgroup.max.descendants)
        return ""
    return path


def enter(path: str) -> str:
    """Move this process into a group; why that failed, "" when it did not."""
    try:
        with open(f"{path}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def end(path: str, spool_id: str) -> None:
    """Kill everything in a group of this spool, wait until it is gone, remove the group. Unknown ones: nothing."""
    if not os.path.basename(path).startswith(f"filepool-{spool_id}-"):
        return
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        try:
            if _populated(path):
                Path(f"{path}/cgroup.kill").write_text("1", encoding="ascii")
            else:
                os.rmdir(path)
                return
        except FileNotFoundError:
            return
        except OSError:
            pass  # RACE: something came in between the look and the removal
        time.sleep(0.001)


def _own() -> str:
    """The directory of the group we run in."""
    if not LINUX:
        return ""
    base = next((point for point, kind in mounts() if kind == "cgroup2"), "")
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return ""
    path = next((line[3:] for line in lines if line.startswith("0::")), "")
    own = f"{base}{path}".rstrip("/") if base and path else ""
    return own if own and os.path.isdir(own) else ""


def _handed_over(own: str) -> bool:
    """Root may write everywhere; that alone does not make a group ours to divide (systemd owns its own tree)."""
    if not os.access(own, os.W_OK) or not os.access(f"{own}/cgroup.procs", os.W_OK):
        return False
    if os.geteuid() != 0 or any(own == point for point, kind in mounts() if kind == "cgroup2"):
        return True
    for name in _DELEGATED:
        try:
            if os.getxattr(own, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _remove_old(own: str, before: float) -> None:
    """Groups of supervisors that were killed and never came again; one that holds a process cannot be removed."""
    for entry in os.scandir(own):
        if entry.name.startswith("filepool-"):
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < before:
                    os.rmdir(entry.path)


def _populated(path: str) -> bool:
    with open(f"{path}/cgroup.events", encoding="ascii") as file:
        return "populated 1" in file.read()
