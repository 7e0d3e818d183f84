"""run/supervisor.json: who serves a spool, with which configuration. Written by the supervisor, read by all."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pool.config.digest import digest_of_file
from pool.system.host import boot_id, process_space
from pool.system.procs import Identity

_SHARE = "run all programs of one spool in one process namespace (docs/DEPLOY.md, process numbers)"


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
    each of them has, spares included. space: the process namespace in which its number holds."""

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
    space: str = ""

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
            space=str(value.get("space") or ""),
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
    found = _told(root)
    return found if found is not None and found.identity.alive() else None


def unseen(root: Path) -> str:
    """Why the supervisor that serves a spool cannot be seen from here, and what to do; "" when it can, or there is
    none."""
    found = _told(root)
    if found is None or not found.space or found.space == process_space() or found.identity.boot != boot_id():
        return ""
    if not _locked(root / "run" / "supervisor.lock"):
        return ""
    return (
        f"a supervisor serves this spool from another process namespace (another container?): pid {found.identity.pid} "
        f"of {found.space}, which cannot be seen from {process_space()}; {_SHARE}"
    )


def _told(root: Path) -> Running | None:
    try:
        return Running.from_map(json.loads((root / "run" / "supervisor.json").read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the file is not ours
        return None


def _locked(path: Path) -> bool:
    """Whether a process holds the lock, wherever it runs."""
    import fcntl  # not there on Windows, which has no process namespaces

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def supervisor_identity(record: Path) -> Identity | None:
    """The process that claims to serve the spool; None when none does. Ask .alive() before believing it."""
    try:
        return Identity.from_map(json.loads(record.read_bytes())["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
