"""A transcript as it reads with the corrections of a person, as lines, plain text and DOCX."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pool.errors import OperatorError
from pool.gateways.http.shapes import Edits

_NUMBERED = re.compile(r"spk(\d+)")
#: What XML 1.0 cannot hold, and so no DOCX.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class MissingExtra(OperatorError):
    """The gateway lacks an optional package."""


@dataclass(frozen=True)
class Line:
    """A segment of a transcript. start, end: seconds. speaker: as shown, "" when nobody is named."""

    start: float
    end: float
    speaker: str
    text: str


def is_transcript(value: Any) -> bool:
    """Whether the value of a job is a transcript."""
    segments = value.get("segments") if isinstance(value, Mapping) else None
    return isinstance(segments, list) and all(_is_segment(one) for one in segments)


def lines_of(value: Mapping[str, Any], edits: Edits) -> list[Line]:
    """The lines of a transcript. A speaker without a name is "Speaker 1" for spk0."""
    found = []
    for number, segment in enumerate(value["segments"]):
        edit = edits.segments.get(str(number))
        text = str(segment["text"]) if edit is None else edit.text
        speaker = str(segment.get("speaker") or "")
        shown = edits.names.get(speaker) or _plain(speaker)
        found.append(Line(float(segment["start"]), float(segment["end"]), shown, text))
    return found


def as_text(lines: Sequence[Line]) -> str:
    """A line for each segment: `[00:00:04] Ada: Good morning.`"""
    return "".join(
        f"[{clock(line.start)}] {f'{line.speaker}: ' if line.speaker else ''}{line.text}\n" for line in lines
    )


def as_docx(title: str, lines: Sequence[Line]) -> bytes:
    """A document: a heading, then a paragraph for each segment; a turn begins with its speaker and time.

    Raises MissingExtra.
    """
    try:
        from docx import Document
    except ModuleNotFoundError as error:
        raise MissingExtra(f"DOCX needs {error.name}: pip install 'filepool[docx]' where the gateway runs") from None
    document = Document()
    document.core_properties.title = _writable(title)[:255]
    document.add_heading(_writable(title), level=1)
    before = None
    for line in lines:
        if line.speaker != before or before is None:
            turn = document.add_paragraph()
            turn.paragraph_format.keep_with_next = True
            turn.add_run(_writable(line.speaker)).bold = True
            turn.add_run(f"{' ' if line.speaker else ''}({clock(line.start)})")
            before = line.speaker
        document.add_paragraph(_writable(line.text))
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def clock(seconds: float) -> str:
    """00:01:05."""
    whole = max(0, int(seconds))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _is_segment(one: Any) -> bool:
    return (
        isinstance(one, Mapping)
        and "text" in one
        and all(isinstance(one.get(key), (int, float)) for key in ("start", "end"))
    )


def _plain(speaker: str) -> str:
    number = _NUMBERED.fullmatch(speaker)
    return f"Speaker {int(number[1]) + 1}" if number else speaker


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("�", text)
