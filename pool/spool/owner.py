"""This process in the names of files that are its own: half-written ones, records set aside, its presence as a client.

    owner    <pid>-<start>-<boot>            one process, for ever
    fresh    <owner>.<token>-<number>        one file: never used twice, by whatever thread, object or forked child

A file that a process left behind is removed when its owner is proven dead. The token is random and new in every
process, so that two copies of this module in one process do not meet either.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from pool.format.names import base32
from pool.system import procs
from pool.system.host import boot_id

_numbers = itertools.count()
_mine: tuple[int, str, str] = (0, "", "")  # pid, owner, owner and token


def boot_tag() -> str:
    """Short name of this boot: process ids and monotonic times are comparable only within one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:12]
    except OSError:
        return "noboot"


def owner() -> str:
    """The name of this process."""
    return _mine[1] if _mine[0] == os.getpid() else _enter()[1]


def fresh() -> str:
    """A name that no process has used or will use."""
    return f"{_mine[2] if _mine[0] == os.getpid() else _enter()[2]}-{next(_numbers)}"


def alive(owner: str) -> bool:
    """Whether the process of that name lives; True for names that are not ours."""
    pid, _, rest = owner.partition("-")
    start, _, boot = rest.partition("-")
    if not pid.isdigit() or not boot:
        return True  # not one of our names: not ours to remove
    return boot == boot_tag() and procs.Identity(int(pid), start, boot_id()).alive()


def _enter() -> tuple[int, str, str]:
    """The first name in this process, which may be a fork of one that had names."""
    global _mine
    pid = os.getpid()
    me = procs.identity_of(pid)
    name = f"{pid}-{me.start if me else 0}-{boot_tag()}"
    # RACE: of two threads that come first at once each may get a token of its own; no name is used twice either way
    _mine = (pid, name, f"{name}.{base32(int.from_bytes(os.urandom(5), 'big'), 8)}")
    return _mine
