"""Nodes and clients of one cluster on this machine: each has a folder, a spool and processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scenarios.world import ROOT, World, kill, wait_until

from pool.client import branch
from pool.client.filepool import FilePool
from pool.runfiles import nodes
from pool.runfiles.server import supervisor_identity

LEASE_S = 2.0


class Machine(World):
    """A node: a pool with workers, and the agent that serves the cluster with them."""

    def __init__(self, folder: Path, name: str, url: str) -> None:
        folder.mkdir(parents=True)
        super().__init__(folder)
        self.name, self.url = name, url
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self, *, cluster: Mapping[str, Any] | None = None) -> Machine:
        """Start the agent, which starts the pool."""
        settings = {"servers": [self.url], "name": self.name, "lease_s": LEASE_S, "cold_after_s": 0.0}
        if not self.config.exists():
            self.configure({"fake": {}}, cluster={**settings, **(cluster or {})})
        with open(self.folder / "agent.log", "ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "pool.cluster", "node", "--config", str(self.config)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait()

    def freeze(self) -> None:
        """Stop the pool of this machine, so that no job of it ends; its agent goes on."""
        supervisor = self.supervisor()
        assert supervisor is not None
        for pid in (supervisor.pid, *(beat.pid for beat in self.beats().values())):
            kill(pid, signal.SIGSTOP)

    def lose(self) -> None:
        """Kill everything of this machine at once."""
        supervisor = self.supervisor()
        if self.agent is not None:
            self.agent.kill()
        if supervisor is not None:
            kill(supervisor.pid)
        for beat in self.beats().values():
            kill(beat.pid)
        if self.agent is not None:
            self.agent.wait()

    def close(self) -> None:
        if self.agent is not None and self.agent.poll() is None:
            with suppress(ProcessLookupError):
                self.agent.send_signal(signal.SIGCONT)
            self.agent.terminate()
            try:
                self.agent.wait(15)
            except subprocess.TimeoutExpired:
                self.kill_agent()
        supervisor = self.supervisor()
        if supervisor is not None:
            kill(supervisor.pid, signal.SIGTERM)
            wait_until(lambda: not supervisor.alive(), "the supervisor of a node ends")

    def said(self) -> str:
        """The log of the agent."""
        path = self.folder / "agent.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""


class Cluster:
    """Servers, and what joins them. Clients of one `branch` share a spool."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.how = ""  # more of the address of clients: "&user=…"
        self.machines: list[Machine] = []
        self._pools: list[FilePool] = []
        self._branches: list[Path] = []

    def node(self, name: str, engines: Mapping[str, Any] | None = None, **cluster: Any) -> Machine:
        """Another node, started."""
        machine = Machine(self.folder / name, name, self.url)
        self.machines.append(machine)
        settings = {"servers": [self.url], "name": name, "lease_s": LEASE_S, "cold_after_s": 0.0, **cluster}
        machine.configure(engines or {"fake": {}}, cluster=settings)
        return machine.start()

    def branch(self, name: str = "client") -> Path:
        """The config.json of a client's machine."""
        folder = self.folder / f"branches-{name}"
        before = os.environ.get("FILEPOOL_BRANCHES")
        os.environ["FILEPOOL_BRANCHES"] = str(folder)
        try:
            file = branch.prepare(f"{self.url}?lease_s={LEASE_S}{self.how}")
        finally:
            if before is None:
                del os.environ["FILEPOOL_BRANCHES"]
            else:
                os.environ["FILEPOOL_BRANCHES"] = before
        if file not in self._branches:
            self._branches.append(file)
        return file

    def pool(self, name: str = "client", **how: Any) -> FilePool:
        """A client."""
        pool = FilePool(self.branch(name), **how)
        self._pools.append(pool)
        return pool

    def port(self, name: str = "client") -> int:
        """The process that serves a branch."""
        record = self.branch(name).parent / "spool" / "run" / "supervisor.json"

        def look() -> int:
            identity = supervisor_identity(record)
            return identity.pid if identity is not None and identity.alive() else 0

        return wait_until(look, "a port")

    def wait_nodes(self, *names: str, client: str = "client", serving: bool = True) -> None:
        """Until the branch knows of these nodes, and, with `serving`, that each has a worker that serves."""
        root = self.branch(client).parent / "spool"

        def look() -> bool:
            said = nodes.read(root)
            there = {node.name: node for node in said.nodes} if said is not None else {}
            return all(
                name in there and any(about.get("serving") or not serving for about in there[name].engines.values())
                for name in names
            )

        wait_until(look, f"nodes {names}")

    def close(self) -> None:
        for pool in self._pools:
            pool.close()
        for machine in self.machines:
            machine.close()
        for file in self._branches:
            identity = supervisor_identity(file.parent / "spool" / "run" / "supervisor.json")
            if identity is not None and identity.alive():
                kill(identity.pid, signal.SIGTERM)
                wait_until(lambda identity=identity: not identity.alive(), "a port ends")  # type: ignore[misc]

    def logs(self) -> str:
        """What all have said."""
        parts = [f"--- {machine.name}\n{machine.said()}" for machine in self.machines]
        for file in self._branches:
            log = file.parent / "spool" / "run" / "logs" / "supervisor.log"
            parts.append(f"--- port\n{log.read_text(errors='replace')[-6000:] if log.exists() else ''}")
        return "\n".join(parts)


@contextmanager
def cluster(folder: Path, url: str) -> Iterator[Cluster]:
    """A cluster that is ended, with its logs shown when the block fails."""
    joined = Cluster(folder, url)
    try:
        yield joined
    except BaseException:
        print(joined.logs())
        raise
    finally:
        joined.close()
