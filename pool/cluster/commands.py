"""`python -m pool.cluster`: a server for a start, the node of this machine, and how the cluster is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pool.cli.command import load, print_json, say, say_error
from pool.cli.options import CONTEXT, ConfigOption, JsonOption, VersionOption
from pool.cluster import starting
from pool.cluster.hosting import server
from pool.constants import EXIT_CONFIG, EXIT_LOCKED

if TYPE_CHECKING:
    from pool.cluster.listing import ListedPage
    from pool.cluster.overview import Overview
    from pool.config.settings import Config

T = TypeVar("T")

#: What each command ends with, whichever it is.
EXIT_CODES = {
    0: "done; a node or server: ended as it was asked to",
    1: "failed; the servers do not answer or refuse; doctor: something must be fixed",
    2: "wrong usage",
    EXIT_CONFIG: "wrong configuration, or a name that another node has",
    EXIT_LOCKED: "another process serves this spool",
}


def _epilog(*examples: str) -> str:
    codes = ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    return "\n\n".join(("[bold]Examples[/bold]", *examples, f"[bold]Exit codes[/bold] {codes}"))


_EPILOG = "\n\n".join(
    (
        "[bold]A start on one machine[/bold]",
        "python -m pool.cluster server                        NATS with JetStream, on this machine only",
        "python -m pool.cluster node --server nats://127.0.0.1:4222   the workers of ./config.json serve it",
        'FilePool("nats://127.0.0.1:4222")                    in a program; or --config nats://… of every command',
        _epilog(
            "python -m pool.cluster doctor",
            "python -m pool.cluster status --server nats://127.0.0.1:4222",
            "python -m pool.cluster jobs --limit 20",
            "python -m pool.cluster drain",
        ),
        "docs/CLUSTER.md has three servers, accounts, TLS, Kubernetes and Slurm.",
    )
)
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=CONTEXT,
    no_args_is_help=True,
    epilog=_EPILOG,
    help="Join machines to one cluster.",
)
ServerOption = Annotated[
    list[str] | None,
    typer.Option("--server", "-s", metavar="URL", help="Address of a NATS server. Repeatable.", show_default=False),
]
TlsCaOption = Annotated[
    Path | None, typer.Option("--tls-ca", help="Whose certificates the servers have, PEM.", show_default=False)
]
UserOption = Annotated[str | None, typer.Option(help="Account on the servers.", show_default=False)]
PasswordOption = Annotated[
    Path | None, typer.Option("--password-file", help="File with its password.", show_default=False)
]
_CONNECT_S = 10.0


@app.callback()
def root(version: VersionOption = False) -> None:
    """Join machines to one cluster."""


# ---- server


app.command(
    epilog=_epilog(
        "python -m pool.cluster server",
        "python -m pool.cluster server --host 10.0.0.1 --store /var/lib/filepool/nats",
        "python -m pool.cluster server --name a --host 10.0.0.1 --peer 10.0.0.1:6222 --peer 10.0.0.2:6222 --show",
    )
)(server)


# ---- node


@app.command(
    epilog=_epilog(
        "python -m pool.cluster node --server nats://127.0.0.1:4222",
        "python -m pool.cluster node --config config.json --name gpu7 --label gpu24g",
        "python -m pool.cluster node --no-start      beside `python -m pool serve`",
    )
)
def node(  # noqa: PLR0917 - options
    config: ConfigOption = None,
    server: ServerOption = None,
    name: Annotated[str | None, typer.Option(help="Name in the cluster. Default: the host name.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="What this machine has, as gpu24g. Repeatable.")
    ] = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    tls_ca: TlsCaOption = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start a supervisor if none serves.")] = True,
) -> None:
    """Serve the cluster with the workers of this machine. Ctrl-C or SIGTERM drains; a second one ends at once."""
    configured = _with(
        load(config, engines=True),
        server,
        name=name,
        labels=label,
        user=user,
        password=password_file,
        tls_ca=tls_ca,
    )
    raise typer.Exit(starting.node(configured, start=start))


def _with(
    config: Config,
    servers: list[str] | None,
    *,
    name: str | None = None,
    labels: list[str] | None = None,
    user: str | None = None,
    password: Path | None = None,
    tls_ca: Path | None = None,
) -> Config:
    """The configuration with what the command line says. Raises ConfigError."""
    from pool.config.settings import checked_cluster

    said: dict[str, Any] = {"servers": servers, "name": name, "labels": labels, "user": user}
    said["password_file"] = str(password.absolute()) if password else None
    said["tls_ca"] = str(tls_ca.absolute()) if tls_ca else None
    return replace(config, cluster=checked_cluster(config.cluster, {key: one for key, one in said.items() if one}))


@app.command(epilog=_epilog("python -m pool.cluster drain", "python -m pool.cluster drain --timeout 60 --json"))
def drain(
    config: ConfigOption = None,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for its end.")] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Have the node of this machine take no more jobs, finish or give back what it has, and end."""
    from pool.cluster.processes import agent_of
    from pool.system import procs

    identity = agent_of(load(config, engines=False).spool)
    if identity is None:
        say("no node runs here")
        _tell(as_json, {"drained": False, "pid": None})
        return
    procs.signal_process(identity, 15)
    deadline = time.monotonic() + timeout
    while identity.alive():
        if time.monotonic() > deadline:
            say_error(f"the node (pid {identity.pid}) has not ended within {timeout:g} s; it goes on draining")
            raise typer.Exit(1)
        time.sleep(0.05)
    say("drained")
    _tell(as_json, {"drained": True, "pid": identity.pid})


