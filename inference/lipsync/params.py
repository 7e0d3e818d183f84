"""What a job may ask of the engine, and how the engine may be set up. Unknown keys are refused in both."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inference.foreign.home import HomeOptions
from inference.video_params import STREAM, Face, VideoParams

BACKENDS = ("mesh", "wav2lip", "musetalk", "heygem")
INSTALLED_WAV2LIP = "wav2lip/wav2lip_gan.pth"  #: of the manifest of weights
Backend = Literal["mesh", "wav2lip", "musetalk", "heygem"]


class Params(VideoParams):
    """One job: who shall say what."""

    audio: Path = Field(description="what is said: audio, or a video with sound; any format and length")
    video: Path = Field(description="the template: a video, or a picture, with the face of the speaker")
    output: Path | None = Field(
        default=None,
        description="where the video goes, .mp4; default: out/<job id>/output.mp4",
        json_schema_extra={"output": True},
    )
    watermark: Literal[0, 1] = Field(default=0, description="1: a mark in the lower right corner")
    digital_auth: Literal[0, 1] = Field(default=0, description="1: a mark in the upper right corner, AI generated")
    face: Face = Field(
        default="largest",
        description='which: "largest", a number by size (0 is the largest), or a point "x,y" in pixels on it',
    )
    crf: int = Field(
        default=18, ge=0, le=40, description="quality of the H.264 stream; smaller is better, bigger; 0 gives 1"
    )
    backend: Backend | None = Field(default=None, description="default: the one in the engine's options")
    persona: Path | None = Field(
        default=None,
        description="mesh: the file of this person's own mouth, made by the engine persona, to paint with",
    )
    stream: bool = Field(default=False, description=STREAM)


class HeyGemOptions(HomeOptions):
    """The option ``heygem``: the SDK, its interpreter and its switches."""

    chaofen: Literal[0, 1] = Field(default=0, description="1: super-resolution of the face")
    pn: Literal[0, 1] = Field(default=1, description="1: the template is played forth and back")
    batch_size: int | None = Field(default=None, ge=1, le=64, description="frames at a time; default: the SDK's own")
    warmup: tuple[Path, Path] | None = Field(
        default=None, description="a recording and a template; their first second is made when the worker starts"
    )


class Options(BaseModel):
    """The engine's ``options`` in config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Backend = Field(
        default="mesh",
        description="mesh: nothing but what is installed; wav2lip: a checkpoint; musetalk: a folder of files; "
        "heygem: an SDK in a Python of its own",
    )
    heygem: HeyGemOptions | None = Field(default=None, description="heygem: where the SDK is, and its interpreter")
    checkpoint: Path | None = Field(
        default=None, description="wav2lip: file of the generator, 96×96 or 288×288 family; default: the installed one"
    )
    musetalk: Path | None = Field(
        default=None, description="musetalk: folder of the published files; default: the installed ones"
    )
    extra_margin: int = Field(default=10, ge=0, le=500, description="musetalk: pixels of the face's box below the chin")
    parsing_mode: Literal["jaw", "neck", "raw"] = Field(
        default="jaw",
        description="musetalk, what is painted: raw the skin; neck also the neck; jaw skin with narrower cheeks",
    )
    left_cheek_width: int = Field(
        default=90, ge=0, le=256, description="musetalk, jaw: where the cheek left in the picture begins, of 256"
    )
    right_cheek_width: int = Field(
        default=90, ge=0, le=256, description="musetalk, jaw: the same on the right; narrower cheeks are painted less"
    )
    whisper: Path | None = Field(default=None, description="mesh: folder of the Whisper model (CTranslate2)")
    articulation: Path | None = Field(default=None, description="mesh: file of the articulation head")
    face_model: Path | None = Field(default=None, description="face_landmarker.task, instead of the installed one")
    watermark: Path | None = Field(
        default=None, description="picture instead of our watermark, shown as large as it is"
    )
    digital_auth: Path | None = Field(default=None, description='picture instead of our "AI generated" mark')
    threads: int = Field(default=0, ge=0, le=256, description="segments painted side by side; 0: the cores, at most 8")
    encoder: Literal["cpu", "nvenc"] = Field(default="cpu", description="nvenc: the GPU's own where it works")
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = Field(
        default="superfast", description="x264: slower makes smaller files"
    )
    batch: int = Field(
        default=0, ge=0, le=256, description="frames at a time; 0: wav2lip 8 (GPU 64), musetalk 2 (GPU by free memory)"
    )
    max_audio_s: float = Field(default=3600.0, gt=0, description="longer audio is refused")
    cache_mb: int = Field(
        default=2048,
        ge=0,
        description="disk for analyses of templates, half as much for drawing with them; the longest unused go first",
    )
    ffmpeg: str | None = Field(default=None, description="ffmpeg program, instead of the bundled one")
