"""`python -m pool.gateways.redis`: serve queues in Redis with the pool."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pool.cli.command import CONTEXT, ConfigOption, VersionOption, load, run, say, say_error
from pool.constants import EXIT_CONFIG
from pool.errors import ConfigError

_EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "python -m pool.gateways.redis                       Redis on this machine, queue task_queue_gpu_0",
        "REDIS_HOST=redis REDIS_PASSWORD=… python -m pool.gateways.redis --gpu 0 --gpu 1",
        "[bold]A job[/bold] by hand, and its messages",
        "redis-cli subscribe task_progress",
        'redis-cli rpush task_queue_gpu_0 \'{"task_id": "t1", "session_id": "s1", "ref_image_id": "…", '
        '"audio_id": "…"}\'',
        "redis-cli get task_progress:t1",
        "[bold]Environment[/bold] REDIS_HOST, REDIS_PORT, REDIS_DB, REDIS_PASSWORD, TASK_QUEUE_NAME, "
        "PROGRESS_CHANNEL, BASE_URL (and BASE_URL_TOKEN), BASE_PATH: they override config.json",
        "[bold]Exit codes[/bold] 0 ended by a signal, 1 --check found a queue without a gateway, 4 wrong configuration",
        "docs/REDIS.md describes the protocol.",
    )
)
app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", context_settings=CONTEXT
)


@app.command(epilog=_EPILOG)
def serve(
    config: ConfigOption = None,
    gpu: Annotated[
        list[int] | None,
        typer.Option("--gpu", min=0, max=9999, help="Serve the queue of this number. Repeatable. Default: 0."),
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start a supervisor if none serves.")] = True,
    check: Annotated[bool, typer.Option("--check", help="Check that a gateway serves these queues.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log in detail.")] = False,
    version: VersionOption = False,
) -> None:
    """Take jobs from lists in Redis; publish progress and results on a channel.

    A job is in the spool before it is removed from Redis. When this gateway or
    Redis dies, accepted jobs go on, and their results are published when both
    are back. Options override the environment, which overrides the section
    "redis" of config.json.
    """
    try:
        code = _serve(config, gpu or [], start, check, verbose)
    except ConfigError as error:
        say_error(str(error))
        raise typer.Exit(EXIT_CONFIG) from None
    raise typer.Exit(code)


def _serve(config: Path | None, gpu: list[int], start: bool, check: bool, verbose: bool) -> int:
    try:
        from pool.gateways.redis.gateway import Gateway
        from pool.gateways.redis.link import connect, examine
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install filepool[redis]") from None
    from pool.client.filepool import FilePool
    from pool.gateways.redis.settings import SECRETS, prepare, read_settings
    from pool.system.logs import setup_logging
    from pool.system.notify import Notifier

    os.umask(0o077)
    configured = load(config, engines=True)
    settings = read_settings(configured, os.environ, gpu_ids=gpu)
    for name in SECRETS:
        os.environ.pop(name, None)
    client = connect(settings)
    if check:
        return _check(client, settings.address, {queue.gpu_id for queue in settings.queues})
    notifier = Notifier()
    setup_logging("DEBUG" if verbose else configured.log.level)
    for note in configured.notes:
        say(f"! {note}", "yellow")
    prepare(settings)
    for queue in settings.queues:
        say(f"{queue.name}: jobs for {settings.engine}, at most {queue.limit} at a time")
    say(f"files: from {settings.tempfiles}, otherwise from {settings.base_url}")
    trouble = examine(client, settings)
    say(f"Redis at {settings.address}{f' is unreachable ({trouble}); waiting for it' if trouble else ''}")
    with FilePool(
        configured, start=start, patience=None
    ) as pool:  # accepted jobs wait until an operator has repaired the engine
        gateway = Gateway(pool, settings, client)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, gateway.end)
        say("serving; Ctrl-C ends the gateway, not its jobs", "green")
        gateway.run(notifier)
        pool.close()
    say("ended", "dim")
    return 0


def _check(client: object, address: str, gpu_ids: set[int]) -> int:
    """Exit code 0 when every queue has a gateway that has reported within half a minute, else 1."""
    from redis.exceptions import RedisError

    try:
        states = {number: client.get(f"gpu_status:{number}") for number in sorted(gpu_ids)}  # type: ignore[attr-defined]
    except RedisError as error:
        say_error(f"Redis at {address}: {error}")
        return 1
    for number, state in states.items():
        say(f"gpu_status:{number} {state.decode() if state else 'no gateway'}", "" if state else "red")
    return 0 if all(states.values()) else 1


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    run(app, "python -m pool.gateways.redis")


if __name__ == "__main__":
    main()
