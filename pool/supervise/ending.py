"""Why a worker was started again, as one of few words that are counted."""

from __future__ import annotations

from pool.constants import EXIT_CONFIG, EXIT_DRAINED, EXIT_LOAD, EXIT_MISSING, EXIT_RECYCLE
from pool.policy.death import DIED, Ended
from pool.supervise.judge import Cause

_BY_CAUSE = {
    **dict.fromkeys((Cause.BOOT.value, Cause.LOAD.value, Cause.WARMUP.value), "load"),
    **dict.fromkeys((Cause.STALLED.value, Cause.SILENT.value, Cause.STOPPED.value, Cause.CLOSE.value), "stalled"),
    Cause.OVERDUE.value: "timeout",
    Cause.MEMORY.value: "memory",
    Cause.CANCEL.value: "cancelled",
    Cause.RECYCLE.value: "recycled",
    Cause.SICK.value: "sick",
    Cause.DRAIN.value: "drained",
    Cause.OUTDATED.value: "configuration",
}
_BY_CODE = {
    EXIT_DRAINED: "drained",
    EXIT_LOAD: "load",
    EXIT_CONFIG: "configuration",
    EXIT_MISSING: "missing",
    EXIT_RECYCLE: "recycled",
}
_CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT", "SIGSYS"})


def reason_of(ended: Ended | None) -> str:
    """The word for the end of the process before; "other" when there was none, or the reason is unknown."""
    if ended is None:
        return "other"
    if ended.cause != DIED:
        return _BY_CAUSE.get(ended.cause, "other")
    if ended.out_of_memory:
        return "memory"
    if ended.signal:
        return "crashed" if ended.signal in _CRASHES else "killed"
    if ended.exit_code is None:
        return "other"
    return "exited" if ended.job else _BY_CODE.get(ended.exit_code, "exited")
