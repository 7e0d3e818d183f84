"""A disk that fills up: whoever comes is told, whoever is at work waits, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pool.errors import SpoolFull
from pool.job import JobState
from scenarios.world import ROOT, World, kill, wait_until

SIZE_MB = 24


class Disk:
    """A small file system that can be filled to the last byte and freed again."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Use up the space but for `leave` bytes."""
        with open(self._ballast, "ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 65536)
        with open(self._ballast, "ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0")
        if leave:
            os.truncate(self._ballast, max(0, self._ballast.stat().st_size - leave))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "filepool-test", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def world(disk: Disk) -> Iterator[World]:
    """The spool is on the small disk, the rest is not."""
    made = World(disk.place.parent)
    made.spool = disk.place / "spool"
    try:
        yield made
    finally:
        disk.free()
        made.close()


def test_floor_refuses_submits_and_pauses_the_drop_box(world: World, disk: Disk) -> None:
    """Below min_free_mb: a clear error for callers, drops wait in in/, what runs goes on; then all is taken."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}, min_free_mb=10).serve(ready=1)
    pool = world.pool()
    running = pool.submit("fake", do="sleep", seconds=1)
    disk.fill(leave=5 << 20)
    time.sleep(0.6)
    with pytest.raises(SpoolFull, match=r"MB free on the disk .* less than min_free_mb \(10\): free some space"):
        pool.submit("fake", value=1)
    with pytest.raises(SpoolFull, match="min_free_mb"):
        pool.submit_many("fake", [{"value": 1}])
    (world.spool / "in" / "later.json").write_text('{"engine": "fake", "value": "later"}')
    paused = wait_until(lambda: world.status().get("intake_paused"), "the pause")
    assert "less than min_free_mb (10); drops wait in in/" in paused
    assert any("no job is accepted" in reason for reason in pool.status().health.reasons)
    assert running.result(30)["attempt"] == 1
    assert world.names("in") == ["later.json"]
    disk.free()
    assert world.record("later").value["value"] == "later"
    wait_until(lambda: world.status().get("intake_paused") == "", "the end of the pause")
    time.sleep(0.6)
    assert pool.submit("fake", value=2).result(30)["value"] == 2


def test_submit_to_a_full_disk(world: World, disk: Disk) -> None:
    """Without a floor, too: nothing half is accepted, nothing half stays behind."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
    pool = world.pool()
    assert pool.submit("fake", value=1).result(30)["value"] == 1
    disk.fill()
    with pytest.raises(SpoolFull, match=r"the disk of the spool .* is full .*free space"):
        pool.submit("fake", value="x" * 20000)
    with pytest.raises(SpoolFull, match=r"the disk of the spool .* is full .*free space"):
        pool.submit("fake", id="mine", value="x" * 20000)
    ours = {name for name in world.names("tmp") if name.startswith(f"{os.getpid()}-")}
    assert not ours
    assert world.held() == []
    disk.free()
    assert pool.submit("fake", id="mine", value=2).result(30)["value"] == 2


@pytest.mark.long
def test_finishing_job_waits_for_space(world: World, disk: Disk) -> None:
    """Its work is done, only the record waits, even beyond the job's time limit; then it completes in attempt 1."""
    world.configure({"fake": {"max_concurrent_tasks": 2, "stall_timeout_s": 2}}).serve(ready=2)
    pool = world.pool()
    futures = [pool.submit("fake", do="sleep", seconds=0.6, value="y" * 20000, timeout_s=1.2) for _ in range(2)]
    for future in futures:
        world.worker_of(future.id)
    disk.fill()
    wait_until(lambda: [b.stage for b in world.beats().values()] == ["waiting for disk space"] * 2, "both wait")
    time.sleep(2.5)
    assert {pool.state(future.id) for future in futures} == {JobState.RUNNING}
    disk.free()
    for future in futures:
        assert future.result(30)["value"] == "y" * 20000
        assert future.record is not None
        assert (future.record.attempt, future.record.attempts) == (1, ())


@pytest.mark.long
def test_failing_job_waits_for_space_too(world: World, disk: Disk) -> None:
    """The reason of an attempt is not dropped for want of room."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
    pool = world.pool()
    future = pool.submit("fake", do="deaf", seconds=0.6, value=1)
    bad = pool.submit("fake", do="raise", value="z" * 9000, until_attempt=1)
    world.worker_of(future.id)
    disk.fill()
    wait_until(lambda: [b.stage for b in world.beats().values()] == ["waiting for disk space"], "it waits")
    disk.free()
    assert future.result(30)["attempt"] == 1
    assert bad.result(30)["attempt"] == 2
    assert bad.record is not None
    assert "zzz" in bad.record.attempts[0].message


@pytest.mark.long
def test_worker_killed_while_the_disk_is_full(world: World, disk: Disk) -> None:
    """Its job cannot be taken back, nor its slot be filled, before there is room; neither is given up."""
    world.configure({"fake": {"start_limit": 2}}).serve(ready=2)
    pool = world.pool()
    future = pool.submit("fake", do="deaf", seconds=8, until_attempt=1)
    queued = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.3, "value": n} for n in range(6)])
    _, pid = world.worker_of(future.id)
    disk.fill()
    kill(pid)
    time.sleep(2.5)
    assert world.supervisor() is not None, world.log()
    assert pool.state(future.id) is JobState.RUNNING
    disk.free()
    assert [one.result(30)["value"] for one in queued] == list(range(6))
    assert future.result(40)["attempt"] == 2
    assert future.record is not None
    assert future.record.attempts[0].signal == "SIGKILL"
    wait_until(lambda: len(world.loaded()) == 2, "both slots are filled")
    assert {world.slot(name)["seat"] for name in ("fake-0", "fake-1")} == {"running"}


@pytest.mark.long
def test_supervisor_killed_while_the_disk_is_full(world: World, disk: Disk) -> None:
    """Another one says what is wrong, or serves; when there is room, all is as before."""
    world.configure({"fake": {"options": {"loads": str(world.folder / "loads")}}}).serve(ready=2)
    pool = world.pool()
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.2, "value": n} for n in range(8)])
    wait_until(lambda: len(world.names("out")) >= 1, "a first result")
    disk.fill()
    world.kill_supervisor()
    second = world.serve()
    wait_until(lambda: second.poll() is not None or world.supervisor() is not None, "a decision")
    if second.poll() is not None:
        assert "No space left on device" in world.log()
        assert "Traceback" not in world.log()
    disk.free()
    if second.poll() is not None:
        world.serve(ready=2)
    assert [future.result(30)["value"] for future in futures] == list(range(8))
    assert len((world.folder / "loads").read_text().split()) == 2


def test_dropped_while_the_disk_is_full(world: World, disk: Disk) -> None:
    """What could be written into in/ is kept there and taken when there is room; nothing lands in quarantine."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
    disk.fill()
    os.truncate(disk.place / "ballast", (disk.place / "ballast").stat().st_size - 4096)
    (world.spool / "in" / "one.json").write_text(json.dumps({"engine": "fake", "value": "w" * 3000}))
    time.sleep(1.5)
    assert world.supervisor() is not None, world.log()
    assert world.names("in") == ["one.json"]
    disk.free()
    assert world.record("one").value["value"] == "w" * 3000
    assert world.names("quarantine") == []


@pytest.mark.long
def test_disk_that_fills_and_empties_again_and_again(world: World, disk: Disk) -> None:
    """40 jobs while there is room now and then: every one that was accepted completes, once."""
    world.configure({"fake": {"retry_times": 5}}).serve(ready=2)
    pool = world.pool()
    futures = []
    for number in range(40):
        if number % 8 == 4:
            disk.fill()
        try:
            futures.append((number, pool.submit("fake", do="sleep", seconds=0.05, value=[number, "v" * 4000])))
        except SpoolFull:
            time.sleep(0.1)
        if number % 8 == 7:
            time.sleep(0.3)
            disk.free()
    disk.free()
    assert len(futures) >= 20
    assert [future.result(60)["value"][0] for _, future in futures] == [number for number, _ in futures]
    wait_until(lambda: not world.held(), "nothing is left over")
    assert world.names("dead") == []
    assert len([name for name in world.names("out") if name.endswith(".msgpack")]) == len(futures)


def test_shared_memory_is_not_needed(world: World) -> None:
    """With /dev/shm read-only everything works; no process of the pool maps anything from there."""
    world.configure()
    hidden = 'mount -t tmpfs -o ro,size=4k tmpfs /dev/shm && exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hidden, "sh", sys.executable, "-m", "pool"]
    with open(world.folder / "serve.log", "ab") as log:
        process = subprocess.Popen([*argv, "serve", "--config", str(world.config)], cwd=ROOT, stdout=log, stderr=log)
    world.serving.append(process)
    wait_until(lambda: process.poll() is not None or world.supervisor() is not None, "a supervisor")
    if process.poll() is not None and "unshare" in world.log():
        pytest.skip(f"no mount namespace here: {world.log()[-200:].strip()}")
    world.wait_ready(2)
    pool = world.pool()
    assert [r["value"] for r in pool.map("fake", [{"value": n} for n in range(50)], chunksize=5)] == list(range(50))
    assert pool.submit("fake", do="kill", until_attempt=1).result(30)["attempt"] == 2
    world.wait_ready(2)
    supervisor = world.supervisor()
    assert supervisor is not None
    for pid in (supervisor.pid, *world.processes(), os.getpid()):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "/dev/shm" not in maps
        links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
        assert not [link for link in links if link.startswith("/dev/shm")]
