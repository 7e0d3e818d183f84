"""`python -m pool.cluster port`: the branch of this machine, which every FilePool of a cluster starts by itself."""

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


def asked(words: Sequence[str]) -> Port | None:
    """The command `port` with usual arguments; None for everything else."""
    found = read(words[1:], {"--tied": "tied"}) if words[:1] == ["port"] else None
    return None if found is None else Port(**found)


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
