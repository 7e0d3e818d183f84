"""A forked child starts with copies of its parent's objects: locks that a thread held which is not there, descriptors
that it shares, threads that did not come along. What lives through a fork is made anew before the child's first line.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Protocol


class Renewable(Protocol):
    """Something with locks, threads, descriptors or names of one process."""

    def after_fork(self) -> None:
        """Called in every forked child, where no other thread runs; may be called twice. Must not raise."""


_living: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_children(thing: Renewable) -> None:
    """Have `thing.after_fork()` called in every child that is forked while it lives."""
    _living.add(thing)


def _renew() -> None:
    for thing in list(_living):
        thing.after_fork()


def handle_here_only(number: signal.Signals, handler: Callable[[int, FrameType | None], object]) -> None:
    """Handle a signal in this process; forked children have its default.

    RACE: a child that still had the handler would forget a signal that comes before its first line, or in front of a
    call that blocks, and who waits for its end would wait for ever. So the signal waits while the process forks.
    """
    masks = threading.local()

    def hold() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})

    def deliver() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def default() -> None:
        if signal.getsignal(number) == handler:
            signal.signal(number, signal.SIG_DFL)
        deliver()

    signal.signal(number, handler)
    os.register_at_fork(before=hold, after_in_parent=deliver, after_in_child=default)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
