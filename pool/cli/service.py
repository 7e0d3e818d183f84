"""Commands about the pool: serve, status, drain, recover, engines, logs."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pool.cli import serving
from pool.cli.command import known_engine, load, load_running, open_spool, print_json, say, say_error, with_offers
from pool.cli.options import ConfigOption, JsonOption
from pool.errors import CallerError, ConfigError, JobRefused, UnknownEngine

if TYPE_CHECKING:
    from pool.config.settings import Config
    from pool.spool.store import Spool
    from pool.system.procs import Identity

_POLL_S = 0.1


def serve(
    config: ConfigOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log in detail.")] = False,
    tied: Annotated[bool, typer.Option("--tied", hidden=True)] = False,
) -> None:
    """Start the workers and serve the spool until Ctrl-C or SIGTERM.

    The first signal drains: running jobs may finish. The second signal ends the pool at once. SIGHUP reads the
    configuration again, as `reload` does. Logs go to stderr and to run/logs/supervisor.log in the spool.
    Exit codes: 0 drained, 4 wrong configuration, 6 another supervisor serves.
    """
    raise typer.Exit(serving.serve(config, verbose=verbose, tied=tied))


# --- status


def status(
    config: ConfigOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two refreshes.")] = 1.0,
    as_json: JsonOption = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless the pool is healthy.")] = False,
) -> None:
    """Print the health of the pool, the queues of its engines and the state of its workers."""
    configured, wrong = load_running(config)
    spool = open_spool(configured)
    if wrong:
        say_error(f"{wrong}")
        say("the status below is that of the running pool, with the configuration that it loaded before", "yellow")
    if watch:
        _watch(spool, configured, interval, as_json)
        return
    from pool.client.inspection import read_status

    found = read_status(spool, configured)
    if as_json:
        print_json(found.to_map())
    else:
        from pool.cli.terminal import make_console, status_view

        make_console().print(status_view(found))
    raise typer.Exit(1 if check and not found.health.ok else 0)


def _watch(spool: Spool, config: Config, interval: float, as_json: bool) -> None:
    from rich.live import Live

    from pool.cli.terminal import make_console, status_view
    from pool.client.inspection import read_status

    console = make_console()
    try:
        if as_json or not console.is_terminal:
            while True:
                found = read_status(spool, config)
                if as_json:
                    print(json.dumps(found.to_map(), ensure_ascii=False), flush=True)
                else:
                    console.print(status_view(found))
                time.sleep(interval)
        with Live(status_view(read_status(spool, config)), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(status_view(read_status(spool, config)), refresh=True)
    except KeyboardInterrupt:
        return


# --- drain and recover


def drain(
    config: ConfigOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the supervisor has ended.")] = True,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait at most this long.", show_default=False)
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="End at once; running jobs go back to the queue.")] = False,
) -> None:
    """End the pool: running jobs may finish, waiting jobs stay in the spool."""
    from pool.runfiles.server import unseen
    from pool.system.procs import signal_process

    configured = load(config)
    spool = open_spool(configured)
    identity = serving.server_of(configured)
    if identity is None:
        if reason := unseen(spool.root):
            raise ConfigError(reason)
        say(f"no supervisor serves {spool.root}: nothing to drain", "yellow")
        return
    if not signal_process(identity, signal.SIGTERM):
        raise ConfigError(f"the supervisor (pid {identity.pid}) cannot be signalled: it belongs to another user")
    if now:
        time.sleep(2 * _POLL_S)  # signals that are sent at the same time arrive as one
        signal_process(identity, signal.SIGTERM)
    if not wait:
        say(f"asked pid {identity.pid} to drain", "dim")
        return
    raise typer.Exit(_await_drain(spool, identity, timeout))


def _await_drain(spool: Spool, identity: Identity, timeout: float | None) -> int:
    from pool.spool import lookup

    begun, reported = time.monotonic(), -1
    while identity.alive():
        running = sum(1 for _ in lookup.running(spool))
        if running != reported:
            reported = running
            say(f"draining: {running} job{'' if running == 1 else 's'} still running", "dim")
        if timeout is not None and time.monotonic() - begun >= timeout:
            say(
                f"✗ not drained after {timeout:g} s; still draining (`python -m pool drain --now` ends it at once)",
                "yellow",
            )
            return 3
        time.sleep(_POLL_S)
    waiting = sum(1 for _ in lookup.waiting(spool))
    rest = f", {waiting} job{' waits' if waiting == 1 else 's wait'} in the spool" if waiting else ""
    say(f"✓ drained{rest}", "green")
    return 0


def recover(
    slots: Annotated[list[str] | None, typer.Argument(metavar="SLOT", help="As in status: transcribe-0.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All benched slots.")] = False,
    config: ConfigOption = None,
) -> None:
    """Start benched slots again, after the cause is repaired."""
    from pool.client.inspection import read_status
    from pool.config.checks import nearest
    from pool.spool import fsops

    configured = load(config)
    spool = open_spool(configured)
    found = read_status(spool, configured)
    if found.supervisor is None:
        raise ConfigError(found.unseen or "no supervisor serves this spool: `python -m pool serve` starts every slot")
    known = {slot.slot: slot for slot in found.slots if not slot.node}
    benched = [slot.slot for slot in known.values() if slot.seat in ("benched", "off")]
    if every == bool(slots):
        raise CallerError(f"give the names of slots, or --all; benched: {', '.join(benched) or 'none'}")
    for name in slots or benched:
        if name not in known:
            raise JobRefused(f"no slot {name!r}{nearest(name, list(known))}; there are: {', '.join(known)}")
        if name not in benched:
            say(f"{name} is not benched ({known[name].phase or known[name].seat})", "yellow")
            continue
        temp = spool.temp()
        fsops.write_new(temp, [b""], sync=False)
        fsops.replace(temp, f"{spool.root}/run/control/{name}.recover")
        say(f"✓ {name} will start again", "green")
    if every and not benched:
        say("no slot is benched", "dim")


# --- engines and logs


def engines(
    name: Annotated[str | None, typer.Argument(help="List this engine only.", show_default=False)] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the engines of the configuration and the parameters that they accept."""
    from pool.runfiles.schemas import Schemas

    configured = with_offers(load(config))
    if name is not None:
        known_engine(configured, name)
        if name not in configured.engines:
            raise UnknownEngine(f"no node of the cluster offers {name}", "engine")
    schemas = Schemas(configured.spool)
    entries: list[dict[str, Any]] = []
    for engine in configured.engines.values():
        if name in (None, engine.name):
            about = schemas.describe(engine.name)
            entries.append(
                {
                    "name": engine.name,
                    "engine": engine.engine,
                    "workers": engine.workers,
                    "described": about is not None,
                    "problem": "",
                    "doc": (about or {}).get("doc", ""),
                    "schema": (about or {}).get("schema"),
                }
            )
    if not all(entry["described"] for entry in entries):
        problems = _load_errors(configured)
        for entry in entries:
            entry["problem"] = problems.get(entry["name"], "")
    if as_json:
        print_json({"engines": entries})
        return
    from pool.cli.terminal import engines_view, make_console

    if not entries:
        raise ConfigError("no engine is configured: give a configuration with --config", "engines")
    make_console().print(engines_view(entries))


