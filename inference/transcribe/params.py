"""What a job may ask of the engine, and how the engine may be set up. Unknown keys are refused in both."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

OUTPUT_SUFFIXES = (".json", ".srt", ".vtt", ".txt", ".csv", ".md", ".rttm", ".TextGrid")


class Params(BaseModel):
    """One job: what to transcribe and what is known about it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audio: Path = Field(description="audio or video file, any format and length")
    stream: int | None = Field(
        default=None,
        ge=0,
        description="which audio stream, from 0 on; default: the one marked default, else the first with sound",
    )
    channels: Literal["mix", "split"] = Field(default="mix", description="split: one person speaks on each channel")
    language: str | None = Field(default=None, description="code such as en, zh, de; default: detect per stretch")
    task: Literal["transcribe", "translate"] = Field(
        default="transcribe", description="translate: English text of speech in any language (multilingual Whisper)"
    )
    speakers: int | None = Field(default=None, ge=1, le=100, description="how many people speak; default: find out")
    min_speakers: int | None = Field(default=None, ge=1, le=100, description="at least this many people speak")
    max_speakers: int | None = Field(default=None, ge=1, le=100, description="at most this many people speak")
    script: Literal["simplified", "traditional"] | None = Field(
        default=None, description="Chinese: the characters to write (extra chinese); default: as recognised"
    )
    itn: bool = Field(
        default=False,
        description="Chinese: numbers, dates and amounts that are spelt out become digits (extra chinese)",
    )
    hotword: str | None = Field(
        default=None, max_length=4000, description="names and terms to expect, separated by spaces"
    )
    batch_size_s: float = Field(default=300.0, gt=0, le=3600, description="seconds of speech recognised at a time")
    output: Path | None = Field(
        default=None,
        description=f"also write the transcript here: {', '.join(OUTPUT_SUFFIXES)}",
        json_schema_extra={"output": True},
    )
    word_times: bool = Field(default=False, description=".vtt: the time of each word, too")

    @field_validator("language")
    @classmethod
    def _code(cls, value: str | None) -> str | None:
        code = (value or "").strip().lower().replace("_", "-").split("-")[0]
        return None if code in ("", "auto") else code

    @field_validator("hotword")
    @classmethod
    def _words(cls, value: str | None) -> str | None:
        return (value or "").strip() or None

    @field_validator("script", "itn")
    @classmethod
    def _chinese(cls, value: str | bool | None, known: ValidationInfo) -> str | bool | None:
        if value and known.data.get("task") == "translate":
            raise ValueError("is for Chinese text, and a translation is English")
        return value

    @field_validator("min_speakers", "max_speakers")
    @classmethod
    def _bounds(cls, value: int | None, known: ValidationInfo) -> int | None:
        if value is not None and known.data.get("speakers") is not None:
            raise ValueError("cannot be given beside speakers, which says how many there are")
        least = known.data.get("min_speakers")
        if value is not None and least is not None and value < least:
            raise ValueError(f"{value} is less than min_speakers, {least}")
        return value

    @field_validator("output")
    @classmethod
    def _suffix(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in map(str.lower, OUTPUT_SUFFIXES):
            raise ValueError(f"{value.name!r} ends in none of {', '.join(OUTPUT_SUFFIXES)}")
        return value


class Options(BaseModel):
    """The engine's ``options`` in config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    backend: Literal["whisper", "sherpa", "funasr"] = Field(default="whisper", description="which recogniser")
    model: str | None = Field(
        default=None,
        description="whisper: an installed one (default whisper-base, whisper-small …), or a folder with a CTranslate2 "
        "model; sherpa: an installed one (sherpa-paraformer, sherpa-sensevoice), or a folder with model.onnx and "
        "tokens.txt; funasr: a model folder, one that is installed (funasr-paraformer …), or a name on its hub",
    )
    cpu_threads: int = Field(default=0, ge=0, le=256, description="0: OMP_NUM_THREADS, else the cores there are")
    diarize: bool = Field(default=True, description="tell speakers apart")
    speaker_encoder: Path | None = Field(default=None, description="CAM++ file, instead of the installed one")
    speaker_segmentation: Path | None = Field(
        default=None, description="file of segmentation-3.0, instead of the installed one"
    )
    vad: Path | None = Field(default=None, description="silero sequence ONNX file, instead of the installed one")
    ffmpeg: str | None = Field(default=None, description="ffmpeg program, instead of the bundled one")

    compute_type: str | None = Field(default=None, description="whisper: default int8 on CPU, float16 on GPU")
    beam_size: int = Field(default=5, ge=1, le=20, description="whisper")
    window_batch: int | None = Field(
        default=None, ge=1, le=64, description="whisper: windows at a time; 1 on CPU, 8 on GPU"
    )
    initial_prompt: str | None = Field(
        default=None, description="whisper: style of the text; default: simplified for zh"
    )

    punctuation: str | None = Field(
        default=None,
        description="sherpa: folder of a CT-Transformer for models that write no marks; default: the installed one",
    )

    vad_model: str | None = Field(default=None, description="funasr: folder, installed model or hub name")
    punc_model: str | None = Field(default=None, description="funasr: folder, installed model or hub name")
    spk_model: str | None = Field(default=None, description="funasr: folder, installed model or hub name")
    hub: Literal["ms", "hf"] = Field(default="ms", description="funasr: where names that are no folders come from")
    allow_download: bool = Field(default=False, description="funasr: names that are no folders may be fetched at load")
    funasr: dict[str, object] = Field(default_factory=dict, description="funasr: more arguments for AutoModel")
    funasr_generate: dict[str, object] = Field(
        default_factory=dict, description="funasr: more arguments for generate(): merge_vad, use_itn, …"
    )
