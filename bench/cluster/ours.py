"""filepool's cluster: the commands of docs/CLUSTER.md, each node and the client on a spool of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench import harness
from bench.cluster.system import LONG_S, MEDIA_BYTES, WORKERS, System, family, me
from bench.peers.local import Value
from bench.peers.peer import ROOT, Handle, end, free_port, kill, spawn, until

LEASE_S = 5.0
ENGINE = "work"
HOST = "127.0.0.1"


class OneServer(System):
    """One server, whose acknowledged messages are on the disk."""

    key, title, package = "one", "filepool, 1 server", "filepool"
    setting = f"durable spools, sync_interval always, lease_s {LEASE_S:g}"
    media = "a file by its path"
    servers = 1

    def start(self) -> None:
        """Start the servers, and a client with its port."""
        from pool import FilePool

        self._agents: list[subprocess.Popen[bytes]] = []
        self._served: list[subprocess.Popen[bytes]] = []
        self._urls = self._serve()
        self._shared = str(self.witness())  # a path that is no file goes to other machines only so
        os.environ["FILEPOOL_BRANCHES"] = str(self.place / "branches")
        self._pool = FilePool(
            f"{','.join(self._urls)}?lease_s={LEASE_S}&replicas={self.servers}&shared={quote(self._shared)}"
        )
        self._branch = Path(self._pool.spool.root)

    def _serve(self) -> list[str]:
        from pool.cluster.nats_server import healthy, route_password

        config = self.place / "server.json"
        config.write_text(json.dumps({"spool": "unused", "cluster": {"replicas": self.servers}}))
        numbers = range(self.servers)
        ports, monitors, routes = ([free_port() for _ in numbers] for _ in range(3))
        stores = [self.place / f"server{number}" for number in numbers]
        for number, store in enumerate(stores):
            command = [sys.executable, "-m", "pool.cluster", "server", "--config", str(config), "--store", str(store)]
            command += ["--port", str(ports[number]), "--monitor", str(monitors[number]), "--max-store-mb", "4000"]
            if self.servers > 1:
                secret = route_password(stores[0])
                store.mkdir(mode=0o700, exist_ok=True)
                (store / "route.password").write_text(secret)
                command += ["--name", f"server{number}", "--peer-port", str(routes[number])]
                command += [word for route in routes for word in ("--peer", f"{HOST}:{route}")]
            self._served.append(spawn(command, self.place / f"server{number}.log"))
        for monitor in monitors:
            until(lambda monitor=monitor: healthy(HOST, monitor), "nats-server")  # type: ignore[misc]
        return [f"nats://{HOST}:{port}" for port in ports]

    def add_node(self) -> None:
        """Start an agent, which starts the pool of its node."""
        name = f"node{len(self._agents)}"
        folder = self.place / name
        folder.mkdir()
        cluster: dict[str, Any] = {"servers": self._urls, "name": name, "lease_s": LEASE_S, "replicas": self.servers}
        cluster["shared"] = [self._shared]
        engine = {"engine": "bench.cluster.work:Work", "workers": WORKERS}
        config = harness.write_config(folder, {ENGINE: engine}, cluster=cluster)
        command = [sys.executable, "-m", "pool.cluster", "node", "--config", str(config)]
        self._agents.append(spawn(command, self.place / f"{name}.log"))
        harness.wait_warm(folder / "spool", WORKERS)
        until(lambda: self._offers(name), f"{name} in the cluster")

    def _offers(self, name: str) -> bool:
        """Whether the client knows the node, and that all of its workers serve."""
        from pool.runfiles import nodes

        known = nodes.read(self._branch)
        found = [node for node in known.nodes if node.name == name] if known is not None else []
        return any(about.get("serving", 0) >= WORKERS for node in found for about in node.engines.values())

    def submit(self, task: str, *args: object) -> Handle:
        """Hand out one task."""
        return Value(self._pool.submit(ENGINE, task=task, args=list(args)))

    def burst(self, count: int) -> list[int]:
        """With submit_many."""
        futures = self._pool.submit_many(ENGINE, [{"task": "echo", "args": [number]} for number in range(count)])
        return [int(future.result(LONG_S)["value"]) for future in futures]

    def bring_in(self, content: bytes) -> float:
        """Seconds for a job that reads a file of the client."""
        path = self.place / f"in-{os.urandom(4).hex()}.bin"
        path.write_bytes(content)
        begun = time.perf_counter()
        assert self._pool.submit(ENGINE, task="take", file=str(path)).result(LONG_S)["value"] == len(content)
        return time.perf_counter() - begun

    def bring_out(self, number: int) -> float:
        """Seconds for a job that writes a file, until it lies where the client wants it."""
        path = self.place / f"out-{number}.bin"
        begun = time.perf_counter()
        self._pool.submit(ENGINE, task="give", output=str(path), size=MEDIA_BYTES).result(LONG_S)
        spent = time.perf_counter() - begun
        assert path.stat().st_size == MEDIA_BYTES
        return spent

    def nodes(self) -> list[list[int]]:
        """The live processes of each node."""
        return [
            [*([agent.pid] if agent.poll() is None else []), *self._supervisor(number), *self._workers(number)]
            for number, agent in enumerate(self._agents)
        ]

    def kinds(self) -> dict[str, list[int]]:
        """All processes by what they are."""
        numbers = range(len(self._agents))
        return {
            "client": me(),
            "port": [pid for pid in (harness.supervisor_pid(self._branch),) if pid is not None],
            "server": [pid for server in self._served for pid in family(server.pid)[1:]],
            "server's command": [server.pid for server in self._served],
            "agent": [agent.pid for agent in self._agents if agent.poll() is None],
            "supervisor": [pid for number in numbers for pid in self._supervisor(number)],
            "worker": [pid for number in numbers for pid in self._workers(number)],
        }

    def _supervisor(self, number: int) -> list[int]:
        pid = harness.supervisor_pid(self.place / f"node{number}" / "spool")
        return [] if pid is None else [pid]

    def _workers(self, number: int) -> list[int]:
        return harness.idle_workers(self.place / f"node{number}" / "spool", busy_too=True)

    def stop(self) -> None:
        """End everything that was started."""
        with suppress(Exception):  # it may have failed to start
            self._pool.close()
        for number, agent in enumerate(self._agents):
            kill([agent.pid, *self._supervisor(number), *self._workers(number)])
            agent.wait()
        for spool in [*self.place.glob("node*/spool"), *self.place.glob("branches/*/spool")]:
            harness.end_processes(spool)
        end(self._served)


class ThreeServers(OneServer):
    """Three servers that all store everything."""

    key, title, servers = "three", "filepool, 3 servers", 3
    setting = f"{OneServer.setting}, 3 replicas"


def imported_mb() -> float:
    """Resident memory of an interpreter that has imported what the agent needs, and done nothing."""
    code = (
        "import nats, nats.js.api, pool.cluster.agent, pool.cluster.processes, pool.cluster.commands\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return int(found.stdout) * 1024 / 1e6