def _load_errors(configured: Config) -> dict[str, str]:
    """Engine -> the error with which its workers fail to load it. Empty while no supervisor serves."""
    from pool.client.inspection import read_status
    from pool.policy.prospects import load_error

    if not configured.spool.is_dir():
        return {}
    slots = [slot for slot in read_status(open_spool(configured), configured).slots if not slot.node]
    return {slot.engine: said for slot in slots if (said := load_error(slot.error))}


def show_logs(
    slot: Annotated[str | None, typer.Argument(help="transcribe-0, or supervisor.", show_default=False)] = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=100_000, help="Number of lines from the end.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until Ctrl-C.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print the log of one slot, or of the supervisor."""
    from pool.config.checks import nearest
    from pool.system.logs import mark, tail

    folder = open_spool(load(config)).root / "run" / "logs"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if slot is None or slot not in known:
        what = "give the name of a log" if slot is None else f"no log of {slot!r}{nearest(slot, known)}"
        raise JobRefused(f"{what}; there are: {', '.join(known) or 'none yet'}")
    path = folder / f"{slot}.log"
    while True:
        place = mark(path)
        text = tail(path, lines, 200 * lines + 16384)
        if not follow or mark(path) == place:  # RACE: otherwise a line may be printed twice, or never
            break
    print(text, flush=True)
    if follow:
        _follow(path, place)


def _follow(path: Path, place: int) -> None:
    from pool.cli.text import plain
    from pool.system.logs import mark

    try:
        while True:
            length = mark(path)
            if length < place:  # rotated
                place = 0
            if length > place:
                with open(path, "rb") as stream:
                    stream.seek(place)
                    data = stream.read(1 << 20)
                place += len(data)
                sys.stdout.write(plain(data.decode("utf-8", "replace")))
                sys.stdout.flush()
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return
