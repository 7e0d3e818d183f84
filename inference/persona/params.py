"""What a job may ask of the engine, and how the engine may be set up. Unknown keys are refused in both."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from inference.video_params import Face, VideoParams

STEPS = 2000


class Params(VideoParams):
    """One job: whose mouth is learned."""

    video: Path = Field(description="20 s to 5 min of one person who talks to the camera, with sound")
    output: Path | None = Field(
        default=None,
        description="where the persona goes, .persona; default: out/<job id>/person.persona",
        json_schema_extra={"output": True},
    )
    face: Face = Field(
        default="largest",
        description='which: "largest", a number by size (0 is the largest), or a point "x,y" in pixels on it',
    )
    steps: int = Field(default=STEPS, ge=50, le=100_000, description="of learning; more takes longer and gives more")

    @field_validator("output")
    @classmethod
    def _suffix(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() != ".persona":
            raise ValueError(f"{value.name!r} does not end in .persona")
        return value


class Options(BaseModel):
    """The engine's ``options`` in config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    whisper: Path | None = Field(default=None, description="folder of the Whisper model (CTranslate2)")
    articulation: Path | None = Field(default=None, description="file of the articulation head")
    face_model: Path | None = Field(default=None, description="face_landmarker.task, instead of the installed one")
    cache_mb: int = Field(default=1024, ge=0, description="disk for analyses of videos; the longest unused go first")
    ffmpeg: str | None = Field(default=None, description="ffmpeg program, instead of the bundled one")
