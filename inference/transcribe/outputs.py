"""A transcript as a file: JSON, subtitles, tables, annotations, minutes; the form is chosen by the file's ending."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inference.base import ResourceError
from inference.transcribe.subtitles import as_srt, as_vtt, clock

NOBODY = "unknown"  #: the speaker of what has none, in forms that want one
NOTED_S = 0.005  #: shorter spans are none in forms that hold every moment once

Result = Mapping[str, Any]


def write(result: Result, path: Path, suffix: str, *, name: str, word_times: bool = False) -> None:
    """Write the result in the form that ``suffix`` names, as UTF-8; ``name`` is that of the recording."""
    try:
        path.write_text(FORMS[suffix.lower()](result, name, word_times), "utf-8", newline="")
    except OSError as error:
        raise ResourceError(f"{path} could not be written: {error.strerror or error}") from error


def as_json(result: Result) -> str:
    """The whole result."""
    return json.dumps(result, ensure_ascii=False, indent=1) + "\n"


def as_txt(result: Result) -> str:
    """One line per turn: the time it begins, who speaks, what is said."""
    return "".join(f"[{clock(turn[0]['start'])[:8]}] {_named(turn)}\n" for turn in turns(result["segments"]))


def as_csv(result: Result) -> str:
    """One row per segment: start and end in seconds, speaker, language, text."""
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(("start", "end", "speaker", "language", "text"))
    for segment in result["segments"]:
        rows.writerow([segment[key] for key in ("start", "end", "speaker", "language", "text")])
    return table.getvalue()


def as_rttm(result: Result, name: str) -> str:
    """Who speaks when, as NIST's rich transcription time marks: one line per segment, times in seconds."""
    file = re.sub(r"\s+", "_", name) or "recording"
    return "".join(
        f"SPEAKER {file} 1 {segment['start']:.3f} {segment['end'] - segment['start']:.3f} <NA> <NA> "
        f"{segment['speaker'] or NOBODY} <NA> <NA>\n"
        for segment in result["segments"]
    )


def as_textgrid(result: Result) -> str:
    """Praat's long TextGrid: for each speaker a tier of segments and one of words."""
    end = max([result["duration_s"], *(segment["end"] for segment in result["segments"])])
    tiers: list[tuple[str, list[tuple[float, float, str]]]] = []
    for speaker in dict.fromkeys(segment["speaker"] or NOBODY for segment in result["segments"]):
        own = [segment for segment in result["segments"] if (segment["speaker"] or NOBODY) == speaker]
        words = [(word["start"], word["end"], word["word"]) for segment in own for word in segment["words"]]
        tiers.append((speaker, _whole([(part["start"], part["end"], part["text"]) for part in own], end)))
        tiers.append((f"{speaker} words", _whole(words, end)))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (title, spans) in enumerate(tiers, 1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f"        name = {_quoted(title)}"]
        lines += ["        xmin = 0", f"        xmax = {end}", f"        intervals: size = {len(spans)}"]
        for index, (start, until, text) in enumerate(spans, 1):
            lines += [f"        intervals [{index}]:", f"            xmin = {start}", f"            xmax = {until}"]
            lines.append(f"            text = {_quoted(text)}")
    return "\n".join(lines) + "\n"


def as_markdown(result: Result, name: str) -> str:
    """Minutes: what was recorded, how long each person speaks, and every turn with its time."""
    segments = result["segments"]
    spoken = {
        speaker: sum(part["end"] - part["start"] for part in segments if part["speaker"] == speaker)
        for speaker in result["speakers"]
    }
    total = sum(spoken.values()) or 1.0
    lines = [
        f"# {_marked(name)}",
        "",
        f"Length {clock(result['duration_s'])[:8]}, language {result['language'] or '–'}.",
    ]
    if spoken:
        lines += ["", "| speaker | time | share |", "|---|---|---|"]
        lines += [f"| {who} | {clock(time)[:8]} | {time / total:.0%} |" for who, time in spoken.items()]
    for turn in turns(segments):
        who = f"**{turn[0]['speaker']}** " if turn[0]["speaker"] else ""
        text = join_texts([str(segment["text"]) for segment in turn])
        lines += ["", f"{who}({clock(turn[0]['start'])[:8]}) {_marked(text)}"]
    if result["warnings"]:
        lines += ["", "## Warnings", "", *(f"* {_marked(warning)}" for warning in result["warnings"])]
    return "\n".join(lines) + "\n"


FORMS: dict[str, Callable[[Result, str, bool], str]] = {
    ".json": lambda result, _name, _times: as_json(result),
    ".srt": lambda result, _name, _times: as_srt(result),
    ".vtt": lambda result, _name, times: as_vtt(result, times),
    ".txt": lambda result, _name, _times: as_txt(result),
    ".csv": lambda result, _name, _times: as_csv(result),
    ".md": lambda result, name, _times: as_markdown(result, name),
    ".rttm": lambda result, name, _times: as_rttm(result, name),
    ".textgrid": lambda result, _name, _times: as_textgrid(result),
}


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


def _named(turn: Sequence[Mapping[str, Any]]) -> str:
    text = " ".join(join_texts([str(segment["text"]) for segment in turn]).replace("-->", "→").split())
    return f"{turn[0]['speaker']}: {text}" if turn[0]["speaker"] else text


def _marked(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _quoted(text: str) -> str:
    doubled = " ".join(str(text).split()).replace('"', '""')
    return f'"{doubled}"'


def _whole(spans: Sequence[tuple[float, float, str]], end: float) -> list[tuple[float, float, str]]:
    """The spans with empty ones between them, so that each moment from 0 to the end is in one."""
    whole: list[tuple[float, float, str]] = []
    at = 0.0
    for start, until, text in sorted(spans):
        if start - at >= NOTED_S:
            whole.append((at, start, ""))
            at = start
        if until - at >= NOTED_S:
            whole.append((at, until, text))
            at = until
        elif whole and text:  # no time is left for it: it stands beside the one before it
            before = whole[-1]
            whole[-1] = (before[0], before[1], f"{before[2]} {text}".strip())
    if end - at >= NOTED_S or not whole:
        whole.append((at, end, ""))
    return whole
