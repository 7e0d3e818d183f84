"""The connection's helpers."""

from __future__ import annotations

import asyncio
import gc
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo
from nats.js.kv import KeyValue
from scenarios.world import wait_until

from cluster.rig import Servers
from pool.cluster import complaints
from pool.cluster.complaints import Complaints
from pool.cluster.link import Link
from pool.cluster.nats_server import Passwords
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


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged, in a minute that does not end."""
    monkeypatch.setattr(complaints, "_EACH_S", math.inf)
    lines: list[str] = []
    number = logger.add(lambda line: lines.append(str(line)), level="INFO", format="{message}")
    yield lines
    logger.remove(number)


PASSWORDS = Passwords("of-admin", "of-client", "of-node")


def refusals(servers: Servers, count: int) -> None:
    wait_until(lambda: servers.whole_log().count("authentication error") >= count, f"{count} refusals", 90)


@pytest.fixture
def _collected() -> Iterator[None]:
    """nats-py leaves the sockets of connections that are refused to the collector of garbage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.mark.usefixtures("_collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_wrong_password_is_said_once(tmp_path: Path, said: list[str]) -> None:
    """Of two connections that share what they say, and however often they are refused."""
    (tmp_path / "password").write_text("wrong")
    with Servers(tmp_path / "nats", passwords=PASSWORDS) as servers:
        config = replace(ClusterConfig(), servers=(servers.url,), user="node", password_file=tmp_path / "password")

        async def steps() -> None:
            one = Link(config, "one")
            other = Link(config, "other", one.complain)
            opening = [asyncio.create_task(link.open()) for link in (one, other)]
            await asyncio.to_thread(refusals, servers, 8)
            await ended_all(opening)
            assert "refuses this user" in one.away
            for link in (one, other):
                await link.close()

        asyncio.run(steps())
    assert [line for line in said if "refuses this user" in line] == said
    assert len(said) == 1


@pytest.mark.usefixtures("_collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_password_that_is_no_longer_good_is_said_once(tmp_path: Path, said: list[str]) -> None:
    """However many wait for the servers, and however often these refuse it."""
    (tmp_path / "password").write_text(PASSWORDS.node)
    with Servers(tmp_path / "nats", passwords=PASSWORDS) as servers:
        config = replace(ClusterConfig(), servers=(servers.url,), user="node", password_file=tmp_path / "password")

        async def steps() -> None:
            link = await Link(config, "one").open()
            before = servers.settings[0]
            await asyncio.to_thread(servers.kill)
            servers.settings[0] = replace(before, passwords=replace(PASSWORDS, node="another"))
            await asyncio.to_thread(servers.start)

            async def ask() -> None:
                await link.client.request("anybody", b"", timeout=0.01)

            waiting = [asyncio.create_task(link.until_done(ask, f"job {n}")) for n in range(20)]
            await asyncio.to_thread(refusals, servers, 8)
            await asyncio.wait(waiting, timeout=0.01)
            await ended_all(waiting)
            await link.close()

        asyncio.run(steps())
    assert any("refuses this user" in line for line in said)
    assert len(said) == len(set(said)) <= 6, said


@given(st.lists(st.tuples(st.integers(0, 100), st.sampled_from("abc")), max_size=60))
def test_each_complaint_once_a_minute(comings: list[tuple[int, str]]) -> None:
    at, said = 0, list[tuple[int, str]]()
    number = logger.add(lambda line: said.append((at, str(line)[0])), level="INFO", format="{message}")
    try:
        complain = Complaints(lambda: at)
        for pause, reason in comings:
            at += pause
            complain(reason, reason)
            mine = [when for when, what in said if what == reason]
            assert at - mine[-1] < 60
            assert all(after - before >= 60 for before, after in pairwise(mine))
    finally:
        logger.remove(number)


@pytest.mark.parametrize("key", ["tls_ca", "tls_cert"])
def test_a_certificate_that_is_not_there_is_named(tmp_path: Path, key: str) -> None:
    config = replace(ClusterConfig(), servers=("tls://127.0.0.1:4222",), **{key: tmp_path / "no.crt"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no\.crt cannot be used"):
        asyncio.run(Link(config, "test").open(patience_s=0.0))


# ---- buckets


@pytest.fixture
def late_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a watch is sent always comes after the answer that nothing is left to send."""
    asked = JetStreamContext.PushSubscription.consumer_info

    async def answer(subscription: JetStreamContext.PushSubscription) -> ConsumerInfo:
        info = await asked(subscription)
        info.num_pending = subscription.delivered = 0  # type: ignore[misc]
        return info

    monkeypatch.setattr(JetStreamContext.PushSubscription, "consumer_info", answer)


@pytest.mark.usefixtures("late_entries")
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_bucket_is_read_whole(tmp_path: Path, count: int) -> None:
    """None comes after all the entries that there are, also when they come late."""
    taken: list[str | None] = []

    async def take(entry: KeyValue.Entry | None) -> None:
        taken.append(entry.key if entry is not None else None)

    async def steps(servers: Servers) -> None:
        link = await Link(ClusterConfig(servers=(servers.url,)), "reader").open()
        bucket = await link.js.create_key_value(bucket="some")
        names = [f"key{number}" for number in range(count)]
        for name in names:
            await bucket.put(name, b"x")
        await link.follow("some", take, anew_s=1.5)
        await link.close()
        assert taken == [*names, None]

    with Servers(tmp_path / "nats") as servers:
        asyncio.run(steps(servers))
