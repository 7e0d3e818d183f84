"""Text for a terminal: without control characters; times and sizes in units that people read.

Text from jobs, engines and logs must not be able to control the terminal.
"""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: object) -> str:
    """Text without escape sequences and control characters; tabs and newlines stay."""
    return _CONTROLS.sub("", str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """As plain, with all white space replaced by single spaces."""
    return " ".join(plain(text).split())


def seconds(value: float | None) -> str:
    """A duration in seconds as text in at most two units: "350 ms", "2 h 5 min"; "" for None."""
    if value is None:
        return ""
    if value < 0.1:
        return f"{value * 1000:.0f} ms"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit} {rest} {small}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def size(count: int) -> str:
    """A number of bytes as text, in units of 1024: "1.5 MB"."""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit in ("B", "KB") or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"
