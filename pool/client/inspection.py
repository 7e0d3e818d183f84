"""Reading what the pool is doing from its spool, by any process; nothing is asked, nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.client.health import assess, trouble_of
from pool.client.status import (
    ClusterStatus,
    ConfigurationStatus,
    EngineStatus,
    Health,
    NodeStatus,
    PoolStatus,
    SlotStatus,
    SupervisorStatus,
)
from pool.constants import SERVING, Phase
from pool.format.names import WorkerName, parse_dead, parse_worker
from pool.job import JobState
from pool.policy.death import Ended
from pool.runfiles import watchers
from pool.runfiles.heartbeat import Beat, read
from pool.runfiles.nodes import NodeFacts, Nodes, bare, described, offered
from pool.runfiles.nodes import read as read_nodes
from pool.runfiles.server import OnDisk, Running, running, unseen
from pool.runfiles.snapshot import MAX_BYTES
from pool.runfiles.watchers import WatchingStatus
from pool.spool import lookup
from pool.spool.store import Spool
from pool.system.clock import boot_ns
from pool.system.procs import Member, members, sample

if TYPE_CHECKING:
    from pool.config.settings import Config


def read_status(spool: Spool, config: Config) -> PoolStatus:
    """Look once. Never raises because of what other processes do meanwhile."""
    told = _told(spool.root / "run" / "status.json")
    serves = running(spool.root)
    supervisor = _supervisor(serves) if serves else None
    alive = {member.worker: member for member in members(spool.id) if _leads(spool, member)}
    if supervisor is None or (_number(told.get("at")) or 0.0) < supervisor.started:
        told = {}  # the word of one that is gone
    slots = tuple(_slots(spool, config, told, alive, served=supervisor is not None))
    nodes = read_nodes(spool.root)
    branch = nodes is not None or config.is_branch or (serves is not None and not serves.engines)
    if nodes is not None:
        slots += tuple(_remote_slots(nodes))
    disk = shutil.disk_usage(spool.root)
    facts = PoolStatus(
        at=spool.now(),
        spool=str(spool.root),
        health=Health("ok", ""),
        supervisor=supervisor,
        draining=bool(told.get("draining")),
        intake_paused=str(told.get("intake_paused") or ""),
        watching=WatchingStatus.from_map(told.get("watching")),
        engines=tuple(_engines(spool, config, told, slots, nodes, branch=branch)),
        slots=slots,
        dropped=_count(spool.root / "in", ""),
        quarantined=_count(spool.root / "quarantine", ".reason.txt"),
        records=sum(1 for _ in lookup.records(spool)),
        free_bytes=disk.free,
        total_bytes=disk.total,
        min_free_bytes=config.min_free_mb << 20,
        configuration=_configuration(serves, told) if serves else ConfigurationStatus(),
        nodes=tuple(_node(node, nodes, spool.now()) for node in nodes.nodes) if nodes else (),
        cluster=_cluster(spool, config, nodes) if branch else None,
        unseen=unseen(spool.root) if supervisor is None else "",
        stood_still_s=_number(told.get("stood_still_s")) or 0.0,
        stood_still_at=int(_number(told.get("stood_still_at")) or 0),
    )
    return replace(facts, health=assess(facts, config))


def _supervisor(serves: Running) -> SupervisorStatus:
    return SupervisorStatus(
        pid=serves.identity.pid,
        started=serves.started,
        tied=serves.tied,
        config=serves.config,
        version=serves.version,
        engines=serves.engines,
        containment=serves.containment,
        stopped=sample(serves.identity).status.value == "stopped",
    )


def _cluster(spool: Spool, config: Config, nodes: Nodes | None) -> ClusterStatus:
    sent = (parse_dead(entry) for entry in _names(spool.root / "away"))
    waiting = sum(1 for found in sent if found is not None and found[1].attempts == 0)
    if nodes is None:
        return ClusterStatus(tuple(map(bare, config.cluster.servers)), connected=False, waiting=waiting, told=False)
    return ClusterStatus(
        servers=nodes.servers,
        connected=nodes.connected,
        trouble=nodes.trouble,
        full=nodes.full,
        waiting=waiting,
        told=nodes.told,
        silent_s=max(0.0, (spool.now() - nodes.at) / 1e6),
    )


def _node(node: NodeFacts, nodes: Nodes, now: int) -> NodeStatus:
    return NodeStatus(
        name=node.name,
        host=node.host,
        version=node.version,
        seen_s=node.seen_s + max(0.0, (now - nodes.at) / 1e6),
        labels=node.labels,
        draining=node.draining,
        jobs=node.jobs,
        engines=node.engines,
    )


def _remote_slots(nodes: Nodes) -> Iterator[SlotStatus]:
    for node in nodes.nodes:
        for entry in node.slots:
            with suppress(TypeError, ValueError, AttributeError, KeyError):  # another version's
                yield _remote_slot(node.name, entry)


def _remote_slot(node: str, entry: Mapping[str, Any]) -> SlotStatus:
    """A slot as its node reports it. Raises TypeError, ValueError, AttributeError, KeyError."""
    slot = _reported(entry)
    return replace(
        slot,
        node=node,
        slot=f"{node}/{slot.slot}",
        pid=None,  # of another machine
        phase=str(entry.get("phase") or ""),
        phase_s=_number(entry.get("phase_s")),
        silent_s=_number(entry.get("silent_s")),
        job=str(entry.get("job") or ""),
        stage=str(entry.get("stage") or ""),
        percent=_number(entry.get("percent")),
        message=str(entry.get("message") or ""),
        serving=entry.get("serving") is True,
        trouble=str(entry.get("trouble") or ""),
        jobs_done=int(entry.get("jobs_done") or 0),
        rss_bytes=int(entry.get("rss_bytes") or 0),
        gpu_bytes=int(entry.get("gpu_bytes") or 0),
    )


def _configuration(serves: Running, told: Mapping[str, Any]) -> ConfigurationStatus:
    disk = serves.on_disk()
    roll = told.get("roll")
    roll = roll if isinstance(roll, dict) and roll.get("digest") == serves.digest else {}
    return ConfigurationStatus(
        file=serves.config,
        loaded=serves.loaded,
        disk=disk.value,
        problem=str(serves.refused) if serves.refused and disk is OnDisk.WRONG else "",
        rolled=int(roll.get("rolled") or 0),
        slots=int(roll.get("slots") or 0),
        leaving=int(roll.get("leaving") or 0),
        failed=str(roll.get("failed") or ""),
        moving=bool(roll.get("moving")),
    )


def _slots(
    spool: Spool, config: Config, told: Mapping[str, Any], alive: Mapping[str, Member], *, served: bool
) -> Iterator[SlotStatus]:
    latest: dict[str, WorkerName] = {}
    for worker in alive:
        name = parse_worker(worker)
        if name is not None and name.generation >= latest.get(name.slot, name).generation:
            latest[name.slot] = name
    listed = told.get("slots")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("slot"), str):
            now = latest.pop(entry["slot"], None)  # perhaps younger than the supervisor's last word
            if now is not None and str(now) != entry.get("worker"):
                entry = {**entry, "worker": str(now), "seat": "running", "why": "", "next_start_s": None}
            yield _slot(spool, config, entry, alive)
    for name in sorted(latest.values(), key=str):  # in no slot that the supervisor knows, or there is none
        entry = {"slot": name.slot, "engine": name.engine, "worker": str(name), "seat": "running"}
        if not served:
            entry |= {"seat": "orphaned", "why": "works on without a supervisor"}
        yield _slot(spool, config, entry, alive)


def _slot(spool: Spool, config: Config, entry: Mapping[str, Any], alive: Mapping[str, Member]) -> SlotStatus:
    """One slot: what the supervisor reports of it, and what its process says itself."""
    slot = _reported(entry)
    beat = read(f"{spool.root}/run/heartbeats/{slot.worker}") if slot.worker else None
    member = alive.get(str(slot.worker))
    usage = sample(member.identity) if member else None
    silent_s = _seconds_since(beat.beat_ns) if beat else None
    slot = replace(
        slot, spare=bool(beat.standby) if beat else slot.spare, trouble=trouble_of(entry, beat, usage, silent_s, config)
    )
    if member is None or usage is None:
        return slot
    slot = replace(
        slot,
        pid=member.identity.pid,
        silent_s=silent_s,
        rss_bytes=usage.rss_bytes,
        watching=watchers.told(spool, str(slot.worker)),
    )
    return _beating(spool, slot, beat) if beat else slot


def _reported(entry: Mapping[str, Any]) -> SlotStatus:
    """A slot as the supervisor reports it in run/status.json."""
    worker, pid, error = entry.get("worker"), entry.get("pid"), entry.get("error")
    return SlotStatus(
        slot=str(entry["slot"]),
        engine=str(entry.get("engine") or ""),
        seat=str(entry.get("seat") or ""),
        spare=bool(entry.get("spare")),
        worker=str(worker) if worker else None,
        pid=pid if isinstance(pid, int) else None,
        device=str(entry.get("device") or ""),
        why=str(entry.get("why") or ""),
        error={key: str(value) for key, value in error.items()} if isinstance(error, dict) else None,
        last_death=str(entry.get("last_death") or ""),
        ended=Ended.from_map(entry.get("ended")),
        next_start_s=_number(entry.get("next_start_s")),
        starts=int(entry.get("starts") or 0),
        restarts=int(entry.get("restarts") or 0),
        restarts_by={str(reason): int(count) for reason, count in (entry.get("restarts_by") or {}).items()},
    )


def _beating(spool: Spool, slot: SlotStatus, beat: Beat) -> SlotStatus:
    """A slot whose process lives, with what its heartbeat says; while it runs a job, also how far that is."""
    job = beat.job if beat.phase is Phase.BUSY else ""
    progress = lookup.progress(spool, job) if job else None
    return replace(
        slot,
        phase=beat.phase.label,
        phase_s=_seconds_since(beat.phase_ns),
        job=job,
        stage=beat.stage,
        percent=progress.percent if progress else None,
        message=progress.message if progress else "",
        serving=beat.phase in SERVING and not beat.standby and not slot.trouble,
        row=beat.row,
        jobs_done=beat.jobs_done,
        gpu_bytes=beat.gpu_bytes,
    )


def _seconds_since(moment_ns: int) -> float:
    return max(0.0, (boot_ns() - moment_ns) / 1e9)


def _configured(
    spool: Spool, config: Config, told: Mapping[str, Any], nodes: Nodes | None, *, branch: bool
) -> dict[str, tuple[int, int]]:
    """Engine -> workers, spares: those that run where a supervisor serves, else those of the file as we read it; in a
    branch those of the cluster."""
    if branch:
        return {name: (slots, 0) for name, slots in offered(nodes, described(spool.root)).items()}
    if isinstance(told.get("engines"), dict):
        return {name: (about["workers"], about["spares"]) for name, about in told["engines"].items()}
    return {name: (engine.workers, engine.spares) for name, engine in config.engines.items()}


def _engines(
    spool: Spool,
    config: Config,
    told: Mapping[str, Any],
    slots: tuple[SlotStatus, ...],
    nodes: Nodes | None,
    *,
    branch: bool,
) -> Iterator[EngineStatus]:
    configured = _configured(spool, config, told, nodes, branch=branch)
    tallies: dict[str, Counter[str]] = {}
    oldest: dict[str, int] = {}
    for place in lookup.undecided(spool):
        tallies.setdefault(place.engine, Counter())[place.state.value] += 1
        if place.state is JobState.QUEUED and place.name is not None:
            oldest[place.engine] = min(oldest.get(place.engine, place.name.born), place.name.born)
    for entry in _names(spool.root / "dead"):
        parsed = parse_dead(entry)
        if parsed is not None:
            tallies.setdefault(parsed[0], Counter())["dead"] += 1
    now = spool.now()
    others = {*tallies, *(slot.engine for slot in slots)} - set(configured)
    for name in [*configured, *sorted(others)]:
        counts = tallies.get(name, Counter())
        workers, spares = configured.get(name, (0, 0))
        mine = [slot for slot in slots if slot.engine == name and not slot.node]
        away = [node.engines[name] for node in nodes.nodes if name in node.engines] if nodes else []
        yield EngineStatus(
            name=name,
            configured=name in configured,
            workers=workers,
            spares=spares,
            serving=sum(slot.serving for slot in mine) + sum(int(about["serving"]) for about in away),
            busy=sum(slot.serving and slot.phase == Phase.BUSY.label for slot in mine)
            + sum(int(about["busy"]) for about in away),
            queued=counts["queued"],
            held=counts["held"],
            deferred=counts["deferred"],
            running=counts["running"],
            dead=counts["dead"],
            oldest_wait_s=max(0.0, (now - oldest[name]) / 1e6) if name in oldest else None,
            max_ready=config.max_ready,
        )


def _leads(spool: Spool, member: Member) -> bool:
    """Whether a process is a worker itself and none of the programs that it started."""
    if not member.worker or parse_worker(member.worker) is None:
        return False
    beat = read(f"{spool.root}/run/heartbeats/{member.worker}")
    return beat.pid == member.identity.pid if beat else member.session == member.identity.pid


def _told(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_BYTES else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _count(directory: Path, suffix: str) -> int:
    return sum(1 for name in _names(directory) if name.endswith(suffix) and not name.startswith("."))


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
