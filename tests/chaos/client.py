"""A client in the storm: submits, drops, waits, cancels, runs failed jobs again, until somebody ends it.

    python client.py CONFIG HISTORY NAME OUTPUTS [REAL JOBS AS JSON]

It puts down what it asks before it asks, and what it was told before it goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import traceback
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from crash.rig import History  # noqa: E402

from pool import FilePool, JobFailed  # noqa: E402
from pool.client.future import JobFuture  # noqa: E402
from pool.errors import JobRefused, UnknownJob  # noqa: E402

OUTSTANDING = 60  # jobs that one client waits for at a time
SHARE_REAL = 0.004


class Client:
    def __init__(self, config: str, history: str, name: str, outputs: str, real: list[dict[str, Any]]) -> None:
        self.rng = random.Random(name)
        self.name, self.outputs, self.real = name, Path(outputs), real
        self.config, self.history = config, History(Path(history))
        self.pool = FilePool(config, start=False, patience=None)
        self.pending: deque[tuple[JobFuture, Any]] = deque()
        self.failed: list[str] = []
        self.number = 0

    def run(self) -> None:
        actions = [
            self.one,
            self.named,
            self.batch,
            self.cancel,
            self.again,
            self.media,
            self.drop,
            self.fork,
            self.threads,
        ]
        while True:
            self.rng.choices(actions, [10, 4, 2, 1, 1, 2, 1, 0.5, 0.5])[0]()
            while len(self.pending) > OUTSTANDING or (self.pending and self.rng.random() < 0.2):
                self.wait()

    def value(self) -> str:
        self.number += 1
        return f"{self.name}-{self.number}"

    def submit(self, params: dict[str, Any], **more: Any) -> None:
        value, priority = self.value(), self.rng.randint(-5, 5)
        self.history.say("offered", id=more.get("id"), value=value)
        future = self.pool.submit("fake", params={"value": value, **params}, priority=priority, **more)
        if params.get("do") in ("raise", "kill"):
            self.history.say("bad", id=future.id)
        self.history.say("accepted", id=future.id)
        self.pending.append((future, value))

    def one(self) -> None:
        """One in ten raises or crashes wherever it runs."""
        params = self.rng.choices(
            [
                {},
                {"do": "sleep", "seconds": self.rng.uniform(0, 0.06)},
                {"do": "raise", "until_attempt": 1},
                {"do": "input"},
                {"do": "partials"},
                {"do": "kill", "until_attempt": 1},
                {"do": "raise"},
                {"do": "kill"},
            ],
            [55, 22, 3, 3, 3, 0.5, 7, 2],
        )[0]
        bad = params.get("do") in ("raise", "kill") and "until_attempt" not in params
        self.submit(params, **({"retry_times": self.rng.randint(0, 2)} if bad else {}))

    def few(self, pool: FilePool, name: str) -> None:
        """Some jobs of a pool in a thread or a forked child, waited for as far as it goes."""
        futures = []
        for number in range(self.rng.randint(1, 4)):
            value = f"{name}-{number}"
            self.history.say("offered", value=value)
            future = pool.submit("fake", value=value)
            self.history.say("accepted", id=future.id)
            futures.append((future, value))
        for future, value in futures:
            with suppress(NotYet):
                assert future.result(5)["value"] == value

    def fork(self) -> None:
        """A child goes on with the pool that it inherited; the parent's goes on, too."""
        name = self.value()
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            assert status in (0, signal.SIGKILL), f"a forked child ended with {status}"
            return
        try:
            self.few(self.pool, name)
            self.pool.close()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def threads(self) -> None:
        """A pool of its own for each of three threads."""

        def work(name: str) -> None:
            pool = FilePool(self.config, start=False, patience=None)
            try:
                self.few(pool, name)
            finally:
                pool.close()

        with ThreadPoolExecutor(3) as threads:
            for done in [threads.submit(work, self.value()) for _ in range(3)]:
                done.result()

    def named(self) -> None:
        """Under an id of its own, and often the same again."""
        job_id = f"id-{self.name}-{self.number + 1}"
        self.submit({}, id=job_id)
        future, value = self.pending[-1]
        if self.rng.random() < 0.5:
            assert self.pool.submit("fake", id=job_id, params={"value": value}).id == future.id

    def batch(self) -> None:
        values = [self.value() for _ in range(self.rng.randint(2, 12))]
        for value in values:
            self.history.say("offered", value=value)
        futures = self.pool.submit_many("fake", [{"value": value} for value in values])
        for future, value in zip(futures, values, strict=True):
            self.history.say("accepted", id=future.id)
            self.pending.append((future, value))

    def media(self) -> None:
        """A file at a path of ours, a file in the spool, or work of a real engine."""
        if self.real and self.rng.random() < SHARE_REAL * 10:
            job = self.rng.choice(self.real)
            value = self.value()
            self.history.say("offered", value=value)
            output = str(self.outputs / f"{value}{job['suffix']}")
            future = self.pool.submit(job["engine"], params={**job["params"], "output": output})
            self.history.say("accepted", id=future.id)
            self.history.say("real", id=future.id, engine=job["engine"])
            return
        output = {"output": str(self.outputs / self.value())} if self.rng.random() < 0.5 else {}
        self.submit({"do": "write", **output})

    def drop(self) -> None:
        """Into the drop box; one in five is no job."""
        value = self.value()
        job_id, wrong = f"drop-{value}", self.rng.random() < 0.2
        job = {"engine": "nobody" if wrong else "fake", "id": job_id, "params": {"value": value}}
        if not wrong:
            self.history.say("offered", id=job_id, value=value)
        written = self.outputs / f".{job_id}"
        written.write_text(json.dumps(job))
        written.rename(self.pool.spool.root / "in" / f"{job_id}.json")
        self.history.say("refused" if wrong else "dropped", id=job_id)

    def cancel(self) -> None:
        if not self.pending:
            return
        future, _ = self.rng.choice(self.pending)
        self.history.say("cancelled", id=future.id)
        if future.cancel():
            self.history.say("stands", id=future.id)

    def again(self) -> None:
        """A failed job is run again; it fails again."""
        if not self.failed:
            return
        job_id = self.failed.pop()
        self.history.say("requeued", id=job_id)
        with suppress(UnknownJob, FileNotFoundError):  # its worker was killed before the burial
            self.pool.retry(job_id)

    def wait(self) -> None:
        """For the oldest; its result must be its own."""
        future, value = self.pending[0]
        try:
            result = future.result(5)
            assert result["value"] == value, (future.id, result, value)
        except NotYet:
            self.pending.rotate(1)
            return
        except CancelledError:
            pass
        except JobFailed as error:
            if not error.failure.message:
                raise RuntimeError(f"{future.id} failed without a reason") from error
            self.failed.append(future.id)
        self.pending.popleft()
        record = Path(self.pool.spool.record_path(future.id))
        if self.rng.random() < 0.2:
            with suppress(FileNotFoundError):  # run again meanwhile
                digest = hashlib.sha256(record.read_bytes()).hexdigest()
                self.history.say("read", id=future.id, sha256=digest)


def main(config: str, history: str, name: str, outputs: str, real: str = "[]") -> None:
    client = Client(config, history, name, outputs, json.loads(real))
    try:
        client.run()
    except JobRefused as error:
        raise SystemExit(f"refused: {error}") from error


if __name__ == "__main__":
    main(*sys.argv[1:])
