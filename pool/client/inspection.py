"""Reading what the pool is doing from its spool, by any process; nothing is asked, nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.client.health import assess, trouble_of
from pool.client.status import ConfigurationStatus, EngineStatus, Health, PoolStatus, SlotStatus, SupervisorStatus
from pool.constants import SERVING, Phase
from pool.format.names import WorkerName, parse_dead, parse_worker
from pool.job import JobState
from pool.policy.death import Ended
from pool.runfiles import watchers
from pool.runfiles.heartbeat import read
from pool.runfiles.server import OnDisk, Running, running
from pool.runfiles.snapshot import MAX_BYTES
from pool.runfiles.watchers import EVENTS, WatchingStatus
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
    disk = shutil.disk_usage(spool.root)
    facts = PoolStatus(
        at=spool.now(),
        spool=str(spool.root),
        health=Health("ok", ""),
        supervisor=supervisor,
        draining=bool(told.get("draining")),
        intake_paused=str(told.get("intake_paused") or ""),
        watching=WatchingStatus.from_map(told.get("watching")),
        engines=tuple(_engines(spool, config, told, slots)),
        slots=slots,
        dropped=_count(spool.root / "in", ""),
        quarantined=_count(spool.root / "quarantine", ".reason.txt"),
        records=sum(1 for _ in lookup.records(spool)),
        free_bytes=disk.free,
        total_bytes=disk.total,
        min_free_bytes=config.min_free_mb << 20,
        configuration=_configuration(serves, told) if serves else ConfigurationStatus(),
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
    worker = entry.get("worker")
    member = alive.get(str(worker))
    beat = read(f"{spool.root}/run/heartbeats/{worker}") if worker else None
    usage = sample(member.identity) if member else None
    now = boot_ns()
    busy = beat is not None and beat.phase is Phase.BUSY
    word = lookup.progress(spool, beat.job) if busy and beat and beat.job else None
    engine = str(entry.get("engine") or "")
    silent_s = max(0.0, (now - beat.beat_ns) / 1e9) if beat else None
    trouble = trouble_of(entry, beat, usage, silent_s, config)
    told_pid = entry.get("pid")
    error = entry.get("error")
    return SlotStatus(
        slot=str(entry["slot"]),
        engine=engine,
        seat=str(entry.get("seat") or ""),
        spare=bool(beat.standby) if beat else bool(entry.get("spare")),
        worker=str(worker) if worker else None,
        pid=member.identity.pid if member else told_pid if isinstance(told_pid, int) else None,
        device=str(entry.get("device") or ""),
        phase=beat.phase.label if beat and member else "",
        phase_s=max(0.0, (now - beat.phase_ns) / 1e9) if beat and member else None,
        silent_s=silent_s if member else None,
        job=beat.job if busy and beat and member else "",
        stage=beat.stage if beat and member else "",
        percent=word.percent if word else None,
        message=word.message if word else "",
        serving=bool(member and beat and beat.phase in SERVING and not beat.standby and not trouble),
        trouble=trouble,
        why=str(entry.get("why") or ""),
        error={key: str(value) for key, value in error.items()} if isinstance(error, dict) else None,
        last_death=str(entry.get("last_death") or ""),
        ended=Ended.from_map(entry.get("ended")),
        row=beat.row if beat and member else 0,
        next_start_s=_number(entry.get("next_start_s")),
        starts=int(entry.get("starts") or 0),
        restarts=int(entry.get("restarts") or 0),
        jobs_done=beat.jobs_done if beat and member else 0,
        rss_bytes=usage.rss_bytes if usage else 0,
        gpu_bytes=beat.gpu_bytes if beat and member else 0,
        restarts_by={str(reason): int(count) for reason, count in (entry.get("restarts_by") or {}).items()},
        watching=watchers.told(spool, str(worker)) if member else EVENTS,
    )


def _engines(
    spool: Spool, config: Config, told: Mapping[str, Any], slots: tuple[SlotStatus, ...]
) -> Iterator[EngineStatus]:
    """Those that run where a supervisor serves, else those of the file as we read it."""
    configured = {name: (engine.workers, engine.spares) for name, engine in config.engines.items()}
    if isinstance(told.get("engines"), dict):
        configured = {name: (about["workers"], about["spares"]) for name, about in told["engines"].items()}
    tallies: dict[str, Counter[str]] = {}
    oldest: dict[str, int] = {}
    for source in (lookup.waiting, lookup.running):
        for place in source(spool):
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
        mine = [slot for slot in slots if slot.engine == name]
        yield EngineStatus(
            name=name,
            configured=name in configured,
            workers=workers,
            spares=spares,
            serving=sum(slot.serving for slot in mine),
            busy=sum(slot.serving and slot.phase == Phase.BUSY.label for slot in mine),
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
