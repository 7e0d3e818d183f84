"""A gateway that is killed takes nothing along: what it accepted ends with a result that another one hands out."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import requests
from scenarios.world import World, alive, kill, wait_until

from gateways.gateway import Gateway, configure, wav


@pytest.mark.long
def test_kill_9_of_the_gateway_in_the_middle_loses_nothing(world: World) -> None:
    configure(world, "fake", "lipsync")
    world.serve(ready=3)
    with Gateway(world).start() as gate:
        accepted: set[str] = set()
        cut = threading.Event()

        def client() -> None:
            with requests.Session() as session:
                while not cut.is_set():
                    try:
                        body = {"params": {"do": "sleep", "seconds": 0.02}}
                        answer = session.post(f"{gate.base}/jobs/fake", json=body, timeout=20)
                    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                        return
                    accepted.add(answer.json()["id"])

        clients = [threading.Thread(target=client) for _ in range(4)]
        for thread in clients:
            thread.start()
        go = world.folder / "go"
        words = gate.file("a.wav", b"until %s" % bytes(go))
        body = {"audio_path": words, "video_path": gate.file("b.mp4"), "task_id": "task-1"}
        body["save_path"] = str(gate.media / "out.mp4")
        failures: list[Exception] = []

        def generate() -> None:
            try:
                gate.post("/human/generate", json=body)
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                failures.append(error)

        waiting = threading.Thread(target=generate)
        waiting.start()
        wait_until(lambda: len(accepted) >= 40 and world.state("task-1") is not None, "jobs")
        gate.kill()
        cut.set()
        for thread in (*clients, waiting):
            thread.join()
        assert failures  # the client was cut off in the middle
        go.touch()
        gate.start()
        for job_id in accepted:
            assert gate.result(job_id).json()["state"] == "completed"
        again = gate.post("/human/generate", json=body)  # the same task is the same job
        assert again.json()["data"] == {"save_path": body["save_path"], "task_id": "task-1"}
        assert gate.get("/jobs/task-1").json()["attempt"] == 1
        assert Path(body["save_path"]).exists()


@pytest.mark.long
def test_a_gateway_brings_its_own_pool_and_the_next_one_goes_on_with_it(world: World) -> None:
    configure(world, "fake")
    with Gateway(world).start() as gate:
        wait_until(lambda: gate.get("/health").json()["status"] == "ok", "a pool that works")
        job_id = gate.submit(do="sleep", seconds=1)
        waits = gate.submit(value=1)
        gate.kill()
        gate.start()
        assert gate.result(job_id).json()["state"] == "completed"
        assert gate.result(waits).json()["value"]["value"] == 1
        # RACE: the first supervisor may end after its last client, when the next one has come: a job needs another
        assert gate.result(gate.submit(value=2)).json()["value"]["value"] == 2
        supervisor = world.supervisor()
        assert supervisor is not None
        assert gate.stop() == 0
        wait_until(lambda: not supervisor.alive(), "the end of the pool with its last client")


def test_health_tells_the_truth_about_workers(world: World) -> None:
    configure(world, "echo", "lipsync")
    with Gateway(world, "--no-start").start() as gate:
        answer = gate.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "down")
        assert answer.json()["message"]
        world.serve(ready=2)
        wait_until(lambda: gate.get("/health").status_code == 200, "health")
        worker = next(pid for pid, name in world.processes().items() if name.startswith("lipsync"))
        document = world.config.read_text().replace("gateways.engines:Lipsync", "gateways.engines:Gone")
        world.config.write_text(document)
        world.kill_supervisor()
        kill(worker)
        wait_until(lambda: not alive(worker), "its death")
        wait_until(lambda: gate.get("/health").status_code == 503, "the truth")
        assert gate.get("/health", params={"engine": "echo"}).status_code == 200


def loading(world: World, **top: int) -> None:
    """One engine whose workers load for long: jobs are accepted, and wait."""
    configure(world, "fake")
    document = json.loads(world.config.read_text())
    document["engines"]["fake"]["options"] = {"load_s": 600}
    world.config.write_text(json.dumps({**document, **top}))
    world.serve()
    wait_until(world.beats, "a worker that loads")


def test_a_queue_that_is_full_says_when_to_come_back(world: World) -> None:
    loading(world, max_ready=3)
    with Gateway(world, "--no-start").start() as gate:
        statuses = [gate.post("/jobs/fake", json={}).status_code for _ in range(6)]
        assert statuses == [202] * 3 + [503] * 3
        refused = gate.post("/jobs/fake", json={})
        assert int(refused.headers["Retry-After"]) > 0
        assert "max_ready is 3" in refused.json()["error"]["message"]
        assert gate.get("/jobs").json()["total"] == 3


def test_a_disk_without_room_takes_nothing_in(world: World) -> None:
    loading(world, min_free_mb=10**9)
    with Gateway(world, "--no-start").start() as gate:
        upload = gate.post("/api/tempfile/upload", files={"file": ("a.wav", wav())})
        assert (upload.status_code, upload.json()["success"]) == (503, False)
        assert "not enough" in upload.json()["message"]
        refused = gate.post("/jobs/fake", json={})
        assert refused.status_code == 503
        assert "min_free_mb" in refused.json()["error"]["message"]
        for answer in (upload, refused):
            assert int(answer.headers["Retry-After"]) > 0
        shown = gate.get("/jobs").json()
        assert (shown["jobs"], shown["total"]) == ([], 0)
