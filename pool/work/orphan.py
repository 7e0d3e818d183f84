"""What a worker does when its supervisor is gone: work on for a grace period, then end itself and its children.

A thread waits on a pidfd of the supervisor named in run/supervisor.json; that costs nothing while the supervisor lives.
A new supervisor that starts within the grace period adopts the worker; the thread then waits on that one.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pool.constants import ENV_SPOOL, ENV_WORKER, EXIT_ORPHAN
from pool.runfiles.server import supervisor_identity
from pool.system.procs import SIGKILL, Identity, identity_of, kill_group, pidfd

_LOOK_S = 0.5


class OrphanWatch:
    """Ends this worker when no supervisor has come for `grace_s` seconds, or its spool is gone. told: called at each
    change. lost: why the spool is gone, "" while it is there."""

    def __init__(self, record: Path, grace_s: float, told: Callable[[str], None], lost: Callable[[], str]) -> None:
        self._record, self._lost = record, lost
        self._grace_s = grace_s
        self._told = told

    def start(self) -> None:
        """Begin to watch, in a thread."""
        threading.Thread(target=self._run, name="orphan-watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            supervisor = supervisor_identity(self._record)
            self._mind_spool()
            if supervisor is not None and supervisor.alive():
                self._wait_for(supervisor)
                if self._grace_s > 0:
                    self._told("the supervisor is gone; working on while waiting for a new one")
            if not self._new_one():
                self._told(f"no supervisor for {self._grace_s:g} s: ending")
                end_family(EXIT_ORPHAN)

    def _mind_spool(self) -> None:
        """RACE: after the look at who serves, who may be of another spool at the same place."""
        if reason := self._lost():
            self._told(f"{reason}: ending")
            end_family(EXIT_ORPHAN)

    @staticmethod
    def _wait_for(supervisor: Identity) -> None:
        fd = pidfd(supervisor.pid)
        if fd is None:
            while supervisor.alive():
                time.sleep(_LOOK_S)
            return
        try:
            if supervisor.alive():  # RACE: the number may have passed to another process before the open
                select.select([fd], [], [])
        finally:
            os.close(fd)

    def _new_one(self) -> bool:
        left = self._grace_s
        while True:
            supervisor = supervisor_identity(self._record)
            self._mind_spool()
            if supervisor is not None and supervisor.alive():
                return True
            if left <= 0:
                return False
            begun, pause = time.monotonic(), min(_LOOK_S, left)
            time.sleep(pause)
            left -= min(time.monotonic() - begun, 2 * pause)  # a machine that stood still has given nobody a chance


def end_family(code: int) -> None:
    """End this process at once, after all that it started: also what ignores SIGTERM or has a session of its own."""
    me = identity_of(os.getpid())
    if me is not None:
        kill_group(me, SIGKILL, spool_id=os.environ.get(ENV_SPOOL, ""), worker=os.environ.get(ENV_WORKER, ""))
    os._exit(code)
