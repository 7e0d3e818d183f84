"""The ways into a pool, in front of a cluster: HTTP, Redis, files, the command line. None of them knows of clusters."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
from gateways.engines import RESULT
from gateways.gateway import PNG, Gateway, staged, wav
from gateways.redis_rig import Caller, RedisGateway, Server
from gateways.talker import VIDEO
from scenarios.world import ROOT, World, wait_until

from cluster.machines import LEASE_S, Cluster, cluster
from cluster.rig import Servers, free_ports
from pool import AsyncFilePool, FilePool
from pool.cluster.nats_server import Passwords
from pool.job import JobState

TESTS = {"pythonpath": [str(ROOT / "tests")]}
ENGINES: dict[str, Any] = {
    "fake": {"retry_times": 1},
    "echo": {"engine": "inference.fake:Echo"},
    "lipsync": {"engine": "gateways.engines:Lipsync", "max_concurrent_tasks": 1, "retry_times": 0, **TESTS},
    "transcribe": {"engine": "gateways.engines:Transcribe", "max_concurrent_tasks": 1, **TESTS},
    "portrait": {"engine": "gateways.talker:Talker", "max_concurrent_tasks": 1, **TESTS},
}


def place(config: Path, folder: Path | None = None) -> World:
    """Where a gateway of a branch keeps its files and log."""
    folder = folder or config.parent
    return cast("World", SimpleNamespace(folder=folder, config=config, spool=config.parent / "spool"))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, and a branch that knows of them."""
    folder = tmp_path_factory.mktemp("doors")
    with Servers(folder / "nats") as servers, cluster(folder / "machines", servers.url) as found:
        found.node("one", {name: ENGINES[name] for name in ("fake", "transcribe", "portrait")})
        found.node("two", {name: ENGINES[name] for name in ("fake", "echo", "lipsync")})
        with found.pool():
            found.wait_nodes("one", "two")
            yield found


@pytest.fixture(scope="module")
def gateway(joined: Cluster) -> Iterator[Gateway]:
    """A gateway on the branch of the client."""
    with Gateway(place(joined.branch())) as gate:
        gate.start()
        wait_until(lambda: len(gate.get("/engines").json()["engines"]) == len(ENGINES), "all engines")
        yield gate


@pytest.fixture(scope="module")
def elsewhere(joined: Cluster) -> Iterator[Gateway]:
    """Another machine: a gateway on a branch of its own, named by the address."""
    folder = joined.folder / "branches-elsewhere"
    joined.branch("elsewhere")  # ended with the others
    address = cast("Path", f"{joined.url}?lease_s={LEASE_S}")
    where = cast("World", SimpleNamespace(folder=folder, config=address))
    with Gateway(where, env={"FILEPOOL_BRANCHES": str(folder)}) as gate:
        yield gate.start()


def branch_spool(joined: Cluster) -> Path:
    return joined.branch().parent / "spool"


# ---- HTTP


def test_a_job_from_submit_to_result(gateway: Gateway) -> None:
    answer = gateway.post("/jobs/fake", json={"params": {"value": {"a": [1, None]}}, "tags": ["door"], "note": "n"})
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    found = gateway.result(job_id)
    assert (found.status_code, found.json()["value"]["value"]) == (200, {"a": [1, None]})
    view = gateway.get(f"/jobs/{job_id}").json()
    assert (view["state"], view["note"]) == ("completed", "n")
    assert view["created"] <= view["started"] <= view["finished"]
    assert [job["id"] for job in gateway.get("/jobs", params={"tag": "door"}).json()["jobs"]] == [job_id]
    wrong = gateway.post("/jobs/fake", json={"params": {"valu": 1}})
    assert (wrong.status_code, wrong.json()["error"]["path"]) == (422, "params.valu")
    outside = gateway.post("/jobs/fake", json={"params": {"audio": "/etc/passwd"}})
    assert (outside.status_code, outside.json()["error"]["path"]) == (403, "params.audio")


def test_what_runs_and_its_cancel(gateway: Gateway) -> None:
    job_id = gateway.submit(do="sleep", seconds=600)
    wait_until(lambda: gateway.get(f"/jobs/{job_id}").json()["status"] == "inference", "progress")
    assert gateway.get(f"/jobs/{job_id}").json()["state"] == "running"
    pending = gateway.result(job_id, wait_s=0.2)
    assert (pending.status_code, pending.json()["state"]) == (202, "running")
    assert job_id in {job["id"] for job in gateway.get("/jobs", params={"state": "running"}).json()["jobs"]}
    assert gateway.call("DELETE", f"/jobs/{job_id}").status_code == 202
    over = gateway.result(job_id)
    assert (over.status_code, over.json()["error"]["data"]["state"]) == (410, "cancelled")


