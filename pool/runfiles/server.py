"""run/supervisor.json: who serves a spool, with which configuration. Written by the supervisor, read by all."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pool.config.digest import digest_of_file
from pool.system.procs import Identity


class OnDisk(enum.Enum):
    """The configuration file against what runs."""

    UNKNOWN = ""  # no supervisor, or no file
    SAME = "same"
    CHANGED = "changed"  # `reload` takes it
    WRONG = "wrong"  # `reload` was asked for, and the file refused
    GONE = "gone"


@dataclass(frozen=True)
class Refused:
    """A configuration that was not taken. message, path: of the ConfigError. digest: of the file."""

    message: str
    path: str
    digest: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class Running:
    """A supervisor. started, loaded, asked: µs of the spool clock; loaded: when it read the configuration that runs,
    asked: when it last tried. digest: of that file's content. engines: the names of those that run. slots: how many
    each of them has, spares included."""

    identity: Identity
    started: int
    tied: bool
    config: str | None
    engines: tuple[str, ...]
    version: str
    digest: str = ""
    loaded: int = 0
    asked: int = 0
    refused: Refused | None = None
    slots: Mapping[str, int] = field(default_factory=dict)
    containment: str = ""  # how all that a worker started is found at its end

    def to_map(self) -> dict[str, Any]:
        """As it is stored."""
        refused = None if self.refused is None else vars(self.refused)
        return {**vars(self), "identity": self.identity.to_map(), "engines": list(self.engines), "refused": refused}

    @classmethod
    def from_map(cls, value: Mapping[str, Any]) -> Running:
        """Raises KeyError, TypeError, ValueError, AttributeError."""
        about, engines = value.get("refused"), value.get("engines")
        return cls(
            identity=Identity.from_map(value["identity"]),
            started=int(value.get("started") or 0),
            tied=bool(value.get("tied")),
            config=value.get("config"),
            engines=tuple(map(str, engines)) if isinstance(engines, list) else (),
            version=str(value.get("version") or ""),
            digest=str(value.get("digest") or ""),
            loaded=int(value.get("loaded") or 0),
            asked=int(value.get("asked") or 0),
            refused=Refused(**about) if isinstance(about, dict) else None,
            slots={str(name): int(count) for name, count in (value.get("slots") or {}).items()},
            containment=str(value.get("containment") or ""),
        )

    def on_disk(self) -> OnDisk:
        """Look at the file now."""
        if not self.config or not self.digest:
            return OnDisk.UNKNOWN
        digest = digest_of_file(Path(self.config))
        if self.refused is not None and digest == self.refused.digest:
            return OnDisk.WRONG
        if digest == self.digest:
            return OnDisk.SAME
        return OnDisk.CHANGED if digest else OnDisk.GONE


def running(root: Path) -> Running | None:
    """The supervisor that serves a spool now; None when there is none."""
    try:
        found = Running.from_map(json.loads((root / "run" / "supervisor.json").read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the file is not ours
        return None
    return found if found.identity.alive() else None


def supervisor_identity(record: Path) -> Identity | None:
    """The process that claims to serve the spool; None when none does. Ask .alive() before believing it."""
    try:
        return Identity.from_map(json.loads(record.read_bytes())["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
