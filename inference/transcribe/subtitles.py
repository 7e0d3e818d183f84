"""A transcript as subtitles that can be read: short lines, two at most, long enough on the screen.

A result carries its cues, segment by segment, so that whoever shows it cuts it in the same places.

The limits are those of the Netflix timed text style guides: 42 characters a line (16 in scripts of wide characters),
two lines, 20 characters a second (9), 5/6 s to 7 s a cue, two frames between cues.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

LINE = 42.0  #: units of width, one a narrow character …
WIDE = LINE / 16  #: … and so many a wide one
LINES = 2
READ_NARROW, READ_WIDE = 20.0, 9.0  #: characters read per second
LEAST_S, MOST_S = 5 / 6, 7.0  #: of a cue
GAP_S = 2 / 24  #: between cues
LINGER_S = 2.0  #: most that a cue stays after its last word

PER_CUE = 1.0  #: cost of a cue
AFTER_SENTENCE, AFTER_PHRASE, AFTER_PAUSE, WITHIN = 0.0, 0.25, 0.25, 2.0  #: cost of an ending, by what it ends, in cues
PAUSE_S = 0.4
SENTENCE_MARKS, PHRASE_MARKS = ".!?。！？…", ",;:，、；：—"
CLOSERS = "\"'”’)]}）」』》"


@dataclass(frozen=True)
class Token:
    """A piece of text that stays in one line."""

    text: str
    spaced: bool  #: a space stands before it
    start: float  #: seconds
    end: float


@dataclass(frozen=True)
class Cue:
    """What is on the screen at a time."""

    start: float  #: seconds
    end: float
    lines: tuple[tuple[Token, ...], ...]
    segment: int  #: which one it is of
    speaker: str | None
    named: bool  #: its first word is the speaker's name

    @property
    def texts(self) -> list[str]:
        """The lines as text."""
        return [text_of(line) for line in self.lines]

    @property
    def said(self) -> list[str]:
        """The lines without the speaker's name."""
        first, *others = self.texts
        first = first.removeprefix(f"{self.speaker}:").lstrip() if self.named else first
        return [line for line in (first, *others) if line]


def with_cues(segments: Sequence[Mapping[str, Any]], *, named: bool) -> list[dict[str, Any]]:
    """The segments of a result, each with its ``cues``: start, end, text; a newline between two lines.

    ``named``: there is room for the name of the speaker where a turn begins.
    """
    whole: list[dict[str, Any]] = [{**segment, "cues": []} for segment in segments]
    for cue in cues(segments, named=named):
        shown = {"start": round(cue.start, 3), "end": round(cue.end, 3), "text": "\n".join(cue.said)}
        whole[cue.segment]["cues"].append(shown)
    return whole


