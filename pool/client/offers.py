"""What the nodes of a cluster offer to a branch: for who submits there, and for who asks which engines there are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pool.config.settings import ELSEWHERE, Config, EngineConfig
from pool.errors import UnknownEngine
from pool.format.names import check_engine
from pool.policy.prospects import none_offers
from pool.runfiles.nodes import Nodes, NodesFile, described, is_branch, offered, remote
from pool.runfiles.server import Running, running
from pool.spool.store import Spool

_FIRST_S = 5.0  # how long one waits for the first word of a fresh port
_POLL_S = 0.01
_NONE: Mapping[str, Any] = {"serving": 0}
_BELIEVED_S = 0.5  # how long a list of engines is believed


class Offers:
    """Of one FilePool. config: as it was read."""

    def __init__(self, config: Config, spool: Spool) -> None:
        self._config, self._spool = config, spool
        self._file = NodesFile(spool.root)
        self._believed, self._offered = 0.0, config
        self._asked: set[str] = set()  # engines whose description was waited for

    @property
    def branch(self) -> bool:
        """Whether the jobs of this spool run on other machines."""
        return self._config.is_branch or (not self._config.engines and is_branch(self._spool.root))

    def config(self) -> Config:
        """The configuration; of a branch with an entry for each engine that the cluster has."""
        if not self.branch:
            return self._config
        now = time.monotonic()
        if now >= self._believed:
            engines = {name: _entry(name, slots) for name, slots in self.engines(self._file.read()).items()}
            self._offered = replace(self._config, engines=engines)
            self._believed = now + _BELIEVED_S
        return self._offered

    def engines(self, nodes: Nodes | None) -> dict[str, int]:
        """Engine -> slots in the whole cluster: those that nodes offer, and those that one has described before."""
        return offered(nodes, described(self._spool.root))

    def known(self, engine: str) -> None:
        """Raise UnknownEngine when the cluster has no such engine. As long as nothing was ever heard of any, the job
        may wait for a node that has it."""
        check_engine(engine)
        nodes = self.await_word([engine])
        there = self.engines(nodes)
        if engine in there or (not there and (nodes is None or not nodes.connected)):
            return
        facts = remote(self._spool.root, nodes, ())
        reason = none_offers(engine, facts.nodes if facts else ())
        if nodes is None or not nodes.connected:
            why = f"the cluster does not answer: {nodes.trouble}" if nodes and nodes.trouble else "it is not connected"
            reason = f"no engine {engine!r} was heard of; there were: {', '.join(there)} ({why})"
        raise UnknownEngine(reason, "engine")

    def await_word(self, engines: Iterable[str] = ()) -> Nodes | None:
        """What the port says. Waits while nothing can be said of these engines yet, because the port was just started:
        until it has seen the nodes, or says why it cannot."""
        wanted, deadline = set(engines), time.monotonic() + _FIRST_S
        while True:
            nodes = self._file.read()
            if wanted and wanted <= self.engines(nodes).keys():
                return nodes
            serves = running(self._spool.root)
            if serves is None or time.monotonic() >= deadline:
                return nodes
            if nodes is not None and (nodes.trouble or (nodes.connected and self._settled(serves))):
                return nodes
            time.sleep(_POLL_S)

    def await_description(self, engine: str) -> None:
        """Wait, once for each engine, for the description that a node with a loaded worker has sent."""
        path = f"{self._spool.root}/run/engines/{engine}.json"
        deadline = time.monotonic() + _FIRST_S
        while engine not in self._asked and not os.path.exists(path) and time.monotonic() < deadline:
            nodes = self._file.read()
            if not any(node.engines.get(engine, _NONE)["serving"] for node in (nodes.nodes if nodes else ())):
                return
            time.sleep(_POLL_S)
        self._asked.add(engine)

    def _settled(self, serves: Running) -> bool:
        """Whether the port has had the time to hear of every node."""
        return self._spool.now() - serves.started > _FIRST_S * 1e6

    def full(self) -> str:
        """Why the cluster takes nothing more now, "" when it has room."""
        nodes = self._file.read()
        return nodes.full if nodes else ""


def _entry(name: str, slots: int) -> EngineConfig:
    return EngineConfig(name, ELSEWHERE, max_concurrent_tasks=max(1, slots), task_timeout_minutes=None)
