"""The clients of today's services, written from their contracts alone, run unchanged against one pool.

Each is a program of its own that knows no package of ours; only addresses come from its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.world import ENGINE, ROOT, TOP, World, passing, wait_until

from gateways.engines import RESULT
from gateways.gateway import PNG, Gateway, wav
from gateways.redis_rig import RedisGateway, Server
from gateways.talker import VIDEO

pytestmark = pytest.mark.long

DIGITAL_HUMAN = """
import os, sys, requests

base, audio, video, out = os.environ["BASE"], *sys.argv[1:]
assert requests.get(f"{base}/health").json()["status"] == "ok"
assert requests.get(f"{base}/health").json()["service"] == "digital-human-service"
answer = requests.post(f"{base}/human/generate", json={"audio_path": audio, "video_path": video, "save_path": out})
body = answer.json()
assert body["code"] == 200 and body["message"] == "success", body
assert body["data"]["save_path"] == out and len(body["data"]["task_id"]) == 36, body
assert os.path.getsize(out)
wrong = {"audio_path": "/no/such.wav", "video_path": video, "save_path": out}
answer = requests.post(f"{base}/human/generate", json=wrong)
assert answer.json()["code"] != 200 and answer.json()["message"], answer.text
"""

PORTRAIT = """
import json, os, sys, uuid, redis, requests

base = os.environ["BASE_URL"]
client = redis.Redis(host=os.environ["REDIS_HOST"], port=int(os.environ["REDIS_PORT"]))

def upload(name):
    with open(name, "rb") as stream:
        answer = requests.post(f"{base}/api/tempfile/upload", files={"file": (os.path.basename(name), stream)}).json()
    assert answer["success"] is True and answer["original_name"] == os.path.basename(name), answer
    return answer["file_id"]

task = str(uuid.uuid4())
channel = client.pubsub()
channel.subscribe("task_progress")
job = {"task_id": task, "session_id": "s", "ref_image_id": upload(sys.argv[1]), "audio_id": upload(sys.argv[2])}
client.rpush("task_queue_gpu_0", json.dumps({**job, "steps": 25, "cfg": 2.5, "seed": 7}))
known = {"processing", "downloading", "face_detecting", "inference", "merging_audio", "completed", "failed"}
for item in channel.listen():
    if item["type"] != "message":
        continue
    message = json.loads(item["data"])
    if message["task_id"] != task:
        continue
    assert message["status"] in known and 0.0 <= message["progress"] <= 100.0, message
    if message["status"] in ("completed", "failed"):
        break
assert message["status"] == "completed" and message["progress"] == 100.0, message
assert client.get("gpu_status:0") in (b"idle", b"busy")
video = requests.get(f"{base}/api/tempfile/download/{message['video_file_id']}")
assert video.status_code == 200
sys.stdout.buffer.write(video.content)
"""

OPENAI = """
import os, sys, openai

client = openai.OpenAI(base_url=os.environ["BASE"] + "/v1", api_key="none")
with open(sys.argv[1], "rb") as file:
    print(client.audio.transcriptions.create(model="whisper-1", file=file).text)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with passing(tmp_path_factory.mktemp("contracts")) as made:
        common = {**ENGINE, "max_concurrent_tasks": 1, "pythonpath": [str(ROOT / "tests")]}
        engines = {
            "lipsync": {**common, "engine": "gateways.engines:Lipsync"},
            "transcribe": {**common, "engine": "gateways.engines:Transcribe"},
            "portrait": {**common, "engine": "gateways.talker:Talker"},
        }
        made.config.write_text(json.dumps({"spool": str(made.spool), **TOP, "engines": engines}))
        made.serve(ready=3)
        yield made


@pytest.fixture(scope="module")
def gateway(world: World) -> Iterator[Gateway]:
    with Gateway(world, "--no-start") as made:
        yield made.start()


def program(text: str, *words: str, **env: str) -> bytes:
    """What a client prints, once it has ended well."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", text, *words],
        env={**clean, **env},
        cwd="/",
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_a_client_of_the_digital_human_service(gateway: Gateway) -> None:
    audio, video = gateway.file("speech.wav", wav()), gateway.file("person.mp4", b"person")
    program(DIGITAL_HUMAN, audio, video, str(gateway.media / "out.mp4"), BASE=gateway.base)
    assert (gateway.media / "out.mp4").read_bytes() == b"a video of person"


def test_a_client_of_the_portrait_worker(world: World, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(PNG)
    (tmp_path / "speech.wav").write_bytes(b"RIFF\0\0\0\0WAVE hello")
    server = Server(tmp_path / "redis").start()
    redis = RedisGateway(world, server, BASE_URL=gateway.base, BASE_PATH=str(gateway.media))
    try:
        redis.start()
        env = {"BASE_URL": gateway.base, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(server.port)}
        assert program(PORTRAIT, str(tmp_path / "face.png"), str(tmp_path / "speech.wav"), **env) == VIDEO + PNG
    finally:
        redis.kill()
        server.kill()


def test_a_client_of_openai(gateway: Gateway) -> None:
    said = program(OPENAI, gateway.file("talk.wav", wav()), BASE=gateway.base)
    assert said.decode().strip() == RESULT["text"]


def test_the_command_line(world: World, gateway: Gateway) -> None:
    audio = gateway.file("spoken.wav", wav())
    argv = [
        sys.executable,
        "-m",
        "pool.submit",
        "transcribe",
        f"audio={audio}",
        "--json",
        "--config",
        str(world.config),
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=100, check=True)
    assert json.loads(done.stdout)["value"]["text"] == RESULT["text"]


def test_a_dropped_file(world: World, gateway: Gateway) -> None:
    audio = gateway.file("dropped.wav", wav())
    (world.spool / "in" / "dropped.json").write_text(json.dumps({"engine": "transcribe", "audio": audio}))
    found = world.spool / "out" / "dropped.json"
    wait_until(found.exists, "the result beside the drop's record")
    assert json.loads(found.read_text())["value"]["text"] == RESULT["text"]
