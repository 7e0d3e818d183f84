"""POST /v1/audio/transcriptions, called by OpenAI's own client."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scenarios.world import wait_until

from gateways.engines import RESULT
from gateways.gateway import PNG, Gateway, wav

if TYPE_CHECKING:
    import openai  # takes a second, also of those who only collect tests


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    import openai

    with openai.OpenAI(base_url=f"{gateway.base}/v1", api_key="any", max_retries=0, timeout=60) as found:
        yield found


def transcribe(client: openai.OpenAI, **more: Any) -> Any:
    return client.audio.transcriptions.create(model="whisper-1", file=("talk.wav", wav()), **more)


def test_json(client: openai.OpenAI) -> None:
    assert transcribe(client).text == RESULT["text"]


def test_verbose_json_with_words(client: openai.OpenAI) -> None:
    found = transcribe(
        client, response_format="verbose_json", timestamp_granularities=["word", "segment"], language="de"
    )
    assert (found.language, found.duration, found.text) == ("de", 3.25, RESULT["text"])
    assert [(s.id, s.start, s.end, s.text) for s in found.segments] == [
        (0, 0.0, 1.5, "Hello there."),
        (1, 1.75, 3.25, "Good --> day."),
    ]
    assert [(word.word, word.start, word.end) for word in found.words] == [("Hello", 0.0, 0.5), ("there.", 0.6, 1.5)]
    only = transcribe(client, response_format="verbose_json")
    assert (len(only.segments), only.words) == (2, None)


def test_text_srt_and_vtt(client: openai.OpenAI) -> None:
    """The first segment has cues; the second, of an engine without, is one."""
    assert transcribe(client, response_format="text") == RESULT["text"] + "\n"
    assert transcribe(client, response_format="srt") == (
        "1\n00:00:00,000 --> 00:00:01,600\nspk0: Hello\nthere.\n\n2\n00:00:01,750 --> 00:00:03,250\nspk1: Good → day.\n"
    )
    assert transcribe(client, response_format="vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.600\n<v spk0>Hello\nthere.\n\n"
        "00:00:01.750 --> 00:00:03.250\n<v spk1>Good --&gt; day.\n"
    )


def test_who_said_what(client: openai.OpenAI) -> None:
    found = transcribe(client, response_format="diarized_json")
    assert [segment.speaker for segment in found.segments] == ["spk0", "spk1"]


def test_the_upload_does_not_stay(gateway: Gateway, client: openai.OpenAI) -> None:
    import openai

    before = os.listdir(gateway.media / ".tempfiles")
    transcribe(client)
    with pytest.raises(openai.BadRequestError, match="nothing can be heard"):
        transcribe(client, prompt="fail")
    wait_until(lambda: os.listdir(gateway.media / ".tempfiles") == before, "uploads that are gone")


def test_mistakes_are_told_as_openai_tells_them(client: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="not one of json, verbose_json") as caught:
        transcribe(client, response_format="html")
    assert (caught.value.param, caught.value.type) == ("response_format", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="has 4001 characters, more than 4000") as caught:
        transcribe(client, prompt="x" * 4001)  # never cut without a word
    assert caught.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="has no audio"):
        client.audio.transcriptions.create(model="whisper-1", file=("face.png", PNG))
    with pytest.raises(openai.APIStatusError) as unknown:
        client.audio.transcriptions.create(model="whisper-1", file=("a.txt", b"some text"))
    assert unknown.value.status_code == 415
    with pytest.raises(openai.BadRequestError, match="model"):
        client.audio.transcriptions.create(model="", file=("talk.wav", wav()))
    with pytest.raises(
        openai.BadRequestError, match=r"temprature: is an unknown field; there are: .*temperature"
    ) as caught:
        transcribe(client, extra_body={"temprature": "0"})
    assert caught.value.param == "temprature"
    with pytest.raises(openai.BadRequestError, match="include"):  # what is not there must not be missed
        transcribe(client, include=["logprobs"])
    everything = {
        "language": "en",
        "temperature": 0.5,
        "timestamp_granularities": ["word"],
        "chunking_strategy": "auto",
    }
    assert transcribe(client, **everything).text == RESULT["text"]


def test_the_text_comes_while_it_is_made(client: openai.OpenAI, tmp_path: Path) -> None:
    go = tmp_path / "go"
    events = transcribe(client, stream=True, prompt=f"pause {go}")
    first = next(iter(events))
    assert (first.type, first.delta) == ("transcript.text.delta", "Hello there.")
    assert events.response.headers["X-Job-Id"]
    go.touch()  # the engine has waited for that, so the delta came before the end
    rest = list(events)
    assert [(event.type, getattr(event, "delta", "")) for event in rest] == [
        ("transcript.text.delta", " Good --> day."),
        ("transcript.text.done", ""),
    ]
    assert rest[-1].text == RESULT["text"]


def test_a_stream_that_fails_says_so(client: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.APIError, match="nothing can be heard"):
        list(transcribe(client, stream=True, prompt="fail"))
    with pytest.raises(openai.BadRequestError, match="cannot be streamed") as caught:
        transcribe(client, stream=True, response_format="srt")
    assert caught.value.param == "stream"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK, of the whole resource
def test_translations(gateway: Gateway, client: openai.OpenAI) -> None:
    import openai

    def translate(**more: Any) -> Any:
        return client.audio.translations.create(model="whisper-1", file=("rede.wav", wav()), **more)

    assert translate().text == RESULT["text"]
    whole = translate(response_format="verbose_json", prompt="Austen")
    assert (whole.task, whole.language, whole.text) == ("translate", "english", RESULT["text"])
    assert whole.segments[0].text == "Hello there."
    assert translate(response_format="srt").startswith("1\n00:00:00,000 --> ")
    with pytest.raises(openai.BadRequestError, match=r"whisper-tiny\.en cannot translate"):
        translate(prompt="none")
    with pytest.raises(openai.BadRequestError, match="not one of json, text, srt, verbose_json, vtt") as caught:
        translate(response_format="diarized_json")
    assert caught.value.param == "response_format"
    missing = gateway.post("/v1/audio/translations", files={"model": (None, "x")})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "file")


def test_models(client: openai.OpenAI) -> None:
    import openai

    assert [model.id for model in client.models.list()] == ["transcribe"]
    assert client.models.retrieve("transcribe").object == "model"
    with pytest.raises(openai.NotFoundError, match="the only one"):
        client.models.retrieve("gpt")


def test_without_the_package(gateway: Gateway) -> None:
    answer = gateway.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav())}, data={"model": "x"})
    assert json.loads(answer.text)["text"] == RESULT["text"]
    missing = gateway.post("/v1/audio/transcriptions", files={"model": (None, "x")})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "file")
