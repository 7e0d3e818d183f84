"""Can a job of this engine ever run as things are? The one answer for clients, health, followers and gateways.

Pure: facts in, a prospect out. Three of them:

    fine       a worker is loaded and takes jobs
    coming     none is yet, but one may come by itself: it starts, loads, waits out a backoff, or its
               supervisor is being started
    hopeless   none will come until an operator acts; `reason` says why, `hint` what to do

A model that loads for ten minutes is coming. So is a slot that starts again after a failed load, until its start
limit benches it. A benched slot is hopeless although it is tried again after bench_s: what benched it is still there.

A job that a living worker holds is not meant here: it runs, whatever becomes of the others.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pool.errors import EngineUnavailable

SERVE = "python -m pool serve"
RECOVER = "correct that, then `python -m pool recover --all`"
_OUT = ("benched", "off")  # no process is there, and none is to be started


class Outlook(enum.Enum):
    """What to expect of an engine."""

    FINE = "fine"
    COMING = "coming"
    HOPELESS = "hopeless"


@dataclass(frozen=True)
class Prospect:
    """reason: why no worker takes jobs now, "" when fine. hint: what the operator can do, "" when nothing is needed."""

    engine: str
    outlook: Outlook
    reason: str = ""
    hint: str = ""

    @property
    def hopeless(self) -> bool:
        """Whether no worker can run until an operator acts."""
        return self.outlook is Outlook.HOPELESS

    def sentence(self) -> str:
        """For people: "" when fine."""
        if self.outlook is Outlook.FINE:
            return ""
        word = "no worker of {} can run" if self.hopeless else "no worker of {} is ready yet"
        return f"{word.format(self.engine)}: {self.reason}"

    def needed_by(self, job_id: str) -> Prospect:
        """The same for one that waits for that job."""
        return replace(self, reason=f"{self.reason} (job {job_id}, whose end this one waits for, needs it)")

    def error(self, job_id: str = "") -> EngineUnavailable:
        """What to raise for one that waits for it."""
        return EngineUnavailable(self.engine, self.reason, self.hint, job_id)


@dataclass(frozen=True)
class SlotFacts:
    """One slot. seat: as in run/status.json, or "orphaned". worker: the process in it, "" without a living one.
    serving: it takes jobs or works on one. spare: it waits for another one's death. error: of its last load, with the
    hint. why, last_death: the supervisor's word."""

    slot: str
    engine: str
    seat: str
    worker: str = ""
    serving: bool = False
    spare: bool = False
    error: str = ""
    why: str = ""
    last_death: str = ""
    next_start_s: float | None = None


@dataclass(frozen=True)
class PoolFacts:
    """served: a supervisor lives. engines: those it serves, None unknown. config: the file it reads.
    starter: what is known of a supervisor that the asker is about to start; None when the asker starts none, "" while
    one may come, else why it cannot."""

    served: bool
    slots: Sequence[SlotFacts] = ()
    draining: bool = False
    engines: Sequence[str] | None = None
    config: str = ""
    starter: str | None = None


def prospect(engine: str, facts: PoolFacts) -> Prospect:
    """What a job that waits for `engine` may expect."""
    slots = [slot for slot in facts.slots if slot.engine == engine]
    if not facts.served:
        return _unserved(engine, slots, facts.starter)
    if facts.engines is not None and engine not in facts.engines:
        return Prospect(
            engine,
            Outlook.HOPELESS,
            f"the supervisor runs what it read from {facts.config or 'another configuration'}, without an engine "
            f"{engine!r}, only {', '.join(facts.engines) or 'none'}",
            "add the engine there, then `python -m pool reload`",
        )
    if facts.draining:
        return _after_the_drain(engine, facts.starter)
    if any(slot.serving for slot in slots):
        return Prospect(engine, Outlook.FINE)
    if slots and all(slot.seat in _OUT and not slot.worker for slot in slots):
        return Prospect(engine, Outlook.HOPELESS, reasons(slots), RECOVER)
    return Prospect(engine, Outlook.COMING, reasons(slots) or "it is being started")


def _unserved(engine: str, slots: Sequence[SlotFacts], starter: str | None) -> Prospect:
    if any(slot.serving for slot in slots):
        return Prospect(engine, Outlook.FINE)  # its workers go on for a grace
    if starter:
        return Prospect(
            engine,
            Outlook.HOPELESS,
            f"no supervisor serves this spool, and none can be started: {starter}",
            f"correct that: it is tried again while a caller waits; or `{SERVE}`",
        )
    if starter is not None or any(slot.worker for slot in slots):
        return Prospect(engine, Outlook.COMING, "no supervisor serves this spool at the moment")
    return Prospect(engine, Outlook.HOPELESS, "no supervisor serves this spool", f"start one with `{SERVE}`")


def _after_the_drain(engine: str, starter: str | None) -> Prospect:
    reason = "the pool is draining: running jobs finish, no new one starts"
    if starter is None:
        return Prospect(engine, Outlook.HOPELESS, reason, f"`{SERVE}` once it has ended")
    return Prospect(engine, Outlook.COMING, reason)


def reasons(slots: Sequence[SlotFacts]) -> str:
    """Why slots do not serve, each reason once: "e-0, e-1: ModuleNotFoundError: No module named 'foo'"."""
    named: dict[str, list[str]] = {}
    for slot in slots:
        text = reason_of(slot)
        if text:
            named.setdefault(text, []).append(slot.slot)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in named.items())


def reason_of(slot: SlotFacts) -> str:
    """What the engine said at its last load, else what the supervisor saw."""
    said = slot.error or slot.why or slot.last_death
    if slot.seat in _OUT:
        return said or "it failed too often"
    if slot.seat == "waiting" and slot.next_start_s:
        return f"starts again in {slot.next_start_s:.0f} s{f', after {said}' if said else ''}"
    return said


def load_error(value: object) -> str:
    """A slot's error as run/status.json has it, in one line."""
    if not isinstance(value, Mapping) or not value.get("message"):
        return ""
    error: Mapping[str, Any] = value
    hint = f" ({error['hint']})" if error.get("hint") else ""
    return f"{error['message']}{hint}"