def _tell(as_json: bool, value: dict[str, Any]) -> None:
    if as_json:
        print_json(value)


# ---- port


@app.command(hidden=True)
def port(
    config: ConfigOption = None,
    tied: Annotated[bool, typer.Option("--tied", help="End after the last client.")] = False,
) -> None:
    """Serve the branch of this machine: what a FilePool starts by itself."""
    raise typer.Exit(starting.port(config, tied=tied))


# ---- status, jobs, doctor, setup


def _ask(question: Coroutine[Any, Any, T]) -> T:
    from loguru import logger

    logger.disable("pool.cluster")  # what goes wrong is in the error
    return asyncio.run(question)


@app.command(
    epilog=_epilog(
        "python -m pool.cluster status",
        "python -m pool.cluster status --server tls://10.0.0.1:4222 --user client --password-file client.password "
        "--tls-ca ca.crt",
        "python -m pool.cluster status --json",
    )
)
def status(  # noqa: PLR0917 - options
    config: ConfigOption = None,
    server: ServerOption = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the nodes of the cluster, what they do, and how many jobs wait."""
    from pool.cluster.overview import look

    configured = _with(load(config, engines=False), server, user=user, password=password_file, tls_ca=tls_ca)
    found = _ask(look(configured.cluster, patience_s=_CONNECT_S))
    if as_json:
        print_json(found.to_map())
    else:
        _show(found)


@app.command(epilog=_epilog("python -m pool.cluster jobs", "python -m pool.cluster jobs --limit 1000 --json"))
def jobs(  # noqa: PLR0917 - options
    config: ConfigOption = None,
    server: ServerOption = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    tls_ca: TlsCaOption = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="Most jobs to print.")] = 50,
    after: Annotated[
        int, typer.Option(min=0, metavar="CURSOR", help="Print the next page: the cursor under the last page.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """List the jobs of all clients, newest first: their ids, engines and states, and the nodes that have them.

    `python -m pool jobs` lists those of one client, with tags and progress; `python -m pool.submit --attach ID` waits
    for any.
    """
    from pool.cluster.listing import page

    configured = _with(load(config, engines=False), server, user=user, password=password_file, tls_ca=tls_ca)
    found = _ask(page(configured.cluster, limit=limit, after=after, patience_s=_CONNECT_S))
    if as_json:
        print_json(found.to_map())
    else:
        _show_jobs(found)


@app.command(
    epilog=_epilog("python -m pool.cluster doctor", "python -m pool.cluster doctor --config config.json --json")
)
def doctor(  # noqa: PLR0917 - options
    config: ConfigOption = None,
    server: ServerOption = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check servers, certificates, rights, streams, clocks and leases of the cluster, and say how to fix what is wrong.

    Nothing is started and nothing is changed. `python -m pool doctor` does the same beside all else.
    """
    from pool.cli.doctor import show
    from pool.cluster.diagnosis import diagnose

    configured = _with(load(config, engines=False), server, user=user, password=password_file, tls_ca=tls_ca)
    findings = _ask(diagnose(configured))
    raise typer.Exit(show(findings, as_json=as_json))


@app.command(
    epilog=_epilog(
        "python -m pool.cluster setup --server nats://10.0.0.1:4222 --user admin --password-file admin.password"
    )
)
def setup(  # noqa: PLR0917 - options
    config: ConfigOption = None,
    server: ServerOption = None,
    user: Annotated[str | None, typer.Option(help="Account that may create streams.")] = None,
    password_file: PasswordOption = None,
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create the streams and buckets, where nodes and clients have no right to."""
    from pool.cluster.overview import set_up

    configured = _with(load(config, engines=False), server, user=user, password=password_file, tls_ca=tls_ca)
    notes = _ask(set_up(configured.cluster, patience_s=_CONNECT_S))
    for note in notes:
        say(f"! {note}", "yellow")
    say("the streams and buckets are there")
    _tell(as_json, {"notes": notes})


def _show_jobs(found: ListedPage) -> None:
    from rich.table import Table

    from pool.cli.terminal import make_console
    from pool.cli.text import plain
    from pool.spool.lookup import duration
    from pool.system.clock import REAL

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("id", "engine", "state", "node", "submitted", "client"):
        table.add_column(title, overflow="fold")
    for job in found.jobs:
        ago = f"{duration(max(0.0, REAL.wall() - job.submitted))} ago"
        table.add_row(*map(plain, (job.id, job.engine, job.state, job.node, ago, job.client[:8])))
    if found.jobs:
        make_console().print(table)
    else:
        say("no job is known", "dim")
    if found.next:
        say(f"more: add --after {found.next}", "dim")


def _show(found: Overview) -> None:
    from rich.table import Table

    from pool.cli.terminal import make_console
    from pool.cli.text import plain

    console = make_console()
    console.print(f"servers     {plain(found.servers)}")
    console.print(f"jobs        {found.waiting} wait, {found.running} with nodes")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("node", "engine", "serving", "busy", "labels", "host", "version"):
        table.add_column(title)
    for node in found.nodes:
        first = True
        for engine, about in node.engines.items():
            name = f"{node.name}{' (draining)' if node.draining else ''}" if first else ""
            labels, host, version = (" ".join(node.labels), node.host, node.version) if first else ("", "", "")
            serving = f"{about.serving} of {about.slots}"
            table.add_row(*map(plain, (name, engine, serving, str(about.busy), labels, host, version)))
            first = False
    if not found.prepared:
        console.print("streams     none yet: the first node or client creates them, or `python -m pool.cluster setup`")
    if found.nodes:
        console.print(table)
    else:
        console.print("no node serves: start one with `python -m pool.cluster node`")
