"""The drop box: anybody's file becomes one job or goes to quarantine with a reason; the scanner never stops."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import claim_next, dying, failing, in_child, places, record_of, seat

from pool.config.settings import Config, parse_config
from pool.constants import MAX_DROP_BYTES, TURN_S
from pool.job import Job
from pool.job.terms import Terms
from pool.spool import fsops, owner, quarantine
from pool.spool.store import Spool
from pool.supervise import intake
from pool.supervise.intake import Intake
from pool.system.watch import Watcher

GOOD = b'{"engine": "echo", "params": {"text": "hello"}}'
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass for the intake, and for nobody else."""
    ahead = [0.0]

    class Time:
        monotonic = staticmethod(lambda: time.monotonic() + ahead[0])

    monkeypatch.setattr(intake, "time", Time)

    def pass_(seconds: float) -> None:
        ahead[0] += seconds

    return pass_


@pytest.fixture
def box(spool: Spool) -> Path:
    return spool.root / "in"


@pytest.fixture
def taker(spool: Spool, config: Config) -> Intake:
    return Intake(spool, config, turn_s=math.inf)


def _drop(box: Path, name: str | bytes, data: bytes = GOOD) -> Path:
    """As a careful program does it: written elsewhere, renamed into the box."""
    temp = os.path.join(os.fsencode(box.parent), b"outside")
    with open(temp, "wb") as file:
        file.write(data)
    path = os.path.join(os.fsencode(box), os.fsencode(name))
    os.rename(temp, path)
    return Path(os.fsdecode(path))


def _take(taker: Intake, box: Path, *names: str) -> None:
    """One look at everything, after the names (default: all) were told to be closed."""
    taker.arrived(list(names) or os.listdir(box))
    taker.turn()
    while taker._last and not taker.paused:  # a turn has its limits
        taker.turn()


def _jobs(spool: Spool, engine: str = "echo") -> list[Job]:
    worker = seat(spool, random.getrandbits(30), engine)
    return [spool.read_claim(claim_next(spool, worker)) for _ in spool.list_ready(engine)]


def _quarantine(spool: Spool) -> dict[str, str]:
    """Name in quarantine -> reason."""
    folder = spool.root / "quarantine"
    names = [name for name in os.listdir(folder) if not name.endswith(".reason.txt")]
    return {name: (folder / f"{name}.reason.txt").read_text("utf-8") for name in names}


# ---- what becomes a job


def test_a_drop_becomes_a_job(spool: Spool, taker: Intake, box: Path) -> None:
    drop = {
        "engine": "echo",
        "params": {"text": "ü"},
        "id": "mine",
        "priority": 5,
        "timeout_s": 1.5,
        "retry_times": 3,
        "retry_on": ["timeout", "engine"],
    }
    _drop(box, "job.json", json.dumps(drop).encode())
    _take(taker, box)
    assert os.listdir(box) == []
    (job,) = _jobs(spool)
    assert (job.id, job.params) == ("mine", {"text": "ü"})
    assert job.terms == Terms(priority=5, timeout_s=1.5, retry_times=3, retry_on=("engine", "timeout"), durable=False)
    assert (job.source, job.reply) == ("in/job.json", "json")
    assert (taker.accepted, taker.refused) == (1, 0)


def test_parameters_may_stand_beside_the_engine(spool: Spool, taker: Intake, box: Path) -> None:
    _drop(box, "job.json", b'{"engine": "echo", "audio": "/a.wav", "priority": 1}')
    _drop(box, "other.msgpack", msgpack.packb({"engine": "echo", "n": 1}))
    _take(taker, box)
    one, two = _jobs(spool)
    assert (one.params, one.priority, one.reply) == ({"audio": "/a.wav"}, 1, "json")
    assert (two.params, two.reply) == ({"n": 1}, "")


def test_ids_come_from_names_and_never_collide(spool: Spool, taker: Intake, box: Path) -> None:
    for name in ("speech.json", "speech.msgpack", "sp eech.json", "会議.json", "--.json"):
        _drop(box, name, GOOD if name.endswith("json") else msgpack.packb(json.loads(GOOD)))
        _take(taker, box)
    ids = {job.id for job in _jobs(spool)}
    assert len(ids) == 5
    assert {"speech", "sp-eech"} <= ids
    assert len([job_id for job_id in ids if job_id.startswith("speech-")]) == 1
    assert len([job_id for job_id in ids if job_id.startswith("drop-")]) == 2
    assert _quarantine(spool) == {}


