"""What a supervisor finds when it starts: workers of one that died, what they left running, jobs that no worker holds.

Workers that fit the configuration are taken over with their models and jobs; others finish their job within the drain
grace; what has no slot is ended.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence

from loguru import logger

from pool.config.settings import Config
from pool.format.names import WorkerName, parse_worker
from pool.policy.death import death_of
from pool.spool.store import Spool
from pool.supervise.judge import Cause, Verdict
from pool.supervise.recovery import End, Recovery
from pool.supervise.remains import group_of, last_beat
from pool.supervise.slot import Slot
from pool.system import cgroup, procs
from pool.system.lineage import Heir
from pool.system.procs import Identity


def adopt(
    spool: Spool, config: Config, slots: Sequence[Slot], recovery: Recovery, *, now: float, heir: Heir | None = None
) -> None:
    """Take over the workers of a supervisor that died; end those that fit no slot; recover the rest."""
    living: dict[WorkerName, Identity] = {}
    for member in procs.members(spool.id):
        worker = parse_worker(member.worker)
        if worker is not None and member.session == member.identity.pid and _is_main(spool, worker, member.identity):
            living[worker] = member.identity
    by_name = {slot.spec.name: slot for slot in slots}
    mismatched: dict[WorkerName, Identity] = {}
    for worker, identity in sorted(living.items(), key=lambda item: -item[0].generation):
        slot = by_name.get(worker.slot)
        if slot is None or slot.alive:
            mismatched[worker] = identity
            continue
        slot.policy.adopted(now)
        slot.adopt(worker, identity)
        logger.info("adopted {} (pid {})", worker, identity.pid)
        if slot.old:
            logger.info("{} has an older configuration: ending it", worker)
            slot.ask_to_end(Verdict(Cause.OUTDATED), now + config.drain_grace_s)
    _end_mismatched(spool, mismatched, config.drain_grace_s, recovery)
    _end_groups(spool, slots)
    end_strays(spool, slots, heir)
    for worker in recovery.recover_abandoned({slot.worker for slot in slots if slot.worker}):
        logger.warning("recovered the jobs of {}, which is gone", worker)


def end_strays(spool: Spool, slots: Sequence[Slot], heir: Heir | None = None) -> None:
    """Kill what carries the tag of a worker that is in no slot: children of the dead, ffmpeg and the like, and a
    worker whose supervisor was killed while it started it."""
    ours = {slot.worker for slot in slots if slot.alive}
    for member in procs.members(spool.id):
        if member.worker and parse_worker(member.worker) not in ours:
            logger.warning("pid {} is left over from {}: ending it", member.identity.pid, member.worker)
            procs.signal_process(member.identity, signal.SIGKILL)
            _await_death(member.identity)
    end_inherited(slots, heir)


def end_inherited(slots: Sequence[Slot], heir: Heir | None) -> None:
    """Kill what descends from dead workers and carries no tag: it had cleared its environment."""
    workers = {slot.identity.pid for slot in slots if slot.identity is not None}
    for what in heir.end(workers) if heir is not None else ():
        logger.warning("{} was left running by a worker: ended", what)


def _end_groups(spool: Spool, slots: Sequence[Slot]) -> None:
    """What is left in the control groups of workers that died unseen."""
    ours = {slot.worker for slot in slots if slot.alive}
    for name in os.listdir(spool.root / "run" / "slots"):
        worker = parse_worker(name.rpartition(".")[0])
        if worker is not None and worker not in ours:
            cgroup.end(group_of(spool, worker), spool.id)


def _is_main(spool: Spool, worker: WorkerName, identity: Identity) -> bool:
    beat = last_beat(spool, worker)
    return beat is None or beat.pid == identity.pid


def _end_mismatched(
    spool: Spool, mismatched: Mapping[WorkerName, Identity], grace_s: float, recovery: Recovery
) -> None:
    """Workers without a slot of their own any more: each may finish its job within the drain grace."""
    for worker, identity in mismatched.items():
        logger.info("{} (pid {}) has no slot in the configuration: ending it", worker, identity.pid)
        procs.signal_process(identity, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(identity.alive() for identity in mismatched.values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    for worker, identity in mismatched.items():
        procs.kill_group(identity, signal.SIGKILL, spool_id=spool.id, worker=str(worker))
        _await_death(identity)
        cgroup.end(group_of(spool, worker), spool.id)
        recovery.recover(worker, End(death_of(None), Verdict(Cause.OUTDATED)))


def _await_death(identity: Identity) -> None:
    """After SIGKILL: until the process is gone, however long the kernel takes."""
    while identity.alive():
        time.sleep(0.002)
