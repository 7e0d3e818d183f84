"""The three ways in: FilePool, the command line, files dropped into in/; and supervisors that are tied to clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pool.client.filepool import FilePool
from pool.errors import JobRefused, SupervisorFailed, UnknownEngine
from pool.job import JobState
from pool.spool import lookup
from pool.spool.store import Spool
from scenarios.world import ROOT, World, alive, kill, wait_until


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    world = make_shared('it\'s a "way" in; with spaces')
    world.configure().serve(ready=2)
    return world


def outcome(world: World, stem: str) -> dict[str, Any]:
    """The JSON beside the record of a dropped job, waited for."""
    path = world.spool / "out" / f"{stem}.json"
    wait_until(path.exists, f"out/{stem}.json")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def refusal(world: World, name: str) -> str:
    """Why a drop is in quarantine."""
    path = world.spool / "quarantine" / f"{name}.reason.txt"
    wait_until(path.exists, f"quarantine/{name}.reason.txt")
    wait_until(lambda: not os.path.lexists(world.spool / "in" / name), "it left the drop box")
    return path.read_text()


# ---- dropped files


def test_dropped_json(shared: World) -> None:
    """Copied in: a record in msgpack, a rendering in JSON beside it, both named like the file; the drop is gone."""
    (shared.spool / "in" / "hello.json").write_text('{"engine": "fake", "params": {"value": "grüß Gott"}}')
    found = outcome(shared, "hello")
    assert (found["state"], found["value"]["value"], found["id"]) == ("completed", "grüß Gott", "hello")
    record = shared.record("hello")
    assert record.value["value"] == "grüß Gott"
    assert record.source == "in/hello.json"
    wait_until(lambda: "hello.json" not in shared.names("in"), "the drop goes once its job is accepted")
    assert not [name for name in shared.names("quarantine") if name.startswith("hello")]


def test_dropped_msgpack(shared: World) -> None:
    """Renamed in; parameters may stand beside "engine"; options of the job are obeyed."""
    body = {"engine": "fake", "id": "packed-1", "priority": 5, "params": {"value": [1, 2.5, None, {"a": b"x"}]}}
    temp = shared.spool / "tmp" / "mine"
    temp.write_bytes(msgpack.packb(body))
    temp.rename(shared.spool / "in" / "whatever name.msgpack")
    record = shared.record("packed-1")
    assert record.value["value"] == [1, 2.5, None, {"a": b"x"}]
    assert not (shared.spool / "out" / "packed-1.json").exists()
    (shared.spool / "in" / "flat.json").write_text('{"engine": "fake", "value": 3}')
    assert outcome(shared, "flat")["value"]["value"] == 3


def test_dropped_failure_has_its_json_too(shared: World) -> None:
    (shared.spool / "in" / "bad luck.json").write_text(
        '{"engine": "fake", "params": {"do": "raise", "value": "bad"}, "retry_times": 0}'
    )
    found = outcome(shared, "bad-luck")
    assert (found["state"], found["failure"]["message"], found["failure"]["attempt"]) == ("failed", "bad", 1)
    assert shared.record("bad-luck").state is JobState.FAILED


@pytest.mark.parametrize("ending", ["json", "msgpack"])
def test_written_slowly_in_pieces(shared: World, ending: str) -> None:
    """Opened, written, flushed, closed and opened again: taken when it is whole, never half."""
    body = {"engine": "fake", "params": {"value": "x" * 3000}}
    data = json.dumps(body).encode() if ending == "json" else msgpack.packb(body)
    path = shared.spool / "in" / f"slow-{ending}.{ending}"
    for at in range(0, len(data), 700):
        with open(path, "ab") as file:
            file.write(data[at : at + 350])
            file.flush()
            time.sleep(0.15)
            file.write(data[at + 350 : at + 700])
        time.sleep(0.1)
    assert shared.record(f"slow-{ending}").value["value"] == "x" * 3000
    assert not [name for name in shared.names("quarantine") if name.startswith("slow-")]


def test_written_by_a_hand_that_never_closes(shared: World) -> None:
    """The writer keeps it open: taken when it was still for two seconds. Meanwhile a FilePool comes and goes: a
    supervisor that was started by `serve` does not care."""
    supervisor = shared.supervisor()
    with FilePool(shared.config) as pool:
        assert pool.submit("fake", value=1).result(30)["value"] == 1
    with open(shared.spool / "in" / "open.json", "wb") as file:
        file.write(b'{"engine": "fake", "params": {"value": 1}}')
        file.flush()
        begun = time.monotonic()
        assert shared.record("open").value["value"] == 1
    assert time.monotonic() - begun > 1.5
    assert shared.supervisor() == supervisor


def test_two_hundred_at_once(shared: World) -> None:
    """Half JSON, half msgpack, from four threads, while it runs: 200 results, nothing refused."""

    def drop(first: int) -> None:
        for number in range(first, 200, 4):
            body = {"engine": "fake", "params": {"value": number}}
            if number % 2:
                (shared.spool / "in" / f"many-{number}.json").write_text(json.dumps(body))
            else:
                (shared.spool / "in" / f"many-{number}.msgpack").write_bytes(msgpack.packb(body))

    threads = [threading.Thread(target=drop, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(200):
        assert shared.record(f"many-{number}").value["value"] == number
    assert not [name for name in shared.names("quarantine") if name.startswith("many-")]
    wait_until(lambda: not shared.names("in"), "the drop goes")


def test_same_name_again_is_another_job(shared: World) -> None:
    (shared.spool / "in" / "twice.json").write_text('{"engine": "fake", "params": {"value": 1}}')
    assert outcome(shared, "twice")["value"]["value"] == 1
    (shared.spool / "in" / "twice.json").write_text('{"engine": "fake", "params": {"value": 2}}')
    other = wait_until(lambda: [n for n in shared.names("out") if n.startswith("twice-") and n.endswith(".json")])
    assert json.loads((shared.spool / "out" / other[0]).read_bytes())["value"]["value"] == 2
    assert outcome(shared, "twice")["value"]["value"] == 1, "the first result is what it was"


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "no engine.json": ('{"params": {}}', "which engine"),
    "other engine.json": ('{"engine": "fak"}', "did you mean"),
    "typo.json": ('{"engine": "fake", "params": {"valu": 1}}', "params.valu: unknown parameter; did you mean 'value'"),
    "wrong type.json": ('{"engine": "fake", "params": {"seconds": "long"}}', "params.seconds"),
    "extra.json": ('{"engine": "fake", "params": {}, "prioritty": 1}', "priority"),
    "climb.json": ('{"engine": "fake", "id": "../../etc/passwd"}', "is not an id"),
    "list.json": ("[1, 2]", "a job is a map"),
    "doubled.json": ('{"engine": "fake", "engine": "fake"}', "twice"),
    "high.json": ('{"engine": "fake", "priority": 1000}', "priority"),
    "lies.msgpack": (b"\xdd\x7f\xff\xff\xff", "msgpack"),
}


def test_refused_with_a_reason_and_nobody_is_held_up(shared: World) -> None:
    for name, (body, _) in REFUSED.items():
        (shared.spool / "in" / name).write_bytes(body if isinstance(body, bytes) else body.encode())
    outside = shared.folder / "outside.json"
    outside.write_text('{"engine": "fake"}')
    os.symlink(outside, shared.spool / "in" / "link.json")
    os.link(outside, shared.spool / "in" / "hard.json")
    os.mkfifo(shared.spool / "in" / "pipe.json")
    (shared.spool / "in" / "folder.json").mkdir()
    with open(shared.spool / "in" / "huge.json", "wb") as file:
        file.truncate(1 << 40)
    (shared.spool / "in" / "fine.json").write_text('{"engine": "fake", "params": {"value": "fine"}}')
    assert outcome(shared, "fine")["value"]["value"] == "fine"
    for name, (_, reason) in REFUSED.items():
        assert reason in refusal(shared, name), name
    assert "symbolic link" in refusal(shared, "link.json")
    assert "hard links" in refusal(shared, "hard.json")
    assert "FIFO" in refusal(shared, "pipe.json")
    assert "directory" in refusal(shared, "folder.json")
    assert "bytes, more than" in refusal(shared, "huge.json")
    assert outside.read_text() == '{"engine": "fake"}'
    wait_until(lambda: not shared.names("in"), "the drop goes")


@pytest.mark.long
def test_taken_in_once_although_the_supervisor_is_killed(world: World) -> None:
    """kill -9 while drops are taken in, again and again: each gives exactly one job."""
    witness = world.folder / "witness"
    witness.mkdir()
    world.configure({"fake": {"options": {"witness": str(witness)}}}).serve(ready=2)

    def drop() -> None:
        for number in range(80):
            (world.spool / "in" / f"job{number}.json").write_text(json.dumps({"engine": "fake", "value": number}))
            time.sleep(0.01)

    thread = threading.Thread(target=drop)
    thread.start()
    for _ in range(2):
        time.sleep(0.3)
        world.kill_supervisor()
        world.serve()
        wait_until(lambda: world.supervisor() is not None)
    thread.join()
    for number in range(80):
        assert world.record(f"job{number}").value["value"] == number
    wait_until(lambda: not world.names("in"), "all are taken")
    assert len(list(lookup.records(Spool(world.spool)))) == 80
    assert world.names("quarantine") == []


# ---- FilePool and the command line


def test_refused_at_submit_with_the_path_of_the_key(shared: World) -> None:
    pool = shared.pool()
    with pytest.raises(JobRefused, match=r"params\.valu: unknown parameter; did you mean 'value'"):
        pool.submit("fake", valu=1)
    with pytest.raises(JobRefused, match=r"params\.seconds"):
        pool.submit("fake", seconds="long")
    with pytest.raises(UnknownEngine, match="no engine 'fak'"):
        pool.submit("fak", value=1)
    with pytest.raises(JobRefused, match="priority"):
        pool.submit("fake", value=1, priority=101)
    with pytest.raises(JobRefused, match="is not an id"):
        pool.submit("fake", value=1, id="../x")


def command(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", *words, "--config", str(world.config)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def test_command_line(shared: World) -> None:
    """The same job by `python -m pool.submit`: result on stdout, exit codes 0, 1, 2."""
    done = command(shared, "pool.submit", "fake", "value=from the shell", "--json", "--id", "shell-1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["value"]["value"] == "from the shell"
    failed = command(shared, "pool.submit", "fake", "do=input", "--json")
    assert failed.returncode == 1
    assert "this input cannot be used" in failed.stderr
    wrong = command(shared, "pool.submit", "fake", "valu=1")
    assert wrong.returncode == 2
    assert "did you mean" in wrong.stderr


def test_without_a_supervisor_jobs_wait(world: World) -> None:
    """start=False: submit before any supervisor was ever there; one that comes later runs them."""
    world.configure()
    pool = world.pool()
    futures = pool.submit_many("fake", [{"value": n} for n in range(5)])
    assert {pool.state(future.id) for future in futures} == {JobState.QUEUED}
    world.serve()
    assert [future.result(60)["value"] for future in futures] == list(range(5))


# ---- supervisors tied to their clients

CLIENT = """
import sys, time
from pool import FilePool
pool = FilePool(sys.argv[1])
future = pool.submit("fake", value="client")
print(future.result(60)["value"], flush=True)
if len(sys.argv) > 2:
    time.sleep(600)
