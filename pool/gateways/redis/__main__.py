"""`python -m pool.gateways.redis`: serve queues in Redis with the pool."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pool.cli.command import load, run, say, say_error
from pool.cli.options import CONTEXT, ConfigOption, VersionOption
from pool.constants import EXIT_CONFIG
from pool.errors import ConfigError, SpoolError

if TYPE_CHECKING:
    from pool.gateways.redis.settings import Settings

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
        "[bold]After the loss of a machine[/bold] when no other one serves its queues",
        "python -m pool.gateways.redis --adopt 5c1e…          the spool as --check names it",
        "[bold]Environment[/bold] REDIS_HOST, REDIS_PORT, REDIS_DB, REDIS_USERNAME, REDIS_PASSWORD, "
        "TASK_QUEUE_NAME, PROGRESS_CHANNEL, BASE_URL (and BASE_URL_TOKEN), BASE_PATH: they override config.json",
        "[bold]Exit codes[/bold] 0 ended by a signal, 1 --check found a queue without a gateway or a dead "
        "host, or --adopt a living one, 4 wrong configuration",
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
    adopt: Annotated[
        str | None,
        typer.Option("--adopt", metavar="SPOOL", help="Put back into the lists what a dead host has taken, and end."),
    ] = None,
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
        code = _serve(config, gpu or [], start, verbose, check=check, adopt=adopt)
    except ConfigError as error:
        say_error(str(error))
        raise typer.Exit(EXIT_CONFIG) from None
    raise typer.Exit(code)


def _serve(config: Path | None, gpu: list[int], start: bool, verbose: bool, *, check: bool, adopt: str | None) -> int:
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
        return _check(client, settings)
    if adopt is not None:
        return _adopt(client, settings, adopt)
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
        try:
            gateway.run(notifier)
        except SpoolError as error:
            say_error(str(error))
            return 1
        pool.close()
    say("ended", "dim")
    return 0


def _check(client: Any, settings: Settings) -> int:
    """Exit code 0 when every queue has a gateway that reported within half a minute, and no host is dead, else 1."""
    from redis.exceptions import RedisError

    from pool.gateways.redis.hosts import states

    try:
        found = [state for queue in settings.queues for state in states(client, queue)]
    except RedisError as error:
        say_error(f"Redis at {settings.address}: {error}")
        return 1
    for state in found:
        say(f"{state.key} {state.text}", "" if state.good else "red")
    return 0 if all(state.good for state in found) else 1


def _adopt(client: Any, settings: Settings, spool: str) -> int:
    """Exit code 0 when nothing of that host is left in the queues, 1 when it lives or Redis is away."""
    from redis.exceptions import RedisError

    from pool.gateways.redis.hosts import Hosts
    from pool.gateways.redis.wire import Keys

    try:
        for queue in settings.queues:
            keys = Keys(settings.channel, spool)
            if client.get(keys.gpu(queue.gpu_id, spool)) not in (None, b"dead"):
                say_error(
                    f"{queue.name}: the gateway of spool {spool} has reported within half a minute: stop it first"
                )
                return 1
            done = Hosts(queue, settings, keys, client).adopt(spool)
            say(f"{queue.name}: {done.requeued} jobs of {spool} are back in the list, {len(done.refused)} failed")
    except RedisError as error:
        say_error(f"Redis at {settings.address}: {error}")
        return 1
    return 0


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    run(app, "python -m pool.gateways.redis")


if __name__ == "__main__":
    main()
