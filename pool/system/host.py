"""Facts about this machine: which boot it is, how many cores we may use, whether memory ran out.

Standard library only and importable on Python 3.8: workers under an old interpreter use it too. `root` is "/"
but for tests, which lay out the files of other kernels below a directory of their own.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

ROOT = Path("/")
LINUX = sys.platform.startswith("linux")
_OCTAL = re.compile(r"\\([0-7]{3})")  # how the kernel writes a space in a path
WALL_BOOT = "wall"  # where a start time is a date (macOS, Windows) it tells boots apart by itself


@functools.lru_cache(maxsize=1)
def boot_id() -> str:
    """The name of this boot; a process recorded under another one is dead."""
    if not LINUX:
        return WALL_BOOT
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


@functools.lru_cache(maxsize=1)
def process_space() -> str:
    """The name of the namespace in which this process has its number: containers usually have one each. "" where there
    is none to tell."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def cpu_count(root: Path = ROOT) -> int:
    """Cores this process may keep busy: its affinity, cut by its control group's CPU quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def oom_kills(root: Path = ROOT) -> int | None:
    """How many processes the out-of-memory killer has ended in our control group; None where it is not counted.

    Falls back to the count of the whole machine. A rise between two readings explains a SIGKILL.
    """
    counters = [
        (directory / name, key)
        for controller, name, key in (
            ("", "memory.events", "oom_kill"),
            ("memory", "memory.oom_control", "oom_kill"),
        )
        for directory in _cgroup_directories(root, controller)[:1]
    ]
    for path, key in [*counters, (root / "proc/vmstat", "oom_kill")]:
        value = _counter(path, key)
        if value is not None:
            return value
    return None


def memory_total(root: Path = ROOT) -> int | None:
    """Bytes this process may use at most: the machine's, cut by its control group; None if unknown."""
    limits = [
        limit
        for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
        for directory in _cgroup_directories(root, controller)
        if (limit := _integer(directory / name)) is not None
    ]
    kilobytes = _counter(root / "proc/meminfo", "MemTotal:")
    if kilobytes is not None:
        limits.append(kilobytes * 1024)
    return min(limits, default=None)


def mounts(table: str = "/proc/self/mounts") -> list[tuple[str, str]]:
    """(mount point, type of file system) in order of mounting; empty where the system does not say."""
    try:
        text = Path(table).read_text("utf-8", "surrogateescape")
    except OSError:
        return []
    rows = (line.split(" ") for line in text.splitlines())
    return [(_OCTAL.sub(lambda m: chr(int(m[1], 8)), row[1]), row[2]) for row in rows if len(row) > 2]


def _cpu_quota(root: Path) -> float | None:
    """The tightest quota on the way up from our control group, in cores."""
    quotas: list[float] = []
    for directory in _cgroup_directories(root, ""):
        words = _words(directory / "cpu.max")
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    for directory in _cgroup_directories(root, "cpu"):
        quota = _integer(directory / "cpu.cfs_quota_us")
        period = _integer(directory / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _cgroup_directories(root: Path, controller: str) -> list[Path]:
    """Our control group's directory and those above it, nearest first; "" means the unified hierarchy.

    Inside a container the path in /proc/self/cgroup may be the host's: then the mount itself is ours.
    """
    base = root / "sys/fs/cgroup" / controller
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        if (controller in names.split(",")) if controller else (names == ""):
            own = base / path.lstrip("/")
            upward = [own, *own.parents]
            return [d for d in upward[: upward.index(base) + 1] if d.is_dir()] or [base]
    return []


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8", "replace").splitlines() if line.count(":") >= 2]
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").split()
    except OSError:
        return []


def _integer(path: Path) -> int | None:
    words = _words(path)
    try:
        return int(words[0])
    except (IndexError, ValueError):  # "max"
        return None


def _counter(path: Path, key: str) -> int | None:
    """The number after `key` in a file of "key number" lines."""
    words = _words(path)
    try:
        return int(words[words.index(key) + 1])
    except (ValueError, IndexError):
        return None
