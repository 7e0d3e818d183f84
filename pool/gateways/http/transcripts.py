"""A transcript in the response formats of OpenAI's API: json, verbose_json, diarized_json, text, srt, vtt."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
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


def as_srt(result: Mapping[str, Any]) -> str:
    """SubRip, cut as the engine says (``cues`` of a segment), else a cue a segment. Each turn of several speakers is
    named where it begins."""
    blocks: list[str] = []
    speaker: object = None
    several = len(result.get("speakers") or ()) > 1
    for segment, cues in _cued(result):
        named = several and segment.get("speaker") and segment.get("speaker") != speaker
        speaker = segment.get("speaker")
        for at, cue in enumerate(cues):
            name = f"{speaker}: " if named and at == 0 else ""
            text = str(cue["text"]).replace("-->", "→")
            times = f"{_clock(cue['start'], ',')} --> {_clock(cue['end'], ',')}"
            blocks.append(f"{len(blocks) + 1}\n{times}\n{name}{text}\n")
    return "\n".join(blocks)


def as_vtt(result: Mapping[str, Any]) -> str:
    """WebVTT, cut as the engine says (``cues`` of a segment), else a cue a segment; a voice tag per cue."""
    blocks = ["WEBVTT\n"]
    for segment, cues in _cued(result):
        voice = f"<v {_escaped(segment['speaker'])}>" if segment.get("speaker") else ""
        for cue in cues:
            times = f"{_clock(cue['start'])} --> {_clock(cue['end'])}"
            blocks.append(f"{times}\n{voice}{_escaped(cue['text'])}\n")
    return "\n".join(blocks)


def _cued(result: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]:
    """The segments in order of time, each with what subtitles show of it."""
    for segment in result.get("segments") or ():
        text = " ".join(str(segment["text"]).split())
        whole = [{"start": segment["start"], "end": segment["end"], "text": text}] if text else []
        yield segment, segment.get("cues") or whole


def _clock(seconds: float, comma: str = ".") -> str:
    """``HH:MM:SS.mmm`` as WebVTT wants it; with a comma as SRT does."""
    milliseconds = round(max(0.0, seconds) * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{comma}{rest % 1000:03d}"


def _escaped(text: object) -> str:
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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
