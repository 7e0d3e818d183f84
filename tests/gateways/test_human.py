"""POST /human/generate and GET /health, as a client written from the contract meets them."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
from scenarios.world import wait_until

from gateways.gateway import Gateway


def ask(gateway: Gateway, audio: bytes = b"speech", **more: Any) -> dict[str, Any]:
    """A request as the contract's clients make it."""
    name = uuid.uuid4().hex
    body = {
        "audio_path": gateway.file(f"{name}.wav", audio),
        "video_path": gateway.file(f"{name}.mp4", b"template"),
        "save_path": str(gateway.media / f"{name}.out.mp4"),
    }
    return {**body, **more}


def generate(gateway: Gateway, body: dict[str, Any]) -> requests.Response:
    return gateway.post("/human/generate", json=body)


def in_background(gateway: Gateway, body: dict[str, Any], answers: list[requests.Response]) -> threading.Thread:
    """A client that adds its answer; it has begun."""
    client = threading.Thread(target=lambda: answers.append(generate(gateway, body)))
    client.start()
    return client


def told(answer: requests.Response, status: int) -> dict[str, Any]:
    """The envelope of an answer, which says the same status again."""
    found: dict[str, Any] = answer.json()
    assert (answer.status_code, found["code"]) == (status, status), found
    return found


def test_a_video_is_made_and_the_answer_is_the_contracts(gateway: Gateway) -> None:
    body = ask(gateway)
    answer = requests.post(f"{gateway.base}/human/generate", json=body, timeout=60)
    assert answer.status_code == 200
    found = answer.json()
    task_id = found["data"]["task_id"]
    assert found == {"code": 200, "message": "success", "data": {"save_path": body["save_path"], "task_id": task_id}}
    assert str(uuid.UUID(task_id)) == task_id
    assert Path(body["save_path"]).read_bytes() == b"a video of template"


@pytest.mark.parametrize("marks", [(1, 0), (0, 1), ("1", "0"), (True, False)])
def test_the_marks_reach_the_engine(gateway: Gateway, marks: tuple[Any, Any]) -> None:
    answer = generate(gateway, ask(gateway, watermark=marks[0], digital_auth=marks[1]))
    job = gateway.result(answer.json()["data"]["task_id"]).json()
    assert job["value"]["marks"] == [int(marks[0]), int(marks[1])]


def test_the_same_task_is_the_same_job(gateway: Gateway) -> None:
    body = ask(gateway, audio=b"slow", task_id=f"mine-{uuid.uuid4()}")
    answers: list[requests.Response] = []
    for client in [in_background(gateway, body, answers) for _ in range(2)]:
        client.join()
    answers.append(generate(gateway, body))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["data"]["task_id"] for answer in answers} == {body["task_id"]}
    assert gateway.get(f"/jobs/{body['task_id']}").json()["attempt"] == 1
    assert body["task_id"] in told(generate(gateway, {**body, "watermark": 1}), 409)["message"]


def test_a_folder_gets_a_file_of_the_tasks_name(gateway: Gateway) -> None:
    body = ask(gateway, task_id=f"t{uuid.uuid4().hex}", save_path=f"{gateway.media}/")
    answer = generate(gateway, body).json()
    assert answer["data"]["save_path"] == f"{gateway.media}/{body['task_id']}.mp4"
    assert Path(answer["data"]["save_path"]).exists()


def test_failures_reach_the_caller_with_their_reason(gateway: Gateway) -> None:
    for audio, status, words in ((b"silent", 422, "record it again"), (b"broken", 502, "the renderer broke")):
        found = told(generate(gateway, ask(gateway, audio)), status)
        assert words in found["message"]
        assert gateway.get(f"/jobs/{found['data']['task_id']}").json()["state"] == "failed"


