"""Routes say 503 and why when no worker can do what they ask for; what was accepted before is not lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from scenarios.world import World, passing, wait_until

from gateways.described import Described
from gateways.gateway import Gateway, configure, wav
from gateways.test_human import ask, generate

REASON = "ModuleNotFoundError: No module named 'half_installed'"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`lipsync`, `transcribe` and `fake` cannot be imported, `echo` can; nothing is tried again by itself."""
    with passing(tmp_path_factory.mktemp("unavailable")) as made:
        (made.folder / "mendable.py").write_text("import half_installed\n")
        configure(made)
        document = json.loads(made.config.read_text())
        for name in ("lipsync", "transcribe", "fake"):
            document["engines"][name] |= {"engine": "mendable:Fake", "pythonpath": [str(made.folder)], "bench_s": 600}
        made.config.write_text(json.dumps(document))
        made.serve(ready=1)
        wait_until(lambda: sum(slot["seat"] == "benched" for slot in made.status()["slots"]) >= 4, "the benches")
        yield made


@pytest.fixture(scope="module")
def gateway(world: World) -> Iterator[Gateway]:
    with Gateway(world, "--patience", "0.5") as gate:
        yield gate.start()


def unavailable(answer: requests.Response) -> str:
    """The message of a 503 that says what is wrong, and when to come back."""
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0
    body: Any = answer.json()
    message = str(body["error"]["message"] if "error" in body else body["message"])
    assert REASON in message
    assert "python -m pool recover" in message
    return message


def test_what_cannot_run_is_not_accepted(gateway: Gateway, world: World) -> None:
    before = world.held()
    answer = gateway.post("/jobs/fake", json={"params": {}})
    unavailable(answer)
    assert answer.json()["error"]["type"] == "EngineUnavailable"
    unavailable(generate(gateway, ask(gateway)))
    upload = {"files": {"file": ("talk.wav", wav())}, "data": {"model": "any"}}
    unavailable(gateway.post("/v1/audio/transcriptions", **upload))
    assert world.held() == before
    assert gateway.post("/jobs/echo", json={"params": {"a": 1}}).status_code == 202


def test_health_says_why(gateway: Gateway) -> None:
    for engine, status in (("lipsync", 503), ("echo", 200)):
        answer = gateway.get("/health", params={"engine": engine})
        assert answer.status_code == status
        assert (REASON in answer.json()["message"]) == (status == 503)


@pytest.mark.long
def test_what_waits_says_why_and_is_done_after_the_repair(gateway: Gateway, world: World) -> None:
    client = world.pool()
    job_id = client.submit("fake", id="waits", params={"value": 3}).id
    view = gateway.get(f"/jobs/{job_id}").json()
    assert view["state"] == "queued"
    assert REASON in view["message"]
    assert gateway.result(job_id, wait_s=0).status_code == 202
    message = unavailable(gateway.result(job_id))
    assert f"Job {job_id} is not lost" in message
    name, event_id, data = gateway.events(job_id)[-1]
    assert (name, event_id, data["id"], data["state"], data["engine"]) == ("unavailable", "", job_id, "queued", "fake")
    assert Described(gateway, "/jobs/{job_id}/events").faults(name, data) == []
    assert REASON in data["reason"]
    behind = client.submit("echo", id="behind", params={"value": 4}, depends_on=[job_id]).id
    for said in (gateway.get(f"/jobs/{behind}").json()["message"], unavailable(gateway.result(behind))):
        assert REASON in said
        assert f"(job {job_id}, whose end this one waits for, needs it)" in said
    name, _, data = gateway.events(behind)[-1]
    assert (name, data["state"], data["engine"]) == ("unavailable", "queued", "fake")
    again = gateway.post("/jobs/fake", json={"id": job_id, "params": {"value": 3}})
    assert (again.status_code, again.json()["id"]) == (202, job_id), "it is there already"
    (world.folder / "mendable.py").write_text("from inference.fake import Fake\n")
    for number in range(2):
        (world.spool / "run" / "control" / f"fake-{number}.recover").touch()
    wait_until(lambda: gateway.get("/health", params={"engine": "fake"}).status_code == 200, "a worker")
    found = gateway.result(job_id)
    assert (found.status_code, found.json()["value"]["value"]) == (200, 3)
    assert gateway.events(job_id)[-1][0] == "result"
    assert gateway.result(behind).json()["value"]["value"] == 4
