"""SHA-256 of files of weights, remembered; and what is known of each installed file.

Two hidden files lie beside the weights. ``.verified.json`` (in each folder) holds digests bound to size,
modification time and inode, so that the start of a worker reads 3 GB again only when the file has changed.
``.installed.json`` (in the folder of a model) holds for each file where it came from and who vouched for its
digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHUNK = 1 << 20  #: bytes per read
MEMORY = ".verified.json"
RECORDS = ".installed.json"

MANIFEST, HUB, FIRST_USE = "manifest", "hub", "first use"  #: who vouched for a digest


@dataclass(frozen=True)
class Record:
    """What was noted of a file when it was installed."""

    sha256: str
    size: int  #: bytes
    vouched: str  #: one of MANIFEST, HUB, FIRST_USE
    source: str  #: an address, a folder, wheels


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hex."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def git_blob_of(path: Path) -> str:
    """What git, and so a hub, calls a file that is not in its large-file storage: SHA-1 of a header and the content."""
    sha = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def digest(path: Path, trust_memory: bool = True) -> str:
    """SHA-256 of a file as hex; remembered by size, modification time and inode."""
    known = _remembered(path.parent).get(path.name)
    if trust_memory and known is not None and known[0] == _stamp(path):
        return known[1]
    stamp, value = _stamp(path), sha256_of(path)
    _remember(path, stamp, value)
    return value


def remember(path: Path, sha256: str) -> None:
    """Keep the digest of a file that was read just now."""
    _remember(path, _stamp(path), sha256)


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"


def _remember(path: Path, stamp: str, value: str) -> None:
    # RACE: two workers may write the memory at once; the loser's digest is computed again, nothing else.
    _write(path.parent / MEMORY, {**_remembered(path.parent), path.name: [stamp, value]})


def fingerprint(paths: Iterable[Path]) -> str:
    """One short digest over the contents of several files, in the order of their names."""
    joined = "\n".join(f"{path.name} {digest(path)}" for path in sorted(paths))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def recorded(folder: Path, path: str) -> Record | None:
    """What was noted of the file at ``path`` in a model's folder; None when nothing was, or it cannot be read."""
    try:
        return Record(**_load(folder / RECORDS)[path])
    except (KeyError, TypeError):
        return None


def record(folder: Path, path: str, entry: Record) -> None:
    """Note it. The caller holds the lock of the folder."""
    _write(folder / RECORDS, {**_load(folder / RECORDS), path: asdict(entry)})


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target``, removed unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    try:
        os.chmod(name, 0o644)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _remembered(place: Path) -> dict[str, list[str]]:
    try:
        memory = _load(place / MEMORY)
        return {str(name): [str(part) for part in value] for name, value in memory.items() if len(value) == 2}
    except TypeError:
        return {}


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    with contextlib.suppress(OSError), temporary(path) as part:  # a read-only folder is hashed each time
        part.write_text(json.dumps(content, indent=1, sort_keys=True), "utf-8")
        part.replace(path)
