"""`map`: the results of many calls in their order, a bounded number of them in the spool at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from pool.client.future import JobFuture, with_remote_trace
from pool.errors import JobFailed
from pool.job import decode_failure

_WINDOW = 256  # chunks that are in the spool at once

Chunk = tuple[Mapping[str, Any], ...]


class Mapped(Iterator[Any]):
    """The results, one per call. A call that failed raises JobFailed in its turn; the next ones may still be taken.

    Iterating waits on the caller's thread. Who waits otherwise waits for `head`, calls `take` once it is done, and
    then `pop` until `ready` is empty.
    """

    def __init__(
        self, chunks: Iterator[Chunk], submit: Callable[[list[Chunk]], list[JobFuture]], timeout: float | None
    ) -> None:
        self._chunks, self._submit = chunks, submit
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pending: deque[JobFuture] = deque()
        self.ready: deque[tuple[str, int, Any]] = deque()  # (id of the job, whether it failed, value or failure)
        self._refill(_WINDOW)

    def _refill(self, count: int) -> None:
        chunks = list(islice(self._chunks, count))
        if chunks:
            self._pending.extend(self._submit(chunks))

    @property
    def head(self) -> JobFuture | None:
        """The job whose results come next; None at the end."""
        return self._pending[0] if self._pending else None

    def left(self) -> float | None:
        """Seconds until the time of the whole map is over; None without a limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def take(self) -> None:
        """Wait for the head, make its results ready, submit more. Raises what `JobFuture.result` does."""
        future = self._pending[0]
        try:
            outcomes = future.result(self.left())
        finally:
            if future.decided:  # else the time was over, and it is still its turn
                self._pending.popleft()
                if len(self._pending) <= _WINDOW // 2:
                    self._refill(_WINDOW - len(self._pending))
        self.ready.extend((future.id, failed, value) for failed, value in outcomes)

    def pop(self) -> Any:
        """One result that is ready."""
        job_id, failed, value = self.ready.popleft()
        if failed:
            failure = decode_failure(value)
            raise with_remote_trace(JobFailed(job_id, failure), failure)
        return value

    def __next__(self) -> Any:
        while not self.ready:
            if not self._pending:
                raise StopIteration
            self.take()
        return self.pop()
