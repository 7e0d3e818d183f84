"""Wake-up source: which names arrived in some directories. Events are a hint, the caller's rescan is the truth.

Linux: watchdog's inotify binding with a mask of what arrives and nothing else. watchdog's stock emitter also asks
for IN_MOVED_FROM and holds an unmatched one back for half a second, in order, so a job that arrives just after a
claim would be noticed 500 ms late; with this mask a round trip is below 1 ms. The descriptor is read where it is
waited for, without a thread in between.

Elsewhere watchdog's own observer of the platform; on mounts that send no events (NFS, SMB, FUSE …) or when the
inotify limits are used up, its PollingObserver. `mode` and `reason` say which and why; `status` shows them.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pool.errors import SpoolError
from pool.host import mounts

NETWORK_MOUNTS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "vboxsf", "vmhgfs"}
)
POLL_S = 0.5

_IN_CLOSE_WRITE = 0x00000008
_IN_MOVED_TO = 0x00000080
_IN_CREATE = 0x00000100
_IN_Q_OVERFLOW = 0x00004000
_IN_IGNORED = 0x00008000
_IN_ONLYDIR = 0x01000000
_IN_EXCL_UNLINK = 0x04000000
_HEADER = struct.Struct("iIII")


@dataclass
class Arrivals:
    """names: per watched key, in the order of arrival. rescan: events were lost, look everywhere."""

    names: dict[str, list[str]] = field(default_factory=dict)
    rescan: bool = False

    def __bool__(self) -> bool:
        return self.rescan or bool(self.names)


class Watcher:
    """Watches directories that exist, each under a key of the caller's choice. SpoolError: one is missing.

    closes: keys of directories in which a file also counts when its writer closes it (the drop box).
    """

    def __init__(self, directories: Mapping[str, Path | str], *, closes: Iterable[str] = ()) -> None:
        self._directories = {key: str(path) for key, path in directories.items()}
        self._closes = frozenset(closes)
        self.mode = "inotify"
        self.reason = ""
        self._source: _Inotify | _Observer
        for path in self._directories.values():
            if not os.path.isdir(path):
                raise SpoolError(f"{path} is missing: start the pool once to make the spool")
        remote = next((kind for path in self._directories.values() if (kind := network_mount(path))), "")
        if remote:
            self._fall_back(f"{remote} mounts send no events")
            return
        if not sys.platform.startswith("linux"):
            self._source, self.mode = _Observer(self._directories, self._closes, polling=False), "observer"
            return
        try:
            self._source = _Inotify(self._directories, self._closes)
        except OSError as error:
            self._fall_back(_limit_sentence(error))

    def _fall_back(self, reason: str) -> None:
        self._source = _Observer(self._directories, self._closes, polling=True)
        self.mode, self.reason = "polling", reason

    def fileno(self) -> int:
        """Descriptor that becomes readable when something may have arrived (POSIX)."""
        return self._source.fileno()

    def wait(self, timeout: float) -> bool:
        """Wait until something may have arrived; whether it did within `timeout` seconds."""
        return self._source.wait(timeout)

    def read(self) -> Arrivals:
        """What arrived since the last call; never blocks. A watcher that died is restarted and asks for a rescan."""
        try:
            return self._source.read()
        except OSError as error:
            self._source.close()
            self._fall_back(f"inotify failed: {error.strerror or error}")
            return Arrivals(rescan=True)

    def verify(self) -> bool:
        """Re-arm what was removed and made again, restart what died. True: something was wrong, rescan."""
        if self._source.healthy():
            return False
        reason = self.reason
        self._source.close()
        if self.mode == "polling":
            self._fall_back(reason)
            return True
        try:
            self._source = (
                _Inotify(self._directories, self._closes)
                if self.mode == "inotify"
                else _Observer(self._directories, self._closes, polling=False)
            )
        except OSError as error:
            self._fall_back(_limit_sentence(error))
        return True

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, whose own watcher goes on."""
        self._source.abandon()

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Inotify:
    def __init__(self, directories: Mapping[str, str], closes: frozenset[str]) -> None:
        from watchdog.observers import inotify_c

        self._add_watch = inotify_c.inotify_add_watch
        self._fd: int = inotify_c.inotify_init()
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
        return self._fd

    def wait(self, timeout: float) -> bool:
        return bool(self._poll.poll(max(0, int(timeout * 1000 + 0.999))))

    def read(self) -> Arrivals:
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
        for key, path in self._directories.items():
            try:
                info = os.stat(path)
            except OSError:
                return False
            if self._inodes.get(key) != (info.st_dev, info.st_ino):
                return False
        return True

    def close(self) -> None:
        # RACE: the number is forgotten first; a child forked meanwhile must not close what has it next
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    abandon = close  # the child's copy of the descriptor; the parent's stays


