"""Requests that clients leave in run/control/: cancel a job, take a benched slot back, read the configuration again.

A waiting job is seized and ends as cancelled. A running one is asked first (its engine looks at the request); after
the grace its worker is stopped, looked at, and killed only if it still holds that very job: the next job is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable

from pool import fsops, procs, verdict
from pool.errors import ProtocolError, UnknownJob
from pool.job import Failure, Job, JobState
from pool.judge import Cause, Verdict
from pool.lookup import Location, find
from pool.names import WorkerName, is_id
from pool.slot import Slot
from pool.spool import Claim, Spool

_SEIZER = 9999  # index of the pseudo worker that holds a waiting job while it is cancelled


class Control:
    """Carries out requests. slots: all of them, for a benched one has no process. reload: reads the configuration
    again, and leaves the answer in run/supervisor.json."""

    def __init__(
        self, spool: Spool, slots: Callable[[], Iterable[Slot]], generation: int, reload: Callable[[], None]
    ) -> None:
        self._spool, self._slots, self._reload = spool, slots, reload
        self._generation = generation
        self._directory = f"{spool.root}/run/control"
        self._due: dict[str, float] = {}

    def turn(self) -> float | None:
        """Look at all requests; seconds until a grace ends, None when nothing is pending."""
        now = time.monotonic()
        names = os.listdir(self._directory)
        for name in names:
            stem, _, verb = name.rpartition(".")
            if verb == "cancel" and is_id(stem):
                self._cancel(stem, now)
            elif verb == "recover":
                self._recover(stem, now)
        reloads = [name for name in names if name.endswith(".reload")]
        if reloads:
            self._reload()
        for name in reloads:  # its absence tells whoever asked that the answer is there
            self._done(name)
        self._due = {job_id: due for job_id, due in self._due.items() if f"{job_id}.cancel" in names}
        return min((max(0.02, due - now) for due in self._due.values()), default=None)

    def _done(self, name: str) -> None:
        fsops.unlink(f"{self._directory}/{name}", missing_ok=True)

    def _recover(self, slot_name: str, now: float) -> None:
        for slot in self._slots():
            if slot.spec.name == slot_name:
                slot.policy.recover(now, alive=slot.alive)
                slot.blame.forget()
        self._done(f"{slot_name}.recover")

    def _cancel(self, job_id: str, now: float) -> None:
        try:
            place = find(self._spool, job_id)
        except UnknownJob:
            self._done(f"{job_id}.cancel")
            return
        if place.state.terminal:
            self._done(f"{job_id}.cancel")
            self._due.pop(job_id, None)
        elif place.worker is None:
            self._cancel_waiting(place)
        elif place.worker.index == _SEIZER and place.name is not None:
            self._publish(Claim(place.path, place.name, place.worker))
        else:
            self._cancel_running(place, job_id, now)

    def _cancel_waiting(self, place: Location) -> None:
        name = place.name
        assert name is not None
        worker = WorkerName(place.engine, _SEIZER, self._generation)
        directory = self._spool.work_dir(worker)
        fsops.make_dir(directory)
        claim = Claim(f"{directory}/{name}", name, worker)
        try:
            fsops.rename(place.path, claim.path)
        except FileNotFoundError:
            return  # RACE: a worker was faster; the next turn finds it there
        self._publish(claim)

    def _publish(self, claim: Claim) -> None:
        spool = self._spool
        job: Job | None
        try:
            job = spool.read_claim(claim, arrays=False)
        except (ProtocolError, OSError):
            job = None
        reason = Failure("cancelled", "cancelled by request before it started", "queued", claim.name.attempts,
                         at=spool.now())  # fmt: skip
        verdict.end(spool, claim, job, JobState.CANCELLED, reason, begun=False)
        spool.forget_notes(claim.name.id, claim.name.attempts)
        self._done(f"{claim.name.id}.cancel")
        fsops.remove_dir(spool.work_dir(claim.worker))

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
