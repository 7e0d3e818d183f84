"""`python -m pool.gateways.http`: serve the pool over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pool.cli.command import load, run, say, say_error
from pool.cli.options import CONTEXT, ConfigOption, PatienceOption, VersionOption
from pool.constants import EXIT_CONFIG, PATIENCE_S
from pool.errors import ConfigError

if TYPE_CHECKING:
    from pool.config.settings import Config
    from pool.gateways.http.settings import Settings

_EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "python -m pool.gateways.http                                   this machine only, port 8308",
        "BASE_PATH=/data python -m pool.gateways.http --port 9000       media under /data",
        "python -m pool.gateways.http --host 0.0.0.0 --token-file token   all addresses, with a token",
        "curl localhost:8308/health",
        "curl -F file=@talk.m4a -F model=any localhost:8308/v1/audio/transcriptions",
        "[bold]Exit codes[/bold] 0 ended by a signal, 1 the address is taken, 4 wrong configuration",
        "docs/HTTP.md has every route; so has /docs of the running gateway.",
    )
)
app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", context_settings=CONTEXT
)


@app.command(epilog=_EPILOG)
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to bind. Any but loopback needs a token.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free port. Default: 8308.")] = None,
    base_path: Annotated[
        list[Path] | None,
        typer.Option("--base-path", help="Folder that requests may read and write. Repeatable."),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the bearer token.")] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="The address is reachable from this machine only, as the port of a container that is published on "
            "127.0.0.1: neither token nor limits are required.",
        ),
    ] = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start a supervisor if none serves.")] = True,
    patience: PatienceOption = PATIENCE_S,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log one line per request.")] = False,
    version: VersionOption = False,
) -> None:
    """Serve the pool over HTTP: videos, transcripts, uploads, jobs, metrics.

    When the gateway dies, accepted jobs go on, and the next gateway finds their results. Options override
    the environment (BASE_PATH, FILEPOOL_HTTP_TOKEN), which overrides the section "http" of config.json.
    """
    from pool.gateways.http.settings import read_settings

    try:
        configured = load(config, engines=True)
        for note in configured.notes:
            say(f"! {note}", "yellow")
        settings = read_settings(
            configured, os.environ, host=host, port=port, roots=base_path or (), token_file=token_file, local=local
        )
        served = _serve(configured, settings, start=start, patience=patience, access_log=access_log)
    except ConfigError as error:
        say_error(str(error))
        raise typer.Exit(EXIT_CONFIG) from None
    raise typer.Exit(0 if served else 1)


def _serve(config: Config, settings: Settings, *, start: bool, patience: float, access_log: bool) -> bool:
    """Serve until a signal; False when the address could not be bound. Raises ConfigError."""
    from pool.client.filepool import FilePool
    from pool.gateways.http.settings import prepare

    prepare(settings)
    try:
        from pool.gateways.http.server import run_server
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install filepool[http]") from None
    say(f"media: {', '.join(map(str, settings.roots))}")
    say(f"token: {'needed' if settings.token else 'none, this machine only'}")
    pool = FilePool(config, start=start, patience=patience)
    try:
        return run_server(pool, settings, access_log=access_log)
    finally:
        pool.close()


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    run(app, "python -m pool.gateways.http")


if __name__ == "__main__":
    main()
