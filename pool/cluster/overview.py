"""The cluster as its servers know it: nodes, and jobs that wait. For `python -m pool.cluster status`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from nats.js.errors import NotFoundError

from pool.cluster import topology, wire
from pool.cluster.link import Link, get_entry
from pool.cluster.wire import NodeState
from pool.config.settings import ClusterConfig
from pool.errors import ProtocolError


@dataclass(frozen=True)
class Overview:
    """waiting: jobs that no node has; queues: of them, by subject. running: jobs that nodes have. prepared: False while
    the servers have no streams, because no node or client was ever there."""

    servers: str
    nodes: tuple[NodeState, ...]
    waiting: int
    running: int
    queues: dict[str, int]
    prepared: bool = True

    def to_map(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return asdict(self)


async def look(config: ClusterConfig, *, patience_s: float) -> Overview:
    """Ask the servers once. Raises ClusterAway, ConfigError, and what JetStream raises."""
    link = await Link(config, "status").open(patience_s=patience_s)
    try:
        nodes = [state async for state in states(link)]
        info = await link.js.stream_info(wire.JOBS, subjects_filter="filepool.jobs.>")
        consumers = await link.js.consumers_info(wire.JOBS)
        running = sum(one.num_ack_pending or 0 for one in consumers)
        queues = {
            subject.removeprefix("filepool.jobs."): count for subject, count in (info.state.subjects or {}).items()
        }
        waiting = max(0, info.state.messages - running)
        return Overview(link.servers, tuple(nodes), waiting, running, queues)
    except NotFoundError:
        return Overview(link.servers, (), 0, 0, {}, prepared=False)
    finally:
        await link.close()


async def states(link: Link) -> AsyncIterator[NodeState]:
    """The nodes that there are, by name."""
    bucket = await link.bucket(wire.NODES)
    for name in sorted(await link.keys(wire.NODES)):
        entry = await get_entry(bucket, name)
        if entry is not None:
            with contextlib.suppress(ProtocolError):
                yield NodeState.unpack(entry.value or b"")


async def set_up(config: ClusterConfig, *, patience_s: float) -> tuple[str, ...]:
    """Create the streams and buckets; notes about those that are there and differ."""
    from pool.cluster.media import Store

    link = await Link(config, "setup").open(patience_s=patience_s)
    try:
        notes = await topology.prepare(link.js, config)
        await Store.open(link.js, replicas=config.replicas, keep_s=config.result_hours * 3600)
        return notes
    finally:
        await link.close()
