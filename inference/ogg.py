"""The end of an Ogg file, which tells whether it is whole: its header has no length (RFC 3533)."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = b"OggS"
MOST_PAGE = 27 + 255 + 255 * 255  #: bytes of a page: header, segment table, segments
END = 4  #: flag of the last page of a stream


def ended(path: Path) -> bool:
    """Whether the last page is whole and the last of its stream; what was cut off has none such."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * MOST_PAGE))
        tail = file.read()
    at = tail.rfind(PAGE)
    page = tail[at:]
    if at < 0 or len(page) < 27 or not page[5] & END:
        return False
    table = page[27 : 27 + page[26]]
    return len(table) == page[26] and len(page) >= 27 + page[26] + sum(table)
