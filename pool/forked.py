"""A forked child starts with copies of its parent's objects: locks that a thread held which is not there, descriptors
that it shares, threads that did not come along. What lives through a fork is made anew before the child's first line.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
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


def hold_while_forking(number: signal.Signals) -> None:
    """Have a signal that this process handles wait while it forks.

    RACE: the interpreter of a child forgets signals that came before its first line, so that who ends a child at once
    would wait for its end for ever.
    """
    masks = threading.local()

    def hold() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})

    def deliver() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    os.register_at_fork(before=hold, after_in_parent=deliver, after_in_child=deliver)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
