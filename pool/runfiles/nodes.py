"""run/nodes.json: the nodes of a cluster, as the port of a branch sees them. Written by the port, read by all.

A branch is the spool of a machine whose jobs run on other machines; its port carries them there (see `pool.cluster`).
What the file holds comes from those machines: texts and lists are cut to a size, what is no node is left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pool.format.names import is_engine
from pool.policy.prospects import RemoteEngine, RemoteFacts, RemoteNode
from pool.runfiles.snapshot import MAX_BYTES, ReplacedMap
from pool.spool import fsops
from pool.spool.store import Spool
from pool.system.procs import Identity

NODES_MOST, ENGINES_MOST, LABELS_MOST, SLOTS_MOST, SERVERS_MOST = 4096, 256, 64, 1024, 64
TEXT_CHARS = 500
COUNTS = ("slots", "serving", "busy", "waiting")  # of one engine on one node
_SECRETS = re.compile(r"//[^/@]*@")


@dataclass(frozen=True)
class NodeFacts:
    """One node. seen_s: since it was last heard of, when this was written. draining: it takes no more jobs. jobs: that
    it has. engines: name -> {"slots", "serving", "busy", "waiting": numbers, "trouble": text}. slots: plain maps of
    `pool.client.status.SlotStatus`."""

    name: str
    host: str = ""
    version: str = ""
    seen_s: float = 0.0
    labels: tuple[str, ...] = ()
    draining: bool = False
    jobs: int = 0
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    slots: tuple[Mapping[str, Any], ...] = ()

    def to_map(self) -> dict[str, Any]:
        """As it is stored."""
        engines = {name: dict(about) for name, about in self.engines.items()}
        return {**vars(self), "labels": list(self.labels), "engines": engines, "slots": list(map(dict, self.slots))}

    @classmethod
    def from_map(cls, value: object) -> NodeFacts | None:
        """Whatever a file holds; None when that is no node."""
        if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
            return None
        engines = value.get("engines")
        named = engines.items() if isinstance(engines, dict) else ()
        slots = [one for one in _list(value.get("slots"), SLOTS_MOST) if isinstance(one, dict)]
        return cls(
            name=_text(value["name"]),
            host=_text(value.get("host")),
            version=_text(value.get("version")),
            seen_s=_number(value.get("seen_s")),
            labels=tuple(_text(one) for one in _list(value.get("labels"), LABELS_MOST) if isinstance(one, str)),
            draining=value.get("draining") is True,
            jobs=int(_number(value.get("jobs"))),
            engines={str(name): _engine(about) for name, about in list(named)[:ENGINES_MOST] if is_engine(name)},
            slots=tuple(slots),
        )


@dataclass(frozen=True)
class Nodes:
    """What the port knows. identity: of the port. at: µs of the spool clock. servers: without secrets. trouble: why it
    is not connected, or why the cluster does not work; "" when all is well, and while it connects for the first time.
    full: why nothing more is accepted now, "" when there is room."""

    identity: Identity
    at: int
    servers: tuple[str, ...] = ()
    connected: bool = False
    trouble: str = ""
    full: str = ""
    nodes: tuple[NodeFacts, ...] = ()

    @property
    def told(self) -> bool:
        """Whether the port has reached the servers, or says why not."""
        return self.connected or bool(self.trouble)

    def says(self, before: Nodes | None) -> bool:
        """Whether it says anything that `before` does not. That time has passed is nothing."""
        return before is None or _lasting(self) != _lasting(before)

    def to_map(self) -> dict[str, Any]:
        """As it is stored."""
        nodes = [node.to_map() for node in self.nodes]
        return {**vars(self), "identity": self.identity.to_map(), "servers": list(self.servers), "nodes": nodes}

    @classmethod
    def from_map(cls, value: Mapping[str, Any]) -> Nodes:
        """Whatever a file holds. Raises ValueError, AttributeError, TypeError when it names no writer."""
        found = map(NodeFacts.from_map, _list(value.get("nodes"), NODES_MOST))
        return cls(
            identity=Identity.from_map(value["identity"] if isinstance(value.get("identity"), dict) else {}),
            at=int(_number(value.get("at"))),
            servers=tuple(bare(one) for one in _list(value.get("servers"), SERVERS_MOST) if isinstance(one, str)),
            connected=value.get("connected") is True,
            trouble=_text(value.get("trouble")),
            full=_text(value.get("full")),
            nodes=tuple({node.name: node for node in found if node is not None}.values()),
        )


def write(spool: Spool, nodes: Nodes) -> None:
    """Replace the file. Slots, then nodes, are left out when it would become too long. Raises OSError."""
    nodes = replace(nodes, servers=tuple(map(bare, nodes.servers)))
    data = _encoded(nodes)
    if len(data) > MAX_BYTES:
        nodes = replace(nodes, nodes=tuple(replace(node, slots=()) for node in nodes.nodes))
        data = _encoded(nodes)
    while len(data) > MAX_BYTES and nodes.nodes:
        nodes = replace(nodes, nodes=nodes.nodes[: len(nodes.nodes) // 2])
        data = _encoded(nodes)
    fsops.put(spool.temp(), _path(spool.root), [data], sync=False)


def read(root: Path | str) -> Nodes | None:
    """What the port says now; None without the file, or when its writer is dead."""
    return NodesFile(root).read()


class NodesFile:
    """The file of one spool, for one who looks often: decoded again only when it was replaced."""

    def __init__(self, root: Path | str) -> None:
        self._file = ReplacedMap(_path(root))
        self._from: Mapping[str, Any] | None = None
        self._nodes: Nodes | None = None

    def read(self) -> Nodes | None:
        """As `read`."""
        value = self._file.read()
        if value is not self._from:
            try:
                self._nodes = Nodes.from_map(value) if value else None
            except (ValueError, TypeError, AttributeError, KeyError):  # the file is not ours
                self._nodes = None
            self._from = value
        return self._nodes if self._nodes is not None and self._nodes.identity.alive() else None


def is_branch(root: Path | str) -> bool:
    """Whether a port serves this spool, or did."""
    return os.path.exists(_path(root)) or os.path.isdir(f"{root}/run/cluster")


def described(root: Path | str) -> tuple[str, ...]:
    """Engines with a description in run/engines/. In a branch: those that any node has described, now or earlier."""
    try:
        names = os.listdir(f"{root}/run/engines")
    except OSError:
        return ()
    return tuple(sorted(name[:-5] for name in names if name.endswith(".json") and is_engine(name[:-5])))


def offered(nodes: Nodes | None, known: Iterable[str] = ()) -> dict[str, int]:
    """Engine -> its slots in the whole cluster, 0 for those that are only known from earlier."""
    slots: dict[str, int] = {}
    for node in nodes.nodes if nodes else ():
        for name, about in node.engines.items():
            slots[name] = slots.get(name, 0) + int(about["slots"])
    return {name: slots.get(name, 0) for name in sorted({*slots, *known})}


def remote(root: Path | str, nodes: Nodes | None, engines: Sequence[str] | None) -> RemoteFacts | None:
    """What prospects are made of; None for the spool of a pool of its own. engines: those that the supervisor of the
    spool serves, None without one; a port, which serves a branch, has none of its own."""
    if nodes is None:
        return RemoteFacts() if engines is not None and (not engines or is_branch(root)) else None
    return RemoteFacts(
        told=nodes.told,
        connected=nodes.connected,
        trouble=nodes.trouble,
        servers=nodes.servers,
        nodes=tuple(
            RemoteNode(node.name, remote_engines(node.engines), node.labels, node.draining) for node in nodes.nodes
        ),
    )


def remote_engines(engines: Mapping[str, Mapping[str, Any]]) -> dict[str, RemoteEngine]:
    """The engines of one node, for prospects."""
    return {
        name: RemoteEngine(int(about["slots"]), int(about["serving"]), str(about["trouble"]))
        for name, about in engines.items()
    }


def bare(server: str) -> str:
    """The address of a server without user and password."""
    return _SECRETS.sub("//", _text(server))


def _path(root: Path | str) -> str:
    return f"{root}/run/nodes.json"


def _encoded(nodes: Nodes) -> bytes:
    return json.dumps(nodes.to_map(), separators=(",", ":"), default=str).encode("utf-8", "replace")


def _lasting(nodes: Nodes) -> tuple[Any, ...]:
    still = tuple(replace(node, seen_s=0.0, slots=tuple(map(_still, node.slots))) for node in nodes.nodes)
    return nodes.identity, nodes.servers, nodes.connected, nodes.trouble, nodes.full, still


def _still(slot: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in slot.items() if name not in ("phase_s", "silent_s", "next_start_s")}


def _engine(value: object) -> dict[str, Any]:
    about: Mapping[str, Any] = value if isinstance(value, dict) else {}
    counts = {name: int(_number(about.get(name))) for name in COUNTS}
    return {**counts, "trouble": _text(about.get("trouble"))}


def _list(value: object, most: int) -> list[Any]:
    return value[:most] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value[:TEXT_CHARS] if isinstance(value, str) else ""


def _number(value: object) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e17
    return float(value) if good and isinstance(value, (int, float)) else 0.0
