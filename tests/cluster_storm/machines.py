"""The machines of a storm: servers, nodes and branches, each in its place on the network, and how each is hurt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.rig import free_ports
from scenarios.world import ROOT, World, alive, kill, wait_until

from pool.cluster.nats_server import Passwords, Peers, Settings, configuration, healthy, program
from pool.cluster.topology import ensure
from pool.runfiles.server import supervisor_identity

from .clock import Clock
from .network import PREFIX, Network

PASSWORDS = Passwords("storm-admin", "storm-client", "storm-node")
LEASE_S = 4.0
DELIVERIES, RETRIES = 60, 90  # a storm hits one job more often than any network does
ENGINE = {
    "max_concurrent_tasks": 2,
    "threads": 1,
    "spares": 0,
    "retry_times": RETRIES,
    "start_limit": 1000,
    "bench_s": 2,
}


class Disk:
    """A disk of its own for one machine, or a folder where that is not to be had. It can be filled."""

    def __init__(self, path: Path, mb: int, *, own: bool) -> None:
        self.path, self.own = path, own
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if own:
            source = f"{PREFIX}{os.getpid()}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mb}m,mode=700", source, str(path)], check=True)

    def fill(self) -> None:
        """Until nothing fits any more."""
        with contextlib.suppress(OSError), open(self.path / "ballast", "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * (1 << 20))
        with contextlib.suppress(OSError), open(self.path / "ballast", "ab", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    def empty(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)


class Fleet:
    """Three nats-servers. sync: what is acknowledged is on the disk."""

    def __init__(self, folder: Path, network: Network, count: int, *, sync: bool, disks: bool) -> None:
        self.names = [f"s{number}" for number in range(count)]
        self.folder, self.network = folder, network
        addresses = [network.add(name) for name in self.names]
        ports = [(4222, 8222, 6222)] * count
        if len(set(addresses)) < count:
            free = free_ports(3 * count)
            ports = list(zip(free[::3], free[1::3], free[2::3], strict=True))
        routes = tuple(f"{host}:{three[2]}" for host, three in zip(addresses, ports, strict=True))
        self.disks, self.settings = {}, {}
        for name, host, (port, monitor, route) in zip(self.names, addresses, ports, strict=True):
            self.disks[name] = Disk(folder / name, 400, own=disks)
            self.settings[name] = Settings(
                store=folder / name / "store",
                host=host,
                port=port,
                name=name,
                monitor=monitor,
                monitor_host=host,
                max_store_mb=4000,
                max_memory_mb=256,
                sync=sync,
                passwords=PASSWORDS,
                peers=Peers(host, route, routes, password="storm-routes") if count > 1 else None,
            )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def urls(self) -> list[str]:
        return [f"nats://{one.host}:{one.port}" for one in self.settings.values()]

    def start(self, name: str) -> None:
        """Unless it runs."""
        process = self.processes.get(name)
        if process is not None and process.poll() is None:
            return
        settings = self.settings[name]
        settings.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{name}.conf"
        path.write_text(configuration(settings))
        argv = [*self.network.inside(name), program(), "-c", str(path)]
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self) -> None:
        """Until all of them serve."""
        for settings in self.settings.values():
            wait_until(lambda one=settings: healthy(one.host, int(one.monitor or 0)), f"server {settings.name}", 90)  # type: ignore[misc]

    def set_up(self) -> None:
        """Streams and buckets."""

        async def make() -> None:
            async with self.connected() as client:
                settings: dict[str, Any] = {"replicas": len(self.names), "max_waiting": 100_000}
                await ensure(
                    client.jetstream(timeout=20), result_s=86_400.0, lease_s=LEASE_S, patience_s=60, **settings
                )

        asyncio.run(make())

    @contextlib.asynccontextmanager
    async def connected(self) -> Any:
        """As admin."""
        import nats

        async def quiet(error: Exception) -> None:
            """One of the servers is away, as it is meant to be."""

        admin = {"user": "admin", "password": PASSWORDS.admin}
        client = await nats.connect(self.urls, connect_timeout=10, error_cb=quiet, **admin)
        try:
            yield client
        finally:
            await client.close()

    def leader(self, stream: str) -> str:
        """Name of the server that leads a stream; "" when none says so."""
        for settings in self.settings.values():
            address = f"http://{settings.host}:{settings.monitor}/jsz?streams=true&accounts=true"
            with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(address, timeout=1) as answer:
                for account in json.load(answer).get("account_details", ()):
                    for found in account.get("stream_detail", ()):
                        if found["name"] == stream and found.get("cluster", {}).get("leader"):
                            return str(found["cluster"]["leader"])
        return ""

    def depose(self, stream: str) -> None:
        """Ask the leader of a stream to step down."""

        async def ask() -> None:
            async with self.connected() as client:
                await client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout=3)

        with contextlib.suppress(Exception):
            asyncio.run(asyncio.wait_for(ask(), 6))

    def kill(self, name: str) -> None:
        process = self.processes[name]
        process.kill()
        process.wait()

    def signal(self, name: str, number: int) -> None:
        if self.processes[name].poll() is None:
            self.processes[name].send_signal(number)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


class Node(World):
    """A machine with workers and an agent."""

    def __init__(self, folder: Path, name: str, network: Network, fleet: Fleet, library: Path | None, *, disk: bool):
        self.disk = Disk(folder, 96, own=disk)
        super().__init__(folder)
        self.name, self.network = name, network
        network.add(name)
        self.witness = folder.parent / f"{name}-witness"  # not on the disk that is filled
        self.witness.mkdir(exist_ok=True)
        self.clock = Clock(folder.parent / f"{name}-witness", library) if library is not None else None
        self.agent: subprocess.Popen[bytes] | None = None
        password = folder / "password"
        password.write_text(PASSWORDS.node)
        cluster = {
            "servers": fleet.urls,
            "name": name,
            "user": "node",
            "password_file": str(password),
            "lease_s": LEASE_S,
            "deliveries": DELIVERIES,
            "cold_after_s": 0.5,
            "replicas": len(fleet.names),
        }
        self.configure(
            {"fake": {**ENGINE, "options": {"witness": str(self.witness)}}}, cluster=cluster, drain_grace_s=2
        )

    @property
    def environment(self) -> Mapping[str, str]:
        return {**os.environ, **(self.clock.environment if self.clock is not None else {})}

    def start(self) -> None:
        """Start the agent, unless it runs; it starts the pool."""
        if self.agent is not None and self.agent.poll() is None:
            return
        argv = [*self.network.inside(self.name), sys.executable, "-m", "pool.cluster", "node"]
        with open(self.folder.parent / f"{self.name}.log", "ab") as log:
            self.agent = subprocess.Popen(
                [*argv, "--config", str(self.config)],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def said(self) -> str:
        """The last words of the agent."""
        return (self.folder.parent / f"{self.name}.log").read_text(errors="replace")[-300:]

    def pid(self, whom: str) -> int | None:
        """Of the agent, the supervisor, or any worker."""
        if whom == "agent":
            return self.agent.pid if self.agent is not None and self.agent.poll() is None else None
        if whom == "supervisor":
            identity = self.supervisor()
            return identity.pid if identity is not None else None
        return next(iter(self.processes()), None)

    def lose(self) -> None:
        """Everything of this machine at once."""
        for _ in range(2):  # what was being started meanwhile
            for pid in (self.pid("agent"), self.pid("supervisor"), *self.processes()):
                if pid is not None:
                    kill(pid)
        if self.agent is not None:
            self.agent.wait()

    def end(self) -> int | None:
        """Drain; the exit code of the agent."""
        if self.agent is None or self.agent.poll() is not None:
            return None
        self.agent.terminate()
        try:
            return self.agent.wait(40)
        except subprocess.TimeoutExpired:
            self.agent.kill()
            self.agent.wait()
            return None

    def clear(self) -> None:
        """End all that is left."""
        self.lose()
        self.close()


class Branch:
    """A machine of clients: a spool, and processes that submit."""

    def __init__(self, folder: Path, name: str, network: Network, fleet: Fleet) -> None:
        self.name, self.network, self.folder = name, network, folder
        network.add(name)
        folder.mkdir(mode=0o700)
        self.outputs, self.history = folder / "files", folder.parent / f"{name}-history"
        for path in (self.outputs, self.history):
            path.mkdir(mode=0o700)
        (folder / "password").write_text(PASSWORDS.client)
        self.config, self.spool = folder / "config.json", folder / "spool"
        cluster = {"servers": fleet.urls, "user": "client", "password_file": "password", "lease_s": LEASE_S}
        document = {"spool": "spool", "min_free_mb": 0, "rescan_s": 0.5, "durable": False}
        self.config.write_text(json.dumps({**document, "cluster": {**cluster, "replicas": len(fleet.names)}}))
        self.world = World(folder)
        self.clients: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def client(self, seed: int, others: Path, how: str = "") -> subprocess.Popen[bytes]:
        """Another client. how: as client.py takes it."""
        self.started += 1
        name = f"{self.name}c{self.started}x{seed}"
        program_ = str(Path(__file__).resolve().parent / "client.py")
        argv = [sys.executable, program_, str(self.config), str(self.history), name, str(self.outputs), str(others)]
        with open(self.folder.parent / f"{self.name}.err", "ab") as said:
            client = subprocess.Popen(
                [*self.network.inside(self.name), *argv, how],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self.clients.append(client)
        return client

    def port(self) -> int | None:
        """The process that serves the branch."""
        identity = supervisor_identity(self.spool / "run" / "supervisor.json")
        return identity.pid if identity is not None and identity.alive() else None

    def stop_clients(self) -> None:
        for client in self.clients:
            kill(client.pid, signal.SIGKILL)
            client.wait()
        self.clients = []

    def close(self) -> None:
        self.stop_clients()
        port = self.port()
        if port is not None:
            kill(port, signal.SIGCONT)
            kill(port, signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not alive(port), "the port ends", 30)
            kill(port)


def resident_mb(pid: int | None) -> float:
    """Memory of a process, 0.0 when it is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def uses_shared_memory(pid: int | None) -> bool:
    """Whether a process has mapped or opened anything in /dev/shm."""
    with contextlib.suppress(OSError):
        if "/dev/shm/" in Path(f"/proc/{pid}/maps").read_text():
            return True
        return any(os.readlink(entry).startswith("/dev/shm/") for entry in _descriptors(pid))
    return False


def _descriptors(pid: int | None) -> Iterator[str]:
    for entry in os.scandir(f"/proc/{pid}/fd"):
        yield entry.path


def free(folder: Path) -> None:
    """Remove the folder of a storm with its disks."""
    from .network import remove_disks

    remove_disks(f"{PREFIX}{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