def test_a_failure_is_run_again_and_a_job_with_changes(gateway: Gateway) -> None:
    job_id = gateway.submit(do="raise", value="broken pipe organ")
    answer = gateway.result(job_id)
    assert answer.status_code == 502
    assert "broken pipe organ" in answer.json()["error"]["message"]
    assert len(answer.json()["error"]["data"]["failure"]["attempts"]) == 2
    again = gateway.post(f"/jobs/{job_id}/retry")
    assert (again.status_code, again.json()["id"]) == (202, job_id)
    assert gateway.result(job_id).status_code == 502
    answer = gateway.post(f"/jobs/{job_id}/rerun", json={"params": {"do": "echo", "value": "new"}})
    assert answer.status_code == 202, answer.text
    result = gateway.result(answer.json()["id"]).json()
    assert (result["value"]["value"], result["rerun_of"]) == ("new", job_id)


def test_events(gateway: Gateway) -> None:
    """Progress and partial results, as they come; the result at last."""
    found = gateway.events(gateway.submit(do="partials", seconds=0.3))
    parts = [(event_id, data["record"]["number"]) for name, event_id, data in found if name == "partial"]
    assert parts == [(f"1.{number + 1}", number) for number in range(5)]
    assert (found[-1][0], found[-1][2]["state"]) == ("result", "completed")
    found = gateway.events(gateway.submit(do="sleep", seconds=1.5))
    words = [data for name, _, data in found if name in ("status", "progress")]
    assert "inference" in {word["status"] for word in words}
    assert len({word["percent"] for word in words}) > 2
    staged(found[-1][2])


def test_an_upload_travels_and_files_come_back(gateway: Gateway) -> None:
    sound, face = (
        gateway.post("/api/tempfile/upload", files={"file": file}).json()["file_id"]
        for file in (("a.wav", wav()), ("b.png", PNG))
    )
    params = {"audio": f"tempfile:{sound}", "video": f"tempfile:{face}", "output": "talk.mp4"}
    answer = gateway.result(gateway.submit("lipsync", **params))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["value"]["output"] == str(gateway.media / "talk.mp4")
    assert gateway.get(found["files"][0]["url"]).content == b"a video of " + PNG[:10]
    assert (gateway.media / "talk.mp4").read_bytes() == b"a video of " + PNG[:10]
    job_id = gateway.submit(do="write", mb=3)
    entry = gateway.result(job_id).json()["files"][0]
    assert (entry["name"], entry["size"]) == ("written.bin", 3 << 20)
    assert gateway.get(entry["url"], headers={"Range": "bytes=0-3"}).content == b"xxxx"


def test_human_generate(gateway: Gateway) -> None:
    body = {"audio_path": gateway.file("talk.wav", b"hello"), "video_path": gateway.file("face.mp4", b"face")}
    answer = gateway.post("/human/generate", json={**body, "save_path": f"{gateway.media}/human.mp4"})
    assert answer.status_code == 200, answer.text
    assert (gateway.media / "human.mp4").read_bytes() == b"a video of face"
    Path(body["audio_path"]).write_bytes(b"silent")
    answer = gateway.post("/human/generate", json={**body, "save_path": f"{gateway.media}/none.mp4"})
    assert "there is no speech in it" in answer.text
    assert not (gateway.media / "none.mp4").exists()


def test_transcriptions(gateway: Gateway) -> None:
    upload = {"files": {"file": ("talk.wav", wav())}, "data": {"model": "any"}}
    assert gateway.post("/v1/audio/transcriptions", **upload).json()["text"] == RESULT["text"]


def test_health_engines_metrics_and_what_the_console_shows(gateway: Gateway) -> None:
    assert gateway.get("/health").status_code == 200
    engines = {about["name"]: about["workers"] for about in gateway.get("/engines").json()["engines"]}
    assert engines == {"fake": 4, "echo": 2, "lipsync": 1, "transcribe": 1, "portrait": 1}
    status = gateway.get("/status").json()
    assert {node["name"] for node in status["nodes"]} == {"one", "two"}
    metrics = gateway.get("/metrics").text.splitlines()
    assert {"filepool_nodes 2.0", "filepool_cluster_connected 1.0"} <= set(metrics)
    assert gateway.get("/", headers={"Accept": "text/html"}).status_code == 200


