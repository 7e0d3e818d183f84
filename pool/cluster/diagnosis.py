"""What a node or client needs of its cluster, looked at one by one, with what mends each. Nothing is changed."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from nats.js.errors import APIError, ServiceUnavailableError

from pool.cli.doctor import Finding
from pool.cluster import topology, wire
from pool.cluster.accounts import ADMIN, CLIENT, NODE
from pool.cluster.link import AWAY, Link, addresses, plain
from pool.cluster.overview import states
from pool.config.settings import ClusterConfig, Config
from pool.errors import ClusterAway
from pool.spool.lookup import duration
from pool.system.clock import REAL

_CONNECT_S = 5.0
_DAY_S = 86_400.0
_EXPIRY_S = 30 * _DAY_S
_SKEW_S = 2.0
_FULL = 0.8
_WRITES = {  # what each user must be able to write to
    CLIENT: (f"filepool.jobs.doctor.{wire.ANY}.normal", *(f"$KV.{name}.doctor" for name in (wire.IDS, wire.CANCEL))),
    NODE: ("filepool.events.doctor.doctor", *(f"$KV.{name}.doctor" for name in (wire.CLAIMS, wire.NODES))),
}


async def diagnose(config: Config) -> list[Finding]:
    """Everything, in the order in which it is best mended. Raises ConfigError."""
    link = Link(config.cluster, "doctor")
    found = [one async for one in _servers(config.cluster)]
    if not any(one.ok for one in found if one.check.startswith("server")):
        return found
    await link.open(patience_s=_CONNECT_S)
    try:
        for part in (_jetstream(link), _streams(link, config.cluster), _rights(link, config), _clock(link)):
            found += [one async for one in part]
            if not found[-1].ok and found[-1].check in ("jetstream", "streams"):
                return found
        found += [one async for one in _leases(link, config.cluster)]
    except (*AWAY, APIError) as error:
        found.append(_finding("answers", link.failing(error), "look at the logs of the servers, and at their /healthz"))
    finally:
        await link.close()
    return found


def _finding(check: str, message: str, hint: str = "") -> Finding:
    """One that is wrong when there is a hint."""
    return Finding("cluster", check, not hint, message, hint)


# ---- servers and certificates


async def _servers(config: ClusterConfig) -> AsyncIterator[Finding]:
    for address in addresses(config):
        link = Link(replace(config, servers=(address,)), "doctor")
        try:
            await link.open(patience_s=_CONNECT_S)
        except ClusterAway:
            hint = "start it (`python -m pool.cluster server`), or correct cluster.servers; firewalls must let it pass"
            if link.refused:
                hint = "give the password of that user: files `*.password` in the store of the server have them"
            elif "certificate" in link.trouble.lower():
                hint = (
                    "cluster.tls_ca names the authority of the server's certificate, which has the name in the address"
                )
            yield _finding(f"server {plain(address)}", link.trouble, hint)
        else:
            version = link.client.connected_server_version
            said = f"nats-server {version.major}.{version.minor}.{version.patch}"
            yield _finding(f"server {plain(address)}", said)
            if (expires := link.certificate_expires) is not None:
                yield _expiry(f"certificate of {plain(address)}", expires, "make another one and restart the server")
        finally:
            await link.close()
    if config.tls_ca:
        for authority in ssl.create_default_context(cafile=str(config.tls_ca)).get_ca_certs():
            expires = ssl.cert_time_to_seconds(str(authority["notAfter"]))
            yield _expiry(f"authority {config.tls_ca}", expires, "make another one, and certificates by it")


def _expiry(check: str, expires: float, fix: str) -> Finding:
    left_s = expires - REAL.wall()
    if left_s <= 0:
        return _finding(check, f"expired {duration(-left_s)} ago", fix)
    return _finding(check, f"expires in {duration(left_s)}", fix if left_s < _EXPIRY_S else "")


# ---- what is stored


async def _jetstream(link: Link) -> AsyncIterator[Finding]:
    try:
        about = await link.js.account_info()
    except (APIError, ServiceUnavailableError) as error:
        yield _finding("jetstream", f"it is off: {error}", "the configuration of the servers needs `jetstream`")
        return
    used, most = about.storage, about.limits.max_storage or -1
    room = f"of {most >> 20} MiB" if most > 0 else "and no limit of this account"
    full = most > 0 and used > _FULL * most
    yield _finding(
        "jetstream", f"{used >> 20} MiB stored {room}", "raise --max-store-mb, or lower result_hours" if full else ""
    )


async def _streams(link: Link, config: ClusterConfig) -> AsyncIterator[Finding]:
    looked = await topology.look_over(link.js, config)
    missing = [name for name, info, _ in looked if info is None]
    if missing:
        hint = "`python -m pool.cluster setup` as admin creates them; so does the first node where no user is set"
        yield _finding("streams", f"missing: {', '.join(missing)}", hint)
        return
    yield _finding("streams", f"{len(looked)}, all there")
    for _, _, notes in looked:
        for note in notes:
            yield _finding("setting", note)
    infos = [info for _, info, _ in looked if info is not None]
    fewest = min(info.config.num_replicas or 1 for info in infos)
    late = sorted(
        f"{info.config.name} on {peer.name}"
        for info in infos
        if info.cluster is not None
        for peer in info.cluster.replicas or ()
        if peer.offline or not peer.current
    )
    hint = ""
    if late:
        hint = "start those servers, and wait until they have caught up"
    elif fewest < config.replicas:
        hint = "`nats stream edit --replicas` changes them one by one; or create the streams anew, when they are empty"
    said = f"; not up to date: {', '.join(late[:5])}{' …' if late[5:] else ''}" if late else ""
    yield _finding("replicas", f"{fewest} of each stream, {config.replicas} in cluster.replicas{said}", hint)
    jobs = next(info for info in infos if info.config.name == wire.JOBS)
    most = jobs.config.max_msgs or -1
    full = most > 0 and jobs.state.messages > _FULL * most
    room = f"of {most} at most" if most > 0 else "without a limit"
    yield _finding("jobs", f"{jobs.state.messages} wait or run, {room}", "more nodes, or submit later" if full else "")


# ---- rights, clocks, leases


async def _rights(link: Link, config: Config) -> AsyncIterator[Finding]:
    role = NODE if config.engines else CLIENT
    refused = [subject for subject in _WRITES[role] if not await topology.may_publish(link.js, subject)]
    user = f"user {config.cluster.user}" if config.cluster.user else "who names no user"
    hint = (
        f"a {role} uses the account `{role}` (or `{ADMIN}`): set cluster.user and its password_file" if refused else ""
    )
    said = f"may not write to {', '.join(refused)}" if refused else f"may do what a {role} does"
    yield _finding("rights", f"{user} {said}", hint)


async def _clock(link: Link) -> AsyncIterator[Finding]:
    before = REAL.wall()
    said = await link.client.request(f"$JS.API.STREAM.INFO.{wire.JOBS}", b"", timeout=_CONNECT_S)
    after = REAL.wall()
    there = topology.moment(json.loads(said.data).get("ts"))
    if there is None:
        return
    skew_s = max(0.0, there - after, before - there)
    hint = "have both set their clocks by NTP: `expires` and times in records go by them" if skew_s > _SKEW_S else ""
    yield _finding("clock", f"{skew_s:.1f} s apart from the server's" if skew_s > 0.05 else "as the server's", hint)


async def _leases(link: Link, config: ClusterConfig) -> AsyncIterator[Finding]:
    nodes = [state async for state in states(link)]
    yield _finding(
        "nodes", ", ".join(state.name for state in nodes) or "none: `python -m pool.cluster node` starts one"
    )
    said = {f"node {state.name}": state.lease_s for state in nodes}
    for consumer in await link.js.consumers_info(wire.JOBS):
        said[f"queue {consumer.name}"] = float(consumer.config.ack_wait or 0.0)
    others = _others(said.items(), config.lease_s)
    hint = "give all machines the same cluster.lease_s; a queue keeps that of the node that was first" if others else ""
    yield _finding("lease", f"{config.lease_s:g} s here{f'; {others}' if others else ''}", hint)


def _others(said: Iterable[tuple[str, float]], mine_s: float) -> str:
    other = sorted(f"{who} {lease_s:g} s" for who, lease_s in said if lease_s != mine_s)
    return ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
