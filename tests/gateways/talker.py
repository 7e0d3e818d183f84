"""A stand-in with the parameters of the portrait engine: the content of the audio file says what to do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from inference.base import Context, EngineError, Files, InputError

VIDEO = b"\0\0\0\x20ftypisom" + b"\0" * 600


class Params(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    image: Path
    audio: Path
    output: Path | None = None
    steps: int | None = pydantic.Field(default=None, ge=1, le=200)
    cfg: float | None = None
    seed: int | None = None
    frames_num: int | None = None


class Talker:
    """ "broken", "deadly" (the first attempt kills its worker), "slow <seconds>", "until <path>" (it exists), anything
    else is a video."""

    Params: ClassVar[type[Params]] = Params

    def load(self, device: str, options: Mapping[str, Any]) -> None:
        self._runs = options.get("runs")

    def check(self, params: Mapping[str, Any]) -> Params:
        checked = Params.model_validate(dict(params))
        if not checked.audio.is_file() or not checked.image.is_file():
            raise InputError("a file is gone")
        return checked

    def files(self, params: Params) -> Files:
        return Files((params.image, params.audio), (params.output,) if params.output else ())

    def run(self, params: Params, context: Context) -> Mapping[str, Any]:
        if self._runs:
            with open(self._runs, "a", encoding="utf-8") as log:
                log.write(f"{context.job_id} {context.attempt}\n")
        word = params.audio.read_text().split()
        if word[0] == "broken":
            raise EngineError("the renderer broke", "mend it")
        if word[0] == "deadly" and context.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        statuses = ("face_detecting", "inference", "merging_audio")
        seconds = float(word[1]) if word[0] == "slow" else 0.0
        for number, status in enumerate(statuses):
            begun = time.monotonic()
            while True:
                context.check()
                context.progress(status, 33.0 * (number + 1), f"step {number}")
                if time.monotonic() - begun >= seconds / 3 and (word[0] != "until" or Path(word[1]).exists()):
                    break
                time.sleep(0.02)
        context.output(params.output, "output.mp4").write_bytes(VIDEO + params.image.read_bytes())
        return {"told": params.model_dump(mode="json", exclude_none=True)}

    def close(self) -> None:
        """Nothing to close."""
