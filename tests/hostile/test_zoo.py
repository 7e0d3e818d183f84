"""A drop box full of everything that is no job: good jobs go through it, nothing outside is touched."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crash.rig import Rig, Temp, Unmanned

from pool.job import JobState
from pool.supervise import intake

from .zoo import BYTES, FILES, NAMES, ZOO, noise

GOOD = 12
ACTS = {
    "open": 0,
    "os.rename": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "os.link": 1,
    "os.symlink": 1,
    "os.truncate": 0,
    "os.chmod": 0,
    "os.chown": 0,
}
NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is broken is decided at once, as after its two seconds."""
    monkeypatch.setattr(intake, "DROP_STILL_S", 0.0)
    monkeypatch.setattr(intake, "_FOREIGN_STILL_S", 0.0)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A pool that has run before, so that it knows what its engines take; only `media` may be read and written."""
    rig = Rig(tmp_path / "rig", durable=False, media_roots=[str(tmp_path / "rig" / "media")])
    assert rig.work()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text('{"engine": "fake", "params": {"value": "secret"}}')
    return rig


@pytest.fixture
def outside(rig: Rig) -> Path:
    return rig.folder.parent / "outside"


def _limited() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), used + (512 << 20)))


def _watched(rig: Rig, begin: Callable[[], object]) -> Callable[[], object]:
    """What begins a process whose every change of a file, and every look at the secret, is written down."""
    log = os.open(rig.folder / "acts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def audit(event: str, words: tuple[object, ...]) -> None:
        if event in NEVER:
            os.write(log, f"{event} {words!r}\n".encode("utf-8", "replace"))
        elif event in ACTS and not (event in ("os.remove", "os.rmdir") and words[1] != -1):  # in a tree that goes
            for path in words[: ACTS[event] + 1]:
                told = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
                reading = event == "open" and not int(str(words[2] or 0)) & WRITING
                if told and ("secret" in told or not reading):
                    os.write(log, f"{event} {ascii(os.path.abspath(told))[1:-1]}\n".encode())

    def begun() -> object:
        made = begin()
        _limited()
        sys.addaudithook(audit)
        return made

    return begun


def _serve(rig: Rig, turns: int = 60) -> float:
    """A supervisor comes; seconds of processor time it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def begin() -> Unmanned:
        supervisor = Unmanned(rig.config)
        supervisor.turns = turns
        return supervisor

    assert rig.run(lambda supervisor: supervisor.run(), begin=_watched(rig, begin))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _work(rig: Rig) -> None:
    launch = rig.launch()
    assert rig.run(lambda worker: worker.run(), begin=_watched(rig, lambda: Temp(launch)))


def _good(rig: Rig, count: int = GOOD) -> None:
    for number in range(count):
        job_id = f"good-{number}"
        rig.drop(f"{'akz'[number % 3]}-{job_id}.json", {"engine": "fake", "id": job_id}, job_id)


def _touched_outside(rig: Rig) -> list[str]:
    """Acts outside of the rig; a supervisor's own control groups are its business."""
    acts = [line.partition(" ") for line in (rig.folder / "acts").read_text().splitlines()]
    allowed = (f"{rig.folder}/", "/dev/null", "/proc/self/")
    group = re.compile(r"/sys/fs/cgroup/([^/]+/)*filepool-[^/]+(/cgroup\.\w+)?")
    return [f"{act} {path}" for act, _, path in acts if not path.startswith(allowed) and not group.fullmatch(path)]


def _all_is_well(rig: Rig, outside: Path) -> None:
    for number in range(GOOD):
        assert rig.spool.read_record(f"good-{number}").state is JobState.COMPLETED
    assert _touched_outside(rig) == []
    assert os.listdir(outside) == ["secret.json"]
    assert sorted(os.listdir(rig.folder.parent)) == ["outside", "rig"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["files", "names", "bytes", "all"])
@pytest.mark.invariant(22, 23, 24)
def test_nothing_stops_the_others_and_nothing_leads_outside(rig: Rig, outside: Path, kind: str) -> None:
    zoo = {"files": FILES, "names": NAMES, "bytes": BYTES, "all": ZOO}[kind]
    box = rig.root / "in"
    for drop in zoo.values():
        drop(box, outside)
    if kind == "all":
        noise(box, random.Random(1), 100)
    _good(rig)
    dropped = set(os.listdir(box))
    spent = _serve(rig)
    _work(rig)
    assert spent < 10, "it keeps the supervisor busy"
    _all_is_well(rig, outside)
    assert os.listdir(box) == []
    quarantine = set(os.listdir(rig.root / "quarantine"))
    refused = {name for name in quarantine if not name.endswith(".reason.txt")}
    accepted = len(os.listdir(rig.root / "ready" / "fake")) + len(list((rig.root / "out").glob("*.msgpack")))
    assert len(refused) + accepted == len(dropped)
    for name in refused:
        text = (rig.root / "quarantine" / f"{name}.reason.txt").read_text()
        assert len(text.split("\n\n")[1].strip()) > 10
    if kind in ("files", "names"):
        # "unreadable" is readable for the superuser, who is refused nothing; all else is refused
        assert accepted - GOOD <= (1 if kind == "files" and os.geteuid() == 0 else 0), sorted(dropped - refused)


