"""A transcript as a file: JSON, SRT or TXT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inference.base import ResourceError


def write(result: Mapping[str, Any], path: Path, suffix: str) -> None:
    """Write the result in the form that ``suffix`` names (.json, .srt, .txt), as UTF-8."""
    text = {".json": as_json, ".srt": as_srt, ".txt": as_txt}[suffix.lower()](result)
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ResourceError(f"{path} could not be written: {error.strerror or error}") from error


def as_json(result: Mapping[str, Any]) -> str:
    """The whole result."""
    return json.dumps(result, ensure_ascii=False, indent=1) + "\n"


def as_srt(result: Mapping[str, Any]) -> str:
    """Subtitles: one per segment, speakers named when there are several."""
    several = len(result["speakers"]) > 1
    cues = []
    for number, segment in enumerate(result["segments"], 1):
        times = f"{clock(segment['start'], ',')} --> {clock(segment['end'], ',')}"
        cues.append(f"{number}\n{times}\n{_named(segment, several)}\n")
    return "\n".join(cues)


def as_txt(result: Mapping[str, Any]) -> str:
    """One line per turn: the time it begins, who speaks, what is said."""
    lines = []
    for turn in turns(result["segments"]):
        text = join_texts([str(segment["text"]) for segment in turn])
        lines.append(f"[{clock(turn[0]['start'])[:8]}] {_named({**turn[0], 'text': text}, True)}\n")
    return "".join(lines)


def turns(segments: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Neighbouring segments of one speaker together."""
    grouped: list[list[Mapping[str, Any]]] = []
    for segment in segments:
        if grouped and segment["speaker"] is not None and grouped[-1][-1]["speaker"] == segment["speaker"]:
            grouped[-1].append(segment)
        else:
            grouped.append([segment])
    return grouped


def join_texts(texts: Sequence[str]) -> str:
    """Segments as running text: a space between, unless the script does without (。！？ and the like)."""
    joined = ""
    for text in texts:
        wide = joined[-1:] > "\u2e7f" or (joined[-1:] and text[:1] > "\u2e7f")
        joined += text if not joined or wide else f" {text}"
    return joined


def clock(seconds: float, comma: str = ".") -> str:
    """``HH:MM:SS,mmm`` as SRT wants it."""
    milliseconds = round(max(0.0, seconds) * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{comma}{rest % 1000:03d}"


def _named(segment: Mapping[str, Any], named: bool) -> str:
    text = " ".join(str(segment["text"]).replace("-->", "→").split())
    return f"{segment['speaker']}: {text}" if named and segment["speaker"] else text
