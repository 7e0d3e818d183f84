"""Streams and buckets on real servers: made once by many at a time, kept as they are, not made by those who may not."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.errors import APIError, KeyWrongLastSequenceError, NotFoundError
from scenarios.world import wait_until

from cluster.rig import Servers, free_ports
from pool.cluster import accounts, topology, wire
from pool.cluster.nats_server import LOOPBACK, Passwords, healthy, program
from pool.cluster.topology import TopologyError, ensure, missing

ASKED: dict[str, Any] = {"replicas": 1, "max_waiting": 100, "result_s": 3600.0, "lease_s": 30.0}
PASSWORDS = Passwords("for-admin", "for-client", "for-node")


def test_everything_is_made_and_a_second_time_nothing_is_said(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        async with servers.connected() as client:
            js = client.jetstream()
            assert len(await missing(js)) == len(accounts.STREAMS)
            assert await ensure(js, **ASKED) == ()
            assert await ensure(js, **ASKED) == ()
            assert await missing(js) == ()
            made = {info.config.name for info in await js.streams_info()}
            assert made == set(accounts.STREAMS)
            for bucket in accounts.BUCKETS:
                kv = await js.key_value(bucket)
                await kv.create("a.b.0", b"x")
                assert (await kv.get("a.b.0")).value == b"x"
                with pytest.raises(KeyWrongLastSequenceError):
                    await kv.create("a.b.0", b"y")
            store = await js.object_store(wire.MEDIA)
            await store.put("f" * 64, b"film")
            assert (await store.get("f" * 64)).data == b"film"

    with Servers(tmp_path) as servers:
        asyncio.run(steps(servers))


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_result_counts_whatever_a_later_one_tries(tmp_path: Path, count: int) -> None:
    async def steps(servers: Servers) -> None:
        async with servers.connected() as client:
            kv = await client.jetstream().key_value(wire.RESULTS)
            first = await kv.create("a.b.0", b"first")
            with pytest.raises(KeyWrongLastSequenceError):
                await kv.create("a.b.0", b"second")
            for late in (
                kv.put("a.b.0", b"x"),
                kv.update("a.b.0", b"x", last=first),
                kv.delete("a.b.0"),
                kv.purge("a.b.0"),
            ):
                with pytest.raises(APIError):
                    await late
            assert (await kv.get("a.b.0")).value == b"first"

    with Servers(tmp_path, count) as servers:
        asyncio.run(servers.ensure())
        asyncio.run(steps(servers))


@pytest.mark.long
def test_many_at_once(tmp_path: Path) -> None:
    async def one(servers: Servers, max_waiting: int) -> tuple[str, ...]:
        async with servers.connected() as client:
            return await ensure(client.jetstream(), **{**ASKED, "replicas": 3, "max_waiting": max_waiting})

    async def steps(servers: Servers) -> None:
        notes = await asyncio.gather(*(one(servers, 100 + index % 2) for index in range(12)))
        told = [note for each in notes for note in each]
        assert len([each for each in notes if each]) == 6  # those whose number is not the one that came first
        assert all(note.startswith(f"{wire.JOBS}: has 10") and "jobs at most" in note for note in told)

    with Servers(tmp_path, 3) as servers:
        asyncio.run(steps(servers))


def test_a_stream_that_another_machine_creates_and_that_is_not_seen_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is taken as soon as the leader knows it; the server that is asked may know it later."""

    async def steps(servers: Servers) -> None:
        async with servers.connected() as client:
            js = client.jetstream()
            await ensure(js, **ASKED)
            look, asked = js.stream_info, Counter[str]()

            async def late(name: str) -> Any:
                asked[name] += 1
                if name == wire.JOBS and asked[name] < 4:
                    raise NotFoundError
                return await look(name)

            monkeypatch.setattr(js, "stream_info", late)
            (note,) = await ensure(js, **{**ASKED, "max_waiting": 50})
            assert "has 100 jobs at most" in note

    with Servers(tmp_path) as servers:
        asyncio.run(steps(servers))


