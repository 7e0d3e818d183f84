"""The command `reload`: make the supervisor read its configuration again, and report the result."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pool.cli.command import load_running, open_spool, print_json, say, unserved
from pool.cli.options import ConfigOption, JsonOption
from pool.errors import ConfigError, SupervisorFailed

if TYPE_CHECKING:
    from pool.runfiles.server import Running
    from pool.spool.store import Spool

_POLL_S = 0.05
_ANSWER_S = 30.0  # its loop takes one second per turn


def reload(
    config: ConfigOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all slots run it.")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --wait: wait at most this long.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Switch to the configuration on disk, slot by slot, without a drain.

    Workers whose settings did not change stay; the others finish their job and are replaced, one per engine at a
    time. An invalid file is refused as a whole, and the pool runs on unchanged. Exit codes: 0 accepted, 2 refused; with
    --wait also 1 when a worker does not start with it, 3 when it takes longer than --timeout.
    """
    from pool.runfiles.server import running

    configured, wrong = load_running(config)
    spool = open_spool(configured)
    before = running(spool.root)
    if before is None:
        raise wrong or ConfigError(unserved(spool.root))
    if before.config != str(configured.file):
        say(f"! the supervisor was started with {before.config}, so it reads that file again", "yellow")
    after = _ask(spool, before)
    if after.refused is not None:
        raise ConfigError(after.refused.message, after.refused.path)
    roll = _await_roll(spool, after, timeout) if wait else {}
    if as_json:
        print_json({"config": after.config, "digest": after.digest, "engines": after.engines, **roll})
    if not wait:
        say(f"✓ {after.config} is loaded; `python -m pool status` shows the progress of the slots", "green")
        return
    done = f"{roll['rolled']} of {roll['slots']} slots run it"
    if roll["failed"]:
        say(f"✗ {after.config} is loaded, but workers do not start in {roll['failed']}; {done}", "red")
        raise typer.Exit(1)
    if roll["moving"]:
        say(f"✗ not finished after {timeout:g} s, still in progress: {done}", "yellow")
        raise typer.Exit(3)
    say(f"✓ {after.config} is loaded: {done}", "green")


def _ask(spool: Spool, before: Running) -> Running:
    """Ask for a reload; returns the description of the supervisor after it. Raises SupervisorFailed."""
    from pool.runfiles.server import running
    from pool.spool import fsops

    temp = spool.temp()
    request = f"{spool.root}/run/control/{Path(temp).name}.reload"
    fsops.write_new(temp, [b""], sync=False)
    fsops.replace(temp, request)
    deadline = time.monotonic() + _ANSWER_S
    while Path(request).exists():
        if not before.identity.alive():
            raise SupervisorFailed("the supervisor ended before it read the configuration; the next one will read it")
        if time.monotonic() > deadline:
            raise SupervisorFailed(
                f"the supervisor did not answer in {_ANSWER_S:.0f} s: see `python -m pool logs supervisor`"
            )
        time.sleep(_POLL_S)
    after = running(spool.root)
    if after is None or after.asked == before.asked:
        raise SupervisorFailed("the pool is draining and did not read the configuration; the next supervisor will")
    return after


def _await_roll(spool: Spool, wanted: Running, timeout: float | None) -> dict[str, Any]:
    """The state of the roll when it has ended, or after `timeout` seconds. Raises SupervisorFailed."""
    from pool.runfiles.server import running

    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    while True:
        status = _read_status(spool)
        roll = status.get("roll", {})
        ours = roll.get("digest") == wanted.digest
        over = ours and roll["rolled"] == roll["slots"] and not roll["leaving"]
        if ours and (over or not roll["moving"] or time.monotonic() > deadline):
            return {**roll, "moving": roll["moving"] and not over}
        now = running(spool.root)
        if now is not None and now.digest != wanted.digest:
            raise SupervisorFailed("another configuration was loaded before all slots ran this one")
        if now is None or status.get("draining"):
            raise SupervisorFailed("the pool was drained before all slots ran the new configuration")
        time.sleep(_POLL_S)


def _read_status(spool: Spool) -> dict[str, Any]:
    try:
        found = json.loads((spool.root / "run" / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
