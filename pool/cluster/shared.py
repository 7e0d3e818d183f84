"""Paths and URLs that all machines of a cluster see: those that begin with one of `cluster.shared`."""

from __future__ import annotations

import os
from collections.abc import Collection


def is_shared(text: str, shared: Collection[str]) -> bool:
    """Whether a path or URL is one that all machines see."""
    if not shared:
        return False
    if "://" in text:
        plain = text if ".." not in text.split("/") else ""
    else:
        plain = os.path.normpath(text) if os.path.isabs(text) else ""
    return bool(plain) and any(_begins(plain, one) for one in shared)


def _begins(text: str, begin: str) -> bool:
    folder = begin.rstrip("/")
    return bool(folder) and (text == folder or text.startswith(folder + "/"))
