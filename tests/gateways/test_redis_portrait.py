"""The whole way with the real engine: a painting and a recording go up, a job into the list, a talking video comes."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest
import redis
import requests
from scenarios.world import ROOT, World

from gateways.gateway import Gateway
from gateways.redis_rig import RedisGateway, Server
from inference import media, probe, weights

FRAMES = 50


@pytest.fixture
def world(tmp_path: Path) -> World:
    try:
        weights.find_model("face-landmarker")
        weights.find_model("whisper-base")
    except weights.WeightError as error:
        pytest.skip(f"{error} ({error.hint})")
    made = World(tmp_path)
    portrait = {"engine": "inference.portrait:Portrait", "max_concurrent_tasks": 1, "options": {"backend": "mesh"}}
    made.configure({"portrait": {**portrait, "stall_timeout_s": 300, "retry_times": 0}}, durable=True)
    return made


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)
def test_a_painting_speaks(world: World, tmp_path: Path) -> None:
    server = Server(tmp_path / "redis").start()
    http, gateway = Gateway(world), RedisGateway(world, server)
    try:
        world.serve()
        base = http.start().base
        gateway.start()
        ids = []
        for path in (ROOT / "examples/portrait/mona_lisa.jpg", ROOT / "examples/speech/address.flac"):
            with open(path, "rb") as stream:
                answer = requests.post(f"{base}/api/tempfile/upload", files={"file": (path.name, stream)}, timeout=60)
            ids.append(answer.json()["file_id"])
        task = str(uuid.uuid4())
        job = {"task_id": task, "session_id": "s", "ref_image_id": ids[0], "audio_id": ids[1], "frames_num": FRAMES}
        job.update(steps=25, cfg=2.5, seed=7)
        client = redis.Redis(port=server.port)
        channel = client.pubsub()
        channel.subscribe("task_progress")
        client.rpush("task_queue_gpu_0", json.dumps(job))
        statuses: list[str] = []
        message: dict[str, object] = {}
        for item in channel.listen():
            if item["type"] == "message":
                message = json.loads(item["data"])
                assert message["task_id"] == task
                statuses.append(str(message["status"]))
                if message["status"] in ("completed", "failed"):
                    break
        assert message["status"] == "completed", message
        assert {"face_detecting", "inference", "merging_audio"} & set(statuses)
        video = tmp_path / "fetched.mp4"
        with requests.get(f"{base}/api/tempfile/download/{message['video_file_id']}", timeout=60, stream=True) as body:
            assert body.status_code == 200
            with open(video, "wb") as out:
                shutil.copyfileobj(body.raw, out)
        picture, sound = probe.probe_video(video), media.probe(video)
        assert picture.fps == 25
        assert sound.duration_s == pytest.approx(FRAMES / 25, abs=0.1)
        voice = media.read_audio(video)
        assert float(abs(voice).max()) > 0.05, "it is silent"
    finally:
        gateway.kill()
        http.kill()
        server.kill()
        world.close()
