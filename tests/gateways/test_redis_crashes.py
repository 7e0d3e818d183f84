"""Kill the gateway, Redis and the workers wherever it hurts: every accepted job still ends, once, and its client
hears it."""

from __future__ import annotations

import random
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from scenarios.world import kill, wait_until

from gateways.redis_rig import FACE, Caller, Rig, rigs
from gateways.talker import VIDEO
from pool.config.settings import load_config
from pool.errors import ConfigError
from pool.gateways.redis.link import connect, examine
from pool.gateways.redis.settings import read_settings


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from rigs(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    yield shared
    shared.reset()
    with shared.server.client() as client:
        client.flushall()


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """What jobs wait for that are to last until then."""
    return tmp_path / "go"


@pytest.fixture
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A pool that tries again, and again."""
    yield from rigs(tmp_path_factory.mktemp("redis"), retry_times=50)


def length(caller: Caller, kind: str) -> int:
    """Jobs in `processing` or `accepted` of the pool."""
    found = caller.redis.keys(f"task_queue_gpu_0:{kind}:*")
    read = caller.redis.llen if kind == "processing" else caller.redis.hlen
    return sum(read(key) for key in found)


@pytest.mark.long
def test_killed_between_take_and_submit(rig: Rig) -> None:
    """It is fetching a file for the job: Redis has given the job away, the spool does not have it yet."""
    service = rig.service()
    held = service.put(b"hello", f"held-{uuid.uuid4()}")
    gateway, caller = rig.gateway(BASE_URL=service.base).start(), rig.caller()
    task = caller.push(rig.store.face, held)
    assert service.held.wait(40)
    gateway.kill()
    assert rig.world.state(task) is None
    assert (caller.redis.llen("task_queue_gpu_0"), length(caller, "processing")) == (0, 1)
    service.release.set()
    gateway.start()
    end = caller.end(task)
    assert end["status"] == "completed"
    assert service.files[end["video_file_id"]] == VIDEO + FACE  # back where the question came from
    assert rig.runs(task) == 1


def test_killed_between_submit_and_forgetting(rig: Rig) -> None:
    """Redis holds back all writes: the job is in the spool and in `processing`, too."""
    service = rig.service()
    held = service.put(b"hello", f"held-{uuid.uuid4()}")
    gateway, caller = rig.gateway(BASE_URL=service.base).start(), rig.caller()
    task = caller.push(rig.store.face, held)
    assert service.held.wait(40)
    caller.redis.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    service.release.set()
    wait_until(lambda: rig.world.state(task) is not None, "the job in the spool")
    gateway.kill()
    caller.redis.execute_command("CLIENT", "UNPAUSE")
    assert length(caller, "processing") == 1
    gateway.start()
    assert caller.end(task)["status"] == "completed"
    wait_until(lambda: length(caller, "processing") + length(caller, "accepted") == 0, "nothing to remember")
    assert rig.runs(task) == 1


@pytest.mark.long
def test_a_job_that_ends_while_no_gateway_is_there(rig: Rig, go: Path) -> None:
    gateway, caller = rig.gateway().start(), rig.caller()
    task = caller.push(rig.store.face, rig.store.words(f"until {go}"), session_id="who asked")
    caller.until(task, lambda message: message["status"] == "face_detecting")
    gateway.kill()
    go.touch()
    rig.world.record(task)
    assert caller.ends(task) == []
    gateway.start()
    end = caller.end(task)
    assert (end["status"], end["session_id"]) == ("completed", "who asked")
    assert rig.store.read(end["video_file_id"]) == VIDEO + FACE


@pytest.mark.long
def test_redis_is_killed_in_the_middle(rig: Rig) -> None:
    """Jobs run, are taken, and wait in the list; the gateway stays."""
    rig.gateway().start()
    caller = rig.caller()
    tasks = [caller.push(rig.store.face, rig.store.words("slow 1")) for _ in range(8)]
    caller.until(tasks[0], lambda message: message["status"] == "face_detecting")
    assert caller.redis.llen("task_queue_gpu_0") > 0
    rig.server.kill()
    rig.world.record(tasks[0])  # it ends while nobody can be told
    rig.server.start()
    for task in tasks:
        assert caller.end(task)["status"] == "completed"
        assert rig.runs(task) == 1
    wait_until(lambda: caller.redis.get("gpu_status:0") == b"idle", "idle")


@pytest.mark.slow
def test_redis_forgets_everything(rig: Rig, go: Path) -> None:
    """Without its file: what was taken is in the spool, and the gateway knows who asked."""
    server = rig.another_server(persistent=False)
    gateway, caller = rig.gateway(server).start(), rig.caller(server)
    task = caller.push(rig.store.face, rig.store.words(f"until {go}"))
    caller.until(task, lambda message: message["status"] == "face_detecting")
    server.kill()
    server.start()
    wait_until(lambda: length(caller, "accepted") == 1, "the gateway to remind it")
    gateway.kill()
    go.touch()
    gateway.start()
    assert caller.end(task)["status"] == "completed"


@pytest.mark.slow
def test_redis_is_not_there_at_the_start(rig: Rig) -> None:
    rig.server.kill()
    gateway = rig.gateway().start()
    assert "waiting for it" in gateway.log()
    rig.server.start()
    caller = rig.caller()
    assert caller.end(caller.push(rig.store.face, rig.store.words("hello")))["status"] == "completed"


@pytest.mark.long
def test_all_workers_are_killed(rig: Rig) -> None:
    rig.gateway().start()
    caller = rig.caller()
    tasks = [caller.push(rig.store.face, rig.store.words("slow 0.5")) for _ in range(3)]
    caller.until(tasks[0], lambda message: message["status"] == "inference")
    for pid in rig.world.processes():
        kill(pid)
    assert [caller.end(task)["status"] for task in tasks] == ["completed"] * 3


def test_asked_to_end(rig: Rig, go: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(40)
        gateway, caller = rig.gateway(NOTIFY_SOCKET=manager.getsockname()).start(), rig.caller()
        assert manager.recv(100) == b"READY=1"
        wait_until(lambda: caller.redis.get("gpu_status:0") == b"idle", "idle")
        task = caller.push(rig.store.face, rig.store.words(f"until {go}"))
        caller.until(task, lambda message: message["status"] == "face_detecting")
        assert gateway.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"
    assert "ended" in gateway.log()
    assert "Traceback" not in gateway.log()
    assert caller.redis.exists("gpu_status:0") == 0
    assert length(caller, "accepted") == 1
    go.touch()
    gateway.start()
    assert caller.end(task)["status"] == "completed"


def test_a_wrong_password(rig: Rig) -> None:
    """No waiting mends it."""
    told = replace(read_settings(load_config(rig.world.config), {}), port=rig.server.port, password="wrong")
    with rig.server.client() as client:
        client.config_set("requirepass", "right")
        try:
            assert examine(connect(replace(told, password="right")), told) == ""
            with pytest.raises(ConfigError, match="refuses the login"):
                examine(connect(told), told)
        finally:
            client.config_set("requirepass", "")
    assert "refused" in examine(connect(replace(told, port=1)), told).lower()


@pytest.mark.slow
def test_asked_to_end_while_it_fetches(rig: Rig) -> None:
    service = rig.service()
    gateway, caller = rig.gateway(BASE_URL=service.base).start(), rig.caller()
    service.trouble = 1000
    task = caller.push(rig.store.face, service.put(b"hello"))
    caller.until(task, lambda message: message["status"] == "downloading")
    assert gateway.stop() == 0
    assert caller.ends(task) == []
    service.trouble = 0
    gateway.start()
    assert caller.end(task)["status"] == "completed"


@pytest.mark.slow
def test_a_record_that_is_gone_is_said_to_be_gone(rig: Rig, go: Path) -> None:
    gateway, caller = rig.gateway().start(), rig.caller()
    task = caller.push(rig.store.face, rig.store.words(f"until {go}"))
    caller.until(task, lambda message: message["status"] == "face_detecting")
    gateway.kill()
    go.touch()
    rig.world.record(task)
    with rig.world.pool() as pool:
        assert pool.attach(task, consume=True).result(40)
    gateway.start()
    assert "its record was removed" in caller.end(task)["error"]


def test_the_rest_waits_in_the_list(rig: Rig, go: Path) -> None:
    """Twice the workers are taken; the operator sees the others with LLEN."""
    rig.gateway().start()
    caller = rig.caller()
    tasks = [caller.push(rig.store.face, rig.store.words(f"until {go}")) for _ in range(6)]
    wait_until(lambda: (length(caller, "accepted"), caller.redis.llen("task_queue_gpu_0")) == (4, 2), "four taken")
    go.touch()
    assert [caller.end(task)["status"] for task in tasks] == ["completed"] * 6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_storm(patient: Rig) -> None:
    """Everything is killed again and again, at random, while 60 jobs come in; each ends once for the engine's files
    and at least once for the client."""
    rig, chance = patient, random.Random(5)
    gateway, caller = rig.gateway().start(), rig.caller()
    words = [rig.store.words(text) for text in ("hello", "slow 0.3", "slow 1")]
    tasks: list[str] = []

    def push() -> None:
        while True:
            try:
                tasks.append(caller.push(rig.store.face, chance.choice(words)))
                return
            except redis.RedisError:
                time.sleep(0.05)

    for number in range(60):
        push()
        time.sleep(chance.random() * 0.4)
        if number % 6 == 1:
            gateway.kill()
            gateway.start(wait=False)
        elif number % 6 == 3:
            rig.server.kill()
            rig.server.start()
        elif number % 6 == 5:
            for pid in list(rig.world.processes())[:2]:
                kill(pid)
    for task in tasks:
        end = caller.redis.get(f"task_progress:{task}")
        if end is None or b"completed" not in end:
            assert caller.end(task, 240)["status"] == "completed"
    wait_until(lambda: length(caller, "processing") + length(caller, "accepted") == 0, "nothing to remember")
