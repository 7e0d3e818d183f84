"""`python -m pool.cluster server`: one nats-server in the foreground, alone or one of several."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.command import load, say_error
from pool.cli.options import ConfigOption
from pool.constants import EXIT_CONFIG
from pool.errors import ConfigError, OperatorError

if TYPE_CHECKING:
    from pool.cluster.nats_server import Settings, Tls
    from pool.config.settings import ClusterConfig

_CONNECT_S = 10.0


def server(
    config: ConfigOption = None,
    store: Annotated[Path, typer.Option(help="Folder for what the server keeps, and its passwords.")] = Path("nats"),
    host: Annotated[str, typer.Option(help="Address to bind. Any but loopback gets passwords.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 4222,
    monitor: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback for health; 0: none.")] = 8222,
    max_store_mb: Annotated[int, typer.Option(min=16, help="Most that it keeps, in MiB.")] = 20_000,
    name: Annotated[str, typer.Option(help="Name of this server, once in the cluster.")] = "filepool",
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Where a server of the cluster hears others. Repeatable: one for each."),
    ] = None,
    peer_port: Annotated[int, typer.Option(min=1, max=65535, help="Where this one hears others.")] = 6222,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of this server, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Whose certificates servers show to each other.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the nats-server.conf, and start nothing.")] = False,
) -> None:
    """Run one NATS server with JetStream in the foreground; with --peer, one of several.

    On loopback everybody on this machine may use it. Elsewhere it has the users admin, client and node, whose passwords
    are in files of the store; servers of one cluster need the same files. The section "cluster" of the configuration
    says how much is stored.
    """
    from pool.cluster import nats_server

    try:
        folder = store.absolute()
        open_to_others = not nats_server.is_loopback(host)
        passwords = nats_server.make_passwords(folder) if open_to_others else None
        peers = None
        if peer:
            peers = nats_server.Peers(
                host, peer_port, tuple(map(_peer, peer)), password=nats_server.route_password(folder)
            )
        settings = nats_server.Settings(
            folder / "data",
            host,
            port,
            name,
            monitor=monitor or None,
            max_store_mb=max_store_mb,
            passwords=passwords,
            tls=_tls(tls_cert, tls_key, tls_ca, several=bool(peer)),
            peers=peers,
        )
        if show:
            print(nats_server.configuration(settings), end="")
            return
        code = _run(settings, folder, load(config).cluster)
    except ConfigError as error:
        say_error(str(error))
        raise typer.Exit(EXIT_CONFIG) from None
    except OperatorError as error:
        say_error(str(error))
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def _run(settings: Settings, folder: Path, cluster: ClusterConfig) -> int:
    from pool.cluster import nats_server

    program = nats_server.Server(settings, folder)
    ready = [f"serving {program.url()} (kept in {folder}); next:", *_next(program.url(), settings, folder)]

    def begun() -> list[str]:
        """What is stored, which the users of others have no right to create. On loopback the first one does it."""
        if settings.passwords is None:
            return []
        return [f"note: {note}" for note in asyncio.run(_set_up(settings, folder, cluster))]

    return nats_server.run(program, begun=begun, ready=ready)


async def _set_up(settings: Settings, folder: Path, cluster: ClusterConfig) -> tuple[str, ...]:
    from dataclasses import replace

    from pool.cluster import accounts, nats_server
    from pool.cluster.link import Link
    from pool.cluster.topology import ensure

    tls = settings.tls
    own = replace(
        cluster,
        servers=(nats_server.Server(settings, folder).url(),),
        user=accounts.ADMIN,
        password_file=nats_server.password_file(folder, accounts.ADMIN),
        token_file=None,
        tls_ca=tls.ca or tls.cert if tls else None,
        tls_cert=None,
        tls_key=None,
    )
    link = await Link(own, "server").open(patience_s=_CONNECT_S)
    try:
        return await ensure(
            link.js,
            replicas=cluster.replicas if settings.peers is None else max(cluster.replicas, _replicas(settings)),
            max_waiting=cluster.max_waiting,
            result_s=cluster.result_hours * 3600,
            lease_s=cluster.lease_s,
        )
    finally:
        await link.close()


def _replicas(settings: Settings) -> int:
    """As many as keep going when one is lost."""
    return min(3, len(settings.peers.routes)) if settings.peers else 1


def _next(address: str, settings: Settings, folder: Path) -> list[str]:
    if settings.passwords is None:
        return [f"  python -m pool.cluster node --server {address}", f'  FilePool("{address}")']
    ca = settings.tls.ca if settings.tls else None
    words = f" --user node --password-file {folder / 'node.password'}{f' --tls-ca {ca}' if ca else ''}"
    query = f"?user=client&password_file={folder / 'client.password'}{f'&tls_ca={ca}' if ca else ''}"
    return [f"  python -m pool.cluster node --server {address}{words}", f'  FilePool("{address}{query}")']


def _peer(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--peer {text} is no address like 10.0.0.2:6222")
    return text


def _tls(cert: Path | None, key: Path | None, ca: Path | None, *, several: bool) -> Tls | None:
    from pool.cluster.nats_server import Tls

    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None:
        raise ConfigError("--tls-cert and --tls-key belong together")
    if several and ca is None:
        raise ConfigError("servers check the certificates of each other: give --tls-ca, too")
    return Tls(cert.absolute(), key.absolute(), ca.absolute() if ca else None)
