"""The jobs of the whole cluster, whichever client has submitted them, newest first, and what became of each.

Read from the buckets of ids, claims and results, a page at a time; nothing is changed. The parameters of a job are not
there: they are in the branch of its client.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

from nats.js.errors import NotFoundError

from pool.cluster import wire
from pool.cluster.accounts import stream_of
from pool.cluster.claims import read_hold
from pool.cluster.link import Link, get_entry
from pool.cluster.wire import End, Identity, JobKey
from pool.config.settings import ClusterConfig
from pool.errors import ProtocolError
from pool.format import codec
from pool.job import Record
from pool.system.clock import REAL

LIMIT_MOST = 1000
_AT_ONCE = 32
_LOOKS = 20  # for each job of a page: ids that were used again leave gaps


@dataclass(frozen=True)
class ListedJob:
    """One job. state: "waiting", "running" (a node has it), "completed", "failed" or "cancelled"; "ended" when its
    record is in the media store; "forgotten" when it is older than results are kept. node: that has it, or had it, ""
    for none. client: the id of the spool that it came from. submitted: seconds since 1970, of the servers."""

    id: str
    engine: str
    state: str
    node: str
    client: str
    submitted: float
    run: int = 0


@dataclass(frozen=True)
class ListedPage:
    """next: where the next page begins; 0: there is none."""

    jobs: tuple[ListedJob, ...]
    next: int = 0

    def to_map(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {"jobs": [asdict(job) for job in self.jobs], "next": self.next}


async def page(config: ClusterConfig, *, limit: int, after: int = 0, patience_s: float) -> ListedPage:
    """The newest jobs, or those after a page: its `next`. Raises ClusterAway, ConfigError, what JetStream raises."""
    link = await Link(config, "jobs").open(patience_s=patience_s)
    try:
        state = (await link.js.stream_info(stream_of(wire.IDS))).state
        kept_s = (await link.js.stream_info(stream_of(wire.RESULTS))).config.max_age or float("inf")
        last = min(after, state.last_seq) if after else state.last_seq
        found: list[ListedJob] = []
        lowest = max(state.first_seq, last - _LOOKS * (limit + _AT_ONCE), 1)
        while last >= lowest and len(found) < limit:
            wanted = range(last, max(last - min(_AT_ONCE, limit - len(found)), lowest - 1), -1)
            looked = await asyncio.gather(*(_look(link, number, kept_s) for number in wanted))
            found += [job for job in looked if job is not None]
            last = wanted[-1] - 1
        return ListedPage(tuple(found), last if last >= max(state.first_seq, 1) else 0)
    except NotFoundError:  # no node or client was ever there
        return ListedPage((), 0)
    finally:
        await link.close()


async def _look(link: Link, number: int, kept_s: float) -> ListedJob | None:
    """The job whose id is the message of that number, None when there is none."""
    try:
        message = await link.js.get_msg(stream_of(wire.IDS), number, direct=True)
        identity = Identity.unpack(message.data or b"")
    except (NotFoundError, ProtocolError):
        return None
    job_id = (message.subject or "").rpartition(".")[2]
    submitted = message.time.timestamp() if message.time else 0.0
    state, node = await _state(link, JobKey(identity.origin, job_id, identity.run))
    if state == "waiting" and REAL.wall() - submitted > kept_s:
        state = "forgotten"
    return ListedJob(job_id, identity.engine, state, node, identity.origin, submitted, identity.run)


async def _state(link: Link, key: JobKey) -> tuple[str, str]:
    # RACE: the claim first, for it goes once there is a result
    claim = await get_entry(await link.bucket(wire.CLAIMS), str(key))
    result = await get_entry(await link.bucket(wire.RESULTS), str(key))
    if result is None:
        return ("running", read_hold(claim.value or b"").node) if claim is not None else ("waiting", "")
    try:
        end = End.unpack(result.value or b"")
        if end.body is not None:
            return "ended", end.node
        return Record.from_map(codec.decode(end.record, arrays=False)).state.value, end.node
    except ProtocolError:
        return "ended", ""
