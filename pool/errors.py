"""The exception tree, split by who must act.

    PoolError
    ├── CallerError              the program or person that submits a job
    │   ├── JobRefused           parameters, id or file are not acceptable; `path` names the key
    │   │   └── UnknownEngine    no such engine in config.json
    │   ├── Conflict             what is asked for contradicts what is there
    │   │   └── JobConflict      the id is taken by a job with other content
    │   ├── UnknownJob           no job of that id
    │   ├── SpoolFull            back-pressure: too many waiting jobs, or too little disk
    │   ├── JobFailed            the job's terminal record says failed; carries the Failure
    │   └── PoolClosed           the FilePool was closed while the call waited
    ├── OperatorError            the operator of the pool
    │   ├── ConfigError          config.json; `path` is the dotted key
    │   ├── SpoolError           the spool tree: owner, mode, mounts, missing
    │   ├── SupervisorRunning    another supervisor holds the spool
    │   ├── SupervisorFailed     a supervisor could not be started; carries the end of its log
    │   ├── ClusterAway          the servers of the cluster do not answer: nothing is known of what they have
    │   └── EngineUnavailable    no worker of the engine can run until an operator acts; the job stays queued
    │       └── NestedDeadlock   a job waits for a job that can only run after it
    └── ProtocolError            a file in the spool does not decode (our fault, or another program's)

Beside them, as a warning: PoolWarning, a limit of the system was met and something is slower for it.

A job that was cancelled raises `concurrent.futures.CancelledError`, as every future does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pool.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence


class PoolError(Exception):
    """Base of everything the pool raises on purpose."""


class PoolWarning(UserWarning):
    """A limit of the system was met: everything goes on, slower; the text says what to do."""


class CallerError(PoolError):
    """The caller can correct this."""


class JobRefused(CallerError):
    """The job was not accepted; nothing was written.

    `path` is the dotted key that is wrong ("params.audio"), empty when the whole job is meant.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.reason, self.path = message, path


class UnknownEngine(JobRefused):
    """No engine of that name in the configuration."""


class Conflict(CallerError):
    """What is asked for contradicts what is there; the message says what, and what to do."""


class JobConflict(Conflict):
    """The id belongs to a job with other content."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"job id {job_id!r} is taken by a job with other content: choose another id, "
            "or submit the same parameters to get the same job"
        )
        self.job_id = job_id


class UnknownJob(CallerError):
    """No directory of the spool holds a job of that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r} in this spool: never submitted, or past its retention")
        self.job_id = job_id


class SpoolFull(CallerError):
    """Back-pressure: nothing was accepted; try again when the queue or the disk has room."""


class PoolClosed(CallerError):
    """The pool was closed."""


class JobFailed(CallerError):
    """The job ended as failed; `failure` is its whole record, one reason per attempt."""

    def __init__(self, job_id: str, failure: Failure) -> None:
        super().__init__(f"job {job_id} failed: {failure.describe()}")
        self.job_id = job_id
        self.failure = failure


class OperatorError(PoolError):
    """The operator of the pool can correct this."""


class ConfigError(OperatorError):
    """config.json is wrong; `path` is the dotted key, empty when the whole file is meant."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class SpoolError(OperatorError):
    """The spool tree cannot be used as it is."""


class SupervisorRunning(OperatorError):
    """Another supervisor serves this spool."""


class SupervisorFailed(OperatorError):
    """A supervisor could not be started, or ended before it was ready."""


class ClusterAway(OperatorError):
    """The servers of the cluster do not answer, and what was asked for only they can know."""


class EngineUnavailable(OperatorError):
    """No worker of an engine can run until an operator acts. What was submitted is not lost: it waits in the spool.

    Attributes:
        reason: The worker's own words where it had some ("ModuleNotFoundError: No module named 'foo'").
        hint: What to do.
        job_id: Who waits, "" when nothing was accepted. `FilePool.attach(job_id)` gives the result once that is
            corrected.
    """

    def __init__(self, engine: str, reason: str, hint: str = "", job_id: str = "") -> None:
        help_text = f"; {hint}" if hint else ""
        kept = (
            f". Job {job_id} is not lost: it stays in the spool and runs once that is done; attach({job_id!r}) then "
            "gives its result"
            if job_id
            else ""
        )
        super().__init__(f"no worker of {engine} can run: {reason}{help_text}{kept}")
        self.engine, self.reason, self.hint, self.job_id = engine, reason, hint, job_id

    def sentence(self) -> str:
        """For people who know which job they wait for."""
        return f"no worker of {self.engine} can run: {self.reason}{f' ({self.hint})' if self.hint else ''}"


class NestedDeadlock(EngineUnavailable):
    """A job waits for another one that can only run once the first has ended: every worker that could take it is
    waiting itself.

    chain: (job, worker, the job it waits for), from the one that asked.
    """

    def __init__(self, engine: str, job_id: str, chain: Sequence[tuple[str, str, str]]) -> None:
        way = ", ".join(f"{worker} runs {job} and waits for {other}" for job, worker, other in chain)
        hint = (
            f"give {engine} more workers (max_concurrent_tasks), let another engine do the inner job, or submit it "
            "without waiting for it in run()"
        )
        PoolError.__init__(
            self,
            f"deadlock: job {job_id} can only run after the one that waits for it, every worker of {engine} waits for "
            f"such a job: {way}; {hint}. Job {job_id} is not lost: it runs as soon as one of them is free",
        )
        self.engine, self.reason, self.hint, self.job_id = engine, f"deadlock: {way}", hint, job_id
        self.chain = tuple(chain)


class ProtocolError(PoolError):
    """Bytes in the spool that are not what the protocol says, or a value that it cannot hold.

    `path` leads to that value ("params.when", "segments[3].start"), `hint` says what to do; both may be empty.
    """

    def __init__(self, reason: str = "", path: str = "", hint: str = "") -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason, self.path, self.hint = reason, path, hint
