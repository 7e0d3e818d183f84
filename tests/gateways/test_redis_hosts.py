"""Two pools on one list: one is killed for ever, and every task ends."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from scenarios.world import ROOT, kill, remove, wait_until

from gateways.redis_rig import Caller, RedisGateway, Rig, rigs
from pool.gateways.redis.ends import Ends, Follow
from pool.gateways.redis.files import Files
from pool.gateways.redis.herald import Herald
from pool.gateways.redis.hosts import Hosts
from pool.gateways.redis.settings import read_settings
from pool.gateways.redis.wire import Keys

QUEUE = "task_queue_gpu_0"
LEASE_S = 2.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    yield from rigs(tmp_path / "one", lease_s=LEASE_S)


@pytest.fixture
def other(rig: Rig, tmp_path: Path) -> Iterator[Rig]:
    """A second pool, on the list of the first one."""
    yield from rigs(tmp_path / "two", lease_s=LEASE_S, server=rig.server)


@pytest.fixture
def go(tmp_path: Path) -> Path:
    return tmp_path / "go"


def share(rig: Rig, other: Rig, text: str) -> tuple[str, str]:
    """Files that both pools have under the same ids: as with one temporary-file service for all."""
    face, words = rig.store.face, rig.store.words(text)
    for name in (rig.world.folder / "media" / ".tempfiles").iterdir():
        if name.is_file():
            (other.world.folder / "media" / ".tempfiles" / name.name).write_bytes(name.read_bytes())
    return face, words


def held(caller: Caller, rig: Rig) -> int:
    spool = rig.world.spool_id()
    return int(caller.redis.llen(f"{QUEUE}:processing:{spool}") + caller.redis.hlen(f"{QUEUE}:accepted:{spool}"))


def perish(rig: Rig, gateway: RedisGateway) -> None:
    """The machine is gone: its gateway, its supervisor, its workers."""
    gateway.kill()
    for process in rig.world.serving:
        process.kill()
        process.wait(20)
    for pid in rig.world.processes():
        kill(pid)


def run_it(rig: Rig, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pool.gateways.redis", "--config", str(rig.world.config), *options]
    env = {"PATH": "", "REDIS_PORT": str(rig.server.port), "REDIS_HOST": "127.0.0.1", "COLUMNS": "200"}
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def taken(caller: Caller, rig: Rig, count: int) -> None:
    wait_until(lambda: held(caller, rig) == count, f"{count} jobs taken")


@pytest.mark.long
def test_a_host_that_never_returns(rig: Rig, other: Rig, go: Path) -> None:
    face, words = share(rig, other, f"until {go}")
    first, caller = rig.gateway().start(), rig.caller()
    tasks = [caller.push(face, words) for _ in range(6)]
    accepted = f"{QUEUE}:accepted:{rig.world.spool_id()}"
    wait_until(lambda: caller.redis.hlen(accepted) == 4, "4 jobs noted; one that is taken is in `processing` before")
    notes = caller.redis.hgetall(accepted)
    assert {json.loads(json.loads(note)["payload"])["task_id"] for note in notes.values()} == set(tasks[:4])
    perish(rig, first)
    go.touch()
    other.gateway().start()
    assert [caller.end(task)["status"] for task in tasks] == ["completed"] * 6
    assert [other.runs(task) for task in tasks] == [1] * 6
    assert [caller.ends(task) for task in tasks] == [["completed"]] * 6
    assert held(caller, rig) == 0
    assert caller.redis.get(f"gpu_status:0:{rig.world.spool_id()}") == b"dead"
    assert f"the host of spool {rig.world.spool_id()} is dead; 4 of its jobs" in other.log()


@pytest.mark.long
def test_a_host_that_returns_too_late_is_silent_about_what_others_have(rig: Rig, other: Rig, go: Path) -> None:
    face, words = share(rig, other, f"until {go}")
    first, caller = rig.gateway().start(), rig.caller()
    task = caller.push(face, words)
    caller.until(task, lambda message: message["status"] == "face_detecting")
    first.pause()
    other.gateway().start()
    wait_until(lambda: held(caller, other) == 1, "the other host to have it")
    first.resume()
    wait_until(lambda: "have taken over 1 jobs" in first.log(), "the first host to notice")
    go.touch()
    assert caller.end(task)["status"] == "completed"
    rig.world.record(task)
    assert caller.redis.hlen(f"{QUEUE}:adopted:{rig.world.spool_id()}") == 0
    assert caller.end(caller.push(face, words))["status"] == "completed"
    assert caller.ends(task) == ["completed"]


@pytest.mark.long
def test_a_pool_that_is_down_leaves_its_jobs_to_others(rig: Rig, other: Rig, go: Path) -> None:
    """The gateway lives; its supervisor and its workers do not, and none comes."""
    face, words = share(rig, other, f"until {go}")
    rig.gateway().start()
    caller = rig.caller()
    tasks = [caller.push(face, words) for _ in range(3)]
    taken(caller, rig, 3)
    other.gateway().start()
    for process in rig.world.serving:
        process.kill()
        process.wait(20)
    for pid in rig.world.processes():
        kill(pid)
    go.touch()
    assert [caller.end(task)["status"] for task in tasks] == ["completed"] * 3
    assert [caller.ends(task) for task in tasks] == [["completed"]] * 3


@pytest.mark.long
def test_a_host_whose_spool_is_gone_leaves_its_jobs_to_others(rig: Rig, other: Rig, go: Path) -> None:
    """It tells nobody that they failed, for they did not; it says why it ends."""
    face, words = share(rig, other, f"until {go}")
    first, caller = rig.gateway().start(), rig.caller()
    spool = rig.world.spool_id()
    tasks = [caller.push(face, words) for _ in range(6)]
    wait_until(lambda: caller.redis.hlen(f"{QUEUE}:accepted:{spool}") == 4, "4 jobs noted")
    remove(rig.world.spool)
    assert first.process is not None
    assert first.process.wait(40) == 1
    assert f"the spool {rig.world.spool} is gone" in first.log()
    assert "Traceback" not in first.log()
    go.touch()
    other.gateway().start()
    assert [caller.end(task)["status"] for task in tasks] == ["completed"] * 6
    assert [caller.ends(task) for task in tasks] == [["completed"]] * 6
    assert [other.runs(task) for task in tasks] == [1] * 6


@pytest.mark.long
def test_adopted_by_hand(rig: Rig, go: Path) -> None:
    """No other host serves the list: an operator puts the tasks back, but not those of a living host."""
    gateway, caller = rig.gateway().start(), rig.caller()
    spool = rig.world.spool_id()
    tasks = [caller.push(rig.store.face, rig.store.words(f"until {go}")) for _ in range(2)]
    taken(caller, rig, 2)
    refused = run_it(rig, "--adopt", spool)
    assert (refused.returncode, "stop it first" in refused.stderr) == (1, True)
    perish(rig, gateway)
    caller.redis.delete(f"gpu_status:0:{spool}")  # as half a minute later
    caller.redis.hset(f"{QUEUE}:accepted:{spool}", "old", json.dumps({"task_id": "old", "session_id": "s"}))
    told = run_it(rig, "--check")
    assert (told.returncode, f"{spool} no sign of life, has 3 jobs" in told.stdout + told.stderr) == (1, True)
    done = run_it(rig, "--adopt", spool)
    assert done.returncode == 0, done.stderr
    assert f"2 jobs of {spool} are back in the list, 1 failed" in done.stdout + done.stderr
    waiting = {json.loads(raw)["task_id"] for raw in caller.redis.lrange(QUEUE, 0, -1)}
    assert waiting == set(tasks)
    assert "push it again" in caller.end("old")["error"]
    assert held(caller, rig) == 0


@pytest.mark.long
def test_a_task_that_outlives_its_hosts_fails_in_the_end(rig: Rig, other: Rig) -> None:
    """Whatever kills them: three hosts are enough."""
    face, words = share(rig, other, "hello")
    caller = rig.caller()
    task = "poison"
    body = {"task_id": task, "session_id": "s", "ref_image_id": face, "audio_id": words}
    note = json.dumps(
        {"task_id": task, "session_id": "s", "named": False, "remote": False, "payload": json.dumps(body)}
    )
    for number in range(3):
        caller.redis.hset(f"{QUEUE}:accepted:dead{number}", task, note)
        caller.redis.delete(QUEUE)
        assert run_it(rig, "--adopt", f"dead{number}").returncode == 0
    assert "3 hosts died" in caller.end(task)["error"]
    assert caller.redis.llen(QUEUE) == 0


@pytest.mark.long
def test_an_outage_of_redis_kills_no_host(rig: Rig, other: Rig, go: Path) -> None:
    """Longer than the lease: hosts that could not report are not dead."""
    face, words = share(rig, other, f"until {go}")
    rig.gateway().start()
    other.gateway().start()
    caller = rig.caller()
    tasks = [caller.push(face, words) for _ in range(8)]
    wait_until(lambda: held(caller, rig) + held(caller, other) == 8, "all taken")
    rig.server.kill()
    wait_until(lambda: "is unreachable" in rig.log() and "is unreachable" in other.log(), "both to notice")
    rig.server.start_after(2 * LEASE_S)
    go.touch()
    assert [caller.end(task)["status"] for task in tasks] == ["completed"] * 8
    assert [rig.runs(task) + other.runs(task) for task in tasks] == [1] * 8
    assert "is dead" not in rig.log() + other.log()


class Between(redis.Redis):
    """Redis between whose answer about adopted jobs and the next command something happens once."""

    happen: Callable[[], object] | None = None

    def pipeline(self, *args: Any, **more: Any) -> Any:
        pipe = super().pipeline(*args, **more)
        ask = pipe.hkeys

        def hkeys(key: str) -> Any:
            found = ask(key)
            happen, self.happen = self.happen, None
            if happen is not None:
                happen()
            return found

        pipe.hkeys = hkeys  # type: ignore[method-assign]
        return pipe


@pytest.mark.long
def test_a_task_that_comes_back_just_when_it_is_given_up_has_its_end(rig: Rig) -> None:
    """Another host has adopted it, and this one, which had been slow, takes it from the list again meanwhile."""
    pool = rig.world.pool()
    settings = read_settings(pool.config, {"REDIS_PORT": str(rig.server.port), "REDIS_HOST": "127.0.0.1"})
    keys, client = Keys(settings.channel, pool.spool.id), Between(port=rig.server.port)
    ends = Ends(Files(pool, settings, lambda: False), threading.Event(), lambda: "")
    herald = Herald(pool, settings, keys, client, ends)
    future = pool.submit("echo", id="task", params={"value": 1})
    future.result(40)
    (queue,) = settings.queues
    about = ("task", "task", "s", True, False, future, "{}")
    herald.follow(Follow(queue, *about))
    adopted, accepted = keys.adopted(queue.name), keys.accepted(queue.name)
    client.hset(adopted, "task", "another spool")

    def take_it_again() -> None:
        with client.pipeline() as pipe:
            pipe.hdel(adopted, "task")
            pipe.hset(accepted, "task", Follow(queue, *about).note())
            pipe.execute()
        herald.follow(Follow(queue, *about))

    client.happen = take_it_again

    def ended() -> bool:
        herald.turn()
        return not client.hexists(accepted, "task") and b"completed" in (client.get(keys.last("task")) or b"")

    wait_until(ended, "its end")


@pytest.mark.long
def test_who_fails_a_task_of_a_dead_host_has_told_it_even_when_it_dies_now(rig: Rig) -> None:
    pool = rig.world.pool()
    settings = read_settings(pool.config, {"REDIS_PORT": str(rig.server.port), "REDIS_HOST": "127.0.0.1"})
    (queue,) = settings.queues
    client = redis.Redis(port=rig.server.port)
    caller = rig.caller()
    client.hset(f"{queue.name}:accepted:dead", "task", json.dumps({"task_id": "task", "session_id": "s"}))
    done = Hosts(queue, settings, Keys(settings.channel, pool.spool.id), client).adopt("dead")
    assert [each.task_id for each in done.refused] == ["task"]
    assert "push it again" in caller.end("task")["error"]  # nobody else has spoken
    assert done.unheard == ()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [23, 24])
def test_twenty_kills_of_gateways(rig: Rig, other: Rig, seed: int) -> None:
    """Each task has one end, whichever host is killed, and whether it comes back within its lease or later."""
    draw, over, caller = random.Random(seed), threading.Event(), rig.caller()
    face, _ = share(rig, other, "hello")
    words = [share(rig, other, f"slow {seconds}")[1] for seconds in (0.1, 0.5, 1.5)]
    tasks: list[str] = []

    def push() -> None:
        each = random.Random(seed + 100)
        while not over.is_set():
            tasks.append(caller.push(face, each.choice(words)))
            over.wait(each.uniform(0.1, 0.5))

    gateways = [rig.gateway().start(), other.gateway().start()]
    pushing = threading.Thread(target=push)
    pushing.start()
    try:
        for _ in range(20):
            over.wait(draw.uniform(0.0, 1.5))
            gateway = draw.choice(gateways)
            gateway.kill()
            over.wait(draw.choice([0.0, 0.0, 2 * LEASE_S]))
            gateway.start()
    finally:
        over.set()
        pushing.join()
    ends = [caller.end(task, 120) for task in tasks]
    taken_over = rig.log().count("is dead") + other.log().count("is dead")
    print(f"20 kills: {len(tasks)} tasks ended, {taken_over} times a host was taken for dead")
    assert [end for end in ends if end["status"] != "completed" and "hosts died" not in end.get("error", "")] == []
    assert len(tasks) > 50
    wait_until(
        lambda: not caller.redis.llen(QUEUE) and not held(caller, rig) and not held(caller, other), "nothing left"
    )
