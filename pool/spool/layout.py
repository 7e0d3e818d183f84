"""The spool tree: its directories, who may own them, its identity and its clock.

A tree is refused when it is not ours alone: another owner, writable by others, or spread over several mounts
(rename would not be atomic). `in/` is the one place that may be writable by the group.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from pathlib import Path

from pool.constants import PROTOCOL
from pool.errors import SpoolError
from pool.format.names import parse_dead, parse_deferred, parse_job
from pool.spool import fsops, owner
from pool.spool.owner import boot_tag
from pool.system import limits
from pool.system.clock import boot_ns
from pool.system.host import mounts

TOP = (
    "in",
    "ready",
    "work",
    "held",
    "deferred",
    "away",
    "out",
    "dead",
    "quarantine",
    "progress",
    "run",
    "cache",
    "tmp",
)
RUN = (
    "run/heartbeats",
    "run/slots",
    "run/logs",
    "run/ids",
    "run/attempts",
    "run/control",
    "run/clients",
    "run/engines",
    "run/scratch",
    "run/checkpoints",
    "run/waits",
    "run/expiry",
    "run/dependants",
)
MARKER = "run/spool.json"
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTCONN, errno.ESTALE})


def prepare(root: Path) -> str:
    """Create what is missing and check the whole tree; its id. Raises SpoolError naming the directory."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        made = [path for path in (root, *(root / name for name in (*TOP, *RUN))) if fsops.make_dir(str(path))]
        for parent in {path.parent for path in made}:
            fsops.sync_dir(str(parent))
    except OSError as error:
        raise SpoolError(f"spool {root} cannot be made: {limits.sentence(error)} ({error.filename})") from None
    check(root)
    marker = root / MARKER
    if not marker.exists():
        body = json.dumps({"protocol": PROTOCOL, "id": uuid.uuid4().hex}).encode()
        _create(root, marker, body)
    return identity(root)


def check(root: Path) -> None:
    """Refuse a tree that is not safe to work in."""
    try:
        device = os.stat(root).st_dev
    except OSError as error:
        raise SpoolError(f"spool {root}: {error.strerror}") from None
    for path in (root, *(root / name for name in (*TOP, *RUN))):
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            raise SpoolError(
                f"{path} is missing: start the pool once with `python -m pool serve` to make the spool"
            ) from None
        if path != root and not stat.S_ISDIR(info.st_mode):
            raise SpoolError(f"{path} is not a directory: move it away and start again")
        info = os.stat(path)
        if hasattr(os, "geteuid") and info.st_uid != os.geteuid():
            raise SpoolError(f"{path} belongs to user {info.st_uid}, not to {os.geteuid()}: chown it, or use your own")
        shared = 0o002 if path.name == "in" or path == root else 0o022
        if path == root:
            shared = 0o022 if not info.st_mode & stat.S_ISVTX else 0o002
        if info.st_mode & shared:
            raise SpoolError(f"{path} is writable by others (mode {stat.S_IMODE(info.st_mode):04o}): chmod go-w {path}")
        if info.st_dev != device:
            raise SpoolError(f"{path} is on another file system than {root}: a spool must be on one mount")
    inside = os.path.realpath(root) + "/"
    below = next((point for point, _ in mounts() if point.startswith(inside)), "")
    if below:  # also of the same file system: a rename across a bind mount fails
        raise SpoolError(f"{below} is a mount of its own inside {root}: a spool must be on one mount")


def identity(root: Path) -> str:
    """The id of the spool; SpoolError when the tree is none, or of another protocol."""
    marker = root / MARKER
    try:
        value = json.loads(fsops.read_bounded(marker, 4096))
    except FileNotFoundError:
        raise SpoolError(f"{root} is no spool ({MARKER} is missing)") from None
    except OSError as error:
        raise SpoolError(f"{marker} cannot be read: {limits.sentence(error)}") from None
    except ValueError as error:
        raise SpoolError(f"{marker} cannot be read: {error}") from None
    if not isinstance(value, dict) or value.get("protocol") != PROTOCOL or not value.get("id"):
        raise SpoolError(f"{root} holds a spool of another protocol than {PROTOCOL}: {value!r}")
    return str(value["id"])


def missing(root: Path) -> list[Path]:
    """Directories of the tree that are not there."""
    return [path for path in (root / name for name in (*TOP, *RUN)) if not path.is_dir()]


def lost(root: Path, spool_id: str) -> str:
    """Why the spool of that id is not at its place any more; "" while it is, or nothing can be said."""
    try:
        value = json.loads(fsops.read_bounded(root / MARKER, 4096))
    except OSError as error:
        if error.errno not in _GONE:
            return ""
        return f"the spool {root} is gone: removed, moved or unmounted while it was in use, and with it what was there"
    except ValueError:
        return ""
    if not isinstance(value, dict) or value.get("id") == spool_id:
        return ""
    return f"the spool {root} was removed or moved, and made anew, while it was in use: what was in the old one is gone"


def clock_offset(root: Path) -> int:
    """µs to add to the monotonic clock: the spool clock, fixed once per boot by the first process that needs it.

    It begins at the wall clock, but never before the newest name already in the spool, so that the order of age holds
    across a reboot with a wrong clock.
    """
    path = root / "run" / f"clock-{boot_tag()}"
    try:
        return int(path.read_bytes())
    except FileNotFoundError:
        pass
    except ValueError:
        raise SpoolError(f"{path} is damaged: remove it and start again") from None
    import time

    now = boot_ns() // 1000
    offset = max(time.time_ns() // 1000, _newest(root) + 1) - now
    _create(root, path, str(offset).encode())
    return int(path.read_bytes())


def list_away(root: Path) -> list[str]:
    """File names in away/; none in a tree of an older version, which has no away/."""
    try:
        return os.listdir(root / "away")
    except FileNotFoundError:
        return []


def _newest(root: Path) -> int:
    newest = 0
    for directory in (root / "ready", root / "work"):
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                for name in os.listdir(entry.path):
                    job = parse_job(name)
                    newest = max(newest, job.born if job else 0)
    for name in os.listdir(root / "deferred"):
        waiting = parse_deferred(name)
        newest = max(newest, waiting[2].born if waiting else 0)  # when it is due may be in a year
    for name in list_away(root):
        sent = parse_dead(name)
        newest = max(newest, sent[1].born if sent else 0)
    return newest


def _create(root: Path, path: Path, body: bytes) -> None:
    """Write a file that must appear whole and only once; the first writer wins."""
    temp = str(root / "tmp" / owner.fresh())
    fsops.write_new(temp, [body], sync=True)
    try:
        fsops.rename_noreplace(temp, str(path))
    except FileExistsError:
        fsops.unlink(temp, missing_ok=True)
