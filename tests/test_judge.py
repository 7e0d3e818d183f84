"""Hung is not busy: each phase has its own deadline, and during a job it is progress that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.config.settings import EngineConfig
from pool.constants import IDLE_SILENCE_S, Phase
from pool.job import FailureKind
from pool.runfiles.heartbeat import Beat
from pool.supervise.judge import INNOCENT, KIND, PLANNED, STOPPED_S, WELL, Cause, judge

S = 1_000_000_000
NOW = 10_000 * S
MB = 1 << 20
ENGINE = EngineConfig(
    name="echo",
    engine="inference.fake:Echo",
    boot_timeout_s=30,
    load_timeout_s=600,
    warmup_timeout_s=300,
    stall_timeout_s=120,
    stop_grace_s=5,
    memory_limit_mb=100,
)


def _beat(phase: Phase, since_s: float, silent_s: float | None = None, **more: Any) -> Beat:
    """A beat whose phase began `since_s` ago and that was last written `silent_s` ago (default: at once)."""
    silent = since_s if silent_s is None else silent_s
    fields: dict[str, Any] = {
        "pid": 1,
        "beat_ns": NOW - int(silent * S),
        "phase_ns": NOW - int(since_s * S),
        "progress": 0,
        "jobs_done": 0,
        "baseline": 500 * MB,
        "gpu_bytes": 0,
        "succeeded_at": 0,
        "row": 0,
        "phase": phase,
        "standby": False,
        "job": "job",
        "stage": "inference",
    }
    return Beat(**{**fields, **more})


def _since(now_ns: int) -> Callable[[int], float]:
    return lambda moment_ns: (now_ns - moment_ns) / S


def _judge(beat: Beat | None, engine: EngineConfig = ENGINE, **more: Any) -> Cause | None:
    verdict = judge(engine, beat, _since(NOW), **{"started_ns": NOW - 20 * S, **more})
    assert (verdict.cause is None) == (verdict.sentence == "")
    return verdict.cause


@pytest.mark.parametrize(
    ("beat", "cause"),
    [
        (_beat(Phase.BOOTING, 29), None),
        (_beat(Phase.BOOTING, 31), Cause.BOOT),
        (_beat(Phase.LOADING, 599), None),  # a ten-minute load is no hanging, however silent
        (_beat(Phase.LOADING, 601), Cause.LOAD),
        (_beat(Phase.WARMING, 299), None),
        (_beat(Phase.WARMING, 301), Cause.WARMUP),
        (_beat(Phase.IDLE, 9999, silent_s=IDLE_SILENCE_S - 1), None),
        (_beat(Phase.IDLE, 9999, silent_s=IDLE_SILENCE_S + 1), Cause.SILENT),
        (_beat(Phase.BUSY, 9999, silent_s=119), None),  # hours of work with progress are fine
        (_beat(Phase.BUSY, 9999, silent_s=121), Cause.STALLED),
        (_beat(Phase.BUSY, 1, silent_s=0), None),
        (_beat(Phase.DRAINING, 4), None),
        (_beat(Phase.DRAINING, 6), Cause.CLOSE),
    ],
)
@pytest.mark.invariant(29)
def test_each_phase_has_its_own_deadline(beat: Beat, cause: Cause | None) -> None:
    assert _judge(beat) is cause


def test_before_the_first_beat_it_boots() -> None:
    assert _judge(None, started_ns=NOW - 29 * S) is None
    assert _judge(None, started_ns=NOW - 31 * S) is Cause.BOOT


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.invariant(9, 29)
def test_a_stopped_process_is_ended_in_every_phase(phase: Phase) -> None:
    beat = _beat(phase, 0)
    assert _judge(beat, stopped_s=STOPPED_S - 0.1) is None
    assert _judge(beat, stopped_s=STOPPED_S + 0.1) is Cause.STOPPED


def test_a_job_has_a_time_limit_whatever_its_progress() -> None:
    beat = _beat(Phase.BUSY, 61, silent_s=0)
    assert _judge(beat, timeout_s=60) is Cause.OVERDUE
    assert _judge(beat, timeout_s=62) is None
    assert _judge(beat, timeout_s=None) is None
    assert _judge(_beat(Phase.IDLE, 61, silent_s=0), timeout_s=60) is None


@pytest.mark.parametrize(
    ("phase", "baseline", "rss", "limit", "cause"),
    [
        (Phase.BUSY, 500 * MB, 599 * MB, 100, None),
        (Phase.BUSY, 500 * MB, 601 * MB, 100, Cause.MEMORY),
        (Phase.BUSY, 500 * MB, 9999 * MB, None, None),
        (Phase.BUSY, 0, 9999 * MB, 100, None),  # the level after warm-up is not known yet
        (Phase.BUSY, 500 * MB, 0, 100, None),  # nobody could read it
        (Phase.IDLE, 500 * MB, 9999 * MB, 100, None),  # between jobs it is recycling's business
    ],
)
def test_memory_is_relative_to_the_level_after_warm_up(
    phase: Phase, baseline: int, rss: int, limit: int | None, cause: Cause | None
) -> None:
    engine = EngineConfig(name="echo", engine="a:B", memory_limit_mb=limit)
    assert _judge(_beat(phase, 1, baseline=baseline), engine, rss_bytes=rss) is cause


def test_the_sentence_names_the_key_to_change() -> None:
    def said(beat: Beat, **more: Any) -> str:
        return judge(ENGINE, beat, _since(NOW), started_ns=0, **more).sentence

    assert "boot_timeout_s (30 s)" in said(_beat(Phase.BOOTING, 31))
    assert "load_timeout_s (600 s)" in said(_beat(Phase.LOADING, 601))
    assert "warmup_timeout_s (300 s)" in said(_beat(Phase.WARMING, 301))
    assert "stall_timeout_s is 120" in said(_beat(Phase.BUSY, 200))
    assert "no progress for 200 s" in said(_beat(Phase.BUSY, 200))
    assert "memory_limit_mb is 100" in said(_beat(Phase.BUSY, 1), rss_bytes=700 * MB)
    assert "grew by 200 MB" in said(_beat(Phase.BUSY, 1), rss_bytes=700 * MB)


@given(st.sampled_from(list(Phase)), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e3), st.integers(0, 1 << 40))
def test_a_verdict_needs_no_more_than_its_facts(
    phase: Phase, since_s: float, silent_s: float, stopped_s: float, rss: int
) -> None:
    """Shifting every time by the same amount changes nothing: no clock but the boot clock has a say."""
    beat = _beat(phase, since_s, silent_s)
    one = judge(ENGINE, beat, _since(NOW), started_ns=NOW, stopped_s=stopped_s, rss_bytes=rss, timeout_s=1000)
    shift = 123_456 * S
    later = Beat(**{**beat.__dict__, "beat_ns": beat.beat_ns + shift, "phase_ns": beat.phase_ns + shift})
    more: dict[str, Any] = {"started_ns": NOW + shift, "stopped_s": stopped_s, "rss_bytes": rss, "timeout_s": 1000}
    two = judge(ENGINE, later, _since(NOW + shift), **more)
    assert one == two


def test_a_beat_from_the_future_is_well() -> None:
    """RACE: it was written between our look at the clock and at the file."""
    for phase in Phase:
        assert judge(ENGINE, _beat(phase, -1), _since(NOW), started_ns=NOW) == WELL


def test_who_is_to_blame() -> None:
    """A job is charged for what it did, and never for what we did to its worker."""
    assert {Cause.STALLED, Cause.OVERDUE, Cause.MEMORY}.isdisjoint(INNOCENT)
    assert {Cause.DRAIN, Cause.RECYCLE, Cause.CANCEL, Cause.SICK} <= INNOCENT
    assert INNOCENT <= PLANNED
    assert {Cause.BOOT, Cause.LOAD, Cause.WARMUP, Cause.SILENT}.isdisjoint(PLANNED)  # these say something of the slot
    assert KIND[Cause.STALLED] is KIND[Cause.OVERDUE] is FailureKind.TIMEOUT
    assert KIND[Cause.MEMORY] is FailureKind.RESOURCE
