"""A map in a JSON file that is always replaced as a whole: read again only when it was replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pool.spool import fsops

MAX_BYTES = 4 * 1024 * 1024


class ReplacedMap:
    """What such a file says now; a look at one that has not changed costs a stat."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mark = (0, 0, 0)
        self._value: Mapping[str, Any] = {}

    def read(self) -> Mapping[str, Any]:
        """{} when it is missing, too long or not a JSON map."""
        try:
            info = os.stat(self._path)
            mark = (info.st_ino, info.st_mtime_ns, info.st_size)
            if mark != self._mark:
                value = json.loads(fsops.read_bounded(self._path, MAX_BYTES))
                self._mark, self._value = mark, value if isinstance(value, dict) else {}
        except (OSError, ValueError):
            return {}
        return self._value