@pytest.mark.long
def test_a_job_is_found_from_another_machine(gateway: Gateway, elsewhere: Gateway) -> None:
    job_id = gateway.submit(do="write", mb=1)
    assert gateway.result(job_id).status_code == 200
    found = elsewhere.result(job_id)
    assert found.status_code == 200, found.text
    entry = found.json()["files"][0]
    assert elsewhere.get(entry["url"]).content == b"x" * (1 << 20)
    assert elsewhere.get(f"/jobs/{job_id}").json()["state"] == "completed"
    running = gateway.submit(do="sleep", seconds=600)
    wait_until(lambda: gateway.get(f"/jobs/{running}").json()["state"] == "running", "a worker is at it")
    assert elsewhere.get(f"/jobs/{running}").json()["engine"] == "fake"
    assert elsewhere.call("DELETE", f"/jobs/{running}").status_code == 202
    for gate in (gateway, elsewhere):
        assert gate.result(running).status_code == 410
    assert elsewhere.get("/jobs/never-submitted").status_code == 404
    assert elsewhere.get("/jobs/never-submitted/result", params={"wait_s": 0.1}).status_code == 404


# ---- Redis


@pytest.mark.long
def test_redis(joined: Cluster, gateway: Gateway, tmp_path: Path) -> None:
    """Files of the store that the HTTP gateway keeps go to the node, and the video comes back into it."""
    server = Server(tmp_path / "redis").start()
    where = place(joined.branch())
    gate = RedisGateway(where, server, MEDIA_ROOT=str(gateway.media))
    caller: Caller | None = None
    try:
        gate.start()
        caller = Caller(server)
        face, words = (
            gateway.post("/api/tempfile/upload", files={"file": file}).json()["file_id"]
            for file in (("a.png", PNG), ("b.wav", wav()))
        )
        store = gateway.media / ".tempfiles"
        (sound,) = store.glob(f"{words}*.wav")
        sound.write_text("slow 4")  # what it is doing is told now and then
        task = caller.push(face, words, engine="portrait")
        end = caller.end(task)
        assert end["status"] == "completed", end
        assert gateway.get(f"/api/tempfile/download/{end['video_file_id']}").content == VIDEO + PNG
        assert {"processing", "inference", "completed"} <= {message["status"] for message in caller.heard[task]}
        sound.write_text("broken")
        assert "the renderer broke" in json.dumps(caller.end(caller.push(face, words, engine="portrait")))
    except redis.RedisError:
        print(gate.log())
        raise
    finally:
        if caller is not None:
            caller.close()
        gate.kill()
        server.kill()


# ---- Python, the command line, files


def command(joined: Cluster, *words: str, code: int | None = 0, module: str = "pool", **more: Any) -> Any:
    """What a command prints."""
    env = {**os.environ, "FILEPOOL_BRANCHES": str(joined.branch().parents[1])}
    argv = [sys.executable, "-m", module, *words, "--config", f"{joined.url}?lease_s={LEASE_S}"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, **more)
    assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.long
def test_commands(joined: Cluster, tmp_path: Path) -> None:
    sound, wish = tmp_path / "talk.wav", tmp_path / "made.bin"
    sound.write_bytes(wav())
    said = command(joined, "transcribe", f"audio={sound}", "language=de", "--json", module="pool.submit")
    assert json.loads(said.stdout)["value"]["language"] == "de"
    command(joined, "fake", "do=write", f"output={wish}", module="pool.submit")
    assert wish.read_bytes() == b"x" * 11
    said = command(joined, "fake", "do=sleep", "seconds=600", "--no-wait", "--json", module="pool.submit")
    job_id = json.loads(said.stdout)["id"]
    assert job_id in {job["id"] for job in json.loads(command(joined, "jobs", "--json").stdout)["jobs"]}
    command(joined, "cancel", job_id)
    said = command(joined, "result", job_id, "--json", code=None)
    assert "cancelled" in said.stdout + said.stderr
    status = json.loads(command(joined, "status", "--json").stdout)
    assert {node["name"] for node in status["nodes"]} == {"one", "two"}
    shown = command(joined, "status").stdout
    assert "one" in shown
    assert "two" in shown
    assert "transcribe" in command(joined, "engines").stdout
    wrong = command(joined, "transcribe", "audio=/nowhere.wav", code=None, module="pool.submit")
    assert wrong.returncode != 0
    assert "nowhere.wav" in wrong.stderr


@pytest.mark.long
def test_a_dropped_file(joined: Cluster, tmp_path: Path) -> None:
    sound, spool = tmp_path / "talk.wav", branch_spool(joined)
    sound.write_bytes(wav())
    body = {"engine": "transcribe", "params": {"audio": str(sound)}}
    (spool / "in" / ".dropped").write_text(json.dumps(body))
    (spool / "in" / ".dropped").rename(spool / "in" / "dropped.json")
    wait_until((spool / "out" / "dropped.json").exists, "its result")
    assert json.loads((spool / "out" / "dropped.json").read_text())["value"]["text"] == RESULT["text"]


