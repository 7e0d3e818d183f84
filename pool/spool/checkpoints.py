"""What an engine has saved of a job, for the attempt that comes after it: run/checkpoints/<id>.

The worker that runs the attempt writes it, whole or not at all, over the one before; the worker of the next attempt
reads it. It goes when the job is decided or run again; what a crash leaves of it is swept with the other remains.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from pool.constants import MAX_CHECKPOINT_BYTES
from pool.errors import ProtocolError
from pool.format import codec
from pool.spool import fsops
from pool.spool.tree import Tree

_VERSION = 1
_HEADER_BYTES = 1024  # more than all but the state takes


class Loaded(NamedTuple):
    """state: None when there is none to go on from. reason: why one that is there is not used, "" when none is."""

    state: Any
    reason: str = ""


def checkpoint_path(spool: Tree, job_id: str) -> str:
    """run/checkpoints/<id>."""
    return f"{spool.root}/run/checkpoints/{job_id}"


def save(spool: Tree, job_id: str, key: bytes, attempt: int, state: bytes) -> None:
    """Replace the checkpoint of a job. key: what the state is of; state: encoded. OSError when the disk is full.

    Not synced: one that a power loss damages is not used.
    """
    body = codec.encode([_VERSION, key, attempt, hashlib.sha256(state).digest(), state])
    fsops.put(spool.temp(), checkpoint_path(spool, job_id), [body], sync=False)


def load(spool: Tree, job_id: str, key: bytes, attempt: int) -> Loaded:
    """The state for this attempt.

    It is used by the attempt that saved it, when that was given back, and by the next one. When that one ended before
    it saved anything, the state itself may be what ended it: the attempt after it begins at the beginning.
    """
    path = checkpoint_path(spool, job_id)
    try:
        data = fsops.read_bounded(path, MAX_CHECKPOINT_BYTES + _HEADER_BYTES)
        version, saved_key, saved_by, digest, state = codec.decode(data)
        if version != _VERSION:
            return Loaded(None, f"{path} is of another version ({version!r})")
        if hashlib.sha256(state).digest() != digest:
            return Loaded(None, f"{path} is damaged")
        if saved_key != key:
            return Loaded(None, f"{path} is of other parameters, another input or another engine")
        if not 0 <= attempt - saved_by <= 1:
            return Loaded(None, f"attempt {attempt - 1} ended before it came further than {path}")
        return Loaded(codec.decode(state))
    except FileNotFoundError:
        return Loaded(None)
    except (OSError, ProtocolError, TypeError, ValueError) as error:
        return Loaded(None, f"{path} cannot be read: {error}")


def forget(spool: Tree, job_id: str) -> None:
    """Remove the checkpoint of a job, if it has one."""
    fsops.unlink(checkpoint_path(spool, job_id), missing_ok=True)
