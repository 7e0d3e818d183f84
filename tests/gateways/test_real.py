"""Clients written from the contract, with the real engines behind the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import requests
from scenarios.world import ROOT, passing, wait_until

from gateways.gateway import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(600)]
SPEECH: Path = ROOT / "examples" / "speech" / "address.flac"
FACE: Path = ROOT / "examples" / "portrait" / "mona_lisa.jpg"
WORDS = "ask not what your country can do for you"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway and its own pool of one worker per real engine."""
    engines = {
        "transcribe": {"engine": "inference.transcribe:Transcribe"},
        "lipsync": {"engine": "inference.lipsync:LipSync", "options": {"backend": "mesh"}},
    }
    with passing(tmp_path_factory.mktemp("real")) as world, Gateway(world) as gate:
        world.config.write_text(json.dumps({"spool": str(world.spool), "engines": engines}))
        gate.start()
        for engine in engines:
            wait_until(lambda e=engine: gate.get("/health", params={"engine": e}).ok, "a loaded model", seconds=200)
        yield gate


def test_a_video_by_the_digital_human_service(real: Gateway) -> None:
    audio = real.file("speech.flac", SPEECH.read_bytes())
    video = real.file("face.jpg", FACE.read_bytes())
    body = {"audio_path": audio, "video_path": video, "save_path": str(real.media / "output.mp4")}
    answer = requests.post(f"{real.base}/human/generate", json=body, timeout=500)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["code"], found["message"]) == (200, "success")
    assert found["data"]["save_path"] == body["save_path"]
    film = cv2.VideoCapture(body["save_path"])
    frames, fps = film.get(cv2.CAP_PROP_FRAME_COUNT), film.get(cv2.CAP_PROP_FPS)
    film.release()
    print(f"{frames:.0f} frames, {fps:g} a second, {Path(body['save_path']).stat().st_size} bytes")
    assert frames / fps == pytest.approx(11.0, abs=0.5)


def test_a_failure_of_the_real_engine_tells_what_to_change(real: Gateway) -> None:
    audio = real.file("noise.wav", b"no sound at all")
    body = {"audio_path": audio, "video_path": real.file("face.jpg", FACE.read_bytes())}
    answer = requests.post(
        f"{real.base}/human/generate", json={**body, "save_path": str(real.media / "never.mp4")}, timeout=500
    )
    print(answer.status_code, answer.json()["message"])
    assert (answer.status_code, answer.json()["code"]) == (422, 422)
    assert "noise.wav" in answer.json()["message"]
    assert not (real.media / "never.mp4").exists()


def test_speech_by_openais_client(real: Gateway) -> None:
    import openai  # takes a second, also of those who only collect tests

    with openai.OpenAI(base_url=f"{real.base}/v1", api_key="none", timeout=300) as client:
        with open(SPEECH, "rb") as file:
            found = client.audio.transcriptions.create(
                model="whisper-1",
                file=file,
                response_format="verbose_json",
                timestamp_granularities=["word", "segment"],
            )
        with open(SPEECH, "rb") as file:
            subtitles = client.audio.transcriptions.create(model="whisper-1", file=file, response_format="srt")
    print(f"{found.language}, {found.duration} s: {found.text}")
    assert WORDS in found.text.lower()
    assert found.language == "en"
    assert len(found.words or ()) == len(found.text.split())
    lines = [line for block in str(subtitles).strip().split("\n\n") for line in block.split("\n")[2:]]
    assert str(subtitles).startswith("1\n00:00:0")
    assert max(map(len, lines)) <= 42 < len(found.text), "cut as the engine says"
