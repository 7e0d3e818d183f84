"""Facts about the pool for one who waits: a few small files, no walk through /proc, no listing of a queue.

Made for a look once a second. run/status.json is read again only when it was replaced; of a worker its heartbeat is
read, and whether its process lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pool.constants import SERVING
from pool.policy.prospects import PoolFacts, SlotFacts, load_error
from pool.runfiles import heartbeat
from pool.runfiles.nodes import NodesFile, remote
from pool.runfiles.server import unseen
from pool.runfiles.snapshot import ReplacedMap
from pool.spool.store import Spool
from pool.system.procs import Identity


class Scout:
    """Looks at run/ of one spool."""

    def __init__(self, spool: Spool) -> None:
        self._run = f"{spool.root}/run"
        self._root, self._nodes = spool.root, NodesFile(spool.root)
        self._about, self._told = ReplacedMap(f"{self._run}/supervisor.json"), ReplacedMap(f"{self._run}/status.json")

    def look(self, starter: str | None) -> PoolFacts:
        """What holds now. starter: see PoolFacts."""
        about = self._about.read()
        served = _lives(about.get("identity"))
        told = self._told.read()
        if served and _number(told.get("at")) < _number(about.get("started")):
            told = {}  # the word of the one before
        listed = about.get("engines")
        engines = [str(name) for name in listed] if isinstance(listed, list) else None
        return PoolFacts(
            served=served,
            slots=tuple(self._slots(told)),
            draining=served and bool(told.get("draining")),
            engines=engines,
            config=str(about.get("config") or ""),
            starter=starter,
            unseen="" if served else unseen(self._root),
            away=remote(self._root, self._nodes.read(), engines if served else None),
        )

    def _slots(self, told: Mapping[str, Any]) -> Iterator[SlotFacts]:
        for entry in _entries(told):
            worker = str(entry.get("worker") or "") if _lives(entry.get("identity")) else ""
            beat = heartbeat.read(f"{self._run}/heartbeats/{worker}") if worker else None
            pause = entry.get("next_start_s")
            yield SlotFacts(
                slot=str(entry["slot"]),
                engine=str(entry.get("engine") or ""),
                seat=str(entry.get("seat") or ""),
                worker=worker,
                serving=beat is not None and beat.phase in SERVING and not beat.standby,
                spare=beat is not None and beat.standby,
                error=load_error(entry.get("error")),
                why=str(entry.get("why") or ""),
                last_death=str(entry.get("last_death") or ""),
                next_start_s=_number(pause) if pause else None,
            )


def _entries(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = told.get("slots")
    found = listed if isinstance(listed, list) else []
    return [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get("slot"), str)]


def _lives(identity: object) -> bool:
    try:
        return isinstance(identity, dict) and Identity.from_map(identity).alive()
    except (KeyError, TypeError, ValueError):
        return False


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
