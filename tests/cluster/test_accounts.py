"""A cluster as docs/CLUSTER.md sets it up, with TLS, nodes as the user node and clients as the user client: the servers
refuse nothing that they do."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
from scenarios.world import ROOT, wait_until

from cluster.machines import LEASE_S, Cluster, Machine, cluster
from cluster.rig import Servers
from pool import FilePool, JobFailed
from pool.cluster.nats_server import Passwords, Tls
from pool.cluster.topology import ensure
from pool.job import JobState

LONG_S = 90.0
PASSWORDS = Passwords("of-admin", "of-client", "of-node")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates, made by the commands of docs/CLUSTER.md, and a file for each password."""
    folder = tmp_path_factory.mktemp("secrets")
    page = (ROOT / "docs" / "CLUSTER.md").read_text("utf-8")
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "openssl req" in text]
    commands = block.replace("IP:10.0.0.1", "IP:127.0.0.1")
    subprocess.run(["bash", "-euc", commands], cwd=folder, check=True, capture_output=True)
    for user in ("admin", "client", "node"):
        (folder / f"{user}.password").write_text(getattr(PASSWORDS, user) + "\n")
    return folder


@pytest.fixture
def joined(secrets: Path, tmp_path: Path) -> Iterator[Cluster]:
    tls = Tls(secrets / "nats-a.crt", secrets / "nats-a.key", secrets / "ca.crt")
    with Servers(tmp_path / "nats", passwords=PASSWORDS, tls=tls) as servers:
        asyncio.run(_create(servers, secrets))
        with cluster(tmp_path / "machines", servers.url) as joined:
            yield joined
        log = (tmp_path / "nats" / "server0.log").read_text(errors="replace")
        assert "iolation" not in log, "\n".join(line for line in log.splitlines() if "iolation" in line)


async def _create(servers: Servers, secrets: Path) -> None:
    context = ssl.create_default_context(cafile=str(secrets / "ca.crt"))
    client = await nats.connect(servers.url, user="admin", password=PASSWORDS.admin, tls=context)
    try:
        await ensure(client.jetstream(), replicas=1, max_waiting=1000, result_s=86_400.0, lease_s=LEASE_S)
    finally:
        await client.close()


def _node(joined: Cluster, name: str, secrets: Path) -> Machine:
    user = {"user": "node", "password_file": str(secrets / "node.password"), "tls_ca": str(secrets / "ca.crt")}
    return joined.node(name, {"fake": {"max_concurrent_tasks": 2}}, result_hours=24.0, **user)


def _client(joined: Cluster, name: str, secrets: Path) -> FilePool:
    """One whose branch is named by the address alone."""
    joined.how = f"&user=client&password_file={secrets / 'client.password'}&tls_ca={secrets / 'ca.crt'}"
    return joined.pool(name)


@pytest.mark.long
def test_everything_that_clients_and_nodes_do_is_allowed(joined: Cluster, secrets: Path, tmp_path: Path) -> None:
    first = _node(joined, "first", secrets)
    mine, other = (_client(joined, name, secrets) for name in ("mine", "other"))
    wait_until(lambda: mine.status().nodes and other.status().nodes, "both clients see the node", LONG_S)
    # media in, media out
    talk, film = tmp_path / "talk.wav", tmp_path / "film.bin"
    talk.write_bytes(b"talk" * 100_000)
    assert mine.submit("fake", audio=str(talk), value="heard").result(LONG_S)["value"] == "heard"
    mine.submit("fake", do="write", mb=2, output=str(film)).result(LONG_S)
    assert film.stat().st_size == 2 << 20
    # attach, given ids
    given = mine.submit("fake", id="given", do="write", mb=1)
    given.result(LONG_S)
    there = other.attach("given")
    there.result(LONG_S)
    assert there.record is not None
    assert Path(there.record.files[0]["path"]).stat().st_size == 1 << 20
    # progress, cancel: a job that runs, one that waits, one of another client
    runs = [mine.submit("fake", do="sleep", seconds=600) for _ in range(2)]
    wait_until(lambda: all(one.running() for one in runs), "they run", LONG_S)
    waits = mine.submit("fake", do="sleep", seconds=600)
    assert runs[0].cancel()
    assert other.cancel(runs[1].id)
    assert waits.cancel()
    for one in (*runs, waits):
        wait_until(one.done, "it is cancelled", LONG_S)
        assert mine.state(one.id) is JobState.CANCELLED
    # failed, and again
    bad = mine.submit("fake", do="input")
    assert isinstance(bad.exception(LONG_S), JobFailed)
    mine.retry(bad.id)
    assert isinstance(mine.attach(bad.id).exception(LONG_S), JobFailed)
    # drain, take-over
    futures = mine.submit_many("fake", [{"do": "sleep", "seconds": 0.5, "value": n} for n in range(6)])
    wait_until(lambda: any(one.running() for one in futures), "some run", LONG_S)
    second = _node(joined, "second", secrets)
    assert first.agent is not None
    first.agent.terminate()
    assert [one.result(LONG_S)["value"] for one in futures] == list(range(6))
    lost = mine.submit("fake", do="sleep", seconds=1.0, value="saved")
    wait_until(lost.running, "it runs", LONG_S)
    second.lose()
    _node(joined, "third", secrets)
    assert lost.result(LONG_S)["value"] == "saved"