pool.close()
"""


def client(world: World, *words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", CLIENT, str(world.config), *words]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def gone(world: World) -> bool:
    return world.supervisor() is None and not world.processes()


def test_tied_supervisor_ends_after_its_last_client_is_closed(world: World) -> None:
    """Two FilePools share one supervisor; it stays for the second when the first is closed."""
    world.configure()
    with FilePool(world.config) as first:
        assert first.submit("fake", value=1).result(60)["attempt"] == 1
        supervisor = world.supervisor()
        assert supervisor is not None
        second = world.pool(start=True)
    time.sleep(2.5)
    assert world.supervisor() == supervisor
    assert second.submit("fake", value=2).result(30)["value"] == 2
    second.close()
    wait_until(lambda: gone(world), "the end of supervisor and workers")
    wait_until(lambda: not supervisor.alive(), "its death")


@pytest.mark.long
def test_client_that_comes_while_a_tied_supervisor_drains(world: World) -> None:
    """It waits for the end of the one that goes, and starts another."""
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    first = world.pool(start=True)
    left = first.submit("fake", do="sleep", seconds=3)
    world.worker_of(left.id)
    first.close()
    wait_until(lambda: world.status().get("draining"), "the drain")
    going = world.supervisor()
    second = world.pool(start=True)
    assert second.submit("fake", value=1).result(60)["value"] == 1
    assert world.supervisor() not in (None, going)
    assert second.attach(left.id).result(60)["attempt"] == 1


def test_tied_supervisor_ends_after_its_last_client_is_killed(world: World) -> None:
    world.configure()
    process = client(world, "stay")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "client\n"
        assert world.supervisor() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: gone(world), "the end of supervisor and workers")
    finally:
        process.kill()
        process.communicate()


def test_killed_tied_supervisor_is_started_again_while_results_are_awaited(world: World) -> None:
    """The client notices, the new supervisor adopts the workers, the result comes."""
    world.configure()
    pool = world.pool(start=True)
    slow = pool.submit("fake", do="sleep", seconds=2.5)
    hurt = pool.submit("fake", do="sleep", seconds=2.5)
    world.worker_of(slow.id)
    _, pid = world.worker_of(hurt.id)
    first = world.supervisor()
    assert first is not None
    kill(first.pid)
    kill(pid)
    wait_until(lambda: world.supervisor() not in (None, first), "another supervisor")
    assert slow.result(60)["attempt"] == 1
    assert hurt.result(60)["attempt"] == 2
    pool.close()
    wait_until(lambda: gone(world), "the end of supervisor and workers")


def test_supervisor_that_cannot_start_says_why(world: World) -> None:
    world.configure({"fake": {"python": "/no/such/python"}})
    with pytest.raises(SupervisorFailed, match=r"(?s)configuration is wrong.*engines\.fake\.python.*no/such/python"):
        world.pool(start=True)
    assert gone(world)


def test_clients_that_start_together_share_one_supervisor(world: World) -> None:
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    clients = [client(world) for _ in range(4)]
    try:
        assert [process.communicate(timeout=60)[0] for process in clients] == ["client\n"] * 4
        assert [process.returncode for process in clients] == [0] * 4
    finally:
        for process in clients:
            process.kill()
            process.communicate()
    wait_until(lambda: gone(world), "the end of supervisor and workers")
    assert not any(alive(pid) for pid in world.processes())


def test_spool_under_a_hostile_path(tmp_path: Path) -> None:
    """Nothing goes through a shell; every path is a path."""
    folder = tmp_path / "-rf ; echo $HOME `id` & 'quotes' \"more\" äöü-漢字\nnew line"
    folder.mkdir()
    world = World(folder)
    try:
        world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
        output = folder / "out put.bin"
        pool = world.pool()
        assert pool.submit("fake", do="write", output=str(output)).result(30)["output"] == str(output)
        assert output.read_bytes() == b"x" * 11
        assert pool.submit("fake", do="kill", until_attempt=1).result(30)["attempt"] == 2
        (world.spool / "in" / "drop.json").write_text('{"engine": "fake", "value": 1}')
        assert outcome(world, "drop")["value"]["value"] == 1
        assert world.drain() == 0
    finally:
        world.close()
