"""Requests that clients leave in run/control/: cancel a job, take a benched slot back, read the configuration again.

A waiting job is seized and ends as cancelled. For one that another machine has the request stays, for the port. A
running one is asked first (its engine looks at the request); after
the grace its worker is stopped, looked at, and killed only if it still holds that very job: the next job is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable

from pool.constants import TURN_S
from pool.errors import UnknownJob
from pool.format.names import is_id
from pool.job import Failure, JobState
from pool.spool import fsops, lookup
from pool.spool.lookup import Location
from pool.spool.seizure import SEIZER, Seizer
from pool.spool.store import Claim, Spool
from pool.supervise.judge import Cause, Verdict
from pool.supervise.slot import Slot
from pool.system import procs

_MANY = 8  # requests at once
_PAUSE_S = 0.001


class Control:
    """Carries out requests. slots: all of them, for a benched one has no process. reload: reads the configuration
    again, and leaves the answer in run/supervisor.json. turn_s: seconds after which a turn leaves the rest to the next
    one."""

    def __init__(
        self,
        spool: Spool,
        slots: Callable[[], Iterable[Slot]],
        seizer: Seizer,
        reload: Callable[[], None],
        *,
        turn_s: float = TURN_S,
    ) -> None:
        self._spool, self._slots, self._seizer, self._reload, self._turn_s = spool, slots, seizer, reload, turn_s
        self._directory = f"{spool.root}/run/control"
        self._due: dict[str, float] = {}

    def turn(self) -> float | None:
        """Look at all requests; seconds until a grace ends, None when nothing is pending."""
        now = time.monotonic()
        names = os.listdir(self._directory)
        places = self._places(names)
        more = False
        for name in names:
            if time.monotonic() - now > self._turn_s:
                more = True
                break
            stem, _, verb = name.rpartition(".")
            if verb == "cancel" and is_id(stem):
                self._cancel(stem, places.get(stem), now)
            elif verb == "recover":
                self._recover(stem, now)
        reloads = [name for name in names if name.endswith(".reload")]
        if reloads:
            self._reload()
        for name in reloads:  # its absence tells the requester that the answer is there
            self._done(name)
        self._seizer.tidy()
        self._due = {job_id: due for job_id, due in self._due.items() if f"{job_id}.cancel" in names}
        return _PAUSE_S if more else min((max(0.02, due - now) for due in self._due.values()), default=None)

    def _places(self, names: list[str]) -> dict[str, Location]:
        """Where jobs are, when many are asked about: one look through the spool instead of one each."""
        if len(names) < _MANY:
            return {}
        return {place.name.id: place for place in lookup.undecided(self._spool) if place.name is not None}

    def _done(self, name: str) -> None:
        fsops.unlink(f"{self._directory}/{name}", missing_ok=True)

    def _recover(self, slot_name: str, now: float) -> None:
        for slot in self._slots():
            if slot.spec.name == slot_name:
                slot.policy.recover(now, alive=slot.alive)
                slot.blame.forget()
        self._done(f"{slot_name}.recover")

    def _cancel(self, job_id: str, seen: Location | None, now: float) -> None:
        try:
            known = seen is not None and not self._spool.decided(job_id)
            place = seen if seen and known else lookup.find(self._spool, job_id, local=True)
        except UnknownJob:
            self._done(f"{job_id}.cancel")
            return
        if place.state.terminal:
            self._done(f"{job_id}.cancel")
            self._due.pop(job_id, None)
        elif place.worker is None:
            claim = self._seizer.seize(place)
            if claim is not None:  # RACE: else a worker was faster; the next turn finds it there. Or it is away
                self._end(claim)
        elif place.worker.index == SEIZER and place.name is not None:
            self._end(Claim(place.path, place.name, place.worker))
        else:
            self._cancel_running(place, job_id, now)

    def _end(self, claim: Claim) -> None:
        job = self._seizer.read(claim)
        reason = Failure("cancelled", "cancelled by request before it started", "queued")
        self._seizer.end(claim, job, JobState.CANCELLED, reason)
        self._done(f"{claim.name.id}.cancel")

    def _cancel_running(self, place: Location, job_id: str, now: float) -> None:
        slot = next((slot for slot in self._slots() if slot.worker == place.worker), None)
        if slot is None or slot.identity is None or slot.cause is Cause.CANCEL:
            return  # its worker is dead and about to be recovered, which honours the request
        due = self._due.setdefault(job_id, now + slot.spec.engine.cancel_grace_s)
        if now < due:
            return
        # RACE: it may finish and claim another job while we look. Stopped, it cannot.
        procs.signal_process(slot.identity, signal.SIGSTOP)
        _await_stop(slot)
        assert slot.worker is not None
        if any(claim.name.id == job_id for claim in self._spool.claims(slot.worker)):
            slot.kill(Verdict(Cause.CANCEL, subject=job_id))
        else:
            procs.signal_process(slot.identity, signal.SIGCONT)


def _await_stop(slot: Slot) -> None:
    deadline = time.monotonic() + 0.5
    while slot.identity is not None and time.monotonic() < deadline:
        if procs.sample(slot.identity).status.value in ("stopped", "zombie", "gone"):
            return
        time.sleep(0.001)
