"""What the files of a worker say of it, also of one that died while nobody watched it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pool.constants import Phase
from pool.format.names import WorkerName
from pool.runfiles import heartbeat
from pool.runfiles.heartbeat import Beat
from pool.spool.store import Spool
from pool.system import logs


def launch_path(spool: Spool, worker: WorkerName) -> Path:
    """run/slots/<worker>.json."""
    return spool.root / "run" / "slots" / f"{worker}.json"


def launched_with(spool: Spool, worker: WorkerName) -> str:
    """The fingerprint of the configuration that it was started with; "" when it is unknown."""
    return str(_launch(spool, worker).get("fingerprint", ""))


def group_of(spool: Spool, worker: WorkerName) -> str:
    """The control group that it was started in; "" for none."""
    return str(_launch(spool, worker).get("cgroup", ""))


def log_begin(spool: Spool, worker: WorkerName) -> int:
    """Where its own words begin in the log of its slot, in bytes."""
    begin = _launch(spool, worker).get("log_begin")
    return begin if isinstance(begin, int) else 0


def last_words(spool: Spool, worker: WorkerName) -> str:
    """The end of what it wrote."""
    log = spool.root / "run" / "logs" / f"{worker.slot}.log"
    return logs.tail(log, since=log_begin(spool, worker))


def last_beat(spool: Spool, worker: WorkerName) -> Beat | None:
    """Its last sign of life, None when it gave none."""
    return heartbeat.read(f"{spool.root}/run/heartbeats/{worker}")


def stage_of(beat: Beat | None) -> str:
    """What it was doing then: the stage of its job, or the phase of its life."""
    if beat is None:
        return Phase.BOOTING.label
    return beat.stage if beat.phase is Phase.BUSY else beat.phase.label


def read_error(spool: Spool, worker: WorkerName) -> dict[str, Any] | None:
    """What a worker that could not load left behind: {"message", "stage", "hint"}."""
    try:
        value = json.loads((spool.root / "run" / "slots" / f"{worker}.error").read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _launch(spool: Spool, worker: WorkerName) -> dict[str, Any]:
    try:
        value = json.loads(launch_path(spool, worker).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
