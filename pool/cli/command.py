"""What all commands share: exit codes, error messages without tracebacks, opening the spool."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, Protocol

from pool.cli import streams
from pool.cli.text import one_line, plain
from pool.errors import ClusterAway, ConfigError, JobFailed, PoolError, SpoolError, SupervisorRunning
from pool.policy.prospects import SERVE

if TYPE_CHECKING:
    from pool.config.settings import Config
    from pool.job import Progress
    from pool.spool.store import Spool

_SPOOL = re.compile(r'"spool"\s*:\s*("(?:[^"\\\n]|\\.)*")')
_FORCE_STYLES = {"FORCE_COLOR", "TTY_COMPATIBLE"}  # where rich looks
_FAILED, _USAGE, _TIMED_OUT, _LOCKED = 1, 2, 3, 6
_INTERRUPTED = 130  # 128 + SIGINT


class Program(Protocol):
    """A command line, as typer makes them: reads the arguments and ends with SystemExit."""

    def __call__(self, *, args: Sequence[str], prog_name: str) -> object:
        """Run it. prog_name: its name in help texts."""


def run(
    app: Program,
    prog: str,
    argv: Sequence[str] | None = None,
    *,
    codes: Mapping[type[PoolError], int] = MappingProxyType({}),
) -> NoReturn:
    """Run a command line and end the process with its exit code. prog: its name in help texts. argv: the arguments.
    codes: of errors that have another exit code than elsewhere, the most special ones first."""
    streams.settle()
    try:
        code = _run(app, prog, list(sys.argv[1:] if argv is None else argv), codes)
        sys.stdout.flush()
    except streams.OutputFailed as error:
        if error.unread:
            code = streams.EXIT_UNREAD
        else:
            say_error(str(error))
            code = _FAILED
    sys.exit(code)


def _run(app: Program, prog: str, words: list[str], codes: Mapping[type[PoolError], int]) -> int | str | None:
    try:
        app(args=words, prog_name=prog)
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except PoolError as error:
        own = next((code for kind, code in codes.items() if isinstance(error, kind)), None)
        common = _report(error, str(error), "--json" in words)
        return common if own is None else own
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        return _report(error, what, "--json" in words)
    return 0


def _report(error: Exception, message: str, as_json: bool) -> int:
    """Print an error on stderr, as JSON on stdout, too, if asked for; returns the exit code."""
    say_error(message)
    code = _FAILED if isinstance(error, (OSError, ClusterAway)) else _USAGE
    if isinstance(error, JobFailed):
        code = _TIMED_OUT if error.failure.kind in ("timeout", "expired") else _FAILED
    elif isinstance(error, SupervisorRunning):
        code = _LOCKED
    if as_json:
        about = {"type": type(error).__name__, "message": message, "path": getattr(error, "path", "")}
        print(json.dumps({"error": about}, ensure_ascii=False, indent=2))
    return code


def say_error(message: str) -> None:
    """Print an error on stderr, its first line in red."""
    first, newline, rest = plain(message.strip() or "unknown error").partition("\n")
    _print(("error: ", "bold red"), (first, "red"), (newline + rest, ""))


def say(message: str, style: str = "") -> None:
    """Print a message on stderr. style: of rich, such as "green"."""
    _print((plain(message), style))


def _print(*parts: tuple[str, str]) -> None:
    """Print text with its styles on stderr; plain, and without the import of rich, where no terminal shows them."""
    if not (sys.stderr.isatty() or _FORCE_STYLES & os.environ.keys()):
        print("".join(text for text, _ in parts), file=sys.stderr)
        return
    from rich.text import Text

    from pool.cli.terminal import make_console

    make_console(stderr=True).print(Text.assemble(*parts), soft_wrap=True)


def load(config: Path | None, *, engines: bool = False) -> Config:
    """The configuration. engines: whether it must have at least one. Raises ConfigError."""
    from pool.client import branch
    from pool.config.settings import load_config

    if config is not None and branch.is_address(config):
        config = branch.prepare(config)
    return load_config(config, engines=engines)


def load_running(config: Path | None) -> tuple[Config, ConfigError | None]:
    """(configuration, None); for an invalid file that a running supervisor has loaded in an earlier version,
    (a configuration with the spool alone, the error). Raises ConfigError for any other invalid file."""
    from pool.config.settings import FILE_NAME, parse_config
    from pool.runfiles.server import running

    try:
        return load(config), None
    except ConfigError as error:
        file = Path(config or FILE_NAME).absolute()
        file = file / FILE_NAME if file.is_dir() else file
        try:
            named = _SPOOL.search(file.read_text("utf-8", "replace"))
            spool = json.loads(named[1]) if named else "spool"
            only_spool = parse_config({"spool": spool}, file.parent, file=file, engines=False)
        except (OSError, ValueError, ConfigError):
            raise error from None
        serves = running(only_spool.spool)
        if serves is None or serves.config != str(
            file
        ):  # only a supervisor of this file proves that the spool is the right one
            raise
        return only_spool, error


def open_spool(config: Config) -> Spool:
    """The spool of a configuration. Raises SpoolError when it does not exist: commands that read do not create it."""
    from pool.spool.store import Spool

    if not config.spool.is_dir():
        where = f" of {config.file}" if config.file else f" (there is no config.json in {config.root})"
        raise SpoolError(
            f"{config.spool}, the spool{where}, does not exist yet: start the pool with `python -m pool serve`, "
            "or give another configuration with --config"
        )
    return Spool(config.spool, durable=config.durable)


def unserved(root: Path) -> str:
    """What to say when no supervisor is seen."""
    from pool.runfiles.server import unseen

    return unseen(root) or f"no supervisor serves this spool: start one with `{SERVE}`"


def with_offers(config: Config) -> Config:
    """The configuration; of a branch with the engines that its cluster has."""
    from pool.client.offers import Offers

    if not config.is_branch or not config.spool.is_dir():
        return config
    return Offers(config, open_spool(config)).config()


def known_engine(config: Config, name: str) -> None:
    """Raise UnknownEngine, with the nearest known name, or ConfigError unless the configuration has the engine. That of
    a branch names none: its FilePool asks what the cluster has."""
    from pool.config.checks import nearest
    from pool.errors import UnknownEngine

    if name in config.engines or config.is_branch:
        return
    if not config.engines:
        raise ConfigError("no engine is configured: give a configuration with --config", "engines")
    near = nearest(name, list(config.engines))
    where = f" in {config.file}" if config.file else ""
    raise UnknownEngine(f"no engine {name!r}{where}{near}; there are: {', '.join(config.engines)}", "engine")


def standing(progress: Progress) -> str:
    """The progress of a job as text: "inference 31 % (19 of 62 s)"."""
    percent = f" {progress.percent:.0f} %" if progress.percent else ""
    return f"{progress.status}{percent}{f' ({one_line(progress.message)})' if progress.message else ''}"


@contextlib.contextmanager
def starting(silent: bool) -> Iterator[None]:
    """Show "starting the pool" on a terminal while the body runs. silent: show nothing."""
    from pool.cli.terminal import make_console

    console = make_console(stderr=True)
    if silent or not console.is_terminal:
        yield
        return
    with console.status("starting the pool …"):
        yield


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))