@pytest.mark.parametrize("when", ["before the move", "after the move"])
def test_a_drop_that_comes_while_the_one_of_its_name_goes_is_a_job(
    spool: Spool, taker: Intake, box: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A program that sees its first job done writes the next one into the same file; the first is only then removed."""
    marks = intake._mark_at
    looked: list[str] = []

    def mark_at(path: str) -> tuple[int, int, int] | None:
        found = marks(path)
        looked.append(path)
        if len(looked) == (1 if when == "before the move" else 2):
            (box / "job.json").write_bytes(GOOD.replace(b"hello", b"again"))
        return found

    _drop(box, "job.json")
    monkeypatch.setattr(intake, "_mark_at", mark_at)
    _take(taker, box)
    monkeypatch.undo()
    _take(taker, box)
    assert sorted(job.params["text"] for job in _jobs(spool)) == ["again", "hello"]
    assert os.listdir(box) == []


def test_what_a_killed_supervisor_had_moved_aside_is_looked_at_again(
    spool: Spool, taker: Intake, box: Path, config: Config
) -> None:
    _drop(box, "job.json")
    _take(taker, box)
    _drop(box, ".job.json.1-1-otherboot.token-1.taken", GOOD.replace(b"hello", b"other"))
    _drop(box, f".job.json.{owner.fresh()}.taken")  # of one that lives
    fresh = Intake(spool, config, turn_s=math.inf)
    _take(fresh, box)
    _take(fresh, box)
    assert sorted(job.params["text"] for job in _jobs(spool)) == ["hello", "other"]
    assert len(os.listdir(box)) == 1


def test_the_same_name_again_is_another_job(spool: Spool, taker: Intake, box: Path) -> None:
    for _ in range(3):
        _drop(box, "job.json")
        _take(taker, box)
    assert len({job.id for job in _jobs(spool)}) == 3


def test_the_same_id_again_is_the_same_job(spool: Spool, taker: Intake, box: Path) -> None:
    for number in range(2):
        _drop(box, f"{number}.json", b'{"engine": "echo", "id": "mine", "params": {"a": 1}}')
    _drop(box, "other.json", b'{"engine": "echo", "id": "mine", "params": {"a": 2}}')
    _take(taker, box)
    assert [job.id for job in _jobs(spool)] == ["mine"]
    assert "taken by a job with other content" in _quarantine(spool)["other.json"]


@pytest.mark.invariant(23)
def test_strange_names_are_no_obstacle(
    spool: Spool, taker: Intake, box: Path, hostile_names: tuple[bytes, ...], clock: Callable[[float], None]
) -> None:
    """Every one is a job or lies in quarantine with a reason; nothing is written outside, nothing is run."""
    outside = set(os.listdir(spool.root.parent))
    for name in hostile_names:
        _drop(box, name, msgpack.packb(json.loads(GOOD)) if name.endswith(b".msgpack") else GOOD)
    hidden = [name for name in hostile_names if name.startswith(b".")]
    _take(taker, box)
    assert sorted(os.listdir(os.fsencode(box))) == sorted(hidden)
    assert len({job.id for job in _jobs(spool)}) == len(hostile_names) - len(hidden)
    clock(61)
    _take(taker, box)
    assert os.listdir(box) == []
    assert len(_quarantine(spool)) == len(hidden)
    assert all("*.json or *.msgpack" in reason for reason in _quarantine(spool).values())
    assert set(os.listdir(spool.root.parent)) == outside


# ---- only what is complete


def test_json_that_is_closed_half_way_and_completed_is_taken_once_and_whole(
    spool: Spool, taker: Intake, box: Path
) -> None:
    path = box / "job.json"
    with Watcher({"in": box}, closes=["in"]) as watcher:
        for end in range(0, len(GOOD), 7):
            path.write_bytes(GOOD[:end])  # a program that opens, writes a piece and closes, again and again
            assert watcher.wait(5)
            taker.arrived(watcher.read().names["in"])
            taker.turn()
            assert path.exists()
        path.write_bytes(GOOD)
        assert watcher.wait(5)
        taker.arrived(watcher.read().names["in"])
        taker.turn()
    assert [job.params for job in _jobs(spool)] == [{"text": "hello"}]
    assert _quarantine(spool) == {}
    assert os.listdir(box) == []


def test_a_file_that_is_being_written_is_left_alone(
    spool: Spool, taker: Intake, box: Path, clock: Callable[[float], None]
) -> None:
    with open(box / "job.json", "wb", buffering=0) as file:
        for piece in (GOOD[:10], GOOD[10:20], GOOD[20:]):
            file.write(piece)
            pause = taker.turn()
            assert pause is not None
            assert 0 < pause <= 2
            clock(1.5)
        assert os.listdir(box) == ["job.json"]
        clock(1.0)
        taker.turn()  # still for 2 s: taken, although nobody closed it
    assert [job.params for job in _jobs(spool)] == [{"text": "hello"}]


def test_a_file_without_an_event_is_taken_when_it_is_still(
    spool: Spool, taker: Intake, box: Path, clock: Callable[[float], None]
) -> None:
    _drop(box, "job.json")
    assert taker.turn() is not None
    assert os.listdir(box) == ["job.json"]
    clock(2.1)
    taker.turn()
    assert len(_jobs(spool)) == 1
    assert taker.turn() is None


def test_what_stays_broken_goes_to_quarantine_after_a_moment(
    spool: Spool, taker: Intake, box: Path, clock: Callable[[float], None]
) -> None:
    cut = msgpack.packb({"engine": "x"})[:-1]
    for name, data in (("half.json", GOOD[:-3]), ("empty.json", b""), ("cut.msgpack", cut)):
        _drop(box, name, data)
    _take(taker, box)
    assert len(os.listdir(box)) == 3
    clock(2.1)
    _take(taker, box)
    reasons = _quarantine(spool)
    assert set(reasons) == {"half.json", "empty.json", "cut.msgpack"}
    assert "line 1 column" in reasons["half.json"]
    assert "it is empty" in reasons["empty.json"]
    assert "msgpack" in reasons["cut.msgpack"]


def test_a_file_that_grows_while_it_is_read_is_left_for_later(
    spool: Spool, taker: Intake, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _drop(box, "job.json", GOOD + b" " * 100)
    real = os.read

    def read(fd: int, size: int) -> bytes:
        data = real(fd, 10)
        with open(path, "ab") as file:
            file.write(b" ")
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        _take(taker, box)
    assert os.listdir(box) == ["job.json"]
    _take(taker, box)
    assert len(_jobs(spool)) == 1


def test_a_newer_drop_of_the_same_name_is_not_lost(spool: Spool, taker: Intake, box: Path) -> None:
    """RACE: a program renames the next job over the one that is just being taken."""
    _drop(box, "job.json", b'{"engine": "echo", "params": {"n": 1}}')

    def hook(operation: str, path: str) -> None:
        if operation == "rename" and "/ready/" in path:
            fsops.hook = None
            _drop(box, "job.json", b'{"engine": "echo", "params": {"n": 2}}')

    spool.make_ready_dir("echo")
    fsops.hook = hook
    _take(taker, box)
    assert os.listdir(box) == ["job.json"]
    _take(taker, box)
    assert sorted(job.params["n"] for job in _jobs(spool)) == [1, 2]
    assert os.listdir(box) == []


# ---- what is no job

NO_JOBS: list[tuple[str, bytes, str]] = [
    ("list.json", b"[1, 2]", 'a job is a map with "engine" and "params", not a list'),
    ("number.json", b"7", "not a int"),
    ("text.json", b'"x"', "not a str"),
    ("null.json", b"null", "not a NoneType"),
    ("empty.json", b"{}", "engine: missing; which engine"),
    ("unknown.json", b'{"engine": "ecko", "params": {}}', "no engine 'ecko'"),
    ("typo.json", b'{"engine": "echo", "params": {}, "prioritty": 1}', "unknown key"),
    ("engine.json", b'{"engine": "../../etc", "params": {}}', "is not the name of an engine"),
    ("engine2.json", b'{"engine": 7, "params": {}}', "is not the name of an engine"),
    ("params.json", b'{"engine": "echo", "params": [1]}', "params: must be a map"),
    ("id.json", b'{"engine": "echo", "id": "../../etc/passwd"}', "is not an id"),
    ("id2.json", b'{"engine": "echo", "id": "/abs"}', "is not an id"),
    ("id3.json", b'{"engine": "echo", "id": "a\\u0000b"}', "is not an id"),
    ("id4.json", b'{"engine": "echo", "id": "a\\nb"}', "is not an id"),
    ("id5.json", b'{"engine": "echo", "id": "-rf"}', "is not an id"),
    ("id6.json", b'{"engine": "echo", "id": ".hidden"}', "is not an id"),
    ("id7.json", b'{"engine": "echo", "id": 7}', "is not an id"),
    ("id8.json", b'{"engine": "echo", "id": "%s"}' % (b"x" * 101), "is not an id"),
    ("priority.json", b'{"engine": "echo", "priority": 101}', "priority: 101 is not a whole number between -100"),
    ("priority2.json", b'{"engine": "echo", "priority": true}', "priority: True"),
    ("priority3.json", b'{"engine": "echo", "priority": "5"}', "priority: '5'"),
    ("priority4.json", b'{"engine": "echo", "priority": 1.5}', "priority: 1.5"),
    ("timeout.json", b'{"engine": "echo", "timeout_s": 0}', "timeout_s: 0 is not a number"),
    ("timeout2.json", b'{"engine": "echo", "timeout_s": -1}', "timeout_s: -1"),
    ("timeout3.msgpack", msgpack.packb({"engine": "echo", "timeout_s": float("nan")}), "timeout_s: nan"),
    ("timeout4.msgpack", msgpack.packb({"engine": "echo", "timeout_s": float("inf")}), "timeout_s: inf"),
    ("retry.json", b'{"engine": "echo", "retry_times": 99}', "retry_times: 99"),
    ("retry2.json", b'{"engine": "echo", "retry_times": 1.5}', "retry_times: 1.5"),
    ("retry3.json", b'{"engine": "echo", "retry_on": ["timeouts"]}', "retry_on: 'timeouts' (str) is not one of"),
    ("retry4.json", b'{"engine": "echo", "retry_on": "timeout"}', "retry_on: 'timeout' (str) is not a list of kinds"),
    ("timeout5.json", b'{"engine": "echo", "timeout_s": "5"}', "timeout_s: '5' (str)"),
    ("durable.json", b'{"engine": "echo", "params": {}, "durable": false}', "durable: unknown key"),
    ("surrogate.json", b'{"engine": "echo", "params": {"a": "\\ud800"}}', "cannot be stored"),
    ("large.json", b'{"engine": "echo", "params": {"a": "%s"}}' % (b"x" * MAX_DROP_BYTES), "a job names media by path"),
    ("bytes.msgpack", msgpack.packb({"engine": "echo", "params": {"a": {b"k": 1}}}), "not text"),
    ("nan.json", b'{"engine": "echo", "params": {"a": NaN}}', "NaN"),
    ("huge.json", b'{"engine": "echo", "params": {"a": 99999999999999999999}}', "bits"),
    ("twice.json", b'{"engine": "echo", "params": {"a": 1, "a": 2}}', "given twice"),
    ("deep.json", b'{"engine": "echo", "params": {"a": ' + b"[" * 1000 + b"]" * 1000 + b"}}", "nested"),
    ("deeper.json", b'{"engine": "echo", "params": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "nested"),
    ("deep.msgpack", b"\x91" * 100_000 + b"\xc0", "msgpack"),
    ("bomb.msgpack", b"\xdd\x00\x0f\x42\x40" * 200_000, "msgpack"),
    ("tail.msgpack", msgpack.packb({"engine": "echo"}) + b"\x00", "msgpack"),
    ("tail.json", GOOD + GOOD, "line 1"),
    ("utf8.json", b'{"engine": "\xff"}', "UTF-8"),
    ("time.msgpack", b"\x82\xa6engine\xa4echo\xa6params\x81\xa1a\xd6\xff\0\0\0\0", "timestamp"),
    ("ext.msgpack", msgpack.packb({"engine": "echo", "params": {"a": msgpack.ExtType(2, b"")}}), "extension type 2"),
]


@pytest.mark.parametrize(("name", "data", "reason"), NO_JOBS, ids=[name for name, _, _ in NO_JOBS])
def test_what_is_no_job_goes_to_quarantine_with_a_reason(
    spool: Spool, taker: Intake, box: Path, clock: Callable[[float], None], name: str, data: bytes, reason: str
) -> None:
    _drop(box, name, data)
    _drop(box, "zz-good.json")
    begun = time.process_time()
    _take(taker, box)
    clock(2.1)
    _take(taker, box)
    assert time.process_time() - begun < 5.0
    assert os.listdir(box) == []
    assert [job.id for job in _jobs(spool)] == ["zz-good"]  # the others are not held up
    ((shown, text),) = _quarantine(spool).items()
    assert shown == name
    assert (spool.root / "quarantine" / name).read_bytes() == data
    assert reason in text
    assert '{"engine": "transcribe"' in text  # and how it should look
    assert len(text) < 1500
    assert (taker.accepted, taker.refused) == (1, 1)
    for path in (spool.root / "quarantine").glob("*.reason.txt"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _special(box: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, outside = box / "job.json", box.parent.parent / "outside.json"
    outside.write_bytes(GOOD)
    if kind == "symlink to a file":
        path.symlink_to(outside)
    elif kind == "symlink to a directory":
        path.symlink_to(box.parent)
    elif kind == "symlink loop":
        path.symlink_to(path)
    elif kind == "symlink into /proc":
        path.symlink_to("/proc/self/environ")
    elif kind == "symlink to a device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling symlink":
        path.symlink_to(box / "nowhere")
    elif kind == "hard link":
        os.link(outside, path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        (path / "in" / "it").mkdir(parents=True)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    elif kind == "sparse terabyte":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            monkeypatch.chdir(box)
            bound.bind("job.json")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("symlink to a file", "it is a symbolic link"),
        ("symlink to a directory", "it is a symbolic link"),
        ("symlink loop", "it is a symbolic link"),
        ("symlink into /proc", "it is a symbolic link"),
        ("symlink to a device", "it is a symbolic link"),
        ("dangling symlink", "it is a symbolic link"),
        ("hard link", "it has 2 hard links"),
        ("fifo", "it is a FIFO"),
        ("socket", "it is a socket"),
        ("directory", "it is a directory"),
        pytest.param("device", "it is a character device", marks=as_root),
        ("sparse terabyte", "1099511627776 bytes, more than"),
    ],
)
@pytest.mark.invariant(22)
def test_what_is_no_plain_file_is_never_opened_and_never_blocks(
    spool: Spool, taker: Intake, box: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    _special(box, kind, monkeypatch)
    before = os.lstat(box / "job.json")
    _drop(box, "zz-good.json")
    _take(taker, box)
    assert os.listdir(box) == []
    assert [job.id for job in _jobs(spool)] == ["zz-good"]
    assert reason in _quarantine(spool)["job.json"]
    after = os.lstat(spool.root / "quarantine" / "job.json")
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)  # moved as it is
    assert (box.parent.parent / "outside.json").read_bytes() == GOOD


@pytest.mark.parametrize("swap", ["symlink", "fifo", "directory", "hard link"])
@pytest.mark.invariant(22)
def test_what_changes_between_the_look_and_the_open(
    spool: Spool, taker: Intake, box: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    path, secret = _drop(box, "job.json"), spool.root.parent / "secret"
    secret.write_bytes(GOOD)
    real = os.open

    def swapped(name: Any, flags: int, *more: Any, **kwargs: Any) -> int:
        if str(name) == str(path):
            monkeypatch.setattr(os, "open", real)
            path.unlink()
            if swap == "symlink":
                path.symlink_to(secret)
            elif swap == "fifo":
                os.mkfifo(path)
            elif swap == "directory":
                path.mkdir()
            else:
                os.link(secret, path)
        return real(name, flags, *more, **kwargs)

    monkeypatch.setattr(os, "open", swapped)
    _take(taker, box)
    assert _jobs(spool) == []
    assert set(_quarantine(spool)) == {"job.json"}


def test_quarantine_keeps_everything(spool: Spool, taker: Intake, box: Path) -> None:
    for number in range(3):
        _drop(box, "bad.json", b"[%d]" % number)
        _take(taker, box)
    names = sorted(os.listdir(spool.root / "quarantine"))
    assert names == [
        "bad.json",
        "bad.json.2",
        "bad.json.2.reason.txt",
        "bad.json.3",
        "bad.json.3.reason.txt",
        "bad.json.reason.txt",
    ]
    assert (spool.root / "quarantine" / "bad.json.3").read_bytes() == b"[2]"


def test_long_names_that_begin_alike_do_not_meet_in_quarantine(spool: Spool, taker: Intake, box: Path) -> None:
    for letter in "abc":
        _drop(box, "録".encode() * 82 + letter.encode() + b".json", b"[]")
    _take(taker, box)
    assert len(_quarantine(spool)) == 3


NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of nobody's, where nobody can get to: pytest's own are for root alone."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="filepool-") as name:
        os.chown(name, NOBODY, NOBODY)
        os.chmod(name, 0o755)
        yield Path(name)


@as_root
def test_drops_of_another_user_that_cannot_be_read_or_moved(open_folder: Path, config: Config) -> None:
    """The pool runs as nobody, in/ is writable by a group, and root drops there what nobody may use."""
    root = open_folder / "spool"
    box = root / "in"

    def become_nobody() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    def make() -> None:
        become_nobody()
        Spool.create(root, durable=False)
        box.chmod(0o770)

    def take() -> None:
        become_nobody()
        taker = Intake(Spool(root, durable=False), config, turn_s=math.inf)
        for _ in range(3):
            _take(taker, box)
        assert (taker.accepted, taker.refused, taker.paused) == (1, 2, "")

    assert in_child(make) == 0
    (box / "unreadable.json").write_bytes(GOOD)
    (box / "unreadable.json").chmod(0o600)
    (box / "folder.json").mkdir(mode=0o755)  # to move a folder, one must be allowed to write into it
    (box / "good.json").write_bytes(GOOD)
    (box / "good.json").chmod(0o644)
    assert in_child(take) == 0
    assert os.listdir(box) == ["folder.json"]
    assert len(os.listdir(root / "ready" / "echo")) == 1
    quarantine = root / "quarantine"
    assert sorted(os.listdir(quarantine)) == [
        "folder.json.reason.txt",
        "unreadable.json",
        "unreadable.json.reason.txt",
    ]
    assert "cannot be read (Permission denied)" in (quarantine / "unreadable.json.reason.txt").read_text()
    reason = (quarantine / "folder.json.reason.txt").read_text()
    assert "it is a directory" in reason
    assert "cannot be moved here and stays there" in reason


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
WORDS = st.sampled_from(["engine", "params", "id", "priority", "timeout_s", "retry_times", "echo"])
ENTRIES = st.binary(max_size=60) | st.recursive(
    LEAVES | st.binary(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), v | st.just("echo"), max_size=4),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.sampled_from([".json", ".msgpack"]), ENTRIES), min_size=1, max_size=5))
def test_whatever_is_dropped_is_a_job_or_in_quarantine(
    spool: Spool, config: Config, box: Path, clock: Callable[[float], None], entries: list[tuple[str, Any]]
) -> None:
    taker = Intake(spool, config, turn_s=math.inf)
    for number, (suffix, value) in enumerate(entries):
        if isinstance(value, bytes):
            data = value
        elif suffix == ".json":
            data = json.dumps(value, default=str).encode("utf-8", "replace")
        else:
            data = msgpack.packb(value, unicode_errors="replace")
        _drop(box, f"{number}{suffix}", data)
    before = len(_quarantine(spool))
    _take(taker, box)
    clock(2.1)
    _take(taker, box)
    jobs = _jobs(spool)
    assert os.listdir(box) == []
    assert len(_quarantine(spool)) - before == taker.refused
    assert taker.accepted + taker.refused == len(entries)
    assert len(jobs) <= taker.accepted  # the same id and content is the same job


# ---- many at once


@pytest.mark.parametrize("told", [True, False], ids=["with events", "found by looking"])
def test_two_hundred_at_once(
    spool: Spool, taker: Intake, box: Path, clock: Callable[[float], None], told: bool
) -> None:
    for number in range(200):
        _drop(box, f"job-{number:03d}.json")
    if told:
        taker.arrived(os.listdir(box))
    else:
        taker.turn()
        clock(2.1)
    turns = 0
    while taker.turn() is not None:
        turns += 1
    assert turns <= 50  # a turn ends early where the disk is slow; it is not one per file
    assert [job.id for job in _jobs(spool)] == [f"job-{number:03d}" for number in range(200)]
    assert _quarantine(spool) == {}


def test_five_thousand_at_once_and_every_turn_is_short(
    spool: Spool, config: Config, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them foreign, which are only looked at; supervision goes on between two turns."""
    taker = Intake(spool, config)
    for number in range(5000):
        (box / f"{number:04d}{'.json' if number % 2 else '.wav'}").write_bytes(GOOD if number % 2 else b"RIFF")
    taker.arrived(os.listdir(box))
    ticks = itertools.count()  # a millisecond for each look at the clock: at least one before each file
    monkeypatch.setattr(intake, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1000))
    considered: list[str] = []
    real = taker._consider
    monkeypatch.setattr(taker, "_consider", lambda name: considered.append(name) or real(name))
    turns = 0
    while len(os.listdir(box)) > 2500:
        assert taker.turn() is not None
        assert len(considered) <= 1000 * TURN_S + 1
        considered.clear()
        turns += 1
        assert turns < 1000
    assert turns >= 2500 / (1000 * TURN_S)
    assert taker.accepted == 2500
    assert len(spool.list_ready("echo")) == 2500


