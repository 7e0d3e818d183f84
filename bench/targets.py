"""What the figures are held against: one line per promise, named by bench and the path of its figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """figure: dotted path in the bench's JSON. limit: it is to be at least, or at most, so much."""

    bench: str
    figure: str
    words: str
    limit: float
    at_least: bool = False

    def value(self, figures: Mapping[str, Any]) -> float | None:
        """The figure among those of a bench; None when it is not there."""
        found: Any = figures
        for key in self.figure.split("."):
            if not isinstance(found, Mapping) or key not in found:
                return None
            found = found[key]
        return None if found is None else float(found)

    def reached(self, figures: Mapping[str, Any]) -> bool:
        """Whether the figure is there and good enough."""
        value = self.value(figures)
        if value is None:
            return False
        return value >= self.limit if self.at_least else value <= self.limit


TARGETS = (
    Target("roundtrip", "ratio", "≤ 2 × floor", 2.0),
    Target("roundtrip", "p99_ms", "≤ 5 ms", 5.0),
    Target("roundtrip", "durable.ratio", "≤ 2 × floor", 2.0),
    Target("throughput", "jobs_per_s", "≥ 3,500 /s", 3500, at_least=True),
    Target("throughput", "durable_ratio", "≥ 0.5 × floor", 0.5, at_least=True),
    Target("throughput", "map_items_per_s", "≥ 20,000 /s", 20000, at_least=True),
    Target("payload", "k64_jobs_per_s", "≥ 2,000 /s", 2000, at_least=True),
    Target("payload", "mb_per_s", "≥ 1,000 MB/s", 1000, at_least=True),
    Target("idle", "cpu_s", "≤ 0.1 s in 20 s", 0.1),
    Target("recovery", "rerun_ms", "≤ 100 ms", 100),
    Target("recovery", "supervisor_completed", "100 of 100", 100, at_least=True),
    Target("recovery", "supervisor_reloads", "0", 0),
    Target("recovery", "submitter.completed", "100 of 100", 100, at_least=True),
    Target("recovery", "submitter.reloads", "0", 0),
    Target("poison", "work.ratio", "≤ 1.5 × alone", 1.5),
    Target("poison", "waiting.ratio", "≤ 1.5 × alone", 1.5),
    Target("backlog", "ratio", "≤ 2 × at 1,000", 2.0),
    Target("backlog", "roundtrip.ratio", "as before: ≤ 1.25 ×", 1.25),
    Target("jobs", "page_ms", "≤ 50 ms", 50),
    Target("jobs", "filtered_ms", "≤ 50 ms", 50),
    Target("jobs", "later_ms", "≤ 50 ms", 50),
    Target("jobs", "moving_ratio", "≤ 2.5 × listing", 2.5),
    Target("jobs", "waiting_ms", "≤ 50 ms", 50),
    Target("jobs", "arriving_ratio", "≤ 2 × listing", 2.0),
    Target("footprint", "shm_bytes", "0", 0),
    Target("footprint", "import_ms", "≤ 150 ms", 150),
    Target("footprint", "import_heavy", "none", 0),
    *(
        target
        for servers in ("one", "three")
        for target in (
            Target("cluster", f"{servers}.round_trip_ms.3", "≤ 12 ms", 12),
            Target("cluster", f"{servers}.jobs_per_s.3", "≥ 1,000 /s", 1000, at_least=True),
            Target("cluster", f"{servers}.takeover_s", "≤ 6 s", 6),  # the lease of 5 s, and one second
            Target("cluster", f"{servers}.memory_mb.agent", "≤ 60 MB", 60),
            Target("cluster", f"{servers}.shm_bytes", "0", 0),
        )
    ),
)


def of(bench: str) -> list[Target]:
    """The targets of a bench."""
    return [target for target in TARGETS if target.bench == bench]


def find(bench: str, figure: str) -> Target | None:
    """The target of one figure; None when it has none."""
    return next((target for target in of(bench) if target.figure == figure), None)
