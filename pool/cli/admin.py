"""Commands about jobs: result, cancel, retry, purge."""

from __future__ import annotations

import os
import sys
import time
from enum import Enum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from pool.cli.command import (
    ConfigOption,
    JsonOption,
    PatienceOption,
    known_engine,
    load,
    open_spool,
    print_json,
    say,
    standing,
)
from pool.constants import PATIENCE_S
from pool.errors import CallerError, JobRefused, UnknownJob

if TYPE_CHECKING:
    from pool.config.settings import Config
    from pool.errors import EngineUnavailable
    from pool.format.names import JobName
    from pool.job import JobState, Progress
    from pool.spool.store import Spool

_POLL_S = 0.05


class State(str, Enum):
    """What purge may remove."""

    completed = "completed"
    failed = "failed"
    cancelled = "cancelled"


def result(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until the job is over.")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --wait: this long at most.", show_default=False)
    ] = None,
    patience: PatienceOption = PATIENCE_S,
    as_json: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With the worker's traceback on failure.")] = False,
    config: ConfigOption = None,
) -> None:
    """The result of a job, or why it failed.

    Exit codes: 0 completed, 1 failed or cancelled, or no worker can run it, 3 not over yet.
    """
    from pool.cli import outcome
    from pool.format.names import check_id
    from pool.spool import lookup

    configured = load(config)
    spool = open_spool(configured)
    why = _await(configured, check_id(job_id), timeout, patience) if wait else None
    if not lookup.find(spool, check_id(job_id)).state.terminal:
        _say_progress(job_id, lookup.progress_now(spool, job_id), why, as_json=as_json)
        raise typer.Exit(outcome.EXIT_TIMED_OUT if why is None else outcome.EXIT_FAILED)
    try:
        record = spool.read_record(job_id)
    except FileNotFoundError:
        raise UnknownJob(job_id) from None  # RACE: consumed or retried at this moment
    raise typer.Exit(outcome.present(record, as_json=as_json, verbose=verbose, quiet=as_json))


def _say_progress(job_id: str, progress: Progress, why: EngineUnavailable | None, *, as_json: bool) -> None:
    """Print where a job stands that is not over. why: no worker can run it, so the wait was ended."""
    if as_json:
        message = why.sentence() if why else progress.message
        print_json({"id": job_id, "state": progress.status, "progress": progress.percent, "message": message})
    if why is not None:
        say(f"✗ {why.sentence()}: job {job_id} is {standing(progress)}", "bold yellow")
    elif not as_json:
        say(f"job {job_id} is {standing(progress)}", "yellow")


def _await(config: Config, job_id: str, timeout: float | None, patience: float) -> EngineUnavailable | None:
    """Wait for the end of a job; why that is in vain, or None. Raises UnknownJob."""
    from concurrent.futures import wait

    from pool.client.filepool import FilePool

    pool = FilePool(config, start=False, patience=patience)
    try:
        future = pool.attach(job_id)
        wait([future], timeout)
        return future.unavailable
    finally:
        pool.close()


