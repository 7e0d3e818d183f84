"""What the nodes of a cluster offer to a branch: for who submits there, and for who asks which engines there are."""

from __future__ import annotations

import time
from dataclasses import replace

from pool.config.settings import ELSEWHERE, Config, EngineConfig
from pool.errors import UnknownEngine
from pool.format.names import check_engine
from pool.policy.prospects import none_offers
from pool.runfiles.nodes import Nodes, NodesFile, described, is_branch, offered, remote
from pool.runfiles.server import running
from pool.spool.store import Spool

_FIRST_S = 5.0  # how long one waits for the first word of a fresh port
_POLL_S = 0.01
_BELIEVED_S = 0.5  # how long a list of engines is believed


class Offers:
    """Of one FilePool. config: as it was read."""

    def __init__(self, config: Config, spool: Spool) -> None:
        self._config, self._spool = config, spool
        self._file = NodesFile(spool.root)
        self._believed, self._offered = 0.0, config

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
        nodes = self.await_word(engine)
        there = self.engines(nodes)
        if engine in there or (not there and (nodes is None or not nodes.connected)):
            return
        facts = remote(self._spool.root, nodes, ())
        reason = none_offers(engine, facts.nodes if facts else ())
        if nodes is None or not nodes.connected:
            why = f"the cluster does not answer: {nodes.trouble}" if nodes and nodes.trouble else "it is not connected"
            reason = f"no engine {engine!r} was heard of; there were: {', '.join(there)} ({why})"
        raise UnknownEngine(reason, "engine")

    def await_word(self, engine: str = "") -> Nodes | None:
        """What the port says, once it has said something: it may have been started just now. engine: one that is known
        already need not be waited for."""
        deadline = time.monotonic() + _FIRST_S
        while True:
            nodes = self._file.read()
            if (nodes is not None and nodes.told) or (engine and engine in described(self._spool.root)):
                return nodes
            if time.monotonic() >= deadline or running(self._spool.root) is None:
                return nodes
            time.sleep(_POLL_S)

    def full(self) -> str:
        """Why the cluster takes nothing more now, "" when it has room."""
        nodes = self._file.read()
        return nodes.full if nodes else ""


def _entry(name: str, slots: int) -> EngineConfig:
    return EngineConfig(name, ELSEWHERE, max_concurrent_tasks=max(1, slots), task_timeout_minutes=None)
