"""Telling one content of a configuration file from another. No more is loaded for it."""

from __future__ import annotations

import hashlib
from pathlib import Path


def content_digest(data: bytes) -> str:
    """Tells one content of a configuration file from another."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(file: Path) -> str:
    """The same of what is in a file now; '' when it cannot be read."""
    try:
        return content_digest(file.read_bytes())
    except OSError:
        return ""
