"""`python -m pool.cluster server` from outside: alone, with users, and as one of three with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from scenarios.world import PATIENCE_S, wait_until

from cluster.rig import free_ports
from cluster.test_nats_server import tls  # noqa: F401
from pool.cluster.nats_server import LOOPBACK, Tls, healthy
from pool.cluster.topology import missing

COMMAND = [
    sys.executable,
    "-c",
    "import typer; from pool.cli.command import run; from pool.cluster.hosting import server; "
    "app = typer.Typer(); app.command()(server); run(app, 'server')",
]


class Served:
    """The command, at work."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.port, self.monitor = free_ports(2)
        argv = [*COMMAND, "--port", str(self.port), "--monitor", str(self.monitor), "--max-store-mb", "1000", *words]
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)

    def told(self) -> list[str]:
        """Its three lines once it serves."""
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().rstrip("\n") for _ in range(3)]
        assert all(lines), self.log.read_text()
        return lines

    def end(self) -> int:
        self.process.terminate()
        with self.process:
            return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def served(folder: Path, *words: str) -> Iterator[Served]:
    folder.mkdir(exist_ok=True)
    one = Served(folder, *words)
    try:
        yield one
    finally:
        one.process.kill()
        with one.process:
            one.process.wait(PATIENCE_S)


def refused(*words: str, folder: Path) -> str:
    done = subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 4, done.stderr
    return " ".join(done.stderr.split())


async def absent(url: str, **options: Any) -> tuple[str, ...]:
    client = await nats.connect(url, **options)
    try:
        return await missing(client.jetstream())
    finally:
        await client.close()


def test_on_loopback_everybody_here_may_use_it(tmp_path: Path) -> None:
    with served(tmp_path) as one:
        address = f"nats://{LOOPBACK}:{one.port}"
        assert one.told() == [
            f"serving {address} (kept in {tmp_path / 'nats'}); next:",
            f"  python -m pool.cluster node --server {address}",
            f'  FilePool("{address}")',
        ]
        assert len(asyncio.run(absent(address))) == 10  # the first client makes them, with its own settings
        assert not list((tmp_path / "nats").glob("*.password"))
        assert one.end() == 0


def test_elsewhere_it_has_users_and_all_that_they_need(tmp_path: Path) -> None:
    with served(tmp_path, "--host", "0.0.0.0", "--store", "kept") as one:
        first, node, client = one.told()
        assert first.startswith("serving nats://")
        assert node.endswith(f"--user node --password-file {tmp_path / 'kept' / 'node.password'}")
        assert client.endswith(f'?user=client&password_file={tmp_path / "kept" / "client.password"}")')
        password = (tmp_path / "kept" / "client.password").read_text().strip()
        assert asyncio.run(absent(f"nats://{LOOPBACK}:{one.port}", user="client", password=password)) == ()


@pytest.mark.long
def test_three_of_them_with_tls(tmp_path: Path, tls: Tls) -> None:  # noqa: F811
    ports = free_ports(3)
    peers = [word for port in ports for word in ("--peer", f"{LOOPBACK}:{port}")]
    secure = ["--tls-cert", str(tls.cert), "--tls-key", str(tls.key), "--tls-ca", str(tls.ca)]
    with contextlib.ExitStack() as stack:
        servers = []
        for number, port in enumerate(ports):
            words = ["--name", f"s{number}", "--peer-port", str(port), *peers, *secure]
            folder = tmp_path / str(number)
            (folder / "nats").mkdir(parents=True, mode=0o700)
            for name in ("admin", "client", "node", "route"):
                (folder / "nats" / f"{name}.password").write_text(f"p{name}")
            servers.append(stack.enter_context(served(folder, *words)))
        for one in servers:
            assert one.told()[0].startswith(f"serving tls://{LOOPBACK}:{one.port}")
            assert healthy(LOOPBACK, one.monitor)
        context = ssl.create_default_context(cafile=str(tls.ca))
        address = f"tls://{LOOPBACK}:{servers[0].port}"
        assert len(asyncio.run(absent(address, tls=context))) == 10
        assert servers[2].end() == 0  # hands over


@pytest.mark.long
def test_one_of_three_waits_for_the_others_and_ends_when_asked(tmp_path: Path) -> None:
    port, other = free_ports(2)
    words = ["--peer-port", str(port), "--peer", f"{LOOPBACK}:{port}", "--peer", f"{LOOPBACK}:{other}"]
    with served(tmp_path, *words) as one:
        wait_until(lambda: "Server is ready" in one.log.read_text(), "a server that looks for the others")
        assert not healthy(LOOPBACK, one.monitor)
        assert one.process.poll() is None
        assert one.end() == 0


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    assert "no address like" in refused("--peer", "10.0.0.1", folder=tmp_path)
    assert "belong together" in refused("--tls-cert", "a.crt", folder=tmp_path)
    both = ("--tls-cert", "a.crt", "--tls-key", "a.key")
    assert "give --tls-ca, too" in refused(*both, "--peer", "10.0.0.1:6222", folder=tmp_path)


def test_show_prints_what_nats_server_takes(tmp_path: Path) -> None:
    from pool.cluster.nats_server import program

    words = ["--show", "--host", "10.0.0.1", "--name", "a", "--peer", "10.0.0.1:6222", "--peer", "10.0.0.2:6222"]
    done = subprocess.run([*COMMAND, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "nats-server.conf").write_text(done.stdout)
    checked = subprocess.run([program(), "-c", "nats-server.conf", "-t"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert 'server_name: "a"' in done.stdout
    assert (tmp_path / "nats" / "node.password").read_text().strip() in done.stdout
