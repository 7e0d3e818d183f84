"""What an engine has saved of a job is there for the next attempt, and for nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from steps import JobMaker, claim_next, seat

from pool.constants import MAX_CHECKPOINT_BYTES
from pool.errors import ProtocolError
from pool.job import Failure, JobState
from pool.policy.retries import Retries
from pool.runfiles.heartbeat import Heartbeat
from pool.spool import checkpoints, settlement
from pool.spool.checkpoints import checkpoint_path
from pool.spool.store import Claim, Spool
from pool.supervise.retention import sweep_remains
from pool.work.context import JobContext

Attempt = Callable[..., tuple[Claim, JobContext]]
KEY = b"k" * 32
ENDED = Failure("infrastructure", "its worker died", "run", 1)


@pytest.fixture
def attempt(spool: Spool, make_job: JobMaker, beat: Heartbeat) -> Attempt:
    """Begin the next attempt at the job "mine"."""
    spool.submit(make_job(id="mine"))

    def begin(key: bytes = KEY) -> tuple[Claim, JobContext]:
        claim = claim_next(spool, seat(spool))
        context = JobContext(spool, spool.read_claim(claim), claim.name, beat)
        context.key = lambda: key
        return claim, context

    return begin


def fail(spool: Spool, claim: Claim, *, retries: int = 5) -> None:
    settlement.settle(spool, claim, spool.read_claim(claim), ENDED, settlement.Again(Retries(retries), delay_s=0))


def left(spool: Spool) -> list[str]:
    return os.listdir(spool.root / "run" / "checkpoints")


def test_the_next_attempt_goes_on_from_what_was_saved_last(spool: Spool, attempt: Attempt) -> None:
    claim, context = attempt()
    assert context.restore() is None
    context.checkpoint({"at": 1})
    context.checkpoint({"at": 2, "sound": np.arange(3, dtype=np.float16), "raw": b"\0\1"})
    context.close()
    fail(spool, claim)
    _, following = attempt()
    state = following.restore()
    assert (state["at"], state["sound"].tolist(), state["raw"]) == (2, [0, 1, 2], b"\0\1")
    assert following.attempt == 2


def test_an_attempt_that_was_given_back_goes_on(spool: Spool, attempt: Attempt) -> None:
    claim, context = attempt()
    context.checkpoint({"at": 1})
    spool.release(claim)
    _, following = attempt()
    assert (following.attempt, following.restore()) == (1, {"at": 1})


def test_a_state_that_ended_an_attempt_is_not_used_twice(
    spool: Spool, attempt: Attempt, capfd: pytest.CaptureFixture[str]
) -> None:
    claim, context = attempt()
    context.checkpoint({"at": 1})
    fail(spool, claim)
    claim, context = attempt()
    assert context.restore() == {"at": 1}
    fail(spool, claim)
    _, context = attempt()
    assert context.restore() is None
    assert "attempt 2 ended before it came further than" in capfd.readouterr().err


def test_a_state_of_something_else_is_not_used(
    spool: Spool, attempt: Attempt, capfd: pytest.CaptureFixture[str]
) -> None:
    claim, context = attempt()
    context.checkpoint({"at": 1})
    fail(spool, claim)
    _, context = attempt(key=b"x" * 32)
    assert context.restore() is None
    assert "is of other parameters, another input or another engine" in capfd.readouterr().err


def flipped(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda data: data[:-3], flipped, lambda _: b"\xc0", lambda _: b"\x95\x02\0\0\0\0", lambda _: b"no"],
    ids=["empty", "cut", "flipped", "nothing", "version", "text"],
)
def test_a_damaged_one_is_not_used_and_told(
    spool: Spool, attempt: Attempt, capfd: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    claim, context = attempt()
    context.checkpoint({"at": "there"})
    path = Path(checkpoint_path(spool, "mine"))
    path.write_bytes(damage(path.read_bytes()))
    fail(spool, claim)
    _, context = attempt()
    assert context.restore() is None
    assert str(path) in capfd.readouterr().err
    context.checkpoint({"at": "again"})
    assert context.restore() == {"at": "again"}


def test_one_that_is_too_large_leaves_the_one_before(
    spool: Spool, attempt: Attempt, capfd: pytest.CaptureFixture[str]
) -> None:
    _, context = attempt()
    context.checkpoint({"at": 1})
    context.checkpoint({"at": bytes(MAX_CHECKPOINT_BYTES)})
    assert context.restore() == {"at": 1}
    assert f"{MAX_CHECKPOINT_BYTES} are allowed" in capfd.readouterr().err


def test_a_full_disk_leaves_the_one_before(
    spool: Spool, attempt: Attempt, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, context = attempt()
    context.checkpoint({"at": 1})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pool.spool.fsops.put", full)
        context.checkpoint({"at": 2})
    assert context.restore() == {"at": 1}
    assert "was not saved" in capfd.readouterr().err


def test_what_cannot_be_stored_is_the_engines_mistake(attempt: Attempt) -> None:
    _, context = attempt()
    with pytest.raises(ProtocolError, match="a set cannot be stored"):
        context.checkpoint({"at": {1, 2}})


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_it_goes_when_the_job_ends(spool: Spool, attempt: Attempt, state: JobState) -> None:
    claim, context = attempt()
    context.checkpoint({"at": 1})
    settlement.end(spool, claim, spool.read_claim(claim), state, ENDED)
    assert left(spool) == []


def test_a_job_that_runs_again_has_none(spool: Spool, attempt: Attempt) -> None:
    claim, _ = attempt()
    fail(spool, claim, retries=0)
    checkpoints.save(spool, "mine", KEY, 1, b"\x80")  # as if a crash had left it
    (entry,) = os.listdir(spool.root / "dead")
    spool.requeue(entry, "echo", claim.name)
    assert left(spool) == []


def test_what_a_crash_leaves_is_swept_but_not_that_of_a_job_that_waits(spool: Spool, attempt: Attempt) -> None:
    claim, context = attempt()
    context.checkpoint({"at": 1})
    fail(spool, claim)
    checkpoints.save(spool, "gone", KEY, 1, b"\x80")
    sweep_remains(spool)
    assert left(spool) == ["mine"]


def test_a_call_of_a_map_job_has_none(spool: Spool, attempt: Attempt) -> None:
    _, context = attempt()
    context.key = None
    context.checkpoint({"at": 1})
    assert context.restore() is None
    assert left(spool) == []