def test_what_exists_stays_and_is_told(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        async with servers.connected() as client:
            js = client.jetstream()
            await ensure(js, **ASKED)
            notes = await ensure(js, **{**ASKED, "max_waiting": 50, "lease_s": 9.0})
            assert notes == (
                f"{wire.JOBS}: has 100 jobs at most, 50 asked for; it stays as it is",
                f"KV_{wire.NODES}: has 30 seconds kept, 9 asked for; it stays as it is",
            )
            assert (await js.stream_info(wire.JOBS)).config.max_msgs == 100

    with Servers(tmp_path) as servers:
        asyncio.run(steps(servers))


def test_a_full_stream_refuses_and_a_job_that_is_sent_twice_is_stored_once(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        async with servers.connected() as client:
            js = client.jetstream()
            await ensure(js, **{**ASKED, "max_waiting": 2})
            subject = wire.subject("echo", (), "normal")
            first = await js.publish(subject, b"1", headers={"Nats-Msg-Id": "a"})
            again = await js.publish(subject, b"1", headers={"Nats-Msg-Id": "a"})
            assert again.duplicate
            assert again.seq == first.seq
            await js.publish(subject, b"2")
            with pytest.raises(APIError, match="maximum messages exceeded"):
                await js.publish(subject, b"3")
            with pytest.raises(APIError):  # nobody takes a job out but by doing it
                await js.delete_msg(wire.JOBS, first.seq)

    with Servers(tmp_path) as servers:
        asyncio.run(steps(servers))


@pytest.mark.long
def test_streams_outlive_their_servers(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        async with servers.connected() as client:
            await client.jetstream().publish(wire.subject("echo", (), "high"), b"job")
        servers.restart()
        await servers.settled()
        async with servers.connected() as client:
            js = client.jetstream()
            assert await missing(js) == ()
            assert (await js.stream_info(wire.JOBS)).state.messages == 1
            await js.publish("filepool.events.a.b", b"event")

    for count in (1, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        with Servers(folder, count, sync=True) as servers:
            asyncio.run(servers.ensure())
            asyncio.run(steps(servers))


def test_a_client_uses_what_an_admin_made_and_makes_nothing(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        for user in ("client", "node"):
            async with servers.connected(user) as client:
                with pytest.raises(TopologyError, match=r"does not exist, and this user may not create it.* setup"):
                    await ensure(client.jetstream(), **ASKED)
        await servers.ensure(**ASKED)
        for user in ("client", "node"):
            async with servers.connected(user) as client:
                assert await ensure(client.jetstream(), **ASKED) == ()
                notes = await ensure(client.jetstream(), **{**ASKED, "max_waiting": 7})
                assert len(notes) == 1

    with Servers(tmp_path, passwords=PASSWORDS) as servers:
        asyncio.run(steps(servers))


def test_replicas_need_servers(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        async with servers.connected() as client:
            with pytest.raises(TopologyError, match=r"set cluster\.replicas to 1"):
                await ensure(client.jetstream(), **{**ASKED, "replicas": 3})

    with Servers(tmp_path) as servers:
        asyncio.run(steps(servers))


def test_without_a_majority_it_says_so(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        servers.kill(0, 1)
        async with servers.connected(index=2) as client:
            with pytest.raises(TopologyError, match=r"fewer than half of them are up|too few servers are up"):
                await ensure(client.jetstream(timeout=1), **{**ASKED, "replicas": 3}, patience_s=2)

    with Servers(tmp_path, 3) as servers:
        asyncio.run(steps(servers))


def test_it_waits_for_a_server_that_is_not_up_yet(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        async with servers.connected(index=0) as client:
            asked = asyncio.create_task(ensure(client.jetstream(), **{**ASKED, "replicas": 3}, patience_s=60))
            done, _ = await asyncio.wait([asked], timeout=0.5)
            assert not done, asked.exception()
            await asyncio.to_thread(servers.start, 2)
            assert await asked == ()

    with Servers(tmp_path, 3) as servers:
        servers.kill(2)
        asyncio.run(steps(servers))


def test_subjects_of_another_stream_are_told(tmp_path: Path) -> None:
    async def steps(servers: Servers) -> None:
        async with servers.connected() as client:
            js = client.jetstream()
            await js.add_stream(name="OTHER", subjects=["filepool.jobs.echo.>"])
            with pytest.raises(TopologyError, match="FILEPOOL_JOBS cannot be created: another stream has its subjects"):
                await ensure(js, **ASKED)

    with Servers(tmp_path) as servers:
        asyncio.run(steps(servers))


def test_a_server_without_jetstream(tmp_path: Path) -> None:
    port, monitor = free_ports(2)
    argv = [program(), "-a", LOOPBACK, "-p", str(port), "-m", str(monitor)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def steps() -> None:
        client = await nats.connect(f"nats://{LOOPBACK}:{port}")
        try:
            with pytest.raises(TopologyError, match="JetStream is off"):
                await ensure(client.jetstream(), **ASKED)
        finally:
            await client.close()

    try:
        wait_until(lambda: healthy(LOOPBACK, monitor), "a server")
        asyncio.run(steps())
    finally:
        process.kill()
        process.wait()


def test_the_streams_are_those_of_the_accounts() -> None:
    made = topology.streams(replicas=1, max_waiting=1, result_s=1, lease_s=1)
    assert {config.name for config in made} == set(accounts.STREAMS)
