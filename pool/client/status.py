"""What the pool is doing at this moment, as data. `pool.client.inspection` reads it.

"Alive" is not "working": a worker counts as serving only when its process lives and is not stopped, its engine is
loaded, and its own loop gave a sign of life within the time its phase allows. The verdict of `health`:

    ok         every configured worker serves, and jobs are accepted
    degraded   some work gets done, or will soon; the reasons say what is missing
    down       nothing gets done until an operator acts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pool.policy.death import Ended
from pool.policy.prospects import (
    PoolFacts,
    Prospect,
    RemoteFacts,
    RemoteNode,
    SlotFacts,
    load_error,
    prospect,
)
from pool.runfiles.nodes import remote_engines
from pool.runfiles.watchers import EVENTS, WatchingStatus

if TYPE_CHECKING:
    pass


OK, DEGRADED, DOWN = "ok", "degraded", "down"


@dataclass(frozen=True)
class Health:
    """verdict: "ok", "degraded" or "down". sentence: for people. reasons: all that is not as it should be, nothing
    with "ok". notes: what else is worth knowing, such as what makes it slower than it could be."""

    verdict: str
    sentence: str
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the verdict is "ok"."""
        return self.verdict == OK


@dataclass(frozen=True)
class SupervisorStatus:
    """Who serves the spool. started: µs of the spool clock. tied: it ends with the clients that asked for it."""

    pid: int
    started: int
    tied: bool
    config: str | None
    version: str
    stopped: bool  # by SIGSTOP or a debugger: it judges and restarts nothing
    containment: str = ""  # how all that a worker started is found: "cgroup", "descent", "session" (and tag: always)
    engines: tuple[str, ...] | None = None  # those that it serves, None: it has not said


@dataclass(frozen=True)
class EngineStatus:
    """One engine; in a branch over all nodes.

    Attributes:
        workers: Slots that are configured.
        spares: Of those, slots that wait for a failure.
        serving: Slots that take jobs or work on one.
        busy: Slots that work on one.
        oldest_wait_s: Of the queued jobs.
        configured: In a branch: the cluster has it.
    """

    name: str
    configured: bool
    workers: int
    spares: int
    serving: int
    busy: int
    queued: int
    held: int  # jobs that wait for the results of others
    deferred: int  # jobs and retries that wait for their time
    running: int
    dead: int  # failed and kept for `retry`
    oldest_wait_s: float | None
    max_ready: int


@dataclass(frozen=True)
class SlotStatus:
    """One slot and the process in it.

    Attributes:
        phase: As its heartbeat says, "" without one.
        phase_s: Seconds since the phase began.
        silent_s: Seconds since the last sign of life; while busy, since the engine's last progress.
        serving: It takes jobs or works on one.
        trouble: Why not, or what is wrong although it does; "" when nothing is.
        jobs_done: By this process.
        restarts: Of the slot, since the supervisor began.
        restarts_by: The same, by reason.
        node: The machine of a cluster that it is on, "" for this one; then slot is "<node>/<slot>".
    """

    slot: str
    engine: str
    seat: str
    spare: bool
    worker: str | None = None
    pid: int | None = None
    device: str = ""
    phase: str = ""
    phase_s: float | None = None
    silent_s: float | None = None
    job: str = ""
    stage: str = ""
    percent: float | None = None
    message: str = ""
    serving: bool = False
    trouble: str = ""
    why: str = ""
    error: Mapping[str, str] | None = None  # of the last load: message, stage, hint
    last_death: str = ""
    ended: Ended | None = None  # how and why the process before this one ended
    row: int = 0  # jobs in a row whose first failure was here
    next_start_s: float | None = None
    starts: int = 0
    restarts: int = 0
    jobs_done: int = 0
    rss_bytes: int = 0
    gpu_bytes: int = 0
    restarts_by: Mapping[str, int] = field(default_factory=dict)
    watching: WatchingStatus = EVENTS  # of its process
    node: str = ""


