"""A transcript in the response formats of OpenAI's API: json, verbose_json, diarized_json, text, srt, vtt."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from typing import Any

FORMATS = ("json", "verbose_json", "diarized_json", "text", "srt", "vtt")


def as_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """The text and the duration of the recording, in seconds rounded up."""
    return {"text": _text(result), "usage": _usage(result)}


def text_of(segment: object) -> str:
    """The text of a partial result, "" when it has none."""
    return str(segment.get("text") or "") if isinstance(segment, Mapping) else ""


def as_verbose_json(result: Mapping[str, Any], granularities: Collection[str]) -> dict[str, Any]:
    """The text with segments (with their speakers), words, or both, as `granularities` says; empty: segments.

    Times in seconds.
    """
    found: dict[str, Any] = {
        "task": "translate" if _translated(result) else "transcribe",
        "language": "english" if _translated(result) else str(result.get("language") or ""),
        "duration": float(result.get("duration_s") or 0.0),
        "text": _text(result),
        "usage": _usage(result),
    }
    segments = result.get("segments") or []
    if "segment" in granularities or not granularities:
        found["segments"] = [_segment(number, segment) for number, segment in enumerate(segments)]
    if "word" in granularities:
        words = [word for segment in segments for word in segment.get("words") or ()]
        found["words"] = [{"word": word["word"], "start": word["start"], "end": word["end"]} for word in words]
    return found


def as_diarized_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """The segments with their speakers. Times in seconds."""
    segments = [
        {
            "id": f"seg_{number}",
            "type": "transcript.text.segment",
            "start": segment["start"],
            "end": segment["end"],
            "speaker": segment.get("speaker") or "",
            "text": segment["text"],
        }
        for number, segment in enumerate(result.get("segments") or [])
    ]
    duration = float(result.get("duration_s") or 0.0)
    return {"task": "transcribe", "duration": duration, "text": _text(result), "segments": segments}


def as_text(result: Mapping[str, Any]) -> str:
    """The text alone, with a newline at its end."""
    return f"{_text(result)}\n"


def _translated(result: Mapping[str, Any]) -> bool:
    return result.get("task") == "translate"


def _text(result: Mapping[str, Any]) -> str:
    return str(result.get("text") or "")


def _usage(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(float(result.get("duration_s") or 0.0))}


def _segment(number: int, segment: Mapping[str, Any]) -> dict[str, Any]:
    """A segment with all fields of Whisper's. Fields that the engine does not report are 0 or empty."""
    text = str(segment["text"])
    plain = text.encode("utf-8", "replace")
    chances = [float(word["probability"]) for word in segment.get("words") or () if word.get("probability")]
    return {
        "id": number,
        "seek": int(segment["start"] * 100),
        "start": segment["start"],
        "end": segment["end"],
        "text": text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": sum(map(math.log, chances)) / len(chances) if chances else 0.0,
        "compression_ratio": len(plain) / len(zlib.compress(plain)) if plain else 0.0,
        "no_speech_prob": 0.0,
        "speaker": segment.get("speaker"),
    }
