"""Polling directories where the kernel sends no events: as often as it is cheap, and only while a caller waits.

Just after news, or when a job begins to be awaited, the pause is a millisecond; while nothing comes it grows to
POLL_S. A look that took t is not repeated before 20 t have passed (5 % of one core), and after a while in which
nothing came, not before 1,000 t (0.1 %) or 20 ms.

Who only waits (a client) needs no thread and no descriptor for that. Who sleeps on several descriptors (worker,
supervisor) asks for one with `fileno()`; a thread then looks, and pokes it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

POLL_S = 0.5  # the longest pause between two looks

_FIRST_S, _GROWTH = 0.001, 1.5
_SHARE, _RARE_SHARE, _RARE_S = 20, 1000, 0.02
_TURN_S = 1.0  # how soon the thread notices that it is to end
_FEW = 64  # files wanted by name: looking for each costs less than a listing


def close_open(*descriptors: int) -> None:
    """Close descriptors; -1 stands for one that is closed already."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


@dataclass
class Arrivals:
    """names: per watched key, in the order of arrival. rescan: events were lost, look everywhere."""

    names: dict[str, list[str]] = field(default_factory=dict)
    rescan: bool = False

    def __bool__(self) -> bool:
        return self.rescan or bool(self.names)

    def add(self, other: Arrivals) -> None:
        """Take in what another one holds."""
        self.rescan |= other.rescan
        for key, names in other.names.items():
            self.names.setdefault(key, []).extend(names)


class Listing:
    """Lists directories and reports what was not there before. closes: keys of directories in which a file counts again
    when it was written to."""

    def __init__(self, directories: Mapping[str, str], closes: frozenset[str]) -> None:
        self._directories, self._closes = dict(directories), closes
        self._known: dict[str, dict[str, tuple[int, int, int]]] = {key: {} for key in directories}
        self()

    def __call__(self) -> Arrivals:
        """What is new in the directories since the last call."""
        arrivals = Arrivals()
        for key, path in self._directories.items():
            try:
                there = dict(self._list(path, written=key in self._closes))
            except (FileNotFoundError, NotADirectoryError):
                there = {}
            except OSError:  # no descriptor, or a mount that is away: who waits must look in another way
                arrivals.rescan = True
                continue
            known, self._known[key] = self._known[key], there
            if fresh := [name for name, stamp in there.items() if known.get(name) != stamp]:
                arrivals.names[key] = fresh
        return arrivals

    @staticmethod
    def _list(path: str, *, written: bool) -> Iterable[tuple[str, tuple[int, int, int]]]:
        """(name, (inode, size, µs of the last write)); the last two are 0 where they do not matter."""
        with os.scandir(path) as entries:
            for entry in entries:
                size = at = 0
                if written:
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # RACE: taken in already
                    size, at = info.st_size, info.st_mtime_ns // 1000
                yield entry.name, (entry.inode(), size, at)


class Wanted:
    """Looks for certain files of one directory, as long as they are wanted."""

    def __init__(self, key: str, path: str, wanted: Callable[[], list[str]]) -> None:
        self._key, self._path, self._wanted = key, path, wanted

    def __call__(self) -> Arrivals:
        """Which of the wanted names are there."""
        names = self._wanted()
        if len(names) <= _FEW:
            found = [name for name in names if os.path.lexists(f"{self._path}/{name}")]
        else:
            try:
                found = list(set(names).intersection(os.listdir(self._path)))
            except OSError:
                return Arrivals(rescan=True)
        return Arrivals({self._key: found} if found else {})


class Poller:
    """look: returns what has arrived since its last call. directories: a change of which of them exist is unhealthy."""

    def __init__(self, look: Callable[[], Arrivals], directories: Iterable[str]) -> None:
        self._look, self._directories = look, tuple(directories)
        self._there = self._existing()
        self._news = Arrivals()
        self._lock = threading.Lock()  # of the news
        self._pause, self._next_at = _FIRST_S, 0.0
        self._hurried = threading.Event()
        self._taken = threading.Event()
        self._thread: threading.Thread | None = None
        self._reader = self._writer = -1
        self._closed = False

    def hurry(self) -> None:
        """Somebody begins to wait: look soon, and then rarer."""
        self._pause, self._next_at = _FIRST_S, 0.0
        self._hurried.set()

    def fileno(self) -> int:
        """Becomes readable when something has arrived."""
        if self._thread is None and not self._closed:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._reader, False)
            os.set_blocking(self._writer, False)
            self._thread = threading.Thread(target=self._run, name="filepool-polling", daemon=True)
            self._thread.start()
        return self._reader

    def wait(self, timeout: float) -> bool:
        """Whether something arrived within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (self._news or self._closed):
            if self._thread in (None, threading.current_thread()):
                self._look_if_due()
            left = deadline - time.monotonic()
            if self._news or left <= 0:
                break
            self._hurried.clear()
            self._hurried.wait(min(left, max(_FIRST_S, self._next_at - time.monotonic())))
        return bool(self._news)

    def read(self) -> Arrivals:
        """What arrived since the last call; never blocks."""
        if self._thread is None:
            self._look_if_due()
        elif self._reader >= 0:
            try:
                os.read(self._reader, 64)
            except BlockingIOError:
                pass
        with self._lock:
            news, self._news = self._news, Arrivals()
        self._taken.set()
        return news

    def healthy(self) -> bool:
        """Whether the thread lives and the directories are those that are watched."""
        alive = self._thread is None or self._thread.is_alive()
        return alive and self._there == self._existing()

    def close(self) -> None:
        """Stop watching; waits for the thread."""
        self._closed = True
        self._hurried.set()
        self._taken.set()
        if self._thread is not None:
            self._thread.join(2 * _TURN_S)  # RACE: else it could poke a descriptor that has another owner by now
        self.abandon()

    def abandon(self) -> None:
        """In a forked child: close the copies of the parent's descriptors."""
        reader, writer = self._reader, self._writer
        self._reader = self._writer = -1
        close_open(reader, writer)

    def _look_if_due(self) -> None:
        begun = time.monotonic()
        if begun < self._next_at:
            return
        found = self._look()
        now = time.monotonic()
        spent = now - begun
        if found:
            with self._lock:
                self._news.add(found)
            self._pause = _FIRST_S
            self._hurried.set()  # a caller that waits beside the thread
        else:
            rare = min(POLL_S, max(_RARE_S, _RARE_SHARE * spent))
            self._pause = min(rare, self._pause * _GROWTH)
        self._next_at = now + max(self._pause, min(POLL_S, _SHARE * spent))

    def _run(self) -> None:
        while not self._closed:
            if not self.wait(_TURN_S):
                continue
            try:
                os.write(self._writer, b"!")
            except OSError:
                pass  # full: it is readable anyway
            self._taken.wait()
            self._taken.clear()

    def _existing(self) -> list[str]:
        return [path for path in self._directories if os.path.isdir(path)]
