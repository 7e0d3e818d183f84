"""Time: everything that waits, expires or is ordered goes by the monotonic clock.

`Clock.now()` is seconds since boot (CLOCK_BOOTTIME on Linux, comparable between processes of one boot).
The spool clock turns it into microseconds that look like wall time: its offset is fixed once per boot and per
spool (`Spool.clock_offset`), so a jump of the wall clock changes no order, no expiry and no due time.
"""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def boot_ns() -> int:
        """Nanoseconds since boot, the same in every process of this boot."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

else:  # pragma: no cover - other platforms

    def boot_ns() -> int:
        """Nanoseconds of a clock that never goes back."""
        return time.monotonic_ns()


def moment(at_us: int) -> str:
    """A time of the spool clock, for people's eyes only."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_us / 1e6))


class Clock:
    """The real clock. Tests pass an object with the same three methods."""

    def now(self) -> float:
        """Seconds, monotonic."""
        return boot_ns() / 1e9

    def wall(self) -> float:
        """Seconds since 1970: for people's eyes, and for dates that people give."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Sleep for some seconds."""
        time.sleep(seconds)


REAL = Clock()