def test_a_cancelled_task_says_so(gateway: Gateway) -> None:
    body = ask(gateway, audio=b"slow", task_id=f"c{uuid.uuid4().hex}")
    answers: list[requests.Response] = []
    client = in_background(gateway, body, answers)
    wait_until(lambda: gateway.get(f"/jobs/{body['task_id']}").status_code == 200, "the job")
    assert gateway.call("DELETE", f"/jobs/{body['task_id']}").status_code == 202
    client.join()
    told(answers[0], 410)
    assert not Path(body["save_path"]).exists()


WRONG: list[tuple[str, Any, int, str]] = [
    ("audio_path", None, 400, "audio_path"),
    ("audio_path", 7, 400, "audio_path"),
    ("audio_path", "", 400, "audio_path"),
    ("audio_path", "speech.wav", 400, "not an absolute path"),
    ("audio_path", "{media}/absent.wav", 400, "no file"),
    ("audio_path", "{media}", 400, "not a regular file"),
    ("audio_path", "/etc/passwd", 403, "outside the allowed"),
    ("audio_path", "{media}/../config.json", 403, "outside the allowed"),
    ("audio_path", "{media}/link", 403, "outside the allowed"),
    ("audio_path", "{media}/a\0b", 400, "not a valid path"),
    ("audio_path", "{media}/" + "x" * 300, 400, "no file"),
    ("audio_path", "tempfile:none", 400, "no uploaded file"),
    ("video_path", "/dev/zero", 403, "outside the allowed"),
    ("save_path", "/tmp/out.mp4", 403, "outside the allowed"),
    ("save_path", "{media}/out/../../out.mp4", 403, "outside the allowed"),
    ("save_path", "{media}/absent/out.mp4", 400, "does not exist"),
    ("save_path", "{media}/.tempfiles/out.mp4", 403, "reserved for the pool"),
    ("save_path", "{media}", 400, "is a folder"),
    ("watermark", 2, 400, "watermark"),
    ("task_id", "../../x", 400, "task_id"),
    ("task_id", "", 400, "task_id"),
    ("surprise", 1, 400, "surprise"),
]


@pytest.mark.parametrize(("key", "value", "status", "words"), WRONG, ids=range(len(WRONG)))
def test_each_mistake_is_told(gateway: Gateway, key: str, value: Any, status: int, words: str) -> None:
    body = ask(gateway)
    link = gateway.media / "link"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    body[key] = value.replace("{media}", str(gateway.media)) if isinstance(value, str) else value
    if value is None:
        del body[key]
    found = told(generate(gateway, body), status)
    assert words in found["message"]
    assert found["data"] is None


def test_a_link_may_not_lead_out_for_writing(gateway: Gateway, tmp_path: Path) -> None:
    way = gateway.media / f"way{uuid.uuid4().hex}"
    way.symlink_to(tmp_path)
    answer = generate(gateway, ask(gateway, save_path=f"{way}/out.mp4"))
    assert answer.status_code == 403
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"null", {}, 400),
        (b"[]", {}, 400),
        (b"", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"audio_path": 1, "audio_path": 2}', {}, 400),
        (b'{"watermark": NaN}', {}, 400),
        (b'{"audio_path": "\\ud800"}', {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b" " * (2 << 20), {}, 413),
    ],
    ids=range(12),
)
def test_broken_bodies_are_told_in_the_envelope(
    gateway: Gateway, data: bytes, headers: dict[str, str], status: int
) -> None:
    answer = gateway.post("/human/generate", data=data, headers={"Content-Type": "application/json", **headers})
    assert told(answer, status)["message"]


def test_the_wrong_method_has_an_envelope_too(gateway: Gateway) -> None:
    told(gateway.get("/human/generate"), 405)


def test_health_is_ok_while_a_worker_works(gateway: Gateway) -> None:
    answer = gateway.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["service"] == "digital-human-service"
    assert gateway.get("/health", params={"engine": "echo"}).json()["status"] == "ok"
    assert gateway.get("/health", params={"engine": "No Engine"}).status_code == 400
    assert gateway.get("/health", params={"engine": "none"}).status_code == 404