@pytest.mark.invariant(23)
def test_media_are_read_and_written_where_it_is_allowed(rig: Rig, outside: Path) -> None:
    """Paths of a dropped job, however they are written, stay within the media roots."""
    (rig.media / "in.wav").write_bytes(b"sound")
    (rig.media / "link").symlink_to(outside)
    (rig.media / "link.wav").symlink_to(outside / "secret.json")
    (rig.folder / "media-of-others").mkdir()
    media, secret = str(rig.media), str(outside / "secret.json")
    bad = {
        "plain": {"do": "write", "output": f"{outside}/a.bin"},
        "dots": {"do": "write", "output": f"{media}/../a.bin"},
        "link": {"do": "write", "output": f"{media}/link/a.bin"},
        "read": {"audio": secret},
        "read-dots": {"audio": f"{media}/../../outside/secret.json"},
        "read-link": {"audio": f"{media}/link.wav"},
        "into-spool": {"do": "write", "output": f"{rig.root}/out/good-0.msgpack"},
        "record": {"audio": f"{rig.root}/run/spool.json"},
        "prefix": {"do": "write", "output": f"{media}-of-others/a.bin"},
        "proc": {"audio": "/proc/self/environ"},
        "zero": {"do": "write", "output": f"{media}/a\0b"},
        "zero-read": {"audio": f"{media}/in\0.wav"},
        "zero-folder": {"do": "write", "output": f"{media}/a\0b/c"},
        "long": {"do": "write", "output": f"{media}/{'x' * 300}.bin"},
        "long-read": {"audio": f"{media}/{'x' * 300}"},
        "long-folder": {"do": "write", "output": f"{media}/{'x' * 300}/a"},
        "longer": {"do": "write", "output": media + "/x" * 3000},
        "folder": {"do": "write", "output": media},
    }
    for job_id, params in bad.items():
        rig.drop(f"{job_id}.json", {"engine": "fake", "id": job_id, "params": params}, job_id)
    rig.drop(
        "fine.json",
        {
            "engine": "fake",
            "id": "fine",
            "params": {"audio": f"{media}/in.wav", "do": "write", "output": f"{media}/out.bin"},
        },
    )
    _good(rig)
    _serve(rig, 4)
    _work(rig)
    rig.finish()
    _all_is_well(rig, outside)
    assert rig.spool.read_record("fine").state is JobState.COMPLETED
    for job_id in bad:
        record = rig.spool.read_record(job_id)
        assert record.state is JobState.FAILED, job_id
        assert record.failure is not None
        assert (record.failure.kind, record.attempt) == ("input", 1), record.failure  # and never tried again
    assert not list((rig.folder / "media-of-others").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.invariant(22)
def test_fifty_thousand_at_once(rig: Rig, outside: Path) -> None:
    """A flood of rubbish: good jobs behind it are taken, and every turn of the supervisor is short."""
    box = rig.root / "in"
    noise(box, random.Random(2), 50_000)
    _good(rig)
    begun = time.monotonic()
    _serve(rig, 3000)
    assert os.listdir(box) == []
    print(f"{time.monotonic() - begun:.0f} s")
    _work(rig)
    _all_is_well(rig, outside)
    shutil.rmtree(rig.root / "quarantine")


@pytest.mark.invariant(22)
def test_an_adversary_who_changes_things_while_they_are_taken(rig: Rig, outside: Path) -> None:
    """Files become links and folders between the look and the open, over and over."""
    import threading

    box, over = rig.root / "in", threading.Event()

    def juggle() -> None:
        rng, secret = random.Random(3), str(outside / "secret.json")
        while not over.is_set():
            path, other = box / f"juggled-{rng.randrange(4)}.json", rig.folder / f"other-{rng.randrange(3)}"
            other.unlink(missing_ok=True)
            if rng.random() < 0.5:
                os.symlink(secret, other)
            else:
                other.write_text(json.dumps({"engine": "fake", "params": {"value": "mine"}}))
            try:
                os.rename(other, path)
            except OSError:
                pass

    _good(rig)
    thread = threading.Thread(target=juggle)
    thread.start()
    try:
        _serve(rig, 40)
    finally:
        over.set()
        thread.join()
    for path in box.glob("juggled*"):
        path.unlink()
    _serve(rig, 5)
    for _ in range(3):
        _work(rig)
    _all_is_well(rig, outside)
    values = [rig.spool.read_record(name.stem).value["value"] for name in (rig.root / "out").glob("juggled*.msgpack")]
    assert set(values) <= {"mine"}
