"""Who goes before whom: the order in which names leave a queue, as the kernel tells it, and how far that may be off.

A job that has failed in no attempt must be taken before every name that sorts behind its own: a lower priority, a
later submission, a job that has ended a worker. What leaves before it all the same is counted, and has a bound:

    ordinary   one for each slot: a worker that had looked before the job came takes what it had chosen. A process that
               starts, or comes back from a stop, looks first.
    behind     for each slot one, and one more for every 30 s of the wait: jobs that have ended a worker get that much,
               so that a queue which never empties cannot keep them for ever.

Restarts, workers that die with a job in hand, and jobs that are given back add nothing: what comes back has its old
name, and whoever takes it then has looked.
"""

from __future__ import annotations

import bisect
import os
import select
import struct
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watchdog.observers import inotify_c

from pool.format.names import FIRST_BEHIND, parse_job

BEHIND_S = 30.0  # of a wait, for one more job that waits behind
_CAME, _WENT = 0x80 | 0x100, 0x40 | 0x200  # IN_MOVED_TO | IN_CREATE, IN_MOVED_FROM | IN_DELETE
_LOST = 0x4000 | 0x8000  # IN_Q_OVERFLOW | IN_IGNORED
_HEADER = struct.Struct("iIII")


@dataclass
class Stay:
    """A name in the queue. came, went: monotonic seconds; before: how many names were there that sort before it;
    left: how many have left meanwhile; ordinary, behind: ids of those that sort behind it and left before it."""

    name: str
    came: float
    before: int
    left: int = 0
    went: float | None = None
    ordinary: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return (self.came if self.went is None else self.went) - self.came

    def unfair(self, slots: int, not_taken: Collection[str] = (), takers: Mapping[str, str] | None = None) -> str:
        """What is wrong with it, or ''. slots: that there are at most; not_taken: ids that left for other reasons;
        takers: worker by id, as far as known, to tell who was given what had to wait."""
        ordinary = [job_id for job_id in self.ordinary if job_id not in not_taken]
        behind = [job_id for job_id in self.behind if job_id not in not_taken]
        most = slots * (1 + int(self.seconds / BEHIND_S))
        if len(ordinary) <= slots and len(behind) <= most:
            return ""
        before = [f"{job_id} by {(takers or {}).get(job_id) or 'nobody known'}" for job_id in (*ordinary, *behind)]
        return (
            f"{self.name} waited {self.seconds:.2f} s, until {self.went}, behind {self.before}; {len(ordinary)} that "
            f"come after it went before it ({slots} may), and {len(behind)} that had ended a worker ({most} may): "
            f"{', '.join(before)}"
        )


class Order:
    """The account of one queue."""

    def __init__(self) -> None:
        self.over: list[Stay] = []  # of jobs that had failed in no attempt
        self.lost = 0  # how often events were lost; stays of that moment are not judged
        self._names: list[str] = []
        self._stays: dict[str, Stay] = {}

    def came(self, name: str, at: float) -> None:
        job = parse_job(name)
        place = bisect.bisect_left(self._names, name)
        if job is None or self._names[place : place + 1] == [name]:
            return
        self._names.insert(place, name)
        if not job.attempts and not job.waits_behind:
            self._stays[name] = Stay(name, at, place)

    def went(self, name: str, at: float) -> None:
        job = parse_job(name)
        place = bisect.bisect_left(self._names, name)
        if job is None or self._names[place : place + 1] != [name]:
            return
        del self._names[place]
        stay = self._stays.pop(name, None)
        if stay is not None:
            stay.went = at
            self.over.append(stay)
        for other in self._stays.values():
            other.left += 1
            if other.name < name:
                (other.behind if name >= FIRST_BEHIND else other.ordinary).append(job.id)

    def anew(self, names: Iterable[str], at: float) -> None:
        """Events were lost; this is what is there now."""
        self.lost += 1
        self._names.clear()
        self._stays.clear()
        for name in sorted(names):
            self.came(name, at)

    def unfair(self, slots: int, not_taken: Collection[str] = (), takers: Mapping[str, str] | None = None) -> list[str]:
        return [text for stay in self.over if (text := stay.unfair(slots, not_taken, takers))]

    def summary(self, slots: int) -> dict[str, Any]:
        """The figures: how many were judged, by how many they were overtaken, and the longest wait."""
        ordinary = sorted(len(stay.ordinary) for stay in self.over) or [0]
        longest = max(self.over, key=lambda stay: stay.seconds, default=Stay("", 0.0, 0))
        return {
            "judged": len(self.over),
            "overtaken": {"median": ordinary[len(ordinary) // 2], "most": ordinary[-1], "bound": slots},
            "by jobs that had ended a worker": {
                "most": max((len(stay.behind) for stay in self.over), default=0),
                "bound": f"{slots}, and {slots} for every {BEHIND_S:g} s of the wait",
            },
            "longest wait": {
                "seconds": round(longest.seconds, 2),
                "were before it": longest.before,
                "began meanwhile": longest.left,
            },
            "moments not seen": self.lost,
        }


class Witness:
    """Fills an Order from the events of a directory, in a thread, until it is closed."""

    def __init__(self, directory: Path) -> None:
        self.order = Order()
        self._directory = directory
        self._over = False
        self._fd = inotify_c.inotify_init()
        self._arm()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._thread.join()
        os.close(self._fd)

    def _arm(self) -> None:
        if inotify_c.inotify_add_watch(self._fd, os.fsencode(self._directory), _CAME | _WENT) == -1:
            raise OSError(f"no events of {self._directory}")

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not self._over:
            if poll.poll(100):
                self._read(os.read(self._fd, 1 << 20), time.monotonic())

    def _read(self, events: bytes, now: float) -> None:
        at = 0
        while at < len(events):
            _, mask, _, length = _HEADER.unpack_from(events, at)
            name = os.fsdecode(events[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0"))
            at += _HEADER.size + length
            if mask & _LOST:
                if not mask & 0x4000:
                    self._arm()
                self.order.anew(os.listdir(self._directory), now)
                return
            if mask & _CAME:
                self.order.came(name, now)
            elif mask & _WENT:
                self.order.went(name, now)