@pytest.mark.long
def test_a_session_on_an_event_loop(joined: Cluster) -> None:
    async def main() -> list[Any]:
        async with AsyncFilePool(joined.branch()) as pool:
            first = await pool.submit("echo", a=1)
            second = await pool.submit("echo", b=(await first)["a"])
            return [await first, await second]

    assert asyncio.run(main()) == [{"a": 1}, {"b": 1}]
    with FilePool(joined.branch()) as pool, pool.session(tags=["doors"], params={"fake": {"value": 5}}) as session:
        jobs = session.map("fake", [{}] * 3)
        assert [one["value"] for one in jobs] == [5] * 3


# ---- nobody answers


@pytest.mark.long
def test_no_server_at_all(tmp_path: Path) -> None:
    """The address is wrong, or nobody serves there: said at once, and nothing waits for it."""
    (port,) = free_ports(1)
    joined = Cluster(tmp_path, f"nats://127.0.0.1:{port}")
    try:
        with Gateway(place(joined.branch())) as gate:
            gate.start()
            wait_until(lambda: gate.post("/jobs/fake", json={"params": {}}).status_code == 503, "a refusal")
            answer = gate.post("/jobs/fake", json={"params": {}})
            assert "the cluster does not answer" in answer.json()["error"]["message"], answer.text
            assert str(port) in answer.json()["error"]["message"]
            wait_until(lambda: "does not answer" in gate.get("/health").text, "the reason")  # a status is cached
            assert gate.get("/health").status_code == 503
            assert gate.get("/status").status_code == gate.get("/jobs").status_code == 200
            assert gate.get("/jobs/never-submitted", timeout=30).status_code in {404, 503}
            body = {"audio_path": gate.file("a.wav", b"x"), "video_path": gate.file("b.mp4"), "save_path": "c.mp4"}
            assert gate.post("/human/generate", json=body).status_code == 503
            upload = {"files": {"file": ("talk.wav", wav())}, "data": {"model": "any"}}
            assert gate.post("/v1/audio/transcriptions", **upload).status_code == 503
            said = command(joined, "fake", "value=1", code=None, module="pool.submit")
            assert said.returncode != 0
            assert "does not answer" in said.stderr, said.stderr
            assert "does not answer" in command(joined, "status", code=None).stdout
    finally:
        joined.close()


@pytest.mark.long
def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    with Servers(tmp_path / "nats") as servers, cluster(tmp_path / "machines", servers.url) as joined:
        joined.node("one")
        with Gateway(place(joined.branch())) as gate:
            gate.start()
            joined.wait_nodes("one")
            job_id = gate.submit(do="sleep", seconds=2, value="through it")
            wait_until(lambda: gate.get(f"/jobs/{job_id}").json()["state"] == "running", "a worker is at it")
            servers.kill()
            wait_until(lambda: gate.post("/jobs/fake", json={"params": {}}).status_code == 503, "a refusal")
            assert gate.get(f"/jobs/{job_id}").json()["state"] == "running"
            wait_until(lambda: "filepool_cluster_connected 0.0" in gate.get("/metrics").text, "a metric")  # cached
            servers.start()
            assert gate.result(job_id).status_code == 200
            wait_until(lambda: gate.post("/jobs/fake", json={"params": {}}).status_code == 202, "it takes jobs again")
            assert joined.pool().state(job_id) is JobState.COMPLETED


@pytest.mark.long
def test_commands_of_the_cluster_end_without_a_server() -> None:
    """They say why within their patience, and do not wait for ever."""
    (port,) = free_ports(1)
    for verb in ("status", "setup"):
        argv = [sys.executable, "-m", "pool.cluster", verb, "--server", f"nats://127.0.0.1:{port}"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done.stderr
        assert f"the cluster at nats://127.0.0.1:{port} does not answer" in done.stderr
        assert "Connect call failed" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_wrong_password_is_said_in_words(tmp_path: Path) -> None:
    passwords = Passwords(admin="right-admin", client="right-client", node="right-node")
    wrong = tmp_path / "wrong.password"
    wrong.write_text("wrong\n")
    wrong.chmod(0o600)
    with Servers(tmp_path / "nats", passwords=passwords) as servers:
        argv = [sys.executable, "-m", "pool.cluster", "status", "--server", servers.url]
        for more in ([], ["--user", "client", "--password-file", str(wrong)]):
            done = subprocess.run([*argv, *more], cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1, done.stderr
            assert "it refuses this user or password" in done.stderr
