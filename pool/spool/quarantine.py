"""Quarantine: what was brought here and is no job, each thing with its reason beside it in <name>.reason.txt.

The reason is written first. A process that is killed before the file has moved leaves a reason without a file;
`repair` removes it, and the file is found, judged and explained again.
"""

from __future__ import annotations

import contextlib
import os

from pool.spool import fsops
from pool.spool.store import Spool

_SUFFIX = ".reason.txt"
_LOST = "A power loss removed the reason. Drop the file again to get it.\n"


def keep(spool: Spool, path: str, name: str, reason: str) -> bool:
    """Move `path` here, under a name like `name` that is free; False when it is gone.

    OSError: it is still where it was, and nothing of it is here.
    """
    target = _free(spool, name)
    _explain(spool, target, reason)
    try:
        fsops.rename(path, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            fsops.unlink(target + _SUFFIX, missing_ok=True)
        if isinstance(error, FileNotFoundError):
            return False
        raise
    return True


def complain(spool: Spool, name: str, reason: str) -> None:
    """Write only a reason, for a file that belongs here and cannot be moved. It stays until a supervisor starts."""
    _explain(spool, _free(spool, name), reason)


def repair(spool: Spool) -> None:
    """After a kill or a power loss: remove reasons without a file, give every file a reason. Call it before `keep`."""
    place = f"{spool.root}/quarantine"
    names = set(os.listdir(place))
    for name in names:
        with contextlib.suppress(OSError):  # a full disk: the next supervisor will
            if name.endswith(_SUFFIX):
                if name[: -len(_SUFFIX)] not in names:
                    fsops.unlink(f"{place}/{name}", missing_ok=True)
            elif name + _SUFFIX not in names or not os.path.getsize(f"{place}/{name}{_SUFFIX}"):
                _explain(spool, f"{place}/{name}", _LOST)


def _free(spool: Spool, name: str) -> str:
    """A free path. It never ends with `_SUFFIX`, so a file that was dropped is never taken for a reason."""
    shown = ascii(name)[1:-1].replace("/", "_")[:150]
    if shown.endswith(_SUFFIX):
        shown += "_"
    first = target = f"{spool.root}/quarantine/{shown}"
    number = 1
    while os.path.lexists(target) or os.path.lexists(target + _SUFFIX):
        number += 1
        target = f"{first}.{number}"
    return target


def _explain(spool: Spool, target: str, reason: str) -> None:
    fsops.put(spool.temp(), target + _SUFFIX, [reason.encode("utf-8", "replace")], sync=False)
