"""Commands about jobs: result, cancel, retry, purge."""

from __future__ import annotations

import os
import sys
import time
from enum import Enum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from pool.cli.command import known_engine, load, open_spool, print_json, say, standing, unserved
from pool.cli.options import ConfigOption, JsonOption, PatienceOption
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
    """States of jobs that purge removes."""

    completed = "completed"
    failed = "failed"
    cancelled = "cancelled"


def result(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job is over.")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --wait: wait at most this long.", show_default=False)
    ] = None,
    patience: PatienceOption = PATIENCE_S,
    as_json: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the worker's traceback on failure.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print the result of a job, or why it failed.

    Exit codes: 0 completed; 1 failed or cancelled, or no worker can run it; 3 not over.
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
    """Wait for the end of a job, at most `timeout` seconds; the error when no worker can run it, else None.

    Raises UnknownJob.
    """
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
    engine: Annotated[
        str | None, typer.Option(help="Jobs of this engine that are not over.", show_default=False)
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--state", help="Jobs in this state: held, deferred, queued or running.", show_default=False),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Jobs with this tag.", show_default=False)] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until they have stopped.")] = True,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait at most this long.")] = 30.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Cancel jobs: a waiting job never starts; a running job is ended with all processes that it started.

    Exit code 1 when a job was over already, 3 when one has not stopped in time.
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
            say(f"✗ {job_id} is already {state.value}", "yellow")
        elif not wait or not served:
            say(f"{job_id} will be cancelled{'' if served else ' by the next supervisor: python -m pool serve'}", "dim")
        else:
            code = 3
            say(f"✗ {job_id} is still {state.value} after {timeout:g} s; the cancellation stays in force", "yellow")
    raise typer.Exit(code)


def _await_end(spool: Spool, job_id: str, deadline: float) -> JobState:
    """The state of a job once it is over, or at `deadline` (monotonic seconds)."""
    from pool.spool import lookup

    while True:
        state = lookup.find(spool, job_id).state
        if state.terminal or time.monotonic() >= deadline:
            return state
        time.sleep(_POLL_S)


def retry(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Ids of jobs; with --all: names of engines.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All failed jobs of the named engines, or of all engines.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Run failed jobs again; they keep their ids and get all their attempts."""
    from pool.format.names import check_id
    from pool.runfiles.server import supervisor_identity

    configured = load(config)
    spool = open_spool(configured)
    failed = _failed(spool)
    if every:
        for name in names or []:
            known_engine(configured, name)
        ids = [job_id for job_id, (_, engine, _) in failed.items() if not names or engine in names]
    elif names:
        ids = list(dict.fromkeys(check_id(name) for name in names))
    else:
        raise CallerError(f"give the ids of jobs, or --all ({len(failed)} failed)")
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
        say(unserved(spool.root), "yellow")


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
        pass  # RACE: another process has retried or purged it
    except JobRefused as reason:
        if not missing_ok:
            raise
        say(f"! left out: {reason}", "yellow")
    if missing_ok:
        return False
    state = lookup.find(spool, job_id).state
    raise JobRefused(f"job {job_id} is {state.value}: only a failed job can be run again")


def purge(
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="Age since the end of the job: 90s, 30m, 24h, 7d, 0.")
    ] = "24h",
    state: Annotated[
        list[State] | None, typer.Option(help="Only jobs in this state. Repeatable. Default: all.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Remove jobs that are over: their records, their files in the spool, and what `retry` needs.

    Files that a job wrote outside the spool stay.
    """
    from pool.cli.text import seconds
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
