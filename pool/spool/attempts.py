"""The files of one attempt while it runs: its scratch folder, its partial results, the request to stop it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from pool.format import codec
from pool.spool import fsops
from pool.spool.tree import Tree

OUTPUTS = "outputs.list"  # in the scratch folder: half-written files beside the caller's, NUL-separated
_FRAME = struct.Struct("<I")


def frame(body: bytes) -> bytes:
    """One partial record as it stands in its file: its length in 4 bytes, little endian, then itself."""
    return _FRAME.pack(len(body)) + body


def scratch_dir(spool: Tree, job_id: str, attempt: int) -> Path:
    """run/scratch/<id>.<attempt>/, removed after the attempt."""
    return spool.root / "run" / "scratch" / f"{job_id}.{attempt:02d}"


def partial_path(spool: Tree, job_id: str, attempt: int) -> str:
    """progress/<id>.<attempt>.partial, a file of frames."""
    return f"{spool.root}/progress/{job_id}.{attempt:02d}.partial"


def cancel_path(spool: Tree, job_id: str) -> str:
    """run/control/<id>.cancel; it exists when a client asked to stop the job."""
    return f"{spool.root}/run/control/{job_id}.cancel"


def read_partials(path: str, offset: int) -> tuple[list[Any], int]:
    """Whole records after `offset`, and the offset behind the last whole one."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    records, at = [], 0
    while at + 4 <= len(data):
        (length,) = _FRAME.unpack_from(data, at)
        if at + 4 + length > len(data):
            break  # RACE: the writer is in the middle of it
        records.append(codec.decode(data[at + 4 : at + 4 + length]))
        at += 4 + length
    return records, offset + at


def sweep_attempt(spool: Tree, job_id: str, attempt: int) -> None:
    """Remove scratch and half-written outputs of an attempt that is over."""
    directory = scratch_dir(spool, job_id, attempt)
    try:
        listing = (directory / OUTPUTS).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        listing = ""
    for part in listing.split("\0"):
        if f".{job_id}.part" in os.path.basename(part):
            try:
                fsops.unlink(part, missing_ok=True)
            except OSError:
                pass  # the caller's folder is gone or closed to us: nothing of ours is left there
    fsops.remove_tree(str(directory))
