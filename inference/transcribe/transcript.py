"""The result of ``transcribe`` as a schema; docs/transcript.schema.json is made from it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SPEAKER = "spk0, spk1 … in order of appearance, with channels=split by channel; null where it is not known"


class Word(BaseModel):
    """One word as recognised; in scripts without spaces one character or a few."""

    model_config = ConfigDict(extra="forbid")

    start: float = Field(ge=0, description="seconds from the beginning of the file")
    end: float = Field(ge=0, description="seconds from the beginning of the file")
    word: str = Field(description="with the punctuation that follows it")
    speaker: str | None = Field(description=SPEAKER)
    probability: float | None = Field(ge=0, le=1, description="null where the recogniser gives none")


class Cue(BaseModel):
    """What a subtitle shows at a time: at most two lines of 42 characters, 16 in Chinese."""

    model_config = ConfigDict(extra="forbid")

    start: float = Field(ge=0, description="seconds from the beginning of the file")
    end: float = Field(ge=0, description="seconds from the beginning of the file; long enough to be read")
    text: str = Field(description="without the speaker, for whom there is room; a newline between two lines")


class Segment(BaseModel):
    """A sentence, or part of one, of one speaker in one language."""

    model_config = ConfigDict(extra="forbid")

    start: float = Field(ge=0, description="seconds from the beginning of the file")
    end: float = Field(ge=0, description="seconds from the beginning of the file")
    text: str
    speaker: str | None = Field(description=SPEAKER)
    language: str | None = Field(description="code such as en, zh; null where it is not known")
    words: list[Word]
    cues: list[Cue] = Field(default=[], description="the segment as subtitles; partial results have none")


class Span(BaseModel):
    """Some time of the recording."""

    model_config = ConfigDict(extra="forbid")

    start: float = Field(ge=0, description="seconds from the beginning of the file")
    end: float = Field(ge=0, description="seconds from the beginning of the file")


class Transcript(BaseModel):
    """What was said in a recording, by whom and when."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(description="all segments as running text")
    task: Literal["transcribe", "translate"] = Field(
        default="transcribe", description="translate: the text is English, whatever was spoken"
    )
    language: str | None = Field(description="code of the language most of the speech is in; null: none was heard")
    duration_s: float = Field(ge=0, description="length of the sound on the clock of the file, seconds")
    segments: list[Segment] = Field(description="by the time they begin")
    speakers: list[str] = Field(description="whose segments there are")
    speakers_confidence: float | None = Field(
        default=None, ge=0, le=1, description="probability that their number is right; null where it was given"
    )
    overlaps: list[Span] = Field(default=[], description="where several people speak at once")
    resumed_s: float | None = Field(
        default=None, ge=0, description="where this attempt went on, the words before are of another; null: nowhere"
    )
    warnings: list[str] = Field(description="what was left out, guessed or worked round")
    output: str | None = Field(default=None, description="the file that was written, where one was asked for")
