"""The command `reload`: have the supervisor read its configuration again, and see what comes of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pool.cli.command import ConfigOption, JsonOption, load_running, open_spool, print_json, say
from pool.errors import ConfigError, SupervisorFailed

if TYPE_CHECKING:
    from pool.runfiles.server import Running
    from pool.spool.store import Spool

_POLL_S = 0.05
_ANSWER_S = 30.0  # its loop turns once a second


def reload(
    config: ConfigOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until all slots run it.")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --wait: this long at most.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Go over to the configuration on disk, slot by slot, without a drain.

    Workers that still fit are not touched; others finish their job and are replaced, one of an engine at a time. A
    file that is wrong is refused whole, and what runs goes on. Exit codes: 0 taken, 2 not taken; with --wait also 1
    when a worker does not start with it, 3 when it takes longer than --timeout.
    """
    from pool.runfiles.server import running

    configured, wrong = load_running(config)
    spool = open_spool(configured)
    before = running(spool.root)
    if before is None:
        raise wrong or ConfigError("no supervisor serves this spool: `python -m pool serve` reads the configuration")
    if before.config != str(configured.file):
        say(f"! the supervisor was started with {before.config}: that file is read again", "yellow")
    after = _ask(spool, before)
    if after.refused is not None:
        raise ConfigError(after.refused.message, after.refused.path)
    roll = _await_roll(spool, after, timeout) if wait else {}
    if as_json:
        print_json({"config": after.config, "digest": after.digest, "engines": after.engines, **roll})
    if not wait:
        say(f"✓ {after.config} is read; python -m pool status tells how far the slots are", "green")
        return
    done = f"{roll['rolled']} of {roll['slots']} slots run it"
    if roll["failed"]:
        say(f"✗ {after.config} is read, but does not start in {roll['failed']}; {done}", "red")
        raise typer.Exit(1)
    if roll["moving"]:
        say(f"✗ not over after {timeout:g} s, and goes on: {done}", "yellow")
        raise typer.Exit(3)
    say(f"✓ {after.config} is read: {done}", "green")


def _ask(spool: Spool, before: Running) -> Running:
    """What the supervisor says after it has read its file again. Raises SupervisorFailed."""
    from pool.runfiles.server import running
    from pool.spool import fsops

    temp = spool.temp()
    request = f"{spool.root}/run/control/{Path(temp).name}.reload"
    fsops.write_new(temp, [b""], sync=False)
    fsops.replace(temp, request)
    deadline = time.monotonic() + _ANSWER_S
    while Path(request).exists():
        if not before.identity.alive():
            raise SupervisorFailed("the supervisor ended before it read the configuration; the next one reads it")
        if time.monotonic() > deadline:
            raise SupervisorFailed(f"no answer after {_ANSWER_S:.0f} s: python -m pool logs supervisor")
        time.sleep(_POLL_S)
    after = running(spool.root)
    if after is None or after.asked == before.asked:
        raise SupervisorFailed("the pool is draining: the configuration was not read; the next supervisor reads it")
    return after


def _await_roll(spool: Spool, wanted: Running, timeout: float | None) -> dict[str, Any]:
    """How far the slots are when nothing more will happen, or time is over. Raises SupervisorFailed."""
    from pool.runfiles.server import running

    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    while True:
        told = _told(spool)
        roll = told.get("roll", {})
        ours = roll.get("digest") == wanted.digest
        over = ours and roll["rolled"] == roll["slots"] and not roll["leaving"]
        if ours and (over or not roll["moving"] or time.monotonic() > deadline):
            return {**roll, "moving": roll["moving"] and not over}
        now = running(spool.root)
        if now is not None and now.digest != wanted.digest:
            raise SupervisorFailed("another configuration was read before all slots had this one")
        if now is None or told.get("draining"):
            raise SupervisorFailed("the pool was drained before all slots had the new configuration")
        time.sleep(_POLL_S)


def _told(spool: Spool) -> dict[str, Any]:
    try:
        found = json.loads((spool.root / "run" / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
