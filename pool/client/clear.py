"""What the system refuses to a call of a client, in the words of the pool."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pool.errors import SpoolError, UnknownJob
from pool.spool.tree import Tree
from pool.system.limits import DESCRIPTORS, sentence

if TYPE_CHECKING:
    from typing import ParamSpec

    _P = ParamSpec("_P")
_R = TypeVar("_R")


def _part(spool: Tree) -> str:
    missing = ", ".join(map(str, spool.missing()))
    return (
        f"{missing} is missing: `python -m pool serve` makes it again, within seconds where it runs" if missing else ""
    )


def clear(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a method of something that has a `spool` raise SpoolError, with the remedy, instead of an OSError when
    descriptors run out, and when the spool is gone in which a file or a job is looked for."""

    @functools.wraps(call)
    def cleared(*args: _P.args, **more: _P.kwargs) -> _R:
        try:
            return call(*args, **more)
        except (OSError, UnknownJob) as error:
            if isinstance(error, OSError) and error.errno in DESCRIPTORS:
                raise SpoolError(sentence(error)) from error
            spool = getattr(args[0], "spool", None)
            if isinstance(spool, Tree) and (reason := spool.lost() or _part(spool)):
                raise SpoolError(reason) from error
            raise

    return cleared
