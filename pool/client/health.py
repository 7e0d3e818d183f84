"""Is the pool working? Judged from a `PoolStatus`; see `pool.client.status` for what the verdicts mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pool.client.status import (
    DEGRADED,
    DOWN,
    OK,
    ClusterStatus,
    ConfigurationStatus,
    EngineStatus,
    Health,
    PoolStatus,
    SlotStatus,
)
from pool.config.settings import Config
from pool.constants import IDLE_SILENCE_S, STARTING, Phase
from pool.policy.prospects import SERVE, load_error, prospect
from pool.runfiles.heartbeat import Beat
from pool.runfiles.server import OnDisk
from pool.system.clock import moment
from pool.system.procs import Sample

_UNCLAIMED_S = 10.0  # a job that waits this long beside an idle worker is not being seen …
_UNCLAIMED_RESCANS = 10  # … nor one that waits for this many rescans, where events come late or never
_STARTING = frozenset(phase.label for phase in STARTING)
_RECENT_S = 600.0  # a standstill is a note for so long
_SILENT_S = 30.0  # a port that has said nothing for so long hangs; it writes every five seconds
_SERVE = f"start one with `{SERVE}`"


def trouble_of(
    entry: Mapping[str, Any], beat: Beat | None, usage: Sample | None, silent_s: float | None, config: Config
) -> str:
    """What is wrong with one slot, "" when nothing is. entry: the supervisor's word; beat, usage, silent_s: of its
    process, None when that is gone."""
    if seat := _seat_trouble(entry):
        return seat
    if usage is None or usage.status.value in ("gone", "zombie"):
        return "its process is gone" if beat is not None or entry.get("pid") else ""
    if usage.status.value == "stopped":
        return "its process is stopped (SIGSTOP, or a debugger)"
    if beat is None or silent_s is None:
        return ""
    engine = config.engines.get(str(entry.get("engine")))
    limit_s = entry.get("stall_timeout_s", engine.stall_timeout_s if engine else None)  # as it runs, else as we read it
    if beat.phase is Phase.BUSY and isinstance(limit_s, (int, float)) and silent_s > limit_s:
        return f"no progress for {silent_s:.0f} s at job {beat.job}"
    if beat.phase is Phase.IDLE and silent_s > IDLE_SILENCE_S:
        return f"idle, but no sign of life for {silent_s:.0f} s"
    return ""


def _seat_trouble(entry: Mapping[str, Any]) -> str:
    """What the supervisor itself reports of a slot that it does not run, "" of one that it runs."""
    seat, why = str(entry.get("seat") or ""), str(entry.get("why") or "")
    if seat == "benched":
        said = load_error(entry.get("error"))
        return f"benched: {'; '.join(filter(None, (why, said))) or 'it failed too often'}"
    if seat == "off":
        return f"off: {why}" if why else "off"
    if seat == "waiting":
        pause = entry.get("next_start_s")
        when = f" in {pause:.0f} s" if isinstance(pause, (int, float)) and pause >= 1 else ""
        after = _reason(entry) or why
        return f"starts again{when}: {after}" if after else f"starts{when}"
    if seat == "ending":
        return f"being ended: {why}" if why else "being ended"
    return ""


def assess(status: PoolStatus, config: Config) -> Health:
    """The verdict over the whole pool."""
    return replace(_assess(status, config), notes=(*_standstill(status), *_polling(status)))


def _assess(status: PoolStatus, config: Config) -> Health:
    reasons = list(_common(status, branch=config.is_branch))
    living = [slot for slot in status.slots if slot.phase]
    waiting = sum(engine.queued + engine.held + engine.deferred for engine in status.engines)
    if status.supervisor is None:
        if any(slot.serving for slot in living):
            return _verdict(
                DEGRADED,
                [
                    f"the supervisor is gone, {_count(len(living), 'worker')} work on for up to "
                    f"{config.orphan_grace_s:g} s: {_SERVE}, it takes them over",
                    *reasons,
                ],
            )
        return _verdict(DOWN, [status.unseen or _unserved(waiting, config), *reasons])
    if status.supervisor.stopped:
        pid = status.supervisor.pid
        reasons.append(f"the supervisor is stopped: nothing dead is noticed (kill -CONT {pid})")
    if status.draining:
        reasons.append("the pool is draining: running jobs finish, no new one starts")
    reasons += _configuration(status.configuration)
    dead = 0
    configured = [engine for engine in status.engines if engine.configured]
    if status.cluster is not None:
        if (down := _unreachable(status, status.cluster)) is not None:
            return _verdict(DOWN, [down, *reasons])
        reasons += _cluster(status, status.cluster)
    for engine in configured:
        said, is_dead = _engine(engine, status, config) if status.cluster is None else _remote_engine(engine, status)
        reasons += said
        dead += is_dead
    if configured and dead == len(configured):
        return _verdict(DOWN, reasons)
    if reasons:
        return _verdict(DEGRADED, reasons)
    serving = sum(engine.serving for engine in configured)
    where = f" on {_count(len(status.nodes), 'node')}" if status.cluster is not None else ""
    running = sum(engine.running for engine in configured)
    return Health(OK, f"{_count(serving, 'worker')} ready{where}, {_count(running, 'job')} running, {waiting} waiting")


def _unserved(waiting: int, config: Config) -> str:
    jobs = f", {_count(waiting, 'job')} wait" if waiting else ""
    if config.is_branch:
        return f"no port serves this branch{jobs}: an open FilePool starts one"
    return f"no supervisor serves this spool{jobs}: {_SERVE}"


def _standstill(status: PoolStatus) -> Iterator[str]:
    """For a while after it."""
    if status.stood_still_at and status.at - status.stood_still_at < _RECENT_S * 1e6:
        yield (
            f"it stood still until {moment(status.stood_still_at)} (suspended, paused, or no processor), "
            f"{status.stood_still_s:.0f} s since it began: not counted against workers and jobs"
        )


def _polling(status: PoolStatus) -> Iterator[str]:
    """Who is not woken by events because a limit of the system was met."""
    found: dict[str, list[str]] = {}
    for name, watching in (("the supervisor", status.watching), *((s.slot, s.watching) for s in status.slots)):
        if watching.limited:
            found.setdefault(watching.reason, []).append(name)
    for reason, names in found.items():
        yield f"{', '.join(names)}: looking for arrivals by polling, which is slower: {reason}"


def _common(status: PoolStatus, *, branch: bool) -> Iterator[str]:
    if status.free_bytes < status.min_free_bytes:
        yield (
            f"{status.free_bytes >> 20} MB free on the disk of the spool, less than min_free_mb "
            f"({status.min_free_bytes >> 20}): no job is accepted until there is room"
        )
    if status.intake_paused:
        yield f"dropped files are not taken in: {status.intake_paused}"
    for engine in status.engines:
        if not (engine.configured or branch) and (engine.queued or engine.held or engine.deferred):
            jobs = _count(engine.queued + engine.held + engine.deferred, "job")
            yield f"{jobs} wait for {engine.name}, which is not in the configuration"
        if engine.queued >= engine.max_ready:
            yield f"{engine.name}: {engine.queued} jobs wait, max_ready is {engine.max_ready}: no more are accepted"


def _configuration(about: ConfigurationStatus) -> Iterator[str]:
    if about.disk == OnDisk.WRONG.value:
        yield f"the configuration on disk is wrong: {about.problem}; the one of {moment(about.loaded)} still runs"
    elif about.disk == OnDisk.GONE.value:
        yield f"{about.file} is gone; what was read from it at {moment(about.loaded)} still runs"
    if about.failed:
        yield (
            f"the new configuration does not start: {about.failed}; {about.rolled} of {about.slots} slots run it: "
            "correct it, then python -m pool reload"
        )
    elif about.rolled < about.slots:
        yield f"a new configuration is rolled out: {about.rolled} of {about.slots} slots run it"


def _unreachable(status: PoolStatus, cluster: ClusterStatus) -> str | None:
    """Why the whole cluster does nothing for this branch, None when it does."""
    if cluster.trouble:
        what = "does not work" if cluster.connected else "does not answer"
        return f"the cluster ({', '.join(cluster.servers) or 'no server'}) {what}: {cluster.trouble}"
    if cluster.connected and not status.nodes:
        return "the cluster has no node: start one with `python -m pool.cluster node`"
    return None


def _cluster(status: PoolStatus, cluster: ClusterStatus) -> Iterator[str]:
    if not cluster.told or not cluster.connected:
        yield "the connection to the cluster is being made"
    if cluster.silent_s is not None and cluster.silent_s > _SILENT_S:
        yield f"the port has said nothing of the cluster for {cluster.silent_s:.0f} s"
    if cluster.full:
        yield f"the cluster takes no more jobs now: {cluster.full}"
    for node in status.nodes:
        if node.draining:
            yield f"{node.name} is draining: it takes no more jobs"


def _remote_engine(engine: EngineStatus, status: PoolStatus) -> tuple[list[str], bool]:
    """As `_engine`, of an engine that nodes of a cluster have."""
    offering = [(node.name, node.engines[engine.name]) for node in status.nodes if engine.name in node.engines]
    if not offering and not (engine.queued or engine.running):
        return [], False  # nobody has it now, and nobody needs it
    troubles = [f"{name}: {about['trouble']}" for name, about in offering if about["trouble"]]
    expected = prospect(engine.name, replace(status.facts(), draining=False))
    if expected.hopeless:
        return [f"{engine.name}: no worker can run", expected.reason], True
    if engine.serving == 0:
        return [f"{engine.name}: no worker is ready yet", *(troubles or [expected.reason])], False
    if engine.serving < engine.workers and not troubles:
        return [f"{engine.name}: {engine.serving} of {engine.workers} workers are ready"], False
    return [f"{engine.name}: {trouble}" for trouble in troubles], False


def _engine(engine: EngineStatus, status: PoolStatus, config: Config) -> tuple[list[str], bool]:
    """Reasons of one engine, and whether nothing can run on it."""
    slots = status.of(engine.name)
    troubled = [slot for slot in slots if slot.trouble]
    if engine.serving == 0:
        expected = prospect(engine.name, replace(status.facts(), draining=False))  # that is said for all of them
        if expected.hopeless:
            return [f"{engine.name}: no worker can run", *(_troubles(troubled) or [expected.reason])], True
        starting = [slot for slot in slots if slot.phase in _STARTING and not slot.trouble]
        phases = ", ".join(f"{slot.slot} {slot.phase} for {slot.phase_s or 0:.0f} s" for slot in starting)
        return [f"{engine.name}: no worker is ready yet{phases and f' ({phases})'}", *_troubles(troubled)], False
    reasons = _troubles(troubled)
    if engine.serving < engine.workers and not troubled:
        reasons.append(f"{engine.name}: {engine.serving} of {engine.workers} workers are ready")
    limit = max(_UNCLAIMED_S, _UNCLAIMED_RESCANS * config.rescan_s)
    idle = [slot for slot in slots if slot.serving and (slot.phase_s or 0) > limit and slot.phase == Phase.IDLE.label]
    if idle and (engine.oldest_wait_s or 0) > limit:
        reasons.append(
            f"{engine.name}: a job has waited for {engine.oldest_wait_s:.0f} s although {idle[0].slot} is idle: "
            f"python -m pool logs {idle[0].slot}"
        )
    return reasons, False


def _troubles(slots: Sequence[SlotStatus]) -> list[str]:
    return [f"{slot.slot}: {slot.trouble}" for slot in slots]


def _reason(entry: Mapping[str, Any]) -> str:
    """Why the last process of a slot ended: what the engine said, else what the supervisor saw."""
    return load_error(entry.get("error")) or str(entry.get("last_death") or "")


def _verdict(verdict: str, reasons: Sequence[str]) -> Health:
    more = len(reasons) - 1
    sentence = f"{reasons[0]} (and {more} more)" if more > 0 else reasons[0]
    return Health(verdict, sentence, tuple(reasons))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
