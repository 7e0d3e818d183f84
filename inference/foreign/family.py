"""The processes of a guest: all that it has started is found, also what left its group and environment, and ended."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping

import psutil

MARK = "FILEPOOL_GUEST"  #: environment variable that what belongs to a guest carries
FAMILY_S = 1.0  #: between two looks at what a guest has started
REAP_S = 5.0
_KILL_ROUNDS = 50


class Family:
    """What one guest has started. mark: the value of MARK in its environment."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self._known: dict[int, psutil.Process] = {}
        self._counted = 0.0

    def count(self, guest: int, every_s: float = 0.0) -> None:
        """Remember what the guest of that pid has started: once it has ended, the line from it to them is cut.

        every_s: not if the last look was less long ago.
        """
        if time.monotonic() - self._counted >= every_s:
            self._counted = time.monotonic()
            self._known.update((each.pid, each) for each in _descendants(guest))

    def end(self, guest: subprocess.Popen[bytes]) -> None:
        """Kill the guest, which leads a group, and all that it started; return once they are gone."""
        self.count(guest.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guest.pid, signal.SIGKILL)
        guest.wait()
        for _ in range(_KILL_ROUNDS):
            family = [*filter(_lives, self._known.values()), *_marked(self.mark)]
            self._known.update((member.pid, member) for member in family)
            for member in family:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            psutil.wait_procs(family, timeout=1)
            if not family:
                break
        _reap(self._known)
        _reap_group(guest.pid)


def _descendants(pid: int) -> list[psutil.Process]:
    """What a process has started and what that has started, as far as the line holds."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _marked(mark: str) -> list[psutil.Process]:
    """Every living process of a guest, whatever group or session it is in."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and _lives(process):
                found.append(process)
    return found


def _reap(family: Mapping[int, psutil.Process]) -> None:
    """Wait until those that were killed are gone: a worker inherits orphans, and has to ask how they ended."""
    pending, until = set(family), time.monotonic() + REAP_S
    while pending and time.monotonic() < until:
        for pid in list(pending):
            try:
                gone = os.waitpid(pid, os.WNOHANG)[0] != 0
            except ChildProcessError:  # another's, or not left to us yet
                gone = not _lives(family[pid])
            if gone:
                pending.discard(pid)
        if pending:
            time.sleep(0.002)


def _reap_group(group: int) -> None:
    """The same for a group. RACE: what was started after the last look at the family died with its group, unknown."""
    until = time.monotonic() + REAP_S
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < until:
            if os.waitpid(-group, os.WNOHANG)[0] == 0:
                time.sleep(0.002)
