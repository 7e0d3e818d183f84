"""Wake-up source: which names arrived in some directories. Events are a hint, the caller's rescan is the truth.

Linux: watchdog's inotify binding with a mask of what arrives and nothing else. watchdog's stock emitter also asks
for IN_MOVED_FROM and holds an unmatched one back for half a second, in order, so a job that arrives just after a
claim would be noticed 500 ms late; with this mask a round trip is below 1 ms. The descriptor is read where it is
waited for, without a thread in between.

Elsewhere watchdog's own observer of the platform. On mounts that send no events (NFS, SMB, FUSE …), or when a limit
of the system is met, `pool.system.polling`; a limit that has gone is noticed by `verify`. `mode`, `reason` and
`limited` say which and why; `status` shows them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pool.errors import SpoolError
from pool.system.host import mounts
from pool.system.inotify import BindingsChanged, Inotify, why_not
from pool.system.polling import Arrivals, Listing, Poller, Wanted, close_open

NETWORK_MOUNTS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "vboxsf", "vmhgfs"}
)
AGAIN_S = 5.0  # between two tries whether a limit has gone
_JOIN_S = 1.0


class Watcher:
    """Watches directories that exist, each under a key of the caller's choice. SpoolError: one is missing.

    closes: keys of directories in which a file also counts when its writer closes it (the drop box). wanted: in the
    first directory these files alone count, which makes polling cheap; events tell of all.
    """

    def __init__(
        self,
        directories: Mapping[str, Path | str],
        *,
        closes: Iterable[str] = (),
        wanted: Callable[[], list[str]] | None = None,
    ) -> None:
        self._directories = {key: str(path) for key, path in directories.items()}
        self._closes, self._wanted = frozenset(closes), wanted
        self.mode = "inotify"
        self.reason = ""
        self.limited = False  # the reason is a limit that an operator may raise, or that may go by itself
        self._again_at = 0.0
        self.source: Inotify | _Observer | Poller
        for path in self._directories.values():
            if not os.path.isdir(path):
                raise SpoolError(f"{path} is missing: start the pool once to make the spool")
        remote = next((kind for path in self._directories.values() if (kind := network_mount(path))), "")
        if remote:
            self._fall_back(f"{remote} mounts send no events")
            return
        if not sys.platform.startswith("linux"):
            self.source, self.mode = _Observer(self._directories), "observer"
            return
        try:
            self.source = Inotify(self._directories, self._closes)
        except BindingsChanged as error:
            self._fall_back(f"{error}: install another one")
        except OSError as error:
            self._fall_back(why_not(error), limited=True)

    def _fall_back(self, reason: str, *, limited: bool = False) -> None:
        look: Listing | Wanted
        if self._wanted is None:
            look = Listing(self._directories, self._closes)
        else:
            look = Wanted(*next(iter(self._directories.items())), self._wanted)
        self.source = Poller(look, self._directories.values())
        self.mode, self.reason, self.limited = "polling", reason, limited
        self._again_at = time.monotonic() + AGAIN_S

    def hurry(self) -> None:
        """Somebody begins to wait; where there are events, they come at once in any case."""
        if isinstance(self.source, Poller):
            self.source.hurry()

    def fileno(self) -> int:
        """Descriptor that becomes readable when something may have arrived (POSIX)."""
        return self.source.fileno()

    def wait(self, timeout: float) -> bool:
        """Wait until something may have arrived; whether it did within `timeout` seconds."""
        return self.source.wait(timeout)

    def read(self) -> Arrivals:
        """What arrived since the last call; never blocks. A watcher that died is restarted and asks for a rescan."""
        try:
            return self.source.read()
        except OSError as error:
            self.source.close()
            self._fall_back(f"inotify failed: {error.strerror or error}", limited=True)
            return Arrivals(rescan=True)

    def verify(self) -> bool:
        """Re-arm what was removed and made again, restart what died, go back to events when a limit has gone.

        True: something was wrong, or is right again: rescan.
        """
        if self.limited and time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + AGAIN_S
            if self._listen():
                return True
        if self.source.healthy():
            return False
        reason = self.reason
        self.source.close()
        if self.mode == "polling":
            self._fall_back(reason, limited=self.limited)
        elif self.mode == "observer":
            self.source = _Observer(self._directories)
        elif not self._listen():
            self._fall_back(self.reason, limited=True)
        return True

    def _listen(self) -> bool:
        """Have events instead of what there was, if that is possible now; else `reason` says why not."""
        try:
            source = Inotify(self._directories, self._closes)
        except OSError as error:
            self.reason = why_not(error)
            return False
        self.source.close()
        self.source, self.mode, self.reason, self.limited = source, "inotify", "", False
        return True

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, whose own watcher goes on."""
        self.source.abandon()

    def close(self) -> None:
        """Stop watching."""
        self.source.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Observer:
    """watchdog's observer of the platform: its threads collect names and poke a pipe of this process."""

    def __init__(self, directories: Mapping[str, str]) -> None:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        self._lock = threading.Lock()
        self._arrivals = Arrivals()
        self._poked = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._observer: Any = Observer()
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
        """Stop watching."""
        if self._reader < 0:
            return
        self._observer.stop()
        deadline = time.monotonic() + _JOIN_S
        while self._observer.is_alive() and time.monotonic() < deadline:
            self._observer.join(0.05)
        self.abandon()

    def abandon(self) -> None:
        """Close the pipe alone; in a forked child there are no threads to end."""
        reader, writer = self._reader, self._writer
        self._reader = self._writer = -1
        close_open(reader, writer)


def network_mount(path: str, table: str = "/proc/self/mounts") -> str:
    """Type of the mount that holds `path` when it is one that sends no events, else ''."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for point, type_ in mounts(table):
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, type_
    return kind if kind in NETWORK_MOUNTS or kind.startswith("fuse.") else ""
