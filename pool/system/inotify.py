"""Events of Linux: one inotify instance for some directories, and what to say when the kernel gives none."""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from pool.system import limits
from pool.system.polling import Arrivals

_IN_CLOSE_WRITE = 0x00000008
_IN_MOVED_TO = 0x00000080
_IN_CREATE = 0x00000100
_IN_Q_OVERFLOW = 0x00004000
_IN_IGNORED = 0x00008000
_IN_ONLYDIR = 0x01000000
_IN_EXCL_UNLINK = 0x04000000
_HEADER = struct.Struct("iIII")


class BindingsChanged(Exception):
    """The installed watchdog has no inotify bindings as they are used here."""


def bindings() -> tuple[Callable[[], int], Callable[[int, bytes, int], int]]:
    """inotify_init() and inotify_add_watch(descriptor, path, mask) of watchdog; -1 and ctypes' errno on failure.

    They are no public interface of watchdog: this is the one place that names them. Raises BindingsChanged.
    """
    try:
        from watchdog.observers.inotify_c import inotify_add_watch, inotify_init
    except ImportError as error:
        raise BindingsChanged(f"this version of watchdog has other inotify bindings ({error})") from None
    return inotify_init, inotify_add_watch


class Inotify:
    """closes: as for a Watcher. OSError: a limit was met, or a directory cannot be read. BindingsChanged."""

    def __init__(self, directories: Mapping[str, str], closes: frozenset[str]) -> None:
        begin, self._add_watch = bindings()
        self._fd: int = begin()
        if self._fd == -1:
            raise _last_error()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._directories, self._closes = dict(directories), closes
        self._keys: dict[int, str] = {}
        self._inodes: dict[str, tuple[int, int]] = {}
        os.set_blocking(self._fd, False)
        os.set_inheritable(self._fd, False)
        try:
            for key in self._directories:
                self._arm(key)
        except OSError:
            os.close(self._fd)
            raise

    def _arm(self, key: str) -> None:
        """Watch a directory; one that is gone is left to `verify`, which comes again."""
        path = self._directories[key]
        self._inodes.pop(key, None)
        mask = _IN_MOVED_TO | _IN_CREATE | _IN_ONLYDIR | _IN_EXCL_UNLINK
        if key in self._closes:
            mask = _IN_MOVED_TO | _IN_CLOSE_WRITE | _IN_ONLYDIR | _IN_EXCL_UNLINK
        wd = self._add_watch(self._fd, os.fsencode(path), mask)
        if wd == -1:
            error = _last_error(path)
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            raise error
        self._keys[wd] = key
        try:
            info = os.stat(path)
        except OSError:
            return
        self._inodes[key] = (info.st_dev, info.st_ino)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._fd

    def wait(self, timeout: float) -> bool:
        """Whether something arrived within `timeout` seconds."""
        return bool(self._poll.poll(max(0, int(timeout * 1000 + 0.999))))

    def read(self) -> Arrivals:
        """What arrived since the last call; never blocks."""
        arrivals = Arrivals()
        try:
            buffer = os.read(self._fd, 65536)
        except BlockingIOError:
            return arrivals
        at, end = 0, len(buffer)
        while at + 16 <= end:
            wd, mask, _, length = _HEADER.unpack_from(buffer, at)
            name = buffer[at + 16 : at + 16 + length].rstrip(b"\0")
            at += 16 + length
            if mask & _IN_Q_OVERFLOW:
                arrivals.rescan = True
            elif mask & _IN_IGNORED:
                self._revive(wd, arrivals)
            elif name and wd in self._keys:
                arrivals.names.setdefault(self._keys[wd], []).append(os.fsdecode(name))
        return arrivals

    def _revive(self, wd: int, arrivals: Arrivals) -> None:
        """The directory of a watch is gone: renewed by the supervisor, or removed and made again."""
        key = self._keys.pop(wd, None)
        arrivals.rescan = True
        if key is not None and key not in self._keys.values():
            self._arm(key)

    def healthy(self) -> bool:
        """Whether every directory is still the one that is watched."""
        for key, path in self._directories.items():
            try:
                info = os.stat(path)
            except OSError:
                return False
            if self._inodes.get(key) != (info.st_dev, info.st_ino):
                return False
        return True

    def close(self) -> None:
        """Stop watching."""
        # RACE: the number is forgotten first; a child forked meanwhile must not close what has it next
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    abandon = close  # the child's copy of the descriptor; the parent's stays


def why_not(error: OSError) -> str:
    """Why there are no events, and what to do about it."""
    if error.errno == errno.EMFILE and (full := _no_descriptor()) is not None:
        return limits.sentence(full)
    if error.errno == errno.EMFILE:
        return _used_up("instances")
    if error.errno == errno.ENOSPC:
        return _used_up("watches")
    return f"inotify: {limits.sentence(error)} ({error.filename})"


def _used_up(what: str) -> str:
    """The limit that is met: the machine's, or that of a container's user namespace when it is smaller."""
    limits_at = {key: _limit(key) for key in (f"fs/inotify/max_user_{what}", f"user/max_inotify_{what}")}
    key = min(limits_at, key=lambda key: limits_at[key])
    name, limit = key.replace("/", "."), limits_at[key]
    return (
        f"the limit of inotify {what} of this user is used up ({name} is {limit}): "
        f"raise it with `sysctl -w {name}={max(1024, 4 * limit)}`"
    )


def _limit(key: str) -> int:
    try:
        return int(Path(f"/proc/sys/{key}").read_text())
    except (OSError, ValueError):
        return 1 << 31


def _no_descriptor() -> OSError | None:
    """The error, when this process can open nothing at all: inotify says the same of both limits."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error
    return None


def _last_error(path: str = "") -> OSError:
    import ctypes

    code = ctypes.get_errno() or errno.EIO
    return OSError(code, os.strerror(code), path)
