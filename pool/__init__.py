"""filepool: a subprocess pool for model inference whose only transport is the filesystem.

    from pool import FilePool

    with FilePool("config.json") as pool:
        future = pool.submit("transcribe", audio="speech.wav")
        print(future.result())

Public names are imported on first use, so that a worker process pays for nothing it does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "FilePool": "pool.client.filepool",
    "AsyncFilePool": "pool.client.aio",
    "AsyncJobFuture": "pool.client.aio",
    "JobFuture": "pool.client.future",
    "ResultRef": "pool.job.references",
    "result_of": "pool.job.references",
    "Job": "pool.job",
    "Failure": "pool.job",
    "Progress": "pool.job",
    "CallerError": "pool.errors",
    "ClusterAway": "pool.errors",
    "ConfigError": "pool.errors",
    "EngineUnavailable": "pool.errors",
    "JobConflict": "pool.errors",
    "JobFailed": "pool.errors",
    "JobRefused": "pool.errors",
    "NestedDeadlock": "pool.errors",
    "OperatorError": "pool.errors",
    "PoolClosed": "pool.errors",
    "PoolError": "pool.errors",
    "PoolWarning": "pool.errors",
    "SpoolError": "pool.errors",
    "SpoolFull": "pool.errors",
    "SupervisorFailed": "pool.errors",
    "SupervisorRunning": "pool.errors",
    "UnknownEngine": "pool.errors",
    "UnknownJob": "pool.errors",
}

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from pool.client.aio import AsyncFilePool as AsyncFilePool
    from pool.client.aio import AsyncJobFuture as AsyncJobFuture
    from pool.client.filepool import FilePool as FilePool
    from pool.client.future import JobFuture as JobFuture
    from pool.errors import CallerError as CallerError
    from pool.errors import ClusterAway as ClusterAway
    from pool.errors import ConfigError as ConfigError
    from pool.errors import EngineUnavailable as EngineUnavailable
    from pool.errors import JobConflict as JobConflict
    from pool.errors import JobFailed as JobFailed
    from pool.errors import JobRefused as JobRefused
    from pool.errors import NestedDeadlock as NestedDeadlock
    from pool.errors import OperatorError as OperatorError
    from pool.errors import PoolClosed as PoolClosed
    from pool.errors import PoolError as PoolError
    from pool.errors import PoolWarning as PoolWarning
    from pool.errors import SpoolError as SpoolError
    from pool.errors import SpoolFull as SpoolFull
    from pool.errors import SupervisorFailed as SupervisorFailed
    from pool.errors import SupervisorRunning as SupervisorRunning
    from pool.errors import UnknownEngine as UnknownEngine
    from pool.errors import UnknownJob as UnknownJob
    from pool.job import Failure as Failure
    from pool.job import Job as Job
    from pool.job import Progress as Progress
    from pool.job.references import ResultRef as ResultRef
    from pool.job.references import result_of as result_of


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pool' has no attribute {name!r}")
    return getattr(import_module(home), name)
