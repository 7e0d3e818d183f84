"""Engines for the examples in README and docs/: they take any parameters, and answer as the real ones do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.base import Context

WORDS = [{"start": 0.0, "end": 0.5, "word": "Hello", "speaker": "spk0", "probability": 0.9}]
RESULT: dict[str, Any] = {
    "text": "Hello",
    "language": "en",
    "duration_s": 0.5,
    "segments": [{"start": 0.0, "end": 0.5, "text": "Hello", "speaker": "spk0", "words": WORDS}],
    "speakers": ["spk0"],
    "warnings": [],
}
VIDEO = b"\0\0\0\x20ftypisom" + b"\0" * 600


class Answers:
    """Returns a transcript, a path and its parameters."""

    def load(self, device: str, options: Mapping[str, Any]) -> None:
        """Nothing to load."""

    def check(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return params

    def run(self, params: Mapping[str, Any], context: Context) -> Mapping[str, Any]:
        context.progress("inference", 50.0)
        return {**RESULT, "path": "speech.wav", "given": dict(params)}

    def close(self) -> None:
        """Nothing to close."""


class Films(Answers):
    """Writes a file that begins as a video does."""

    def run(self, params: Mapping[str, Any], context: Context) -> Mapping[str, Any]:
        context.output(None, "output.mp4").write_bytes(VIDEO)
        return {"given": dict(params)}