def as_srt(result: Mapping[str, Any]) -> str:
    """SubRip: where a transcript has several speakers, each is named when its turn begins."""
    blocks = []
    for number, cue in enumerate(cues(result.get("segments") or (), named=several(result)), 1):
        text = "\n".join(line.replace("-->", "→") for line in cue.texts)
        blocks.append(f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n{text}\n")
    return "\n".join(blocks)


def as_vtt(result: Mapping[str, Any], word_times: bool = False) -> str:
    """WebVTT with a voice tag per cue; ``word_times``: each word with the time at which it begins."""
    blocks = ["WEBVTT\n"]
    for cue in cues(result.get("segments") or (), named=False):
        text = "\n".join(_timed(line, cue) if word_times else _escaped(text_of(line)) for line in cue.lines)
        voice = f"<v {_escaped(cue.speaker)}>" if cue.speaker else ""
        blocks.append(f"{clock(cue.start)} --> {clock(cue.end)}\n{voice}{text}\n")
    return "\n".join(blocks)


def clock(seconds: float, comma: str = ".") -> str:
    """``HH:MM:SS.mmm`` as WebVTT wants it; with a comma as SRT does."""
    milliseconds = round(max(0.0, seconds) * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{comma}{rest % 1000:03d}"


def cues(segments: Sequence[Mapping[str, Any]], *, named: bool) -> list[Cue]:
    """The segments of a result as cues in order of time; ``named``: a turn begins with the name of its speaker."""
    made: list[Cue] = []
    speaker: object = None
    for number, segment in enumerate(segments):
        tokens = _tokens(segment)
        begins = number == 0 or segment.get("speaker") != speaker
        speaker = segment.get("speaker")
        name = bool(named and begins and speaker and tokens)
        if name:
            tokens = _named(f"{speaker}:", tokens)
        for index, part in enumerate(_parts(tokens)):
            first = name and index == 0
            made.append(Cue(part[0].start, part[-1].end, _lines(part), number, segment.get("speaker"), first))
    made.sort(key=lambda cue: cue.start)
    return [_shown(cue, made[at + 1].start if at + 1 < len(made) else None) for at, cue in enumerate(made)]


def width(text: str) -> float:
    """How much of a line a text takes, of ``LINE``."""
    return sum(WIDE if _wide(mark) else 1.0 for mark in text)


def reading_s(text: str) -> float:
    """Seconds that reading a text takes."""
    return sum(1 / READ_WIDE if _wide(mark) else 1 / READ_NARROW for mark in text)


def text_of(tokens: Sequence[Token]) -> str:
    """Tokens as text."""
    return "".join(f" {token.text}" if token.spaced else token.text for token in tokens).strip()


def several(result: Mapping[str, Any]) -> bool:
    """Whether there is more than one speaker to tell apart."""
    return len(result.get("speakers") or ()) > 1


def _timed(line: Sequence[Token], cue: Cue) -> str:
    """A line with the time before each word that begins within the cue."""
    parts = []
    for token in line:
        time = f"<{clock(token.start)}>" if cue.start < token.start < cue.end else ""
        parts.append(f"{' ' * token.spaced}{time}{_escaped(token.text)}")
    return "".join(parts).strip()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _wide(mark: str) -> bool:
    return unicodedata.east_asian_width(mark) in "WF"


def _shown(cue: Cue, following: float | None) -> Cue:
    """The cue, on the screen until it can be read, as far as the next one leaves time."""
    needed = max(LEAST_S, reading_s("".join(cue.texts)))
    end = max(cue.end, min(cue.start + needed, cue.end + LINGER_S))
    if following is not None and following > cue.start:
        end = min(end, max(following - GAP_S, min(cue.end, following)))
    return replace(cue, end=end)


def _tokens(segment: Mapping[str, Any]) -> list[Token]:
    """The words of a segment as they stand in its text; its whole text, evenly in time, where it has no words."""
    text = " ".join(str(segment["text"]).split())
    words = segment.get("words") or [{"word": text, "start": segment["start"], "end": segment["end"]}]
    tokens: list[Token] = []
    at = 0
    for word in words:
        said = " ".join(str(word["word"]).split())
        found = text.find(said, at)
        spaced = found > 0 and text[found - 1] == " " if found >= 0 else bool(tokens)
        at = found + len(said) if found >= 0 else at
        tokens += _short(said, spaced, float(word["start"]), float(word["end"]))
    return tokens


def _short(text: str, spaced: bool, start: float, end: float) -> list[Token]:
    """A word in pieces that fit into a line; phrases are cut at spaces, characters without any anywhere."""
    if width(text) <= LINE and " " not in text:
        return [Token(text, spaced, start, end)] if text else []
    pieces: list[tuple[str, bool]] = []
    for number, part in enumerate(text.split(" ")):
        new = True
        for mark in part:
            if new or width(pieces[-1][0] + mark) > (LINE if not _wide(mark) else WIDE):
                pieces.append((mark, number > 0 and new))
            else:
                pieces[-1] = (pieces[-1][0] + mark, pieces[-1][1])
            new = False
    each = (end - start) / len(text)
    tokens: list[Token] = []
    at = 0
    for piece, apart in pieces:
        at += apart
        first, at = at, at + len(piece)
        tokens.append(Token(piece, apart if tokens else spaced, start + each * first, start + each * at))
    return tokens


def _named(name: str, tokens: Sequence[Token]) -> list[Token]:
    """The tokens with a name before them, in the line of the first one if the two fit into one."""
    first = tokens[0]
    together = f"{name} {first.text}"
    if width(together) <= LINE:
        return [replace(first, text=together, spaced=False), *tokens[1:]]
    return [Token(name, False, first.start, first.start), replace(first, spaced=True), *tokens[1:]]


def _parts(tokens: Sequence[Token]) -> list[Sequence[Token]]:
    """The tokens cut into cues: as few as fit, ending where the text has a break (least cost, dynamic programming)."""
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first n tokens, and where the last of their cues begins
    for end in range(1, len(tokens) + 1):
        options = []
        for first in range(end - 1, -1, -1):
            part = tokens[first:end]
            long = part[-1].end - part[0].start > MOST_S
            if first < end - 1 and (long or not _lines(part)):
                break
            options.append((best[first][0] + PER_CUE + _ending(tokens, end), first))
        best.append(min(options))
    parts: list[Sequence[Token]] = []
    end = len(tokens)
    while end:
        first = best[end][1]
        parts.append(tokens[first:end])
        end = first
    return parts[::-1]


def _ending(tokens: Sequence[Token], end: int) -> float:
    """What it costs to end a cue or a line after the first ``end`` tokens."""
    last = tokens[end - 1].text.rstrip(CLOSERS)[-1:]
    if end == len(tokens) or last in SENTENCE_MARKS:
        return AFTER_SENTENCE
    if last in PHRASE_MARKS:
        return AFTER_PHRASE
    return AFTER_PAUSE if tokens[end].start - tokens[end - 1].end >= PAUSE_S else WITHIN


def _lines(tokens: Sequence[Token]) -> tuple[tuple[Token, ...], ...]:
    """The tokens as one line or two of about the same width; none when they do not fit."""
    if width(text_of(tokens)) <= LINE:
        return (tuple(tokens),)
    options = []
    for cut in range(1, len(tokens)):
        upper, lower = width(text_of(tokens[:cut])), width(text_of(tokens[cut:]))
        if max(upper, lower) <= LINE:
            options.append((abs(upper - lower) / LINE + _ending(tokens, cut), cut))
    if not options:
        return ()
    cut = min(options)[1]
    return tuple(tokens[:cut]), tuple(tokens[cut:])
