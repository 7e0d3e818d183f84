"""Stand-ins with the parameters of the real engines: what arrives is seen, what is asked for is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from inference.base import Context, EngineError, Files, InputError

RESULT: dict[str, Any] = {
    "text": "Hello there. Good --> day.",
    "language": "en",
    "duration_s": 3.25,
    "segments": [
        {
            "start": 0.0,
            "end": 1.5,
            "text": "Hello there.",
            "speaker": "spk0",
            "words": [
                {"start": 0.0, "end": 0.5, "word": "Hello", "speaker": "spk0", "probability": 0.9},
                {"start": 0.6, "end": 1.5, "word": "there.", "speaker": "spk0", "probability": None},
            ],
            "cues": [{"start": 0.0, "end": 1.6, "text": "Hello\nthere."}],
        },
        {"start": 1.75, "end": 3.25, "text": "Good --> day.", "speaker": "spk1", "words": []},
    ],
    "speakers": ["spk0", "spk1"],
    "warnings": [],
}


class LipsyncParams(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    audio: Path
    video: Path
    output: Path | None = None
    watermark: Literal[0, 1] = 0
    digital_auth: Literal[0, 1] = 0


class TranscribeParams(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    audio: Path
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    hotword: str | None = None


class FilmParams(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    video: Path
    made: Path


class _Engine:
    def load(self, device: str, options: Mapping[str, Any]) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to close."""


def _until(text: str, context: Context) -> None:
    while not Path(text.removeprefix("until ")).exists():
        context.check()
        time.sleep(0.02)


class Lipsync(_Engine):
    """The content of the audio file says what to do: "broken", "silent", "slow", "until <path>" (it exists), anything
    else is a video."""

    Params: ClassVar[type[LipsyncParams]] = LipsyncParams

    def check(self, params: Mapping[str, Any]) -> LipsyncParams:
        return LipsyncParams.model_validate(dict(params))

    def files(self, params: LipsyncParams) -> Files:
        return Files((params.audio, params.video), (params.output,) if params.output else ())

    def run(self, params: LipsyncParams, context: Context) -> Mapping[str, Any]:
        word = params.audio.read_bytes()
        if word == b"broken":
            raise EngineError("the renderer broke", "mend it")
        if word == b"silent":
            raise InputError("audio: there is no speech in it", "record it again")
        if word.startswith(b"until "):
            _until(word.decode(), context)
        if word == b"slow":
            for step in range(20):
                context.check()
                context.progress("inference", 5.0 * step)
                time.sleep(0.05)
        out = context.output(params.output, "output.mp4")
        out.write_bytes(b"a video of " + params.video.read_bytes()[:10])
        return {"marks": [params.watermark, params.digital_auth], "output": str(params.output)}


class Transcribe(_Engine):
    """Returns RESULT, with what was asked for."""

    Params: ClassVar[type[TranscribeParams]] = TranscribeParams

    def check(self, params: Mapping[str, Any]) -> TranscribeParams:
        return TranscribeParams.model_validate(dict(params))

    def run(self, params: TranscribeParams, context: Context) -> Mapping[str, Any]:
        if not params.audio.is_file():
            raise InputError(f"audio: {params.audio} is gone")
        if params.hotword and params.hotword.startswith("until "):
            _until(params.hotword, context)
        if params.hotword == "fail":
            raise InputError("audio: nothing can be heard")
        for segment in RESULT["segments"]:
            context.partial(segment)
            if params.hotword and params.hotword.startswith("pause "):
                _until(params.hotword.removeprefix("pause "), context)
        if params.task == "translate" and params.hotword == "none":
            raise InputError("task: whisper-tiny.en cannot translate", "set the option model to a multilingual one")
        return {**RESULT, "language": params.language or "en", "task": params.task}


class Film(_Engine):
    """Returns a film that is given to it, as lip-sync would have made it of a template with `FRAMES` frames."""

    Params: ClassVar[type[FilmParams]] = FilmParams
    FPS = 5
    FRAMES = 8

    def check(self, params: Mapping[str, Any]) -> FilmParams:
        return FilmParams.model_validate(dict(params))

    def files(self, params: FilmParams) -> Files:
        return Files((params.video, params.made))

    def run(self, params: FilmParams, context: Context) -> Mapping[str, Any]:
        context.progress("face_detecting", 10.0, "following the face")
        context.output(None, "output.mp4").write_bytes(params.made.read_bytes())
        return {"fps": self.FPS, "frames": 20, "template_frames": self.FRAMES, "duration_s": 4.0}
