"""The Redis gateway as a client written from the contract meets it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from scenarios.world import wait_until

from gateways.gateway import Gateway
from gateways.redis_rig import FACE, STATUSES, Caller, RedisGateway, Rig, rigs
from gateways.talker import VIDEO


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from rigs(tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="module")
def gateway(rig: Rig) -> RedisGateway:
    return rig.gateway().start()


@pytest.fixture(scope="module")
def caller(rig: Rig, gateway: RedisGateway) -> Caller:
    return rig.caller()


def test_a_video_is_made(rig: Rig, caller: Caller) -> None:
    task = caller.push(rig.store.face, rig.store.words("slow 0.9"), session_id="session 1")
    end = caller.end(task)
    assert end == {
        "task_id": task,
        "session_id": "session 1",
        "status": "completed",
        "progress": 100.0,
        "percentage": 100.0,
        "message": "completed",
        "video_file_id": end["video_file_id"],
    }
    assert rig.store.read(end["video_file_id"]) == VIDEO + FACE
    heard = caller.heard[task]
    assert {message["status"] for message in heard} <= STATUSES
    assert {"processing", "inference", "completed"} <= {message["status"] for message in heard}
    assert all(0.0 <= message["progress"] <= 100.0 for message in heard)
    assert all("error" not in message and "video_file_id" not in message for message in heard[:-1])
    assert json.loads(caller.redis.get(f"task_progress:{task}")) == end


def test_busy_and_idle(rig: Rig, caller: Caller) -> None:
    wait_until(lambda: caller.redis.get("gpu_status:0") == b"idle", "idle")
    task = caller.push(rig.store.face, rig.store.words("slow 0.6"))
    wait_until(lambda: caller.redis.get("gpu_status:0") == b"busy", "busy")
    caller.end(task)
    wait_until(lambda: caller.redis.get("gpu_status:0") == b"idle", "idle again")
    assert 0 < caller.redis.ttl("gpu_status:0") <= 30


def test_redis_remembers_nothing_of_a_job_that_is_over(rig: Rig, caller: Caller) -> None:
    caller.end(caller.push(rig.store.face, rig.store.words("hello")))
    left = [key for key in caller.redis.keys("task_queue_gpu_0*") if caller.redis.exists(key)]
    assert left == [b"task_queue_gpu_0:hosts"]


def test_what_the_client_wants_reaches_the_engine(rig: Rig, caller: Caller) -> None:
    wanted = {"steps": 30, "cfg": 3.5, "seed": 7, "frames_num": 50}
    speech = rig.store.words("hello")
    task = caller.push(rig.store.face, speech, engine="portrait", **wanted)
    end = caller.end(task)
    told = end["result"]["told"]
    assert told["audio"] == f"tempfile:{speech}"
    assert [file["original_name"] for file in end["files"]] == ["face.mp4"]
    assert {key: told[key] for key in wanted} == wanted
    task = caller.push(rig.store.face, rig.store.words("hi"), engine="portrait", steps=None, cfg=None, seed=None)
    assert set(caller.end(task)["result"]["told"]) == {"image", "audio"}


def test_what_a_client_adds_is_let_be(rig: Rig, caller: Caller) -> None:
    task = caller.push(rig.store.face, rig.store.words("hello"), created_at="2024-05-01", user={"id": 3})
    assert caller.end(task)["status"] == "completed"


def test_another_engine(caller: Caller) -> None:
    task = str(uuid.uuid4())
    caller.raw(json.dumps({"task_id": task, "session_id": "s", "engine": "echo", "params": {"a": [1, "zwei"]}}))
    end = caller.end(task)
    assert (end["result"], end["files"]) == ({"a": [1, "zwei"]}, [])
    assert "video_file_id" not in end


def test_a_long_result_comes_as_a_file(rig: Rig, caller: Caller) -> None:
    task = str(uuid.uuid4())
    value = {"text": ["word " * 1000 for _ in range(12)]}
    body = {"task_id": task, "session_id": "s", "engine": "fake", "params": {"value": value}}
    caller.raw(json.dumps(body))
    end = caller.end(task)
    assert "result" not in end
    assert json.loads(rig.store.read(end["result_file_id"]))["value"] == value


def test_an_uploaded_file_in_params(rig: Rig, caller: Caller) -> None:
    """As the HTTP gateway takes them: tempfile:<id>."""
    task = str(uuid.uuid4())
    params = {"do": "echo", "audio": f"tempfile:{rig.store.words('hello')}"}
    caller.raw(json.dumps({"task_id": task, "session_id": "s", "engine": "fake", "params": params}))
    assert caller.end(task)["status"] == "completed"


GOOD = {"task_id": "t", "session_id": "s-9", "ref_image_id": "a", "audio_id": "b"}


def _with(**changes: Any) -> dict[str, Any]:
    changed = {**GOOD, "task_id": str(uuid.uuid4()), **changes}
    return {key: value for key, value in changed.items() if value is not ...}


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (_with(session_id=...), "session_id: is missing"),
        (_with(ref_image_id=...), "ref_image_id: is missing"),
        (_with(audio_id=...), "audio_id: is missing"),
        (_with(audio_id=7), "audio_id: must be a string"),
        (_with(audio_id=""), "audio_id: must be a string"),
        (_with(audio_id="/etc/passwd"), "audio_id: is not an id"),
        (_with(ref_image_id="http://example.com/face.jpg"), "ref_image_id: is not an id"),
        (_with(ref_image_id=".."), "ref_image_id: is not an id"),
        (_with(audio_id="x" * 600), "audio_id: must be a string of at most"),
        (_with(audio_id="\udcff"), "audio_id: must be a string"),
        (_with(engine="nobody"), "nobody"),
        (_with(engine=["echo"]), "engine"),
        (_with(engine="echo", params=[1]), "params: must be an object"),
        (_with(engine="echo", ref_image_id=..., audio_id=..., params={"a": "/etc/shadow"}), "outside the allowed"),
        (_with(engine="fake", ref_image_id=..., audio_id=..., params={"doo": "echo"}), "unknown parameter"),
    ],
)
def test_a_bad_job_is_answered(rig: Rig, caller: Caller, job: dict[str, Any], reason: str) -> None:
    caller.raw(json.dumps(job))
    end = caller.end(job["task_id"])
    assert (end["status"], end["progress"]) == ("failed", 0.0)
    assert reason in end["error"]
    assert str(rig.world.folder) not in end["error"]
    assert end["message"] == end["error"]
    assert end["session_id"] == job.get("session_id", "")


def test_values_that_the_engine_does_not_take(rig: Rig, caller: Caller) -> None:
    task = caller.push(rig.store.face, rig.store.words("hello"), steps=0)
    assert caller.end(task)["error"] == "steps: 0 is less than the minimum of 1"


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[1]", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'"' + b"x" * 70_000 + b'"', b"{}"],
)
def test_rubbish_is_answered_too(caller: Caller, raw: bytes) -> None:
    before = len(caller.ends(""))
    caller.raw(raw)
    end = caller.end("", count=before + 1)
    assert end["status"] == "failed"
    assert end["error"]


def test_after_all_that_it_serves(rig: Rig, caller: Caller, gateway: RedisGateway) -> None:
    assert caller.end(caller.push(rig.store.face, rig.store.words("hello")))["status"] == "completed"
    assert "unexpected error" not in gateway.log()


def test_a_file_that_is_nowhere(rig: Rig, caller: Caller) -> None:
    """Neither in the store, nor is there a service at BASE_URL."""
    task = caller.push(str(uuid.uuid4()), rig.store.words("hello"))
    error = caller.end(task)["error"]
    assert error.startswith("ref_image_id: no file")
    assert "cannot be reached" in error
    assert any(message["status"] == "downloading" for message in caller.heard[task])


def test_a_failure_has_its_reason(rig: Rig, caller: Caller) -> None:
    end = caller.end(caller.push(rig.store.face, rig.store.words("broken"), seed=1))
    assert end["status"] == "failed"
    assert "the renderer broke" in end["error"]


def heard_by_another(rig: Rig, raw: str, task: str) -> list[str]:
    """The statuses that a client hears which knows no end but `completed` and `error`."""
    statuses: list[str] = []
    with rig.server.client() as client, client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe("task_progress")
        client.rpush("task_queue_gpu_0", raw)
        for item in channel.listen():
            message = json.loads(item["data"])
            if message["task_id"] == task:
                statuses.append(message["status"])
                if message["status"] in ("completed", "error"):
                    assert message["status"] == "completed" or message["error"]
                    return statuses
    raise AssertionError(statuses)


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("broken", {}),  # in the engine
        ("hello", {"ref_image_id": "../../etc/passwd"}),  # in the job
        ("hello", {"steps": 0}),  # in its parameters
        ("hello", {"engine": "nobody"}),
    ],
)
def test_a_client_that_waits_for_error_never_hangs(
    rig: Rig, gateway: RedisGateway, words: str, more: dict[str, Any]
) -> None:
    task = str(uuid.uuid4())
    files = {"ref_image_id": rig.store.face, "audio_id": rig.store.words(words)}
    raw = json.dumps({"task_id": task, "session_id": "s", **files, **more})
    assert heard_by_another(rig, raw, task)[-2:] == ["failed", "error"]
    with rig.server.client() as client:
        assert b'"failed"' in (client.get(f"task_progress:{task}") or b"")


def test_a_job_that_kills_its_worker_once(rig: Rig, caller: Caller) -> None:
    assert caller.end(caller.push(rig.store.face, rig.store.words("deadly")))["status"] == "completed"


def test_a_cancelled_job(rig: Rig, caller: Caller) -> None:
    task = caller.push(rig.store.face, rig.store.words("slow 60"))
    caller.until(task, lambda message: message["status"] == "face_detecting")
    rig.world.pool().cancel(task)
    assert "cancelled" in caller.end(task)["error"]


def test_the_same_task_is_the_same_job(rig: Rig, caller: Caller) -> None:
    face, words = rig.store.face, rig.store.words("slow 0.5")
    task = caller.push(face, words)
    caller.push(face, words, task_id=task)
    first = caller.end(task)
    wait_until(lambda: len(caller.redis.keys("task_queue_gpu_0:accepted:*")) == 0, "the second one's end")
    before = len(caller.ends(task))
    caller.push(face, words, task_id=task)
    again = caller.end(task, count=before + 1)
    assert again["status"] == "completed"
    assert rig.store.read(again["video_file_id"]) == rig.store.read(first["video_file_id"])
    assert rig.runs(task) == 1


def test_a_task_id_that_is_taken(rig: Rig, caller: Caller) -> None:
    task = caller.push(rig.store.face, rig.store.words("hello"))
    good = caller.end(task)
    caller.push(rig.store.face, rig.store.words("other words"), task_id=task)
    assert "other content" in caller.end(task, count=2)["error"]
    assert json.loads(caller.redis.get(f"task_progress:{task}")) == good


@pytest.mark.parametrize("task", ["任务-1", "a/b:c", "x" * 300, "../../etc", "-"])
def test_any_text_may_name_a_task(rig: Rig, caller: Caller, task: str) -> None:
    caller.push(rig.store.face, rig.store.words("hello"), task_id=task)
    assert caller.end(task)["status"] == "completed"


def test_an_end_that_nobody_heard_is_said_again(rig: Rig, gateway: RedisGateway) -> None:
    """A client that subscribes a moment too late."""
    task = str(uuid.uuid4())
    body = {"task_id": task, "session_id": "s", "engine": "echo", "params": {}}
    quiet = rig.another_server(persistent=False)
    rig.gateway(quiet).start()
    with quiet.client() as redis:
        redis.rpush("task_queue_gpu_0", json.dumps(body))
        wait_until(lambda: b"completed" in (redis.get(f"task_progress:{task}") or b""), "the end")
    assert rig.caller(quiet).end(task)["status"] == "completed"


def test_with_files_through_the_http_gateway(rig: Rig, caller: Caller) -> None:
    """Upload, push, download, as in the contract, with nothing but requests and redis."""
    http = Gateway(rig.world)
    try:
        base = http.start().base
        ids = []
        for name, content in (("face.png", FACE), ("speech.wav", b"RIFF\0\0\0\0WAVE hello")):
            answer = requests.post(f"{base}/api/tempfile/upload", files={"file": (name, content)}, timeout=40)
            assert answer.json()["success"] is True
            ids.append(answer.json()["file_id"])
        end = caller.end(caller.push(*ids))
        video = requests.get(f"{base}/api/tempfile/download/{end['video_file_id']}", timeout=40)
        assert video.content == VIDEO + FACE
        assert video.headers["Content-Type"] == "video/mp4"
        assert video.headers["Content-Disposition"] == 'inline; filename="face.mp4"'
    finally:
        http.kill()
