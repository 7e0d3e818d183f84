"""Commands that list, show and rerun jobs: jobs, jobs show, rerun."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.command import known_engine, load, open_spool, print_json, say, unserved
from pool.cli.options import CONTEXT, ConfigOption, JsonOption
from pool.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pool.client.browse import JobPage
    from pool.config.settings import Config
    from pool.spool.store import Spool

_PATIENCE_S = 5.0  # of a person, for the first list over many records
_EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "python -m pool jobs --state failed --since 24h",
        "python -m pool jobs --text 'out of memory'",
        "python -m pool jobs --engine transcribe --tag customer=acme --json",
        "python -m pool jobs show ID",
        "python -m pool rerun ID speakers=3 --tag again",
    )
)
jobs_app = typer.Typer(context_settings=CONTEXT, rich_markup_mode="rich")


@jobs_app.callback(invoke_without_command=True, epilog=_EPILOG)
def jobs(
    context: typer.Context,
    engine: Annotated[
        list[str] | None, typer.Option(metavar="NAME,…", help="Jobs of these engines.", show_default=False)
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE,…", help="queued, deferred, running, completed, failed, cancelled.", show_default=False
        ),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG,…", help="Jobs with all of these tags.", show_default=False)
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            "--text", metavar="TEXT", help="Jobs with this text in the id, a tag, note or reason.", show_default=False
        ),
    ] = "",
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Jobs submitted within 90s, 30m, 2h, 7d.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", help="Most jobs to print, up to 1000.")] = 50,
    after: Annotated[
        str,
        typer.Option(metavar="CURSOR", help="Print the next page: the cursor under the last page.", show_default=False),
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two refreshes.")] = 2.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List waiting, running and ended jobs, newest first. `jobs show ID` prints one job with its parameters."""
    if context.invoked_subcommand is not None:
        return
    from pool.client import browse

    configured = load(config)
    spool = open_spool(configured)
    engines = _items(engine)
    for name in engines:
        _known(spool, configured, name)

    def look() -> JobPage:
        chosen = browse.Filter(engines, _items(state), _items(tag), since, text)
        return browse.page(spool, chosen, limit=limit, after=after, within_s=None if as_json else _PATIENCE_S)

    if configured.is_branch:
        say("the jobs of this branch; `python -m pool.cluster jobs` has those of all clients", "dim")
    if watch:
        _watch(look, interval, as_json)
        return
    _print(look(), as_json)


@jobs_app.command("show")
def show(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print one job with its parameters, terms, tags and note. Secrets are not shown."""
    from pool.cli.tables import job_view
    from pool.cli.terminal import make_console
    from pool.client import browse, rerun

    spool = open_spool(load(config))
    origin = rerun.origin(spool, job_id)
    about = browse.one(spool, job_id)
    full = {**about.to_map(), **origin.to_map()}
    if as_json:
        print_json(full)
    else:
        make_console().print(job_view(about, origin), soft_wrap=True)


def rerun(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changed parameters.", show_default=False)
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="KEY,…", help="Remove these parameters.", show_default=False)
    ] = None,
    priority: Annotated[int | None, typer.Option(help="-100 to 100.", show_default=False)] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Limit of one attempt.", show_default=False)
    ] = None,
    retries: Annotated[int | None, typer.Option(help="Further attempts after the first.", show_default=False)] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG,…", help="Replace the tags.", show_default=False)
    ] = None,
    note: Annotated[str | None, typer.Option(help="Replace the note.", show_default=False)] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Replace the labels of the machine. Repeatable.", show_default=False),
    ] = None,
    new_id: Annotated[str | None, typer.Option("--id", help="Your id for the new job.", show_default=False)] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Submit a changed copy of a job, in whatever state that is.

    The old job stays as it is. `retry` runs a failed job itself again.
    """
    from pool.cli.arguments import parse_words
    from pool.client.filepool import FilePool
    from pool.runfiles.schemas import Schemas

    configured = load(config, engines=True)
    spool = open_spool(configured)
    with FilePool(configured, start=False) as pool:
        old = pool.origin(job_id)
        known_engine(configured, old.engine)
        about = Schemas(spool.root).describe(old.engine)
        params = parse_words(values or [], about.get("schema") or {} if about else None, Path.cwd())
        future = pool.rerun(
            job_id,
            id=new_id,
            params=params,
            without=_items(without),
            priority=priority,
            timeout_s=timeout,
            retry_times=retries,
            tags=None if tag is None else _items(tag),
            note=note,
            labels=label or None,
        )
        served = pool.status().supervisor is not None
        pool.close()
    if as_json:
        print_json({"id": future.id, "engine": future.engine, "rerun_of": job_id, "served": served})
    else:
        print(future.id)
        say(f"accepted; follow it: python -m pool.submit --attach {future.id}", "dim")
    if not served:
        say(unserved(pool.spool.root), "yellow")


# ---- output


def _print(page: JobPage, as_json: bool) -> None:
    from pool.cli.tables import jobs_view
    from pool.cli.terminal import make_console

    if page.trouble:
        say(f"! {page.trouble}", "yellow")
    if page.unread:
        say(f"! {page.unread:,} older jobs are not read yet and may be missing: ask again", "yellow")
    if as_json:
        print_json(page.to_map())
        return
    if not len(page):
        say("no job fits", "dim")
        return
    make_console().print(jobs_view(page.jobs))
    if page.next:
        say(f"more: add --after {page.next}", "dim")


def _watch(look: Callable[[], JobPage], interval: float, as_json: bool) -> None:
    from rich.live import Live

    from pool.cli.tables import jobs_view
    from pool.cli.terminal import make_console

    console = make_console()

    def views() -> Iterator[JobPage]:
        while True:
            yield look()
            time.sleep(interval)

    try:
        if as_json or not console.is_terminal:
            for page in views():
                if as_json:
                    print(json.dumps(page.to_map(), ensure_ascii=False), flush=True)
                else:
                    console.print(jobs_view(page.jobs))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for page in views():
                live.update(jobs_view(page.jobs), refresh=True)
    except KeyboardInterrupt:
        return


def _items(given: list[str] | None) -> list[str]:
    """The items of a list option, which may be repeated: ["a,b", "c"] gives a, b, c. Raises CallerError."""
    items = [item.strip() for text in given or [] for item in text.split(",")]
    if any(not item for item in items):
        raise CallerError("a list has an empty item: write for example --state failed,running")
    return items


def _known(spool: Spool, config: Config, name: str) -> None:
    """Raise unless the configuration or the spool has the engine: JobRefused, UnknownEngine, ConfigError."""
    from pool.format.names import check_engine

    check_engine(name)
    if not (Path(spool.ready_dir(name)).is_dir() or (spool.root / "run" / "engines" / f"{name}.json").is_file()):
        known_engine(config, name)
