"""What the cluster is, on disk where the clients of a branch look: run/nodes.json, and the engines that there are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time

from nats.js.kv import KeyValue

from pool.cluster import parcels, wire
from pool.cluster.link import addresses, plain
from pool.cluster.receiving import UNFIT
from pool.cluster.traffic import Traffic
from pool.cluster.wire import NodeState
from pool.errors import ProtocolError
from pool.format import codec
from pool.format.names import check_engine
from pool.runfiles import nodes as noderecord
from pool.runfiles.nodes import NodeFacts, Nodes
from pool.runfiles.schemas import path_keys
from pool.spool import fsops
from pool.system import procs

_TELL_S = 0.25
_TOLD_US = 5_000_000  # after which what has not changed is written again
_ANEW_S = 60.0  # after which engines are listed again
_NO_QUORUM = "fewer than half of its servers are up, or they have no leader yet"


class Directory:
    """Of one branch."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic, self._spool, self._link = traffic, traffic.spool, traffic.link
        self._nodes: dict[str, tuple[NodeState, float]] = {}
        self._looked: set[str] = set()  # which of the two buckets, nodes and engines, were read whole
        self._told: Nodes | None = None
        self._served_since: float | None = None  # monotonic: since when the servers have let us follow the nodes

    async def mind_nodes(self) -> None:
        """Follow the entries that nodes renew; when none does for a while, the watch has gone deaf."""
        silent_s = self._traffic.config.cluster.lease_s / 2 + 1
        while True:
            served = await self._link.follow(wire.NODES, self._heard_of, silent_s=silent_s)
            if not served and self._link.connected:
                self._link.trouble, self._served_since = _NO_QUORUM, None

    async def _heard_of(self, entry: KeyValue.Entry | None) -> None:
        if self._served_since is None:
            self._link.trouble, self._served_since = "", time.monotonic()
        if entry is None:
            self._looked.add(wire.NODES)
            return
        if entry.operation is not None:
            self._nodes.pop(entry.key, None)
            return
        try:
            state = NodeState.unpack(entry.value or b"")
            if state.name != entry.key:
                raise ProtocolError("it has another name")
        except ProtocolError as error:
            self._traffic.dropped(f"node {entry.key}", error)
            return
        if entry.key in self._nodes or len(self._nodes) < noderecord.NODES_MOST:
            self._nodes[entry.key] = (state, time.monotonic())

    async def tell(self) -> None:
        """Keep run/nodes.json: what submitters and people here see of the cluster."""
        me = procs.identity_of(os.getpid())
        assert me is not None
        while True:
            now = time.monotonic()
            self._nodes = {
                name: (state, seen)
                for name, (state, seen) in self._nodes.items()
                # while the servers were away, or had no leader, no node could renew its entry
                if min(now - seen, self._link.unbroken_s, now - (self._served_since or now)) <= state.lease_s
            }
            said = Nodes(
                me,
                self._spool.now(),
                tuple(map(plain, addresses(self._traffic.config.cluster))),
                self._link.connected and not self._link.trouble and len(self._looked) == 2,
                self._link.trouble,
                self._traffic.full,
                tuple(_facts(state, now - seen) for state, seen in self._nodes.values()),
            )
            if said.says(self._told) or said.at - self._told.at > _TOLD_US:  # type: ignore[union-attr]
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(noderecord.write, self._spool, said)
                    self._told = said
            await asyncio.sleep(_TELL_S)

    async def mind_engines(self) -> None:
        """Descriptions of the engines that there are, where workers of this machine would leave theirs."""
        while True:
            await self._link.follow(wire.ENGINES, self._heard_of_engine, anew_s=_ANEW_S)

    async def _heard_of_engine(self, entry: KeyValue.Entry | None) -> None:
        if entry is None:
            self._looked.add(wire.ENGINES)
        elif entry.operation is None:
            await asyncio.to_thread(self._describe, entry.key, entry.value or b"")

    def _describe(self, engine: str, data: bytes) -> None:
        try:
            about = codec.decode(data, strict=True)
            if not isinstance(about, dict) or not isinstance(about.get("engine"), str):
                raise ProtocolError("not the description of an engine")
            text = json.dumps(about)
            if isinstance(about.get("schema"), dict):
                path_keys(about["schema"]), parcels.output_keys(about["schema"])
            path = f"{self._spool.root}/run/engines/{check_engine(engine)}.json"
        except UNFIT as error:
            self._traffic.dropped(f"engine {engine}", error)
            return
        with contextlib.suppress(OSError):
            fsops.put(self._spool.temp(), path, [text.encode()], sync=False)


def _facts(state: NodeState, seen_s: float) -> NodeFacts:
    return NodeFacts(
        state.name,
        state.host,
        state.version,
        seen_s,
        state.labels,
        state.draining,
        state.jobs,
        {name: dict(vars(about)) for name, about in state.engines.items()},
        state.slots,
    )
