"""run/status.json: what the supervisor knows and no other file says. Read by `status` and by
clients that wait, never by workers and supervisors."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pool.config.settings import Config
from pool.runfiles.watchers import WatchingStatus
from pool.spool import fsops
from pool.spool.store import Spool
from pool.supervise.attention import Attention
from pool.supervise.fleet import Fleet
from pool.supervise.slot import Slot
from pool.system.watch import Watcher

_LEAVES = "it is not in the configuration any more, and ends after its job"


class Reporter:
    """Writes the status file when something in it changed; a full disk is no error."""

    def __init__(self, spool: Spool, fleet: Fleet, attention: Attention) -> None:
        self._spool, self._fleet, self._attention = spool, fleet, attention
        self._last: tuple[Any, ...] = ()
        self._still_s, self._still_at = 0.0, 0

    def write(self, watcher: Watcher, paused: str, config: Config) -> None:
        """Replace run/status.json with what holds now. config: the one that runs."""
        now, fleet = self._attention.now(), self._fleet
        if self._attention.away_s > self._still_s:
            self._still_s, self._still_at = self._attention.away_s, self._spool.now()
        slots = [_slot(slot, now) for slot in fleet.slots]
        roll = {"digest": config.digest, **fleet.roll.to_map(len(fleet.configured()))}
        engines = {name: {"workers": e.workers, "spares": e.spares} for name, e in config.engines.items()}
        state = (
            watcher.mode,
            watcher.reason,
            paused,
            fleet.draining,
            self._still_s,
            roll,
            engines,
            *(tuple(map(str, slot.values())) for slot in slots),
        )
        if state == self._last:
            return
        body = {
            "at": self._spool.now(),
            "draining": fleet.draining,
            "stood_still_s": round(self._still_s, 3),
            "stood_still_at": self._still_at,
            "watching": asdict(WatchingStatus.of(watcher)),
            "intake_paused": paused,
            "roll": roll,
            "engines": engines,
            "slots": slots,
        }
        temp = self._spool.temp()
        try:
            fsops.write_new(temp, [json.dumps(body).encode()], sync=False)
            fsops.replace(temp, f"{self._spool.root}/run/status.json")
            self._last = state
        except OSError:
            pass


def _slot(slot: Slot, now: float) -> dict[str, Any]:
    policy, waits = slot.policy, None
    if not slot.alive:
        waits = round(max(0.0, policy.next_start_at - now))
    return {
        "slot": slot.spec.name,
        "engine": slot.spec.engine.name,
        "spare": slot.standby,
        "worker": str(slot.worker) if slot.worker else None,
        "pid": slot.identity.pid if slot.identity else None,
        "identity": slot.identity.to_map() if slot.identity else None,
        "seat": "leaving" if slot.leaving else policy.seat.value,
        "why": str(policy.benched or slot.verdict.sentence or (_LEAVES if slot.leaving else "")),
        "bench": {**asdict(policy.benched), "reason": policy.benched.reason.value} if policy.benched else None,
        "ending": slot.verdict.to_map() if slot.cause else None,
        "starts": policy.starts,
        "restarts": slot.restarts.total(),
        "restarts_by": dict(slot.restarts),
        "next_start_s": waits,
        "rss_bytes": slot.rss >> 20 << 20,  # rounded, so that the file is not rewritten for every page
        "device": slot.spec.device,
        "stall_timeout_s": slot.spec.engine.stall_timeout_s,
        "error": slot.error,
        "last_death": slot.last_death,
        "ended": slot.ended.to_map() if slot.ended else None,
    }
