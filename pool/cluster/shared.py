"""Paths and URLs that all machines of a cluster see: those that begin with one of `cluster.shared`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

#: `..`, also as servers decode it; fsspec's chains of URLs; files of the machine that reads it
_STRANGE = re.compile(r"(?:/|%2f)(?:\.|%2e){1,2}(?:/|%2f|\Z)|::|\A(?:file|local):|[\0-\x1f]", re.IGNORECASE)


def is_shared(text: str, shared: Collection[str]) -> bool:
    """Whether a path or URL is one that all machines see. No URL is that leads elsewhere than it begins."""
    if not shared:
        return False
    if "://" in text:
        plain = text if not _STRANGE.search(text) else ""
    else:
        plain = os.path.normpath(text) if os.path.isabs(text) else ""
    return bool(plain) and any(_begins(plain, one) for one in shared)


def _begins(text: str, begin: str) -> bool:
    folder = begin.rstrip("/")
    return bool(folder) and (text == folder or text.startswith(folder + "/"))
