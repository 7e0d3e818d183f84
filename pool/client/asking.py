"""Looks for a job that only the servers of a cluster may know: they are asked by the port, which may have died."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pool.client.attendant import Attendant
from pool.errors import ClusterAway
from pool.spool import elsewhere
from pool.spool.store import Spool

T = TypeVar("T")


def answered(look: Callable[[], T], spool: Spool, attendant: Attendant | None) -> T:
    """What `look` returns. When it says ClusterAway because no port serves, and this client starts one, it does so and
    looks again. Raises what `look` raises, SupervisorFailed."""
    try:
        return look()
    except ClusterAway:
        if attendant is None or elsewhere.is_served(spool):
            raise
    attendant.attend()
    return look()
