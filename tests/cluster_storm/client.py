"""A client in the storm over a cluster: submits in every way there is, waits, cancels, reads, until somebody ends it.

    python client.py CONFIG HISTORY NAME OUTPUTS HISTORY-OF-OTHERS [reader|flood]

It puts down what it asks before it asks, and what it was told before it goes on. A reader only waits for what its
branch has. With flood, most of what it submits are short jobs by the hundred.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from crash.rig import History  # noqa: E402

from pool import FilePool, JobFailed  # noqa: E402
from pool.client.future import JobFuture  # noqa: E402
from pool.errors import (  # noqa: E402
    ClusterAway,
    EngineUnavailable,
    JobConflict,
    PoolError,
    SpoolFull,
    UnknownEngine,
    UnknownJob,
)

OUTSTANDING, OUTSTANDING_FLOOD = 24, 400  # jobs that one client waits for at a time
TOGETHER = 12  # ids that all clients share, at any time


class Client:
    def __init__(self, config: str, history: str, name: str, outputs: str, others: str) -> None:
        self.rng = random.Random(name)
        self.name, self.outputs, self.others = name, Path(outputs), Path(others)
        self.history = History(Path(history))
        self.pool = FilePool(config, patience=None)
        self.pending: deque[tuple[JobFuture, Any]] = deque()
        self.failed: list[str] = []
        self.number = 0

    def run(self, *, flood: bool = False) -> None:
        outstanding = OUTSTANDING_FLOOD if flood else OUTSTANDING
        actions: dict[Callable[[], None], float] = {
            self.one: 10,
            self.long: 7,
            self.named: 2,
            self.together: 2,
            self.batch: 2,
            self.mapped: 0.4,
            self.files: 3,
            self.after: 1.5,
            self.late: 1,
            self.later: 1,
            self.foreign: 3,
            self.cancel: 1.5,
            self.again: 1,
            self.flood: 3 if flood else 0,
        }
        while True:
            try:
                self.rng.choices(list(actions), list(actions.values()))[0]()
            except SpoolFull:
                self.history.say("full")
                time.sleep(0.5)
            except UnknownEngine as error:  # no node has been heard of since the branch was last served
                self.history.say("unheard", why=str(error))
                time.sleep(0.5)
            time.sleep(self.rng.uniform(0, 0.1))
            while len(self.pending) > outstanding or (self.pending and self.rng.random() < 0.15):
                self.wait()

    def read(self) -> None:
        """Wait until somebody ends us; whoever waits keeps the branch served."""
        while True:
            states = ["queued", "running"]
            for info in self.pool.jobs(state=states, limit=50):
                with suppress(NotYet, CancelledError, UnknownJob, ClusterAway, JobFailed):
                    self.pool.attach(info.id).result(1)
            time.sleep(0.2)

    # ---- ways to submit

    def value(self) -> str:
        self.number += 1
        return f"{self.name}-{self.number}"

    def submit(self, params: dict[str, Any], *, value: Any = None, sends: Any = None, **more: Any) -> JobFuture:
        """value: of the result, when it is not a fresh one. sends: what stands for it in the parameters."""
        value = self.value() if value is None else value
        self.history.say("offered", id=more.get("id"), value=value)
        sent = {**params, "value": value if sends is None else sends}
        future = self.pool.submit("fake", params=sent, priority=self.rng.randint(-2, 2), **more)
        self.accept(future, value, params, more)
        return future

    def accept(self, future: JobFuture, value: Any, params: dict[str, Any], more: dict[str, Any]) -> None:
        do = params.get("do", "echo")
        always = "until_attempt" not in params
        if do in ("raise", "kill", "input") and always:
            self.history.say("bad", id=future.id, do=do, retries=more.get("retry_times", 0))
        self.history.say("accepted", id=future.id, value=value)
        self.pending.append((future, value))

    def one(self) -> None:
        """One in ten raises or crashes wherever it runs."""
        deeds: list[dict[str, Any]] = [
            {},
            {"do": "sleep", "seconds": self.rng.uniform(0, 0.5)},
            {"do": "raise", "until_attempt": 1},
            {"do": "input"},
            {"do": "partials"},
            {"do": "kill", "until_attempt": 1},
            {"do": "raise"},
            {"do": "kill"},
        ]
        params = self.rng.choices(deeds, [45, 30, 3, 3, 5, 0.5, 5, 1])[0]
        bad = params.get("do") in ("raise", "kill") and "until_attempt" not in params
        self.submit(params, **({"retry_times": self.rng.randint(0, 2)} if bad else {}))

    def long(self) -> None:
        """Longer than a lease."""
        self.submit({"do": "sleep", "seconds": self.rng.uniform(2, 16)})

    def named(self) -> None:
        """Under an id of its own, and often the same again; sometimes with other content, which is refused."""
        value = self.value()
        job_id = f"id-{value}"
        future = self.submit({}, id=job_id, value=value)
        if self.rng.random() < 0.5:
            assert self.pool.submit("fake", id=job_id, params={"value": value}).id == future.id
        if self.rng.random() < 0.3:
            try:
                self.pool.submit("fake", id=job_id, params={"value": "another"})
            except JobConflict:
                return
            raise AssertionError(f"{job_id} was accepted twice with other content")

    def together(self) -> None:
        """Under an id that clients of all branches use at this time: the same job, or a conflict."""
        job_id = f"both-{int(time.time() / 10)}-{self.rng.randrange(TOGETHER)}"
        if self.rng.random() < 0.15:
            value = self.value()
            self.history.say("contested", id=job_id, value=value)
        else:
            value = job_id
        with suppress(JobConflict):
            self.submit({}, id=job_id, value=value)

    def batch(self) -> None:
        self.many(self.rng.randint(2, 8))

    def flood(self) -> None:
        self.many(self.rng.randint(50, 150))

    def many(self, count: int) -> None:
        values = [self.value() for _ in range(count)]
        for value in values:
            self.history.say("offered", value=value)
        futures = self.pool.submit_many("fake", [{"value": value} for value in values])
        for future, value in zip(futures, values, strict=True):
            self.accept(future, value, {}, {})

    def mapped(self) -> None:
        """Calls that travel together; results in their order."""
        values = [self.value() for _ in range(self.rng.randint(2, 8))]
        for value in values:
            self.history.say("offered", value=value)
        calls = [{"value": value} for value in values]
        with suppress(NotYet):
            results = list(self.pool.map("fake", calls, chunksize=self.rng.randint(1, 3), timeout=60, tags=["map"]))
            assert [result["value"] for result in results] == values

    def files(self) -> None:
        """A file goes in, one comes out, at a path of ours or beside the record."""
        value = self.value()
        audio = self.outputs / f"{value}.in"
        content = value if self.rng.random() < 0.7 else "many have this"
        audio.write_bytes((content * self.rng.choice([1, 1, 4000])).encode())
        output = {"output": str(self.outputs / f"{value}.out")} if self.rng.random() < 0.6 else {}
        do = "write" if self.rng.random() < 0.8 else "echo"
        self.submit({"do": do, "audio": str(audio), **(output if do == "write" else {})}, value=value)

    def after(self) -> None:
        """One after another; every other time with the result of the first among its parameters."""
        first = self.submit({"do": "sleep", "seconds": self.rng.uniform(0, 0.3)})
        value = self.pending[-1][1]
        if self.rng.random() < 0.5:
            self.history.say("depends", id=first.id)
            self.submit({}, depends_on=[first.id])
        else:
            self.submit({}, value=value, sends=first["value"])

    def late(self) -> None:
        """Not worth beginning after some seconds."""
        future = self.submit({"do": "sleep", "seconds": 0.2}, expires=self.rng.uniform(0.2, 6))
        self.history.say("expires", id=future.id)

    def later(self) -> None:
        self.submit({}, not_before=self.rng.uniform(0.2, 3))

    # ---- what else clients do

    def foreign(self) -> None:
        """Attach to a job that another branch has submitted."""
        lines: list[str] = []
        for path in sorted(self.others.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)[-4:]:
            lines += path.read_text().splitlines()[-200:-10]
        events = [json.loads(line) for line in lines if '"accepted"' in line]
        if not events:
            return
        chosen = self.rng.choice(events)
        if str(chosen["id"]).startswith("both-"):
            return
        self.history.say("foreign", id=chosen["id"], value=chosen["value"])
        try:
            future = self.pool.attach(chosen["id"])
        except UnknownJob:  # it has not got there
            self.history.say("unknown", id=chosen["id"])
            return
        except ClusterAway as error:
            self.history.say("away", id=chosen["id"], why=str(error))
            return
        self.history.say("attached", id=chosen["id"])
        self.pending.append((future, chosen["value"]))

    def cancel(self) -> None:
        if not self.pending:
            return
        future, _ = self.rng.choice(self.pending)
        self.history.say("cancelled", id=future.id)
        with suppress(UnknownJob, ClusterAway):
            if future.cancel():
                self.history.say("stands", id=future.id)

    def again(self) -> None:
        """A failed job is run again; it fails again."""
        if not self.failed:
            return
        job_id = self.failed.pop()
        self.history.say("requeued", id=job_id)
        with suppress(UnknownJob, FileNotFoundError, PoolError):
            self.pool.retry(job_id)

    def wait(self) -> None:
        """For the oldest; its result must be its own."""
        future, value = self.pending[0]
        try:
            result = future.result(0.5)
            if future.id.startswith("both-"):
                self.history.say("got", id=future.id, value=result["value"])
            else:
                assert result["value"] == value, (future.id, result, value)
        except NotYet:
            self.pending.rotate(1)
            return
        except (CancelledError, UnknownJob, ClusterAway, EngineUnavailable):
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


def main(config: str, history: str, name: str, outputs: str, others: str, how: str = "") -> None:
    client = Client(config, history, name, outputs, others)
    if how == "reader":
        client.read()
    client.run(flood=how == "flood")


if __name__ == "__main__":
    main(*sys.argv[1:])
