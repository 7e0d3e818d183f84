"""`python -m pool serve`: a supervisor in the foreground."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pool.cli.command import load, say, say_error
from pool.cli.words import read
from pool.constants import EXIT_CONFIG, EXIT_LOCKED
from pool.errors import ConfigError, SupervisorRunning

if TYPE_CHECKING:
    from pool.config.settings import Config
    from pool.system.procs import Identity

_TAKE_OVER_S = 5.0  # workers must survive this long without a supervisor
_FLAGS = {"--verbose": "verbose", "-v": "verbose", "--tied": "tied"}


@dataclass
class Serve:
    """The command `serve` with its options."""

    config: Path | None = None
    verbose: bool = False
    tied: bool = False

    def __call__(self, *, args: Sequence[str], prog_name: str) -> NoReturn:
        """Serve, then end the process with the exit code."""
        sys.exit(serve(self.config, verbose=self.verbose, tied=self.tied))


def asked(words: Sequence[str]) -> Serve | None:
    """The command `serve` with usual arguments; None for everything else, help and mistakes included."""
    found = read(words[1:], _FLAGS) if words[:1] == ["serve"] else None
    return None if found is None else Serve(**found)


def serve(config: Path | None, *, verbose: bool, tied: bool) -> int:
    """Serve the spool of a configuration until a signal ends it; the exit code."""
    try:
        configured = load(config, engines=True)
        return _serve(configured, verbose=verbose, tied=tied)
    except SupervisorRunning as error:
        say_error(f"{error}{_who_serves(configured)}")
        return EXIT_LOCKED
    except ConfigError as error:
        say_error(str(error))
        return EXIT_CONFIG


def server_of(config: Config) -> Identity | None:
    """The supervisor that serves the spool, None when there is none."""
    from pool.runfiles.server import supervisor_identity

    identity = supervisor_identity(config.spool / "run" / "supervisor.json")
    return identity if identity is not None and identity.alive() else None


def _is_stderr(file: Path) -> bool:
    """Whether stderr is this file, as in a supervisor that a client starts; then each line is logged once."""
    try:
        return os.path.samestat(os.fstat(2), os.stat(file))
    except OSError:
        return False


def _serve(config: Config, *, verbose: bool, tied: bool) -> int:
    from pool.spool import layout
    from pool.supervise import supervisor
    from pool.system import logs

    other = server_of(config)
    if other is not None and (tied or not _take_over(config, other)):
        raise SupervisorRunning(f"another supervisor serves {config.spool}")
    layout.prepare(config.spool)
    file = config.spool / "run" / "logs" / "supervisor.log"
    console = not _is_stderr(file)

    def begin_log(config: Config) -> None:
        level = "DEBUG" if verbose else config.log.level
        logs.setup_logging(level, file, max_bytes=config.log.max_bytes, keep=config.log.keep, console=console)

    begin_log(config)
    for note in config.notes:
        say(f"! {note}", "yellow")
    if not tied:
        for line in _what_is_served(config):
            say(line)
    return supervisor.serve(config, tied=tied, on_reload=begin_log)


def _what_is_served(config: Config) -> Iterator[str]:
    for name, engine in config.engines.items():
        spares = f" + {engine.spares} spare" if engine.spares else ""
        devices = ", ".join(dict.fromkeys(engine.devices)) or engine.device
        workers = f"{engine.workers} worker{'' if engine.workers == 1 else 's'}{spares}"
        yield f"{name}: {engine.engine}, {workers} on {devices}"
    where = f" --config {config.file}" if config.file and config.file.parent != Path.cwd() else ""
    if config.is_branch:
        from pool.runfiles.nodes import bare

        yield f"jobs run on the nodes of the cluster at {', '.join(map(bare, config.cluster.servers))}"
    first = next(iter(config.engines), "ENGINE")
    yield f"spool: {config.spool} (drop jobs into {config.spool}/in)"
    yield f"submit: python -m pool.submit {first} key=value …{where}    status: python -m pool status --watch{where}"
    yield "Ctrl-C drains, a second Ctrl-C ends at once"


def _who_serves(config: Config) -> str:
    identity = server_of(config)
    who = f" (pid {identity.pid})" if identity else ""
    return f"{who}: use it, or end it first with `python -m pool drain`"


def _take_over(config: Config, other: Identity) -> bool:
    """Replace a supervisor that a client started for itself; whether that succeeded.

    The old supervisor is killed, not drained: its workers go on, with their models and jobs, and the new one adopts
    them. False: it was not started by a client, its workers would not survive, or it did not end in time.
    """
    from pool.system.procs import SIGKILL, signal_process

    record = config.spool / "run" / "supervisor.json"
    if not json.loads(record.read_bytes()).get("tied") or config.orphan_grace_s < _TAKE_OVER_S:
        return False
    say(f"taking over from the pool that a client started (pid {other.pid}); its workers go on", "yellow")
    signal_process(other, SIGKILL)
    deadline = time.monotonic() + _TAKE_OVER_S
    while other.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not other.alive()
