"""A branch of a cluster whose port is this process: it writes what a port writes, as a test says."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pool.config.settings import Config, parse_config
from pool.runfiles import nodes as record
from pool.runfiles.nodes import NodeFacts, Nodes
from pool.spool.store import Spool
from pool.system.procs import Identity, identity_of

SERVERS = ("nats://one:4222", "nats://two:4222")


def me() -> Identity:
    """This process."""
    found = identity_of(os.getpid())
    assert found is not None
    return found


def engine(slots: int = 1, serving: int = 1, busy: int = 0, waiting: int = 0, trouble: str = "") -> dict[str, Any]:
    """One engine on one node."""
    return {"slots": slots, "serving": serving, "busy": busy, "waiting": waiting, "trouble": trouble}


GPU7 = NodeFacts(
    "gpu7",
    "10.0.0.7",
    "0.2.0",
    0.5,
    labels=("gpu24g", "a100"),
    jobs=1,
    engines={"lipsync": engine(), "transcribe": engine(2, 2, 1)},
    slots=(
        {"slot": "transcribe-0", "engine": "transcribe", "seat": "running", "phase": "busy", "serving": True, "pid": 1,
         "job": "j-1-g1", "percent": 40.0, "stage": "inference", "worker": "transcribe-0.3", "rss_bytes": 5 << 20},
        {"slot": "transcribe-1", "engine": "transcribe", "seat": "running", "phase": "idle", "serving": True},
        {"slot": "lipsync-0", "engine": "lipsync", "seat": "running", "phase": "idle", "serving": True},
    ),
)  # fmt: skip
CPU1 = NodeFacts("cpu1", "10.0.0.1", "0.2.0", 0.1, engines={"transcribe": engine(1, 0, trouble="OSError: no model")})


class Branch:
    """A spool whose configuration names servers and no engine."""

    def __init__(self, root: Path, **more: Any) -> None:
        self.file = root / "config.json"
        document = {"spool": "spool", "durable": False, "min_free_mb": 0, "cluster": {"servers": list(SERVERS)}, **more}
        self.file.write_text(json.dumps(document))
        self.config: Config = parse_config(document, root, file=self.file)
        self.spool = Spool.create(self.config.spool, durable=False)
        self.root = self.spool.root

    def serve(self, *nodes: NodeFacts, started: int = 1, described: bool = True, **about: Any) -> Nodes:
        """Say that a port serves, and what it sees. about: other fields of Nodes; connected unless it says not.
        started: the port, µs of the spool clock. described: with a description of each engine, unless there is one."""
        for name in {name for node in nodes for name in node.engines} if described else ():
            if not (self.root / "run" / "engines" / f"{name}.json").exists():
                self.describe(name)
        running = {"identity": me().to_map(), "started": started, "engines": [], "config": str(self.file)}
        (self.root / "run" / "supervisor.json").write_text(json.dumps(running))
        told = Nodes(me(), self.spool.now(), SERVERS, connected=True, nodes=nodes)
        told = replace(told, **about)
        record.write(self.spool, told)
        return told

    def describe(self, name: str, schema: dict[str, Any] | None = None) -> None:
        """Leave the description of an engine, as the port does."""
        about = {"engine": name, "schema": schema, "doc": f"Does {name}."}
        (self.root / "run" / "engines" / f"{name}.json").write_text(json.dumps(about))