def test_a_backlog_makes_taking_no_slower(
    spool: Spool, taker: Intake, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting jobs are counted now and then, not for every drop."""
    counted = []
    real = Spool.list_ready
    monkeypatch.setattr(Spool, "list_ready", lambda self, engine: counted.append(engine) or real(self, engine))
    for number in range(200):
        _drop(box, f"{number:03d}.json")
    taker.arrived(os.listdir(box))
    while taker.turn() is not None:
        pass
    assert taker.accepted == 200
    assert len(counted) < 5


def test_what_is_only_looked_at_does_not_keep_it_busy(
    taker: Intake, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_LOOKS", 10)
    for number in range(25):
        (box / f"{number}.wav").touch()
    pauses = [taker.turn() for _ in range(3)]
    assert pauses[:2] == [intake._BREATH_S] * 2
    assert pauses[2] is not None
    assert pauses[2] > 30
    assert len(taker._seen) == 25  # in three turns it has seen them all
    (box / "0.json").write_bytes(GOOD)
    taker.turn()
    taker.arrived(["0.json"])  # behind us: not forgotten for a minute
    while taker._last:
        pauses.append(taker.turn())
    assert pauses[-1] == intake._BREATH_S
    taker.turn()
    assert taker.accepted == 1


# ---- when the spool cannot take it


def _config(config: Config, **change: Any) -> Config:
    return replace(config, **change)


def test_a_full_queue_keeps_drops_waiting_and_others_pass(spool: Spool, config: Config, box: Path) -> None:
    taker = Intake(spool, _config(config, max_ready=2), turn_s=math.inf)
    for number in range(4):
        _drop(box, f"a-{number}.json")
    _drop(box, "z-other.json", b'{"engine": "fake"}')
    _take(taker, box)
    assert sorted(os.listdir(box)) == ["a-2.json", "a-3.json"]
    assert "2 jobs wait for echo (max_ready)" in taker.paused
    assert len(_jobs(spool, "fake")) == 1
    assert len(_jobs(spool)) == 2
    taker._counts.clear()
    assert taker.turn() is None or taker.turn() is None
    assert taker.paused == ""
    assert len(_jobs(spool)) == 2
    assert _quarantine(spool) == {}


def test_the_floor_of_free_space_keeps_drops_waiting(spool: Spool, config: Config, box: Path) -> None:
    taker = Intake(spool, _config(config, min_free_mb=1 << 40), turn_s=math.inf)
    _drop(box, "job.json")
    _take(taker, box)
    assert os.listdir(box) == ["job.json"]
    assert "min_free_mb" in taker.paused
    taker.config = config
    taker.turn()
    assert taker.paused == ""
    assert len(_jobs(spool)) == 1


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EROFS], ids=errno.errorcode.get
)
@pytest.mark.parametrize("content", [GOOD, b"[]"], ids=["a job", "no job"])
def test_an_error_of_the_spool_keeps_the_drop(
    spool: Spool, taker: Intake, box: Path, clock: Callable[[float], None], code: int, content: bytes
) -> None:
    """At every operation in turn: the drop stays, nothing half-written does, `paused` says why; then it is taken."""
    spool.make_ready_dir("echo")
    for number in range(1, 20):
        _drop(box, f"job-{number}.json", content)
        failing(number, lambda path: OSError(code, os.strerror(code), path))
        _take(taker, box)
        fsops.hook = None
        assert "tmp" not in places(spool)
        if taker.paused:
            assert os.strerror(code) in taker.paused
            assert os.listdir(box) in ([f"job-{number}.json"], [])
        _take(taker, box)
        assert taker.paused == ""
        if (box / f"job-{number}.json").exists():
            assert content != GOOD
            assert code not in (errno.ENOSPC, errno.EDQUOT)
            reason = (spool.root / "quarantine" / f"job-{number}.json.reason.txt").read_text()
            assert "stays there" in reason  # that it could not be moved is said, and it is not tried for ever
            os.unlink(box / f"job-{number}.json")
        if not taker.paused and number > 8:
            break
    if content == GOOD:
        assert len(_jobs(spool)) == taker.accepted == number
        assert _quarantine(spool) == {}


def test_without_descriptors_nothing_is_blamed_on_the_file(
    spool: Spool, taker: Intake, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _drop(box, "job.json")
    real = os.open

    def refuse(name: Any, *more: Any, **kwargs: Any) -> int:
        if str(name) == str(path):
            raise OSError(errno.EMFILE, "Too many open files", str(name))
        return real(name, *more, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        _take(taker, box)
    assert "Too many open files" in taker.paused
    assert os.listdir(box) == ["job.json"]
    _take(taker, box)
    assert len(_jobs(spool)) == 1


def test_a_small_disk_fills_up_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    root = small_disk / "spool"
    spool = Spool.create(root, durable=True)
    engines = {"echo": {"engine": "inference.fake:Echo"}}
    taker = Intake(spool, parse_config({"min_free_mb": 0, "engines": engines}, root), turn_s=math.inf)
    for number in range(4):
        body = {"engine": "echo", "params": {"ballast": "x" * 25_000}}
        (root / "in" / f"{number}.json").write_text(json.dumps(body))
    (root / "in" / "bad.json").write_bytes(b"[]")
    (small_disk / "ballast").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096 - 20_000))
    for _ in range(3):
        _take(taker, root / "in")
    assert spool.list_ready("echo") == []
    assert {"0.json", "1.json", "2.json", "3.json"} <= set(os.listdir(root / "in"))
    assert "full" in taker.paused or "No space" in taker.paused
    (small_disk / "ballast").unlink()
    for _ in range(2):
        _take(taker, root / "in")
    assert sorted(job.id for job in _jobs(spool)) == ["0", "1", "2", "3"]
    assert os.listdir(root / "in") == []


def test_a_drop_box_that_is_gone_is_made_again(spool: Spool, taker: Intake, box: Path) -> None:
    box.rmdir()
    assert taker.turn() is None
    assert box.is_dir()


# ---- killed in the middle


@pytest.mark.parametrize("content", [GOOD, b'{"engine": "echo", "id": "mine"}', b"[]"], ids=["job", "id", "no job"])
@pytest.mark.parametrize("swept", [False, True], ids=["at once", "after a sweep"])
@pytest.mark.invariant(8)
def test_killed_anywhere_a_drop_is_one_job(
    root: Path, spool: Spool, config: Config, box: Path, content: bytes, swept: bool
) -> None:
    """The next supervisor finds the same file again, or not: it is taken once. Also when the job has run meanwhile."""
    from pool.supervise.retention import remove, sweep_tmp

    spool.make_ready_dir("echo")
    for number in range(1, 30):
        _drop(box, "job.json", content)

        def take(number: int = number) -> None:
            theirs = Spool(root, durable=True)
            taker = Intake(theirs, config, turn_s=math.inf)
            dying(number)
            _take(taker, box)

        ended = in_child(take)
        ran = 0
        if spool.list_ready("echo") and number % 2:
            claim = claim_next(spool, seat(spool, 7))
            spool.finish(claim, record_of(claim))
            ran = 1
        if swept:
            sweep_tmp(spool)
        quarantine.repair(spool)
        taker = Intake(spool, config, turn_s=math.inf)
        _take(taker, box)
        sweep_tmp(spool)
        assert os.listdir(box) == []
        if content == b"[]":
            assert sorted(_quarantine_files(spool)) == ["job.json", "job.json.reason.txt"], number
            for name in _quarantine_files(spool):
                os.unlink(spool.root / "quarantine" / name)
        else:
            assert len(spool.list_ready("echo")) + ran == 1, number
            for job in _jobs(spool):
                os.unlink(next((root / "work").glob(f"*/*{job.id}*")))
                spool.ids.free(job.id)
            for job_id in ("job", "mine"):
                remove(spool, job_id)
        assert "tmp" not in places(spool)
        if ended == 0:
            assert number > 3
            return
    pytest.fail("it never came through")


def _quarantine_files(spool: Spool) -> list[str]:
    return os.listdir(spool.root / "quarantine")
