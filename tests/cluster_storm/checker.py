"""What became of the jobs of a storm: stream, buckets, branches and nodes, held against what clients were told.

    lost         accepted in a branch, and without its record there; left in the stream, or in the spool of a node
    disagreeing  the branch says other than the servers, two branches have other results for one id
    unjust       failed or cancelled though nothing about the job asked for it
    overlapping  two runs at a time that no strike explains
    untidy       claims, messages, media or files that nobody needs any more
    heavy        an agent or a port that takes too much memory, or shared memory

and all that `crash.checker` finds in the spool of each branch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crash.checker import Spoolview, check
from crash.rig import History
from nats.js.errors import NotFoundError
from scenarios.world import history as witnessed

from pool.client.filepool import FilePool
from pool.cluster import wire
from pool.cluster.media import Store
from pool.cluster.wire import End, Identity, JobKey
from pool.format import codec
from pool.job import JobState, Record
from pool.spool.store import Spool
from pool.supervise.retention import sweep_remains, sweep_tmp

from .machines import DELIVERIES, LEASE_S, Branch, resident_mb, uses_shared_memory

if TYPE_CHECKING:
    from .storm import Blow, Storm

AGENT_MB, PORT_MB = 60.0, 80.0
_LOCAL = re.compile(r"(?P<id>.+)-(?:r(?P<run>\d+))?g\d+\Z")
_DROPPED = frozenset({"KV-Operation", "Nats-Marker-Reason"})  # headers of a mark that a key has gone
_PATIENCE_S = 40.0
_AFTER_NS = int((LEASE_S + 6) * 1e9)  # until a connection that was hurt stands again, and what was held back has come
_NO_SILENCE = ("jump", "fill")  # strikes after which a node is heard as before
_OWN_ENDS = frozenset({"cancelled", "expired", "dependency", "input"})  # kinds that a branch may end a job with itself


@dataclass
class Findings:
    """faults: sentences by kind. figures: for the summary. overlaps: (what explains it, sentence)."""

    jobs: int = 0
    states: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    figures: dict[str, Any] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        return [f"{kind}: {sentence}" for kind, found in self.faults.items() for sentence in found]


@dataclass
class Servers:
    """What they store at the end."""

    waiting: int = 0
    unacknowledged: int = 0
    claims: list[str] = field(default_factory=list)
    ends: dict[JobKey, End] = field(default_factory=dict)
    ids: dict[str, Identity] = field(default_factory=dict)
    swept: int = 0
    unswept: list[str] = field(default_factory=list)
    refs: int = 0


@dataclass
class Asked:
    """What clients asked of their jobs. values: of what was accepted. bad: deeds that fail wherever they are done."""

    values: dict[str, Any] = field(default_factory=dict)
    bad: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # what was said -> ids
    seen: Counter[str] = field(default_factory=Counter)


def examine(storm: Storm) -> Findings:
    """The account. Ends the ports of all branches."""
    found = Findings()
    _weigh(storm, found)
    servers = asyncio.run(_look(storm))
    _servers(servers, found)
    for node in storm.nodes:
        with FilePool(node.config, start=False) as pool:
            left = [info.id for info in pool.jobs(tag="cluster", limit=1000) if not info.state.terminal]
        found.faults["lost"] += [f"{name} is left in the spool of {node.name}" for name in left]
    for branch in storm.branches:
        branch.close()
    views = {branch.name: Spoolview(branch.spool) for branch in storm.branches}
    asked = {branch.name: _asked(branch) for branch in storm.branches}
    origins = {branch.world.spool_id(): branch.name for branch in storm.branches}
    cancelled = set().union(*(one.kinds["cancelled"] for one in asked.values()))
    for branch in storm.branches:
        _branch(branch, views[branch.name], asked[branch.name], cancelled, found)
        for sentence in _against_servers(branch, views[branch.name], asked[branch.name], servers, origins):
            found.faults["disagreeing"].append(sentence)
        found.faults["unjust"] += _unjust(views[branch.name], asked[branch.name], cancelled)
    found.faults["disagreeing"] += _between(list(views.values()))
    _runs(storm, found, asked)
    seen = sum((one.seen for one in asked.values()), Counter[str]())
    found.figures["said by clients"] = dict(seen)
    found.figures["results on the servers"] = len(servers.ends)
    return found


# ---- weight


def _weigh(storm: Storm, found: Findings) -> None:
    agents = {node.name: node.pid("agent") for node in storm.nodes}
    ports = {branch.name: branch.port() for branch in storm.branches}
    most = {}
    for what, pids, mb in (("agent", agents, AGENT_MB), ("port", ports, PORT_MB)):
        weights = {name: resident_mb(pid) for name, pid in pids.items()}
        most[what] = round(max(weights.values()), 1)
        for name, weight in weights.items():
            if weight > mb:
                found.faults["heavy"].append(f"the {what} of {name} takes {weight:.0f} MB, {mb:.0f} allowed")
            if pids[name] is None:
                found.faults["lost"].append(f"{name} has no {what} at the end")
    for pid in (*agents.values(), *ports.values(), *(pid for node in storm.nodes for pid in node.processes())):
        if uses_shared_memory(pid):
            found.faults["heavy"].append(f"process {pid} uses /dev/shm")
    found.figures["MB at most"] = most


# ---- the servers


async def _look(storm: Storm) -> Servers:
    seen = Servers()
    async with storm.fleet.connected() as client:
        js = client.jetstream(timeout=20)
        until = asyncio.get_running_loop().time() + _PATIENCE_S
        while True:
            info = await js.stream_info(wire.JOBS)
            consumers = await js.consumers_info(wire.JOBS)
            seen.waiting = info.state.messages
            seen.unacknowledged = sum(one.num_ack_pending or 0 for one in consumers)
            seen.claims = await _keys(js, wire.CLAIMS)
            nothing = not (seen.waiting or seen.unacknowledged)
            if nothing or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(0.5)
        async for key, value in values(js, wire.RESULTS):
            seen.ends[JobKey.parse(key)] = End.unpack(value)
        async for key, value in values(js, wire.IDS):
            seen.ids[key] = Identity.unpack(value)
        seen.refs = len([key for key in await _keys(js, wire.REFS) if not key.startswith("sweeper")])
        store = await Store.open(js, replicas=len(storm.fleet.names), keep_s=86_400)
        until = asyncio.get_running_loop().time() + _PATIENCE_S
        while True:  # a sweep leaves what a server says that lags behind to the next one
            seen.swept += await store.sweep(grace_s=0.0)
            seen.unswept = await _unswept(store)
            if not seen.unswept or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(0.5)
    return seen


async def _unswept(store: Store) -> list[str]:
    """Files in the store that nobody refers to."""
    referred = await store._referred()
    names = referred[1] if referred is not None else set()
    return [entry.name for entry in await store._objects.entries() if not entry.deleted and entry.name not in names]


async def _keys(js: Any, bucket: str) -> list[str]:
    return [key async for key, _ in values(js, bucket)]


async def values(js: Any, bucket: str) -> AsyncIterator[tuple[str, bytes]]:
    """(key, value) of all that a bucket holds, as the server says that leads it. A watch is served by any of them, and
    one that has just begun may not have it all yet."""
    stream, begin = f"KV_{bucket}", f"$KV.{bucket}."
    for subject in (await js.stream_info(stream, subjects_filter=">")).state.subjects or {}:
        with contextlib.suppress(NotFoundError):  # it went just now
            message = await js.get_last_msg(stream, subject)
            if not _DROPPED.intersection(message.headers or {}):
                yield subject.removeprefix(begin), message.data or b""


def _servers(seen: Servers, found: Findings) -> None:
    if seen.waiting or seen.unacknowledged:
        found.faults["lost"].append(
            f"{seen.waiting} messages are left in the stream, {seen.unacknowledged} of them unacknowledged"
        )
    decided = set(map(str, seen.ends))  # the word that drops a claim may be lost; then it stays until its time is over
    found.faults["untidy"] += [f"the claim of {key} is left" for key in seen.claims if key not in decided]
    found.figures["claims of decided jobs left"] = len(decided.intersection(seen.claims))
    found.faults["untidy"] += [f"{name[:12]} is left in the media store" for name in seen.unswept]
    found.figures["media swept"], found.figures["refs left"] = seen.swept, seen.refs


# ---- branches


def _asked(branch: Branch) -> Asked:
    asked = Asked()
    for path in sorted(branch.history.iterdir()):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            what, job_id = event["what"], event.get("id") or ""
            asked.seen[what] += 1
            asked.kinds[what].add(job_id)
            if what == "accepted":
                asked.values[job_id] = event["value"]
            elif what == "bad":
                asked.bad[job_id] = event
    return asked


def _branch(branch: Branch, view: Spoolview, asked: Asked, cancelled: set[str], found: Findings) -> None:
    """The spool of a branch, as `crash.checker` sees every spool."""
    told = History(branch.history).told()
    told.offered |= asked.kinds["foreign"]
    told.accepted |= asked.kinds["attached"]
    told.offered |= {name for name, record in view.records.items() if record is not None and "map" in record.kept.tags}
    told.cancelled |= cancelled
    spool = Spool(branch.spool)
    sweep_tmp(spool)
    for _ in range(2):  # an empty folder of marks goes with the second sweep
        sweep_remains(spool)
    report = check(branch.spool, told, drained=True, counted=False)
    for kind, sentences in report.faults().items():
        found.faults[kind] += [f"{branch.name}: {sentence}" for sentence in sentences]
    found.jobs += report.jobs
    found.states.update(record.state.value for record in view.records.values() if record is not None)
    found.figures["recovered"] = found.figures.get("recovered", 0) + len(report.recovered)
    attempts = [record.attempt for record in view.records.values() if record is not None]
    found.figures["attempts at most"] = max([found.figures.get("attempts at most", 0), *attempts])


def _against_servers(
    branch: Branch, view: Spoolview, asked: Asked, servers: Servers, origins: dict[str, str]
) -> Iterator[str]:
    ends: dict[str, list[End]] = defaultdict(list)
    for key, end in servers.ends.items():
        ends[key.id].append(end)
    for job_id, record in view.records.items():
        if record is None:
            continue
        identity = servers.ids.get(job_id)
        if identity is not None and identity.origin not in origins:
            yield f"{job_id} belongs to {identity.origin}, which is no branch"
        kinds = {_outcome(Record.from_map(codec.decode(end.record, arrays=False))) for end in ends[job_id]}
        if _outcome(record) in kinds:
            continue
        kind = record.failure.kind if record.failure is not None else ""
        if kind not in _OWN_ENDS or record.state is JobState.COMPLETED:
            yield f"{job_id} is {_outcome(record)} in {branch.name}, on the servers {sorted(map(str, kinds)) or 'not'}"
        elif kinds and kind != "input" and job_id not in asked.kinds["requeued"]:
            yield f"{job_id} is {_outcome(record)} in {branch.name}, on the servers {sorted(map(str, kinds))}"


def _outcome(record: Record) -> tuple[str, str]:
    """What must be the same everywhere: paths are not."""
    values = record.value if isinstance(record.value, list) else [record.value]
    return record.state.value, str([_inner(one) for one in values]) if record.state is JobState.COMPLETED else ""


def _inner(value: Any) -> Any:
    if isinstance(value, dict):
        return _inner(value["value"]) if isinstance(value.get("value"), dict) else value.get("value")
    return value


def _unjust(view: Spoolview, asked: Asked, cancelled: set[str]) -> Iterator[str]:
    """Jobs that had no reason not to complete."""
    for job_id in asked.values:
        record = view.records.get(job_id)
        if record is None or record.state is JobState.COMPLETED or job_id in cancelled:
            continue
        failure = record.failure
        kind, text = (failure.kind, failure.message) if failure is not None else ("", "")
        fair = (
            job_id in asked.bad
            or (kind == "expired" and job_id in asked.kinds["expires"])
            or kind == "dependency"
            or (kind == "input" and job_id.startswith("both-") and "other content" in text)
        )
        if not fair:
            yield f"{job_id} is {record.state.value} ({kind}: {text[:200]})"


def _between(views: list[Spoolview]) -> Iterator[str]:
    """One id, one result, whoever reads it."""
    for number, first in enumerate(views):
        for second in views[number + 1 :]:
            for job_id in first.records.keys() & second.records.keys():
                one, other = first.records[job_id], second.records[job_id]
                if one is None or other is None or not JobState.COMPLETED is one.state is other.state:
                    continue
                if _outcome(one) != _outcome(other):
                    yield f"{job_id} is {_outcome(one)} and {_outcome(other)}"


# ---- runs


@dataclass(frozen=True)
class _Run:
    node: str
    pid: int
    begin: int
    end: int  # the same as begin when it was cut short
    attempt: int


def _runs(storm: Storm, found: Findings, asked: dict[str, Asked]) -> None:
    """Who ran what, when; two at a time only while the first one could not be heard."""
    runs: dict[tuple[str, str], list[_Run]] = defaultdict(list)
    for node in storm.nodes:
        for job, run in _witnessed(node.name, node.witness):
            match = _LOCAL.match(job)
            if match is not None:
                runs[match["id"], match["run"] or "0"].append(run)
    causes: Counter[str] = Counter()
    overlaps = 0
    for (job, _), all_runs in runs.items():
        for first, second in _at_once(all_runs):
            overlaps += 1
            cause = _explained(storm.blows, storm.fleet.names, first, second)
            causes[cause or "nothing"] += 1
            if not cause:
                ms = (first.end - second.begin) / 1e6
                found.faults["overlapping"].append(
                    f"{job} ran on {first.node} from {first.begin} to {first.end} and on {second.node} from "
                    f"{second.begin}: {ms:.0f} ms, and no strike explains it"
                )
    bad = {job_id: event for one in asked.values() for job_id, event in one.bad.items()}
    kills = [len(all_runs) for (job, _), all_runs in runs.items() if bad.get(job, {}).get("do") == "kill"]
    for (job, number), all_runs in runs.items():
        if bad.get(job, {}).get("do") == "kill" and len(all_runs) > (bad[job]["retries"] + 1) * DELIVERIES:
            found.faults["poison"].append(f"{job} run {number} was begun {len(all_runs)} times")
    counts = [len(all_runs) for all_runs in runs.values()]
    found.figures["runs"] = {
        "of jobs": len(counts),
        "mean": round(statistics.mean(counts), 3) if counts else 0,
        "most": max(counts, default=0),
        "of poison at most": max(kills, default=0),
    }
    found.figures["overlaps"] = {"all": overlaps, **dict(causes)}


def _witnessed(node: str, folder: Any) -> Iterator[tuple[str, _Run]]:
    begun: dict[int, tuple[str, int, int]] = {}  # of each process: job, attempt, when
    for at, pid, what, job, attempt, _ in witnessed(folder):
        if what == "start":
            if pid in begun:
                cut, tried, begin = begun.pop(pid)
                yield cut, _Run(node, pid, begin, begin, tried)
            begun[pid] = (job, attempt, at)
        elif pid in begun and begun[pid][0] == job:
            _, tried, begin = begun.pop(pid)
            yield job, _Run(node, pid, begin, at, tried)
    for pid, (job, attempt, begin) in begun.items():
        yield job, _Run(node, pid, begin, begin, attempt)


def _at_once(runs: list[_Run]) -> Iterator[tuple[_Run, _Run]]:
    """Pairs that overlap, the one that began first, first."""
    ordered = sorted(runs, key=lambda run: run.begin)
    for number, first in enumerate(ordered):
        for second in ordered[number + 1 :]:
            if second.begin < first.end:
                yield first, second


def _explained(blows: list[Blow], servers: list[str], first: _Run, second: _Run) -> str:
    """The strike for which nobody heard of the first run when the second one began, or for which the node of the second
    had not heard that the job was taken from it: its pool goes on without an agent. "" when there is none."""
    if first.node == second.node and first.pid == second.pid:
        return ""
    near = [
        blow
        for blow in blows
        if not blow.what.startswith(_NO_SILENCE)
        and blow.begin <= second.begin
        and (blow.end or second.begin) + _AFTER_NS >= first.begin
    ]
    near.sort(key=lambda blow: first.node not in blow.whom)
    for blow in near:
        lasted = (min(blow.end or second.begin, second.begin) - blow.begin) / 1e9
        if first.node in blow.whom or (second.node in blow.whom and second.begin <= (blow.end or second.begin)):
            return blow.what.partition(" (")[0]
        if set(servers) & set(blow.whom) and lasted > LEASE_S / 2:
            return blow.what.partition(" (")[0]
    return ""
