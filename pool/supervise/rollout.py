"""How a new configuration reaches the processes: slot by slot, decided here from facts, carried out by `fleet`.

Of each engine one process at a time is asked to end: spares first, then those that are idle, then those that finish a
job first. The next one follows only when every other slot of the engine that belongs to the new configuration serves.
A replacement that fails to start stops the roll of its engine, and the processes that run the older configuration go
on; should it start after all, the roll goes on. An engine that was removed has nothing to wait for.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Stand(enum.Enum):
    """Where a slot is on the way to the new configuration."""

    SERVES = "serves"  # its process runs the new one, and is loaded
    STARTS = "starts"  # the same, but for the load; or there will be such a process in a moment
    FAILED = "failed"  # a process with the new configuration could not start
    OLD = "old"  # its process runs an older configuration, or has no place in the new one
    ENDING = "ending"  # its process was asked to end, for this or another reason


@dataclass(frozen=True)
class Place:
    """One slot, as far as a roll looks at it. why: what its last process died of."""

    slot: str
    engine: str
    stand: Stand
    spare: bool = False
    busy: bool = False
    leaving: bool = False
    why: str = ""


@dataclass
class Roll:
    """One reload. awaited: slots that do not serve with the new configuration yet, and whether there was a process in
    it before: only such a slot is evidence when it fails, one that was broken already is not.
    engines: those that are configured now."""

    awaited: dict[str, bool] = field(default_factory=dict)
    engines: Collection[str] = ()
    failed: str = ""  # which slots do not start with it, and why
    moving: bool = True  # False: nothing more happens until an operator acts, or a slot that failed starts after all
    leaving: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return not self.awaited and not self.leaving

    def step(self, places: Sequence[Place]) -> list[str]:
        """Slots whose process is to be asked to end now. Call it again and again until it is `over`."""
        for place in places:
            if place.stand is Stand.SERVES:
                self.awaited.pop(place.slot, None)
        self.leaving = sum(place.leaving for place in places)
        failed = [p for p in places if p.stand is Stand.FAILED and p.slot in self.awaited]
        self.failed = "; ".join(f"{place.slot}: {place.why or 'it did not start'}" for place in failed)
        found = []
        for engine in dict.fromkeys(place.engine for place in places):
            mine = [place for place in places if place.engine == engine]
            old = [place for place in mine if place.stand is Stand.OLD]
            if engine not in self.engines:
                found += [place.slot for place in old]
            elif old and not any(self._in_the_way(place) for place in mine):
                found.append(min(old, key=lambda p: (not p.spare, p.leaving, p.busy)).slot)
        on_its_way = [p for p in places if p.leaving or p.slot in self.awaited]
        self.moving = bool(found) or any(p.stand in (Stand.STARTS, Stand.ENDING) for p in on_its_way)
        return found

    def _in_the_way(self, place: Place) -> bool:
        if place.stand is Stand.FAILED:
            return self.awaited.get(place.slot, False)
        return place.stand in (Stand.STARTS, Stand.ENDING)

    def to_map(self, slots: int) -> Mapping[str, Any]:
        """For status.json. slots: of the configuration."""
        rolled = slots - len(self.awaited)
        return {"rolled": rolled, "slots": slots, "leaving": self.leaving, "failed": self.failed, "moving": self.moving}
