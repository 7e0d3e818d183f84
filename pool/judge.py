"""Is a worker well? A pure verdict from its heartbeat, its process and the limits of its engine.

Hung is not busy: each phase has its own deadline, and during a job it is progress that counts, not time. All times
are seconds or nanoseconds of the boot clock, so a verdict holds for workers that an earlier supervisor started.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pool.config import EngineConfig
from pool.constants import WAITING_FOR_SPACE, Phase
from pool.heartbeat import Beat
from pool.job import FailureKind

IDLE_SILENCE_S = 30.0  # an idle loop wakes every rescan and beats
STOPPED_S = 3.0  # a person with a debugger gets that long


class Cause(enum.Enum):
    """Why a worker is ended."""

    BOOT = "boot"
    LOAD = "load"
    WARMUP = "warmup"
    STOPPED = "stopped"
    STALLED = "stalled"
    OVERDUE = "overdue"
    SILENT = "silent"
    CLOSE = "close"
    MEMORY = "memory"
    CANCEL = "cancel"
    RECYCLE = "recycle"
    SICK = "sick"
    DRAIN = "drain"
    MISFIT = "misfit"  # its configuration is not ours any more


#: The job it holds is not to blame and gets its attempt back.
INNOCENT = frozenset({Cause.CLOSE, Cause.CANCEL, Cause.RECYCLE, Cause.SICK, Cause.DRAIN, Cause.MISFIT})
#: Its end says nothing about the slot.
PLANNED = INNOCENT | {Cause.STALLED, Cause.OVERDUE, Cause.MEMORY, Cause.STOPPED}

KIND = {
    Cause.STALLED: FailureKind.TIMEOUT,
    Cause.OVERDUE: FailureKind.TIMEOUT,
    Cause.MEMORY: FailureKind.RESOURCE,
}


@dataclass(frozen=True)
class Verdict:
    """cause None: it is well. sentence: for people and for the failure record."""

    cause: Cause | None = None
    sentence: str = ""


WELL = Verdict()


def judge(
    engine: EngineConfig,
    beat: Beat | None,
    now_ns: int,
    *,
    started_ns: int,
    stopped_s: float = 0.0,
    rss_bytes: int = 0,
    timeout_s: float | None = None,
) -> Verdict:
    """stopped_s: for how long its process has been stopped. timeout_s: of the job it runs."""
    if stopped_s >= STOPPED_S:
        return Verdict(Cause.STOPPED, f"its process was stopped (SIGSTOP) for {stopped_s:.0f} s")
    phase = Phase.BOOTING if beat is None else beat.phase
    since = (now_ns - (started_ns if beat is None else beat.phase_ns)) / 1e9
    silent = (now_ns - (started_ns if beat is None else beat.beat_ns)) / 1e9
    if phase is Phase.BOOTING and since > engine.boot_timeout_s:
        return Verdict(
            Cause.BOOT, f"the interpreter did not come up within boot_timeout_s ({engine.boot_timeout_s:g} s)"
        )
    if phase is Phase.LOADING and since > engine.load_timeout_s:
        return Verdict(
            Cause.LOAD, f"the engine did not load within load_timeout_s ({engine.load_timeout_s:g} s)"
        )
    if phase is Phase.WARMING and since > engine.warmup_timeout_s:
        return Verdict(
            Cause.WARMUP, f"the warm-up took longer than warmup_timeout_s ({engine.warmup_timeout_s:g} s)"
        )
    if phase is Phase.DRAINING and since > engine.stop_grace_s:
        return Verdict(
            Cause.CLOSE, f"the engine did not close within stop_grace_s ({engine.stop_grace_s:g} s)"
        )
    if phase is Phase.IDLE and silent > IDLE_SILENCE_S:
        return Verdict(Cause.SILENT, f"the idle loop gave no sign of life for {silent:.0f} s")
    if phase is not Phase.BUSY or beat is None:
        return WELL
    if timeout_s is not None and since > timeout_s and beat.stage != WAITING_FOR_SPACE:
        return Verdict(Cause.OVERDUE, f"the job took longer than its time limit ({timeout_s:g} s)")
    if silent > engine.stall_timeout_s:
        return Verdict(
            Cause.STALLED, f"no progress for {silent:.0f} s (stall_timeout_s is {engine.stall_timeout_s:g})"
        )
    limit = engine.memory_limit_bytes
    if limit is not None and beat.baseline and rss_bytes - beat.baseline > limit:
        grown = (rss_bytes - beat.baseline) >> 20
        return Verdict(
            Cause.MEMORY, f"its memory grew by {grown} MB during the job (memory_limit_mb is {limit >> 20})"
        )
    return WELL
