"""`python -m pool.cluster node` and `port`, which stay: the node of this machine, and its branch, which every FilePool
of a cluster starts by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pool.cli.command import load
from pool.cli.words import read
from pool.errors import ConfigError

if TYPE_CHECKING:
    from pool.config.settings import Config


@dataclass
class Port:
    """The command `port` with its options."""

    config: Path | None = None
    tied: bool = False

    def __call__(self, *, args: Sequence[str], prog_name: str) -> NoReturn:
        """Serve, then end the process with the exit code."""
        sys.exit(port(self.config, tied=self.tied))


@dataclass
class Node:
    """The command `node` as the configuration says."""

    config: Path | None = None

    def __call__(self, *, args: Sequence[str], prog_name: str) -> NoReturn:
        """Serve, then end the process with the exit code."""
        sys.exit(node(load(self.config, engines=True), start=True))


def asked(words: Sequence[str]) -> Port | Node | None:
    """The command `port` or `node` with usual arguments; None for everything else."""
    kind, flags = _KINDS.get(words[0] if words else "", (None, {}))
    found = None if kind is None else read(words[1:], flags)
    return None if kind is None or found is None else kind(**found)


_KINDS: dict[str, tuple[type[Port] | type[Node], dict[str, str]]] = {
    "port": (Port, {"--tied": "tied"}),
    "node": (Node, {}),
}


def port(config: Path | None, *, tied: bool) -> int:
    """Serve a branch until a signal ends it; the exit code. tied: end after the last client, too.
    Raises ConfigError, SupervisorRunning."""
    from pool.cluster.processes import serve_port
    from pool.spool import layout
    from pool.system import logs

    configured = load(config, engines=True)
    if not configured.is_branch:
        raise ConfigError("a branch has cluster.servers and no engines", "engines")
    file = configured.spool / "run" / "logs" / "supervisor.log"
    layout.prepare(configured.spool)

    def begin_log(config: Config) -> None:
        logs.setup_logging(
            config.log.level, file, max_bytes=config.log.max_bytes, keep=config.log.keep, console=not tied
        )

    begin_log(configured)
    return serve_port(configured, tied=tied, on_reload=begin_log)


def node(config: Config, *, start: bool) -> int:
    """Serve the cluster with the workers of this machine until a signal ends it; the exit code. start: a supervisor,
    too, if none serves. Raises ConfigError, SupervisorRunning, PoolError."""
    from pool.cluster.processes import serve_node, with_room
    from pool.spool import layout
    from pool.system import logs

    file, log = config.spool / "run" / "logs" / "node.log", config.log

    def serve() -> int:
        layout.prepare(config.spool)
        logs.setup_logging(log.level, file, max_bytes=log.max_bytes, keep=log.keep, console=True)
        return serve_node(config, start=start)

    return with_room(config.spool, serve)
