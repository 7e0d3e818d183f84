"""What a worker must know: one small JSON file written by the supervisor before the interpreter starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pool.errors import ConfigError
from pool.format.names import WorkerName, parse_worker
from pool.policy.retries import Retries


@dataclass(frozen=True)
class Launch:
    """spec: "package.module:Class". retry_times, retry_on: of the engine. log: this slot's log file; log_begin: its
    size in bytes when the process was started. otel: whether it emits spans. standby: wait for promotion instead of
    claiming. row: jobs in a row whose first failure was in this slot, before this process."""

    spool: str
    worker: str
    spec: str
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    durable: bool = True
    standby: bool = False
    retry_times: int | None = None
    retry_on: tuple[str, ...] | None = None
    cache_enabled: bool = False
    delete_inputs: bool = False
    max_batch: int = 1
    batch_wait_ms: float = 0.0
    orphan_grace_s: float = 60.0
    rescan_s: float = 2.0
    media_roots: tuple[str, ...] = ()
    log: str = ""
    log_begin: int = 0
    otel: bool = False
    row: int = 0
    cgroup: str = ""  # the control group to run in; "" for none
    fingerprint: str = ""  # of the slot's configuration: an adopted worker must match it

    @property
    def name(self) -> WorkerName:
        """The parts of the worker's name. Raises ConfigError."""
        name = parse_worker(self.worker)
        if name is None:
            raise ConfigError(f"{self.worker!r} is not the name of a worker")
        return name

    @property
    def retries(self) -> Retries:
        """The engine's rule for further attempts."""
        return Retries(self.retry_times, self.retry_on)

    def to_json(self) -> bytes:
        """The content of a launch file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Launch:
        """From the content of a launch file. Raises ConfigError."""
        try:
            value = json.loads(data)
            value["media_roots"] = tuple(value["media_roots"])
            if value["retry_on"] is not None:
                value["retry_on"] = tuple(value["retry_on"])
            return cls(**value)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"not a launch file: {error}") from None
