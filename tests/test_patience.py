"""How long a hopeless wait lasts, by a clock that the test drives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pool.client import patience
from pool.client.filepool import FilePool
from pool.client.patience import Patience
from pool.config.settings import Config
from pool.errors import EngineUnavailable


def test_looks_that_are_far_apart_use_patience_up(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy looks seldom: such a wait ends all the same, and not because the machine slept once."""
    now = 1000.0
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now))
    pool = FilePool(config, start=False, patience=12)
    try:
        future = pool.submit("echo")
        future.add_done_callback(lambda _: None)
        ended: list[EngineUnavailable] = []
        hopeless = Patience(pool.spool, lambda: None, lambda _, error: ended.append(error))
        for at in (0, 3600, 3660):
            now = 1000.0 + at
            hopeless.look([future])
            assert ended == []
        now += 60
        hopeless.look([future])
        assert "no supervisor serves this spool" in str(ended[0])
    finally:
        pool.close()
