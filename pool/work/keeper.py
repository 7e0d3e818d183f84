"""Between two jobs: put the process back as load() left it, and log the processes that the last job left running.

The keeper puts back what a job changed and logs it, once for each kind. What cannot be put back is a reason to replace
the process: no job may see the changes of another one. Processes that outlive their job may be helpers that the engine
keeps for later: the keeper logs them, and they end with the worker.
"""

from __future__ import annotations

import time

from pool.system import lineage
from pool.work import joblog
from pool.work.joblog import say
from pool.work.process_state import NOTHING, ProcessState, Restored

DEAD_CHILDREN = 100  # zombies: each holds a pid of the machine
_FORK_S = 0.0002  # no job can have started a process in less
_MAX_LOGGED = 20  # processes left running; an engine that leaves one per job would fill its log


class Keeper:
    """Keeps one worker's process clean. recycle: why the process should be replaced, "" while it need not be."""

    def __init__(self, state: ProcessState) -> None:
        self.recycle = ""
        self._state = state
        self._told: set[str] = set()
        self._known = lineage.children()  # helpers that load() started, and processes already logged
        self._left = 0
        self._tidied = 0.0
        state.restore()  # where the log ends

    def tidy(self, job_id: str) -> None:
        """Clean up after a job, whatever its outcome. Never raises."""
        joblog.flush()
        restored = self._state.restore()
        if restored is not NOTHING:
            self._say(job_id, restored)
        now = time.monotonic()
        if now - self._tidied > _FORK_S and lineage.has_children():
            self._mind_children(job_id)
        self._tidied = now

    @property
    def log_end(self) -> int:
        """Where the slot's log ended after the last job: what the next one writes comes behind."""
        return self._state.log_end

    def _say(self, job_id: str, restored: Restored) -> None:
        for what in restored.done:
            self.tell(what, f"job {job_id} changed {what}: put back")
        for what in restored.lost:
            self.recycle = self.recycle or f"job {job_id} changed {what}, which cannot be put back"
            self.tell(what, f"job {job_id} changed {what}, which cannot be put back: this worker is replaced")
        self._state.restore()  # the log has grown by our own lines

    def tell(self, what: str, sentence: str) -> None:
        """Log a sentence, once for each kind of change."""
        kind = what.partition(" (")[0]
        if kind not in self._told:
            self._told.add(kind)
            say(f"{sentence} (said once for each worker)")

    def _mind_children(self, job_id: str) -> None:
        children = lineage.children()
        for pid in sorted(children - self._known):
            if lineage.is_dead(pid) or self._left > _MAX_LOGGED:
                continue
            self._left += 1
            if self._left > _MAX_LOGGED:
                say("jobs left more processes running; these are not logged")
            else:
                say(f"job {job_id} left pid {pid} ({lineage.command_of(pid)}) running: it ends with this worker")
        self._known = children
        if len(children) >= DEAD_CHILDREN and not self.recycle:
            dead = sum(map(lineage.is_dead, children))
            if dead >= DEAD_CHILDREN:
                self.recycle = f"{dead} zombie children (call wait() on a process that ended)"
