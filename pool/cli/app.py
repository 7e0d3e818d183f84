"""The commands of `python -m pool`: serve a spool, inspect it, act on its jobs."""

from __future__ import annotations

import typer

from pool.cli import admin, doctor, figures, jobs, reload, service
from pool.cli.options import CONTEXT, VersionOption
from pool.cli.submit import submit

_EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "python -m pool doctor",
        "python -m pool serve",
        "python -m pool.submit transcribe audio=speech.wav",
        "python -m pool status --watch",
        "python -m pool stats --since 7d",
        "python -m pool reload --wait",
        "python -m pool jobs --state failed --since 24h",
        "python -m pool rerun ID speakers=3",
        "python -m pool retry --all transcribe",
        "python -m pool purge --older-than 7d --state failed",
        "[bold]Exit codes[/bold] 0 done, 1 failed, 2 wrong usage, 3 timed out, 141 the reader of stdout has gone",
    )
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=CONTEXT,
)


@app.callback(epilog=_EPILOG)
def options(version: VersionOption = False) -> None:
    """A subprocess pool for model inference whose only transport is the filesystem."""


_POOL, _JOBS = "The pool", "Jobs"
app.command("serve", rich_help_panel=_POOL)(service.serve)
app.command("status", rich_help_panel=_POOL)(service.status)
app.command("stats", rich_help_panel=_POOL)(figures.stats)
app.command("reload", rich_help_panel=_POOL)(reload.reload)
app.command("drain", rich_help_panel=_POOL)(service.drain)
app.command("recover", rich_help_panel=_POOL)(service.recover)
app.command("engines", rich_help_panel=_POOL)(service.engines)
app.command("doctor", rich_help_panel=_POOL)(doctor.doctor)
app.command("logs", rich_help_panel=_POOL)(service.show_logs)
app.command("submit", rich_help_panel=_JOBS)(submit)
app.add_typer(jobs.jobs_app, name="jobs", rich_help_panel=_JOBS)
app.command("rerun", rich_help_panel=_JOBS)(jobs.rerun)
app.command("result", rich_help_panel=_JOBS)(admin.result)
app.command("cancel", rich_help_panel=_JOBS)(admin.cancel)
app.command("retry", rich_help_panel=_JOBS)(admin.retry)
app.command("purge", rich_help_panel=_JOBS)(admin.purge)
