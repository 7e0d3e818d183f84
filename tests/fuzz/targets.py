"""What is fuzzed. Each target takes any bytes, and raises only when something is wrong with the pool.

python -m fuzz TARGET [--seconds 60] [--seed N] [CORPUS …]      in tests/; atheris when it is installed
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pool.config.settings import parse_config
from pool.errors import ProtocolError
from pool.format import codec
from pool.format.names import (
    is_id,
    parse_aside,
    parse_dead,
    parse_deferred,
    parse_job,
    parse_note,
    parse_record,
    parse_worker,
)
from pool.job import Failure, Job, Progress, Record, decode_failure
from pool.spool.store import Spool
from pool.supervise import intake

PATIENCE_S = 2.0  # of processor time for one input of at most 1 MB; measured are 0.2


def decode(data: bytes) -> None:
    """A drop: what is accepted can be stored and read again."""
    for read in (lambda: codec.decode(data, strict=True), lambda: codec.decode_json(data)):
        try:
            value = read()
        except ProtocolError as error:
            _explained(error)
            continue
        again = codec.decode(codec.encode(value), strict=True)
        assert repr(again) == repr(value)  # NaN is not itself
        codec.to_json(value)


def _explained(error: ProtocolError) -> None:
    if not str(error).strip():
        raise AssertionError("refused without a reason") from error


def record(data: bytes) -> None:
    """Files of the spool that a foreign hand wrote."""
    for arrays in (True, False):
        try:
            value = codec.decode(data, directory=Path("/nonexistent"), arrays=arrays)
        except ProtocolError:
            continue
        for read in (Job.from_map, Record.from_map, decode_failure):
            try:
                read(value)
            except ProtocolError as error:
                _explained(error)
    try:
        Progress.from_bytes(data)
    except ProtocolError:
        pass


def name(data: bytes) -> None:
    """Names of files: what parses is what would have been written, and leads nowhere else."""
    text = os.fsdecode(data)
    job, worker = parse_job(text), parse_worker(text)
    assert job is None or str(job) == text
    assert worker is None or parse_worker(str(worker)) == worker
    for parse in (parse_deferred, parse_dead, parse_note, parse_record, parse_aside):
        found: Any = parse(text)
        job_id = found if isinstance(found, str) else None if found is None else getattr(found[-1], "id", found[0])
        assert job_id is None or (is_id(job_id) and "/" not in text and "\0" not in text)


class _Box:
    """A drop box with its intake, made once; without patience, so that every drop is decided at once."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="filepool-fuzz-"))
        self.folder.chmod(0o700)
        engines = {"echo": {"engine": "inference.fake:Echo"}, "fake": {"engine": "inference.fake:Fake"}}
        document = {"spool": "spool", "durable": False, "min_free_mb": 0, "engines": engines}
        self.config = parse_config(document, self.folder)
        self.spool = Spool.create(self.folder / "spool", durable=False)
        intake.DROP_STILL_S = intake._FOREIGN_STILL_S = 0.0
        intake._PAUSE_S = 0.0
        self.taker = intake.Intake(self.spool, self.config)

    def drop(self, name: bytes, data: bytes) -> None:
        path = os.path.join(os.fsencode(self.spool.root), b"in", name)
        with open(path, "wb") as file:
            file.write(data)
        begun = time.process_time()
        before = self.taker.accepted + self.taker.refused
        for _ in range(2):
            self.taker.turn()
        assert not os.path.lexists(path), f"it stays: {self.taker.paused}"
        assert self.taker.accepted + self.taker.refused == before + 1
        assert time.process_time() - begun < PATIENCE_S
        assert sorted(os.listdir(self.folder)) == ["spool"]
        for engine in ("echo", "fake"):
            for entry in self.spool.list_ready(engine):
                waiting = Path(self.spool.ready_dir(engine), entry)
                job = Job.from_map(codec.decode(waiting.read_bytes(), arrays=False))
                assert is_id(job.id)
                assert job.engine == engine
                waiting.unlink()
                self.spool.ids.free(job.id)
        for entry in os.listdir(self.spool.root / "quarantine"):
            os.unlink(self.spool.root / "quarantine" / entry)


_box: list[_Box] = []


def drop(data: bytes) -> None:
    """A file in the drop box: first its name, then a line end, then its content."""
    if not _box:
        _box.append(_Box())
    name, _, content = data.partition(b"\n")
    name = name.replace(b"/", b"").replace(b"\0", b"")[:200].strip(b".") or b"x"
    _box[0].drop(name if name.endswith((b".json", b".msgpack")) else name + b".json", content)


TARGETS: dict[str, Callable[[bytes], None]] = {"decode": decode, "record": record, "name": name, "drop": drop}

#: Where mutation begins.
SEEDS: dict[str, list[bytes]] = {
    "decode": [
        codec.encode({"engine": "echo", "params": {"a": [1, 2.5, None, True, "ü", b"x"], "b": {"c": {}}}}),
        b'{"engine": "echo", "params": {"a": [1, 2.5, null, true, "\\u00fc"], "b": {"c": {}}}, "priority": 5}',
        b"\xc7\x0a\x01\x93\xa3<f8\x91\x00\xc4\x00",
        b"\xd6\xff\x00\x00\x00\x01",
        b"\xdf\x00\x00\x00\x01\xa1a\xcb\x7f\xf8" + b"\0" * 6,
    ],
    "record": [
        codec.encode(Job("mine", "echo", {"a": 1}, created=1, digest="d", items=({"a": 1},)).to_map()),
        codec.encode(
            {
                **Job("mine", "echo").to_map(),
                "state": "failed",
                "attempt": 1,
                "started": 1,
                "finished": 2,
                "worker": "echo-0.1",
                "value": None,
                "cached": False,
                "failure": Failure("engine", "it broke", attempts=(Failure("engine", "before"),)).to_map(),
            }
        ),
        Progress("inference", 50.0, "half", 1, 2).to_bytes(),
        b"\xc7\x10\x02\x93\xa9array.npy\xa3<f8\x91\x01",
    ],
    "name": [
        b"500.0000000000000001.mine.00.msgpack",
        b"fake-0.17",
        b"0000000000000001.echo.500.0000000000000001.x.01.msgpack",
        b"echo.500.0000000000000001.mine.00.msgpack",
        b"mine.01.msgpack",
        b"mine.msgpack",
        b"mine.1-2-ab.record",
    ],
    "drop": [
        b'a.json\n{"engine": "echo", "params": {"a": [1, {"b": null}]}, "id": "mine", "priority": 3, "timeout_s": 1.5}',
        b'b.json\n{"engine": "fake", "do": "sleep", "seconds": 1, "retry_times": 2}',
        b"c.msgpack\n" + codec.encode({"engine": "echo", "params": {"array": b"\0" * 8}, "id": "other"}),
        b'..json\n{"engine": "../echo", "params": {"output": "/etc/passwd"}, "id": "../../x"}',
    ],
}