class _Observer:
    """watchdog's observers: their threads collect names and poke a pipe of this process."""

    def __init__(self, directories: Mapping[str, str], closes: frozenset[str], *, polling: bool) -> None:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer
        from watchdog.observers.polling import PollingObserver

        self._lock = threading.Lock()
        self._arrivals = Arrivals()
        self._poked = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._observer: Any = PollingObserver(timeout=POLL_S) if polling else Observer()
        outer = self

        class Handler(FileSystemEventHandler):  # type: ignore[misc,unused-ignore]
            def __init__(self, key: str, directory: str) -> None:
                self.key, self.directory = key, directory

            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.event_type in ("created", "moved", "modified", "closed"):
                    path = os.fsdecode(getattr(event, "dest_path", "") or event.src_path)
                    if path != self.directory:
                        outer._arrived(self.key, os.path.basename(path))

        self._directories = tuple(directories.values())
        self._watched = [path for path in self._directories if os.path.isdir(path)]
        for key, path in directories.items():
            if path in self._watched:
                self._observer.schedule(Handler(key, path), path, recursive=False)
        self._observer.start()

    def _arrived(self, key: str, name: str) -> None:
        with self._lock:
            self._arrivals.names.setdefault(key, []).append(name)
        self._poked.set()
        try:
            os.write(self._writer, b"!")
        except (BlockingIOError, OSError):
            pass

    def fileno(self) -> int:
        return self._reader

    def wait(self, timeout: float) -> bool:
        return self._poked.wait(timeout)

    def read(self) -> Arrivals:
        self._poked.clear()
        try:
            os.read(self._reader, 65536)
        except BlockingIOError:
            pass
        with self._lock:
            arrivals, self._arrivals = self._arrivals, Arrivals()
        return arrivals

    def healthy(self) -> bool:
        alive = bool(self._observer.is_alive()) and all(e.is_alive() for e in self._observer.emitters)
        return alive and self._watched == [path for path in self._directories if os.path.isdir(path)]

    def close(self) -> None:
        if self._reader < 0:
            return
        self._observer.stop()
        deadline = time.monotonic() + 2 * POLL_S
        while self._observer.is_alive() and time.monotonic() < deadline:
            self._observer.join(0.05)
        self.abandon()

    def abandon(self) -> None:
        """Close the pipe alone; in a forked child there are no threads to end."""
        reader, writer = self._reader, self._writer
        self._reader = self._writer = -1
        for descriptor in (reader, writer):
            if descriptor >= 0:
                os.close(descriptor)


def network_mount(path: str, table: str = "/proc/self/mounts") -> str:
    """Type of the mount that holds `path` when it is one that sends no events, else ''."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for point, type_ in mounts(table):
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, type_
    return kind if kind in NETWORK_MOUNTS or kind.startswith("fuse.") else ""


def _last_error(path: str = "") -> OSError:
    import ctypes

    code = ctypes.get_errno() or errno.EIO
    return OSError(code, os.strerror(code), path)


def _limit_sentence(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        return "the limit of inotify instances is used up (raise fs.inotify.max_user_instances)"
    if error.errno == errno.ENOSPC:
        return "the limit of inotify watches is used up (raise fs.inotify.max_user_watches)"
    return f"inotify: {error.strerror} ({error.filename})"