def cancel(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", show_default=False)] = None,
    engine: Annotated[str | None, typer.Option(help="Those of this engine, not over.", show_default=False)] = None,
    where: Annotated[
        str | None, typer.Option("--state", help="Those held, deferred, queued or running.", show_default=False)
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Those with this tag.", show_default=False)] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until they have stopped.")] = True,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait this long at most.")] = 30.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Stop jobs: a waiting one never starts, a running one is ended with all that it started.

    Exit code 1 when one of them was over before, 3 when one has not stopped in time.
    """
    from pool.client.filepool import FilePool
    from pool.job import JobState

    configured = load(config)
    spool = open_spool(configured)
    pool = FilePool(configured, start=False)
    if engine is not None:
        known_engine(configured, engine)
    states: dict[str, JobState] = {job_id: pool.state(job_id) for job_id in job_ids or ()}
    asked = pool.cancel_many(job_ids or None, engine=engine, state=where, tag=tag)
    if not asked and not job_ids:
        say("no job fits", "dim")
    served = pool.status().supervisor is not None
    deadline = time.monotonic() + (timeout if wait and served else 0.0)
    for job_id in asked:
        states[job_id] = _await_end(spool, job_id, deadline)
    pool.close()
    if as_json:
        print_json({"jobs": {job_id: state.value for job_id, state in states.items()}, "served": served})
    code = 0
    for job_id, state in states.items():
        if state is JobState.CANCELLED:
            say(f"✓ {job_id} is cancelled", "green")
        elif state.terminal:
            code = max(code, 1)
            say(f"✗ {job_id} is {state.value} already", "yellow")
        elif not wait or not served:
            say(f"{job_id} will be cancelled{'' if served else ' by the next supervisor: python -m pool serve'}", "dim")
        else:
            code = 3
            say(f"✗ {job_id} is still {state.value} after {timeout:g} s; it was asked to stop", "yellow")
    raise typer.Exit(code)


def _await_end(spool: Spool, job_id: str, deadline: float) -> JobState:
    from pool.spool import lookup

    while True:
        state = lookup.find(spool, job_id).state
        if state.terminal or time.monotonic() >= deadline:
            return state
        time.sleep(_POLL_S)


def retry(
    words: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Jobs; with --all: engines.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All failed jobs, of the engines named or of all.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Run failed jobs again, with all their attempts."""
    from pool.format.names import check_id
    from pool.runfiles.server import supervisor_identity

    configured = load(config)
    spool = open_spool(configured)
    failed = _failed(spool)
    if every:
        for word in words or []:
            known_engine(configured, word)
        ids = [job_id for job_id, (_, engine, _) in failed.items() if not words or engine in words]
    elif words:
        ids = list(dict.fromkeys(check_id(word) for word in words))
    else:
        raise CallerError(f"name jobs, or --all; failed now: {len(failed)}")
    again = [job_id for job_id in ids if _retry(spool, job_id, failed.get(job_id), missing_ok=every)]
    identity = supervisor_identity(spool.root / "run" / "supervisor.json")
    served = identity is not None and identity.alive()
    if as_json:
        print_json({"retried": again, "served": served})
    if len(again) == 1:
        say(f"✓ {again[0]} is queued again; follow it: python -m pool.submit --attach {again[0]}", "green")
    else:
        say(f"✓ {len(again)} jobs are queued again" if again else "no job has failed", "green" if again else "dim")
    if again and not served:
        say("no supervisor serves this spool; they wait for one: python -m pool serve", "yellow")


_Dead: TypeAlias = "tuple[str, str, JobName]"  # file name in dead/, engine, job name


def _failed(spool: Spool) -> dict[str, _Dead]:
    """Failed jobs that can be run again, oldest first."""
    from pool.format.names import parse_dead

    found = {}
    for entry in os.listdir(spool.root / "dead"):
        parsed = parse_dead(entry)
        if parsed is not None:
            found[parsed[1].id] = (entry, *parsed)
    return dict(sorted(found.items(), key=lambda item: item[1][2].born))


def _retry(spool: Spool, job_id: str, dead: _Dead | None, *, missing_ok: bool) -> bool:
    from pool.spool import lookup

    try:
        if dead is not None:
            spool.requeue(*dead)
            return True
    except FileNotFoundError:
        pass  # RACE: somebody else was faster
    except JobRefused as reason:
        if not missing_ok:
            raise
        say(f"! left out: {reason}", "yellow")
    if missing_ok:
        return False
    state = lookup.find(spool, job_id).state
    raise JobRefused(f"job {job_id} is {state.value}: only a failed job can be run again")


def purge(
    older_than: Annotated[str, typer.Option(metavar="TIME", help="Such as 90s, 30m, 24h, 7d, 0.")] = "24h",
    state: Annotated[
        list[State] | None, typer.Option(help="Only these; again for more. Default: all.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Remove jobs that are over: their records, the files in the spool, and what `retry` would need.

    Files that a job wrote to a path of yours stay.
    """
    from pool.cli.terminal import seconds
    from pool.client.durations import span
    from pool.job import TERMINAL, JobState
    from pool.supervise.retention import purge as remove_old

    age_s = span(older_than, "--older-than")
    spool = open_spool(load(config))
    states = frozenset(JobState(one.value) for one in state) if state else TERMINAL
    what = "" if states == TERMINAL else " and ".join(sorted(one.value for one in states)) + " "
    age = f" that ended more than {seconds(age_s)} ago" if age_s else ""
    if not yes:
        if not sys.stdin.isatty():
            raise JobRefused(f"this removes all {what}jobs{age} from {spool.root}: add --yes")
        if not typer.confirm(f"Remove all {what}jobs{age} from {spool.root}?", err=True):
            raise typer.Exit(1)
    count = remove_old(spool, older_than_s=age_s, states=states)
    if as_json:
        print_json({"removed": count})
    else:
        say(f"✓ {count} job{'' if count == 1 else 's'} removed", "green")
