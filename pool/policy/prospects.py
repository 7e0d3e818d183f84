"""Can a job of this engine ever run as things are? The one answer for clients, health, followers and gateways.

Pure: facts in, a prospect out. Three of them:

    fine       a worker is loaded and takes jobs
    coming     none is yet, but one may come by itself: it starts, loads, waits out a backoff, or its
               supervisor is being started
    hopeless   none will come until an operator acts; `reason` says why, `hint` what to do

A model that loads for ten minutes is coming. So is a slot that starts again after a failed load, until its start
limit benches it. A benched slot is hopeless although it is tried again after bench_s: what benched it is still there.

A job that a living worker holds is not meant here: it runs, whatever becomes of the others.

In a branch of a cluster the workers are those of its nodes, and a job runs only on nodes that have its labels.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pool.errors import EngineUnavailable

SERVE = "python -m pool serve"
RECOVER = "correct that, then `python -m pool recover --all`"
CLUSTER_STATUS = "python -m pool.cluster status"
_NODES_SHOWN = 10
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
class RemoteEngine:
    """One engine on one node. slots: configured. serving: loaded. trouble: what is wrong with it, "" for nothing."""

    slots: int = 0
    serving: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class RemoteNode:
    """One node of a cluster. draining: it takes no more jobs."""

    name: str
    engines: Mapping[str, RemoteEngine]
    labels: Sequence[str] = ()
    draining: bool = False


@dataclass(frozen=True)
class RemoteFacts:
    """Of the cluster that does the jobs of a branch. told: the port of the branch has said how it stands. trouble: why
    the servers are not reached, or do not work."""

    told: bool = False
    connected: bool = False
    trouble: str = ""
    servers: Sequence[str] = ()
    nodes: Sequence[RemoteNode] = ()


@dataclass(frozen=True)
class PoolFacts:
    """served: a supervisor lives. engines: those it serves, None unknown. config: the file it reads.
    starter: what is known of a supervisor that the asker is about to start; None when the asker starts none, "" while
    one may come, else why it cannot. away: of a branch; None of a pool of its own. unseen: why the supervisor that
    serves it cannot be seen, with what to do."""

    served: bool
    slots: Sequence[SlotFacts] = ()
    draining: bool = False
    engines: Sequence[str] | None = None
    config: str = ""
    starter: str | None = None
    away: RemoteFacts | None = None
    unseen: str = ""


def prospect(engine: str, facts: PoolFacts, labels: Sequence[str] = ()) -> Prospect:
    """What a job that waits for `engine` may expect. labels: those it wants of a node, in a branch."""
    slots = [slot for slot in facts.slots if slot.engine == engine]
    if not facts.served:
        return _unserved(engine, slots, facts)
    if facts.away is not None:
        return _after_the_drain(engine, facts.starter) if facts.draining else _elsewhere(engine, facts.away, labels)
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


def _unserved(engine: str, slots: Sequence[SlotFacts], facts: PoolFacts) -> Prospect:
    starter = facts.starter
    if any(slot.serving for slot in slots):
        return Prospect(engine, Outlook.FINE)  # its workers go on for a grace
    if facts.unseen:
        return Prospect(engine, Outlook.COMING, facts.unseen)  # it may well serve
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


def _elsewhere(engine: str, away: RemoteFacts, labels: Sequence[str]) -> Prospect:
    if away.trouble:
        what = "does not work" if away.connected else "does not answer"
        servers = ", ".join(away.servers)
        hint = f"{f'servers: {servers}; ' if servers else ''}see `{CLUSTER_STATUS}`"
        return Prospect(engine, Outlook.HOPELESS, f"the cluster {what}: {away.trouble}", hint)
    if not away.told or not away.connected:
        return Prospect(engine, Outlook.COMING, "the connection to the cluster is being made")
    offering = [node for node in away.nodes if engine in node.engines]
    if not offering:
        return Prospect(
            engine, Outlook.HOPELESS, none_offers(engine, away.nodes), "start a node that has it, or wait for one"
        )
    fitting = [node for node in offering if set(labels) <= set(node.labels)]
    if not fitting:
        nowhere = [label for label in labels if not any(label in node.labels for node in away.nodes)]
        reason = (
            f"no node has {' or '.join(nowhere)}"
            if nowhere
            else f"no node that offers {engine} has {' and '.join(labels)}"
        )
        return Prospect(engine, Outlook.HOPELESS, reason, "give a node that label: `cluster.labels` in its config.json")
    open_ones = [node for node in fitting if not node.draining]
    if not open_ones:
        names = ", ".join(node.name for node in fitting)
        return Prospect(
            engine, Outlook.HOPELESS, f"{names}: draining, no more jobs are taken", "start another node that has it"
        )
    if any(node.engines[engine].serving for node in open_ones):
        return Prospect(engine, Outlook.FINE)
    said = "; ".join(f"{node.name}: {node.engines[engine].trouble or 'not loaded yet'}" for node in open_ones)
    return Prospect(engine, Outlook.COMING, said)


def none_offers(engine: str, nodes: Iterable[RemoteNode]) -> str:
    """Why a cluster does not do an engine: "no node of the cluster offers x; there are: gpu7 (transcribe, lipsync)"."""
    there = [f"{node.name} ({', '.join(sorted(node.engines)) or 'no engine'})" for node in nodes]
    more = f" and {len(there) - _NODES_SHOWN} more" if len(there) > _NODES_SHOWN else ""
    listed = f"there are: {', '.join(there[:_NODES_SHOWN])}{more}" if there else "no node is there"
    return f"no node of the cluster offers {engine}; {listed}"


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
