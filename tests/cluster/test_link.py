"""The connection's helpers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pool.cluster.link import Link
from pool.cluster.tasks import ended_all
from pool.config.settings import ClusterConfig
from pool.errors import ConfigError


def test_a_task_that_lost_its_cancellation_is_cancelled_again() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(3600)

    async def broken() -> None:
        raise ValueError

    async def steps() -> None:
        tasks = [asyncio.create_task(stubborn()), asyncio.create_task(broken())]
        await asyncio.sleep(0)
        await ended_all(tasks)
        assert tasks[0].cancelled()

    asyncio.run(steps())


@pytest.mark.parametrize("key", ["tls_ca", "tls_cert"])
def test_a_certificate_that_is_not_there_is_named(tmp_path: Path, key: str) -> None:
    config = replace(ClusterConfig(), servers=("tls://127.0.0.1:4222",), **{key: tmp_path / "no.crt"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no\.crt cannot be used"):
        asyncio.run(Link(config, "test").open(patience_s=0.0))