@dataclass(frozen=True)
class NodeStatus:
    """One node of the cluster behind a branch.

    Attributes:
        seen_s: Seconds since it was last heard of.
        draining: It takes no more jobs.
        jobs: That it has, from all clients.
        engines: Name -> {"slots", "serving", "busy", "waiting", "trouble"}.
    """

    name: str
    host: str
    version: str
    seen_s: float
    labels: tuple[str, ...]
    draining: bool
    jobs: int
    engines: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ClusterStatus:
    """The cluster behind a branch, as the port sees it.

    Attributes:
        servers: Their addresses, without secrets.
        trouble: Why they are not reached, or do not work.
        full: Why nothing more is accepted, "" when there is room.
        waiting: Jobs of this branch that are on their way and have not begun.
        told: The port has said all this.
        silent_s: Seconds since it did.
    """

    servers: tuple[str, ...]
    connected: bool
    trouble: str = ""
    full: str = ""
    waiting: int = 0
    told: bool = True
    silent_s: float | None = None


@dataclass(frozen=True)
class ConfigurationStatus:
    """The configuration that runs, and the file.

    Attributes:
        loaded: When it was read, µs of the spool clock.
        disk: "same", "changed" (`reload` takes it), "wrong" (refused; problem says why), "gone", "" without a
            supervisor or a file.
        rolled: How many of the slots run it.
        failed: Which do not start with it, and why.
        leaving: Processes that have no place in it and finish their job.
        moving: False when nothing more happens until an operator acts.
    """

    file: str | None = None
    loaded: int = 0
    disk: str = ""
    problem: str = ""
    rolled: int = 0
    slots: int = 0
    leaving: int = 0
    failed: str = ""
    moving: bool = False


@dataclass(frozen=True)
class PoolStatus:
    """Everything at once. at: µs of the spool clock. stood_still_s: seconds since the supervisor began in which it
    could not look: suspended, paused, or without a processor; stood_still_at: when that ended last, 0 for never."""

    at: int
    spool: str
    health: Health
    supervisor: SupervisorStatus | None
    draining: bool
    intake_paused: str
    watching: WatchingStatus
    engines: tuple[EngineStatus, ...]
    slots: tuple[SlotStatus, ...]
    dropped: int  # files in in/ that intake has not taken yet
    quarantined: int
    records: int  # results, failures and cancellations that are kept
    free_bytes: int
    total_bytes: int
    min_free_bytes: int
    configuration: ConfigurationStatus = ConfigurationStatus()
    nodes: tuple[NodeStatus, ...] = ()
    cluster: ClusterStatus | None = None  # None: a pool of its own
    stood_still_s: float = 0.0
    stood_still_at: int = 0
    unseen: str = ""  # why the supervisor that serves the spool cannot be seen from here, with what to do

    def engine(self, name: str) -> EngineStatus | None:
        """One engine by name, None when there is none."""
        return next((engine for engine in self.engines if engine.name == name), None)

    def of(self, engine: str) -> tuple[SlotStatus, ...]:
        """The slots of one engine."""
        return tuple(slot for slot in self.slots if slot.engine == engine)

    def prospect(self, engine: str, starter: str | None = None) -> Prospect:
        """What a job that waits for an engine may expect. starter: see PoolFacts."""
        return prospect(engine, replace(self.facts(), starter=starter))

    def facts(self) -> PoolFacts:
        """What prospects are made of."""
        supervisor = self.supervisor
        return PoolFacts(
            served=supervisor is not None,
            slots=tuple(_facts_of(slot) for slot in self.slots if not slot.node),
            draining=self.draining,
            engines=supervisor.engines if supervisor else None,
            config=(supervisor.config if supervisor else None) or "",
            away=_away(self.cluster, self.nodes) if self.cluster else None,
            unseen=self.unseen,
        )

    def to_map(self) -> dict[str, Any]:
        """Plain maps and lists, for --json."""
        return asdict(self)


def _away(cluster: ClusterStatus, nodes: tuple[NodeStatus, ...]) -> RemoteFacts:
    return RemoteFacts(
        told=cluster.told,
        connected=cluster.connected,
        trouble=cluster.trouble,
        servers=cluster.servers,
        nodes=tuple(RemoteNode(node.name, remote_engines(node.engines), node.labels, node.draining) for node in nodes),
    )


def _facts_of(slot: SlotStatus) -> SlotFacts:
    return SlotFacts(
        slot=slot.slot,
        engine=slot.engine,
        seat=slot.seat,
        worker=slot.worker or "" if slot.phase else "",
        serving=slot.serving,
        spare=slot.spare,
        error=load_error(slot.error),
        why=slot.why,
        last_death=slot.last_death,
        next_start_s=slot.next_start_s,
    )
