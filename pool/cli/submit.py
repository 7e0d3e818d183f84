"""`python -m pool.submit`: submit a job, follow it, print its result."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pool.cli.command import known_engine, load, print_json, run, say, starting, unserved
from pool.cli.options import (
    CONTEXT,
    AfterOption,
    ConfigOption,
    ExpiresOption,
    JsonOption,
    NotBeforeOption,
    PatienceOption,
    VersionOption,
)
from pool.constants import PATIENCE_S
from pool.errors import CallerError
from pool.policy.retries import KINDS

if TYPE_CHECKING:
    from pool.cli.progress import LiveView, PlainView
    from pool.client.filepool import FilePool
    from pool.client.follow import Follower
    from pool.client.future import JobFuture
    from pool.config.settings import Config

_DESCRIBE_S = 5.0  # how long to wait for the schema of an engine after the start of a pool
_EPILOG = "\n\n".join(  # the help joins the lines of a paragraph, so each line is a paragraph
    (
        "[bold]Examples[/bold]",
        "python -m pool.submit transcribe audio=speech.wav",
        "python -m pool.submit transcribe audio=call.m4a speakers=2 output=call.srt",
        "python -m pool.submit transcribe audio=talk.mp4 hotword=@names.txt --json > talk.json",
        "python -m pool.submit transcribe audio=long.wav --no-wait --id interview-7",
        "python -m pool.submit --attach interview-7",
        "[bold]Values[/bold] are strings where the engine takes a string, else JSON if they are valid JSON. "
        "key=@file reads the value from a file, key:=json is always JSON, key=@@name is the string @name. Relative "
        "paths start at the working directory. `python -m pool engines` lists the parameters of the engines",
        "[bold]Exit codes[/bold] 0 completed, 1 failed or cancelled, or no worker can run it, 2 wrong usage or "
        "refused, 3 timed out, 130 left with Ctrl-C (the job goes on), 141 the reader of stdout has gone",
    )
)


def submit(
    engine: Annotated[str | None, typer.Argument(metavar="ENGINE", help="A name from config.json.")] = None,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Parameters of the engine.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job, or only submit it.")] = True,
    as_json: JsonOption = False,
    priority: Annotated[int, typer.Option(help="-100 to 100; higher runs first.")] = 0,
    job_id: Annotated[
        str | None,
        typer.Option("--id", help="Your id for the job: the same id again is the same job.", show_default=False),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Limit of one attempt.", show_default=False),
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="Further attempts after the first one failed.", show_default=False)
    ] = None,
    retry_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND", help=f"Retry only after this kind: {', '.join(KINDS)}. Repeatable.", show_default=False
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG,…", help="Words to find the job by, in `jobs`.", show_default=False),
    ] = None,
    note: Annotated[str, typer.Option(help="A comment, shown in lists of jobs.", show_default=False)] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL", help="Run it only on a machine that has this label. Repeatable.", show_default=False
        ),
    ] = None,
    log_context: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Field for every log line of the job. Repeatable.", show_default=False),
    ] = None,
    traceparent: Annotated[
        str, typer.Option(envvar="TRACEPARENT", help="W3C trace context that the job belongs to.", show_default=False)
    ] = "",
    tracestate: Annotated[
        str, typer.Option(envvar="TRACESTATE", help="W3C trace state, sent with traceparent.", show_default=False)
    ] = "",
    not_before: NotBeforeOption = None,
    expires: ExpiresOption = None,
    after: AfterOption = None,
    wait_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Wait at most this long; the job goes on.", show_default=False),
    ] = None,
    patience: PatienceOption = PATIENCE_S,
    output_record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the whole record of the job to this file, as JSON.", show_default=False
        ),
    ] = None,
    attach: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Follow this job instead of submitting one.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress, only the result.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the worker's traceback on failure.")] = False,
    version: VersionOption = False,
) -> None:
    """Submit a job, follow it, print its result.

    Progress goes to stderr, the result to stdout. If no supervisor serves the spool, one is started for this command.
    """
    if (attach is None) == (engine is None):
        missing = "give an engine and its parameters, for example: python -m pool.submit transcribe audio=speech.wav"
        raise CallerError(missing if attach is None else "--attach takes no engine: the job has one already")
    from pool.cli.arguments import parse_fields
    from pool.client.filepool import FilePool

    fields = parse_fields(log_context or [])
    configured = load(config, engines=attach is None)
    if attach is None:
        known_engine(configured, engine or "")
    with starting(quiet or not wait):
        pool = FilePool(configured, start=wait, patience=patience)
    try:
        with _ctrl_c() as asked:
            if attach is not None:
                future = pool.attach(attach)
            else:
                params = _parameters(pool, configured, engine or "", values or [], started=wait)
                future = pool.submit(
                    engine or "",
                    params=params,
                    id=job_id,
                    priority=priority,
                    timeout_s=timeout,
                    retry_times=retries,
                    retry_on=retry_on or None,
                    note=note,
                    tags=[word for text in tag or [] for word in text.split(",")],
                    not_before=not_before,
                    expires=expires,
                    depends_on=after or (),
                    labels=label or (),
                    traceparent=traceparent,
                    tracestate=tracestate if traceparent else "",
                    log_context=fields,
                )
            if not wait:
                _print_accepted(pool, future, as_json=as_json, quiet=quiet)
                return
            code = Waiting(
                pool, future, asked, as_json=as_json, quiet=quiet, verbose=verbose, output_record=output_record
            ).until(wait_timeout)
    finally:
        pool.close()
    raise typer.Exit(code)


def _parameters(pool: FilePool, config: Config, engine: str, words: list[str], *, started: bool) -> dict[str, Any]:
    """Parameters, converted as the engine's schema says. started: wait up to _DESCRIBE_S for the schema.

    Raises JobRefused.
    """
    from pool.cli.arguments import parse_words
    from pool.runfiles.schemas import Schemas

    schemas = Schemas(config.spool)
    deadline = time.monotonic() + _DESCRIBE_S
    while (about := schemas.describe(engine)) is None and started and time.monotonic() < deadline:
        if any(slot.trouble for slot in pool.status().of(engine)):
            break  # the worker cannot start: the job waits, and the reason is shown
        time.sleep(0.05)
    return parse_words(words, about.get("schema") or {} if about else None)


def _print_accepted(pool: FilePool, future: JobFuture, *, as_json: bool, quiet: bool) -> None:
    served = pool.status().supervisor is not None
    if as_json:
        state = pool.state(future.id).value
        print_json({"id": future.id, "engine": future.engine, "state": state, "served": served})
    else:
        print(future.id)
    if not as_json and not quiet:
        say(f"accepted; its result: python -m pool result {future.id} --wait", "dim")
    if not served:
        say(unserved(pool.spool.root), "yellow")


class Waiting:
    """Follows one job for a person or a script. asked: returns how often Ctrl-C was pressed."""

    def __init__(
        self,
        pool: FilePool,
        future: JobFuture,
        asked: Callable[[], int],
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        output_record: Path | None = None,
    ) -> None:
        self._pool, self._future, self._asked = pool, future, asked
        self._json, self._quiet, self._verbose = as_json, quiet, verbose
        self._output_record = output_record
        self._answered = 0
        self._cancelling = False

    def until(self, timeout: float | None) -> int:
        """Follow the job to its end, at most `timeout` seconds (None: no limit); returns the exit code."""
        from pool.cli.outcome import EXIT_FAILED
        from pool.cli.progress import make_view
        from pool.cli.terminal import make_console
        from pool.client.follow import Follower

        console = make_console(stderr=True)
        if not self._quiet:
            say(f"job {self._future.id} · {self._future.engine}", "dim")
        follower = Follower(self._pool, self._future)
        deadline = None if timeout is None else time.monotonic() + timeout
        view = make_view(console, quiet=self._quiet)
        try:
            while True:
                over = follower.over  # read before the events, so that all events before the end are shown
                for event in follower.poll():
                    view.show(event)
                if over:
                    break
                if self._asked() > self._answered:
                    code = self._interrupted(view)
                    if code is not None:
                        return code
                if deadline is not None and time.monotonic() >= deadline:
                    return self._gave_up(view, f"not done after {timeout:g} s")
                if follower.stuck and self._tied():
                    return self._gave_up(view, f"{follower.stuck}, see above", EXIT_FAILED)
                follower.wait()
        finally:
            view.close()
        return self._report(follower, view)

    # ---- the end

    def _report(self, follower: Follower, view: LiveView | PlainView) -> int:
        from pool.cli import outcome

        record = follower.future.record
        if follower.future.unavailable is not None:
            return self._gave_up(view, follower.future.unavailable.sentence(), outcome.EXIT_FAILED)
        if record is None:
            error = follower.future.exception()  # the record cannot be read
            raise error if error is not None else RuntimeError("a job without a record")
        if self._output_record is not None:
            _write(self._output_record, outcome.record_json(record) + "\n")
        shown = view.parts if sys.stdout.isatty() and sys.stderr.isatty() else ()
        return outcome.present(record, as_json=self._json, verbose=self._verbose, quiet=self._quiet, shown=shown)

    def _gave_up(self, view: LiveView | PlainView, why: str, code: int | None = None) -> int:
        from pool.cli.command import standing
        from pool.cli.outcome import EXIT_TIMED_OUT

        view.close()
        progress = self._pool.progress_of(self._future.id)
        if self._json:
            more = {"status": progress.status, "progress": progress.percent, "message": progress.message or why}
            print_json({**self._about(), "timed_out": code is None, **more})
        say(f"✗ {why}: job {self._future.id} is {standing(progress)}", "bold yellow")
        self._print_next_commands()
        return EXIT_TIMED_OUT if code is None else code

    # ---- Ctrl-C

    def _interrupted(self, view: LiveView | PlainView) -> int | None:
        """Handle Ctrl-C: the exit code to leave with, or None to go on. Asks on a terminal, the first time only."""
        from pool.cli.outcome import EXIT_INTERRUPTED

        self._answered = self._asked()
        view.pause()
        answer = "l"
        if sys.stdin.isatty() and sys.stderr.isatty() and not self._cancelling:
            answer = self._ask()
        if answer == "c":
            self._cancelling = True
            self._future.cancel()
            say("cancelling the job; waiting for its end (Ctrl-C leaves at once)", "yellow")
        elif answer == "l":
            if self._json:
                print_json({**self._about(), "left": True})
            say(f"left: job {self._future.id} goes on", "yellow")
            self._print_next_commands()
            return EXIT_INTERRUPTED
        view.resume()
        return None

    def _ask(self) -> str:
        """The answer: "l" (leave), "c" (cancel) or "w" (wait). Ctrl-C or the end of input means leave."""
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            sys.stderr.write("\nleave the job running, cancel it, or wait on? [L/c/w] (Ctrl-C leaves) ")
            sys.stderr.flush()
            answer = sys.stdin.readline()
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            answer = ""
        finally:
            signal.signal(signal.SIGINT, handler)
        letter = answer.strip().lower()[:1]
        return letter if letter in ("c", "w") else "l"

    def _print_next_commands(self) -> None:
        where = f" --config {self._pool.config.file}" if self._pool.config.file else ""
        if self._tied():  # the workers end with this command
            grace = self._pool.config.drain_grace_s
            waits = f"what needs more than {grace:g} s goes back to the queue" if self._future.running() else "it waits"
            say(f"  this pool ends with this command, {waits}; to go on: python -m pool serve{where}")
        say(f"  follow it:  python -m pool.submit --attach {self._future.id}{where}")
        say(f"  its result: python -m pool result {self._future.id} --wait{where}")

    def _tied(self) -> bool:
        """Whether the supervisor ends with its last client, which may be this command, or has ended."""
        supervisor = self._pool.status().supervisor
        return supervisor is None or supervisor.tied

    def _about(self) -> dict[str, object]:
        future = self._future
        return {"id": future.id, "engine": future.engine, "state": self._pool.state(future.id).value}


@contextlib.contextmanager
def _ctrl_c() -> Iterator[Callable[[], int]]:
    """Count Ctrl-C instead of raising KeyboardInterrupt; the third one raises again."""
    count = 0

    def pressed(number: int, frame: Any) -> None:
        nonlocal count
        count += 1
        if count > 2:
            signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield lambda: count
    finally:
        signal.signal(signal.SIGINT, before)


def _write(path: Path, text: str) -> None:
    """Write a file atomically. Raises OSError."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temp.write_text(text, "utf-8")
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.command(context_settings=CONTEXT, epilog=_EPILOG)(submit)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    run(app, "python -m pool.submit")
