"""Is a worker well? A pure verdict from its heartbeat, its process and the limits of its engine.

Hung is not busy: each phase has its own deadline, and during a job it is progress that counts, not time. All times
are of the boot clock, so a verdict holds for workers that an earlier supervisor started.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pool.config.settings import EngineConfig
from pool.constants import IDLE_SILENCE_S, WAITING_FOR_SPACE, Phase
from pool.job import FailureKind
from pool.runfiles.heartbeat import Beat

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
    SICK = "sick"  # jobs that failed in it completed in other slots
    DRAIN = "drain"
    OUTDATED = "outdated"  # it runs another configuration than the supervisor


#: The job it holds is not to blame and gets its attempt back.
INNOCENT = frozenset({Cause.CLOSE, Cause.CANCEL, Cause.RECYCLE, Cause.SICK, Cause.DRAIN, Cause.OUTDATED})
#: Its end says nothing about the slot.
PLANNED = INNOCENT | {Cause.STALLED, Cause.OVERDUE, Cause.MEMORY, Cause.STOPPED}

KIND = {
    Cause.STALLED: FailureKind.TIMEOUT,
    Cause.OVERDUE: FailureKind.TIMEOUT,
    Cause.MEMORY: FailureKind.RESOURCE,
}


@dataclass(frozen=True)
class Limit:
    """A limit that was met. key: of config.json, or of the job; value and measured in the unit of the key's name."""

    key: str
    value: float
    measured: float


@dataclass(frozen=True)
class Verdict:
    """Why a worker is ended, in facts; cause None: it is well. subject: the job that was cancelled, or how many jobs
    accuse it."""

    cause: Cause | None = None
    limit: Limit | None = None
    subject: str = ""

    @property
    def sentence(self) -> str:
        """For people; empty when all is well."""
        if self.cause is None:
            return ""
        limit = self.limit or Limit("", 0, 0)
        return (_RECYCLED.get(limit.key) or _SENTENCES[self.cause]).format(
            key=limit.key, value=limit.value, measured=limit.measured, subject=self.subject
        )

    def to_map(self) -> dict[str, Any]:
        """cause, and limit when one was met."""
        found: dict[str, Any] = {"cause": self.cause.value if self.cause else ""}
        if self.limit is not None:
            found["limit"] = asdict(self.limit)
        return found


_SENTENCES = {
    Cause.BOOT: "the interpreter did not come up within {key} ({value:g} s)",
    Cause.LOAD: "the engine did not load within {key} ({value:g} s)",
    Cause.WARMUP: "the warm-up took longer than {key} ({value:g} s)",
    Cause.STOPPED: "its process was stopped (SIGSTOP) for {measured:.0f} s",
    Cause.STALLED: "no progress for {measured:.0f} s ({key} is {value:g})",
    Cause.OVERDUE: "the job took longer than its time limit ({value:g} s)",
    Cause.SILENT: "the idle loop gave no sign of life for {measured:.0f} s",
    Cause.CLOSE: "the engine did not close within {key} ({value:g} s)",
    Cause.MEMORY: "its memory grew by {measured:.0f} MB during the job ({key} is {value:g})",
    Cause.CANCEL: "job {subject} was cancelled and did not stop by itself",
    Cause.RECYCLE: "recycled",
    Cause.SICK: "{subject} different jobs failed here in a row and completed in other slots",
    Cause.DRAIN: "the pool drains",
    Cause.OUTDATED: "its configuration changed",
}
_RECYCLED = {
    "recycle.max_jobs": "recycled: {measured:.0f} jobs done",
    "recycle.memory_growth_mb": "recycled: memory grew by {measured:.0f} MB (limit {value:.0f})",
    "recycle.gpu_memory_mb": "recycled: {measured:.0f} MB of GPU memory (limit {value:.0f})",
}
WELL = Verdict()


def judge(
    engine: EngineConfig,
    beat: Beat | None,
    since: Callable[[int], float],
    *,
    started_ns: int,
    stopped_s: float = 0.0,
    rss_bytes: int = 0,
    timeout_s: float | None = None,
) -> Verdict:
    """since: seconds that count from a moment of the boot clock (ns) until now. stopped_s: for how long its process has
    been stopped. timeout_s: of the job it runs."""
    phase = Phase.BOOTING if beat is None else beat.phase
    spent = since(started_ns if beat is None else beat.phase_ns)
    silent = since(started_ns if beat is None else beat.beat_ns)
    if stopped_s >= STOPPED_S:
        return Verdict(Cause.STOPPED, Limit("", STOPPED_S, stopped_s))
    if phase in _DEADLINES:
        cause, key = _DEADLINES[phase]
        return _over(cause, key, getattr(engine, key), spent)
    if phase is Phase.IDLE:
        return _over(Cause.SILENT, "", IDLE_SILENCE_S, silent)
    if phase is not Phase.BUSY or beat is None:
        return WELL
    if timeout_s is not None and spent > timeout_s and beat.stage != WAITING_FOR_SPACE:
        return Verdict(Cause.OVERDUE, Limit("timeout_s", timeout_s, spent))
    if silent > engine.stall_timeout_s:
        return Verdict(Cause.STALLED, Limit("stall_timeout_s", engine.stall_timeout_s, silent))
    limit = engine.memory_limit_bytes
    if limit is not None and beat.baseline and rss_bytes - beat.baseline > limit:
        return Verdict(Cause.MEMORY, Limit("memory_limit_mb", limit >> 20, (rss_bytes - beat.baseline) >> 20))
    return WELL


_DEADLINES = {
    Phase.BOOTING: (Cause.BOOT, "boot_timeout_s"),
    Phase.LOADING: (Cause.LOAD, "load_timeout_s"),
    Phase.WARMING: (Cause.WARMUP, "warmup_timeout_s"),
    Phase.DRAINING: (Cause.CLOSE, "stop_grace_s"),
}


def _over(cause: Cause, key: str, allowed_s: float, spent_s: float) -> Verdict:
    return Verdict(cause, Limit(key, allowed_s, spent_s)) if spent_s > allowed_s else WELL
