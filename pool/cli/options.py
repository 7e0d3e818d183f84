"""Options that several commands have, as typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pool import __version__

CONTEXT = {"help_option_names": ["-h", "--help"]}

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Default: ./config.json. Or the address of a cluster: nats://host:4222.",
        show_default=False,
    ),
]
PatienceOption = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="How long to wait while no worker can run without an operator's help; inf: no limit.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; messages go to stderr.")]
NotBeforeOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Earliest start: 90s, 2h, 1d, 2030-01-31T08:00+01:00.", show_default=False),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Fail the job if it has not started by then.", show_default=False),
]
AfterOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ID", help="Start only after this job has completed. Repeatable.", show_default=False),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"filepool {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
]
