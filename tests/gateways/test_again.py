"""Requests that are asked again, after a restart, a time-out or a lost connection, find their job; and what waits when
the pool is down is told so."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from scenarios.world import World, kill, passing, wait_until

from gateways.engines import RESULT
from gateways.gateway import Gateway, configure, wav
from gateways.test_human import ask, generate, told

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with passing(tmp_path_factory.mktemp("again")) as made:
        configure(made, "fake", "lipsync", "transcribe", return_s=2)
        made.serve(ready=4)
        yield made


@pytest.fixture
def gate(world: World) -> Iterator[Gateway]:
    with Gateway(world, "--no-start", "--patience", "0.5") as made:
        yield made.start()


@pytest.fixture
def go(tmp_path: Path) -> Path:
    return tmp_path / "go"


class Client:
    """A request in a thread."""

    def __init__(self, gate: Gateway, path: str, **more: Any) -> None:
        self.answer: requests.Response | None = None
        self._thread = threading.Thread(target=self._ask, args=(gate.base + path, more), daemon=True)
        self._thread.start()

    def _ask(self, url: str, more: dict[str, Any]) -> None:
        self.answer = requests.post(url, timeout=60, **more)

    def wait(self) -> requests.Response:
        self._thread.join(60)
        assert self.answer is not None
        return self.answer


class Sent:
    """A request that is sent and whose answer nobody has read, until its client leaves."""

    def __init__(self, gate: Gateway, method: str, path: str, **more: Any) -> None:
        about = requests.Request(method, gate.base + path, **more).prepare()
        host = urlsplit(gate.base)
        self._connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
        self._connection.request(method, about.path_url, body=about.body, headers=dict(about.headers))

    def leave(self) -> None:
        self._connection.close()

    def status(self) -> int:
        with contextlib.closing(self._connection), self._connection.getresponse() as answer:
            return answer.status


def speech(text: str, **headers: str) -> dict[str, Any]:
    return {
        "files": {"file": ("talk.wav", wav(1.0) + text.encode())},
        "data": {"model": "any", "prompt": text},
        "headers": headers,
    }


def jobs(world: World, engine: str) -> set[str]:
    return {job.id for job in world.pool().jobs(engine=engine, limit=1000)}


def begun(world: World, engine: str, before: set[str]) -> str:
    """The id of the job that a request has made, when it runs."""
    pool = world.pool()

    def look() -> str:
        new = {job.id for job in pool.jobs(engine=engine, state="running")} - before
        return new.pop() if new else ""

    return wait_until(look, "a job that runs")


def made(world: World, engine: str, before: set[str]) -> str:
    """The id of the job that a request has made, in whatever state it is by now."""
    return wait_until(lambda: next(iter(jobs(world, engine) - before), ""), "a job")


def lipsync(gate: Gateway, go: Path, **more: Any) -> dict[str, Any]:
    return ask(gate, audio=f"until {go}".encode(), **more)


@pytest.mark.parametrize("key", ["", "k-1"])
def test_a_restart_while_clients_wait(world: World, gate: Gateway, go: Path, key: str) -> None:
    headers = {"Idempotency-Key": key + go.parent.name} if key else {}
    videos, texts = jobs(world, "lipsync"), jobs(world, "transcribe")
    body, talk = lipsync(gate, go), speech(f"until {go}", **headers)
    clients = [Client(gate, "/human/generate", json=body, headers=headers)]
    clients.append(Client(gate, "/v1/audio/transcriptions", **talk))
    ids = [begun(world, "lipsync", videos), begun(world, "transcribe", texts)]
    assert gate.stop() == 0
    first, second = clients[0].wait(), clients[1].wait()
    assert int(first.headers["Retry-After"]) > 0
    assert int(second.headers["Retry-After"]) > 0
    assert "send the same request again" in told(first, 503)["message"]
    assert (second.status_code, second.json()["error"]["type"]) == (503, "server_error")
    assert [first.headers["X-Job-Id"], second.headers["X-Job-Id"]] == ids
    assert "Traceback" not in gate.log()
    gate.start()
    go.touch()
    again = gate.post("/human/generate", json=body, headers=headers)
    assert told(again, 200)["data"]["task_id"] == ids[0]
    heard = gate.post("/v1/audio/transcriptions", **talk)
    assert (heard.status_code, heard.headers["X-Job-Id"], heard.headers["X-Request-Id"]) == (200, ids[1], ids[1])
    assert (jobs(world, "lipsync") - videos, jobs(world, "transcribe") - texts) == ({ids[0]}, {ids[1]})


@pytest.mark.long
def test_an_upload_in_the_middle_of_a_restart(gate: Gateway) -> None:
    """The client is still sending when the gateway ends."""
    about = urlsplit(gate.base)
    connection = http.client.HTTPConnection(about.hostname or "", about.port, timeout=60)
    connection.putrequest("POST", "/v1/audio/transcriptions")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", "100000")
    connection.endheaders()
    connection.send(b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav(0.1))
    wait_until(lambda: gate.get("/health").status_code == 200, "a gateway that has read it")
    assert gate.stop() == 0
    with contextlib.closing(connection), connection.getresponse() as answer:
        assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
        assert "send the same request again" in json.loads(answer.read())["error"]["message"]
    assert "Traceback" not in gate.log()


def test_an_sdk_that_gives_up_and_tries_again_meets_its_job(world: World, gate: Gateway, go: Path) -> None:
    import openai

    texts = jobs(world, "transcribe")
    asks, tries = gate.media / ".tempfiles" / "asks", list[object]()
    before = set(asks.iterdir())
    web = openai.DefaultHttpxClient(event_hooks={"request": [tries.append]})
    with openai.OpenAI(
        base_url=f"{gate.base}/v1", api_key="any", max_retries=5, timeout=1.0, http_client=web
    ) as client:
        answers: list[Any] = []

        def call() -> None:
            raw = client.audio.transcriptions.with_raw_response
            answers.append(raw.create(model="any", file=("talk.wav", wav()), prompt=f"until {go}"))

        caller = threading.Thread(target=call)
        caller.start()
        job_id = begun(world, "transcribe", texts)
        wait_until(lambda: len(tries) >= 3, "the third try")
        go.touch()
        caller.join(60)
    assert answers[0].headers["X-Job-Id"] == job_id
    assert answers[0].parse().text == RESULT["text"]
    assert jobs(world, "transcribe") - texts == {job_id}
    wait_until(lambda: set(asks.iterdir()) == before, "nothing to remember")


def test_a_client_that_does_not_return_cancels_its_job(world: World, gate: Gateway, go: Path) -> None:
    texts = jobs(world, "transcribe")
    client = Sent(gate, "POST", "/v1/audio/transcriptions", **speech(f"until {go}"))
    job_id = made(world, "transcribe", texts)
    client.leave()
    wait_until(lambda: gate.get(f"/jobs/{job_id}").json()["state"] == "cancelled", "its end")
    left = gate.media / ".tempfiles"
    wait_until(lambda: not [path for path in left.iterdir() if path.is_file()], "no upload")


@pytest.mark.long
def test_a_job_that_somebody_else_follows_goes_on(world: World, gate: Gateway, go: Path) -> None:
    texts = jobs(world, "transcribe")
    client = Sent(gate, "POST", "/v1/audio/transcriptions", **speech(f"until {go}"))
    job_id = made(world, "transcribe", texts)
    follower = Sent(gate, "GET", f"/jobs/{job_id}/result", params={"wait_s": 6})
    client.leave()
    assert follower.status() == 202  # three times as long as its client may take
    go.touch()
    assert gate.result(job_id).json()["state"] == "completed"


def test_the_same_request_after_its_answer_is_a_new_job(world: World, gate: Gateway) -> None:
    ids = [gate.post("/v1/audio/transcriptions", **speech("same")).headers["X-Job-Id"] for _ in range(2)]
    assert len(set(ids)) == 2
    body = ask(gate)
    assert len({told(generate(gate, body), 200)["data"]["task_id"] for _ in range(2)}) == 2


def test_an_idempotency_key_lasts_and_belongs_to_one_request(world: World, gate: Gateway) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first, second = (gate.post("/v1/audio/transcriptions", **speech("one", **key)) for _ in range(2))
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    other = gate.post("/v1/audio/transcriptions", **speech("two", **key))
    taken = "Idempotency-Key: belongs to another request, that of job "
    assert (other.status_code, other.json()["error"]["message"].startswith(taken)) == (409, True), other.text
    body = ask(gate)
    ids = {told(gate.post("/human/generate", json=body, headers=key), 200)["data"]["task_id"] for _ in range(2)}
    assert len(ids) == 1
    changed = gate.post("/human/generate", json={**body, "watermark": 1}, headers=key)
    assert told(changed, 409)["message"].startswith(taken)
    made = {gate.post("/jobs/fake", json={"params": {"value": 1}}, headers=key).json()["id"] for _ in range(2)}
    assert len(made) == 1
    changed = gate.post("/jobs/fake", json={"params": {"value": 2}}, headers=key)
    assert (changed.status_code, changed.json()["error"]["message"].startswith(taken)) == (409, True), changed.text


@pytest.mark.long
def test_every_route_that_waits_says_that_the_pool_is_down(tmp_path: Path, go: Path) -> None:
    """Supervisor and workers are gone, with a job running and one waiting on each route."""
    with passing(tmp_path) as world:
        configure(world, "fake", "lipsync", "transcribe")
        world.serve(ready=4)
        with Gateway(world, "--no-start", "--patience", "1") as gate:
            gate.start()
            job_id = gate.submit(do="sleep", seconds=60)
            clients = [
                Client(gate, "/human/generate", json=lipsync(gate, go)),
                Client(gate, "/human/generate", json=lipsync(gate, go)),
                Client(gate, "/v1/audio/transcriptions", **speech(f"until {go}")),
                Client(gate, "/v1/audio/transcriptions", **speech(f"until {go}x")),
            ]
            wait_until(lambda: len(jobs(world, "lipsync") | jobs(world, "transcribe")) == 4, "all jobs")
            begun(world, "lipsync", set())
            begun(world, "transcribe", set())
            begun(world, "fake", set())
            for process in world.serving:
                process.kill()
                process.wait(20)
            for pid in world.processes():
                kill(pid)
            answers = [client.wait() for client in clients] + [gate.result(job_id)]
            answers.append(gate.post("/v1/audio/transcriptions", **speech("more")))
            answers.append(generate(gate, ask(gate)))
            for answer in answers:
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["Retry-After"]) > 0
                assert "python -m pool serve" in answer.text
