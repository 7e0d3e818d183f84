"""What a job may ask of the engine, and how the engine may be set up. Unknown keys are refused in both."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from inference.video_params import STREAM, Face, VideoParams

Backend = Literal["mesh", "echomimic"]

STEPS, CFG = 25, 2.5  #: what a generative backend takes when a job names none
FAST_STEPS, FAST_CFG = 6, 1.0  #: … and its accelerated variant


class Params(VideoParams):
    """One job: whose picture shall say what."""

    image: Path = Field(description="the picture: JPEG, PNG, WebP …; any size, a photo, drawing or painting")
    audio: Path = Field(description="what is said: audio, or a video with sound; any format")
    output: Path | None = Field(
        default=None,
        description="where the video goes, .mp4; default: out/<job id>/output.mp4",
        json_schema_extra={"output": True},
    )
    seed: int | None = Field(
        default=None,
        lt=1 << 63,
        description="of the head's motion: the same number gives the same bytes; default 0; below 0: one made from "
        "the job's id",
    )
    frames_num: int | None = Field(
        default=None,
        ge=1,
        le=200_000,
        description="length in frames; longer audio is cut, shorter is followed by silence; default: the audio's",
    )
    fps: float = Field(default=25.0, ge=10, le=60, description="frames per second")
    keep: Literal["whole", "crop"] = Field(
        default="whole", description="whole: the picture as it is, its head alive; crop: a square round the head"
    )
    size: int | None = Field(
        default=None,
        ge=128,
        le=4096,
        description="longer side of the video in pixels; default: crop 512, whole the picture's own up to 1280",
    )
    motion: float = Field(default=1.0, ge=0, le=1, description="how much the head moves; 0: only mouth and lids")
    face: Face = Field(
        default="largest",
        description='which: "largest", a number by size from 0 on, or a point "x,y" in pixels near it',
    )
    steps: int | None = Field(
        default=None, ge=1, le=200, description=f"generative backends: denoising steps, default {STEPS}"
    )
    cfg: float | None = Field(
        default=None, ge=1, le=30, description=f"generative backends: guidance scale, default {CFG}"
    )
    watermark: Literal[0, 1] = Field(default=0, description="1: a mark in the lower right corner")
    digital_auth: Literal[0, 1] = Field(default=0, description="1: a mark in the upper right corner, AI generated")
    crf: int = Field(
        default=18, ge=0, le=40, description="quality of the H.264 stream; smaller is better, bigger; 0 gives 1"
    )
    stream: bool = Field(default=False, description=STREAM)


class Options(BaseModel):
    """The engine's ``options`` in config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Backend = Field(default="mesh", description="mesh: nothing but what is installed; echomimic: see checkout")
    whisper: Path | None = Field(default=None, description="mesh: folder of the Whisper model (CTranslate2)")
    articulation: Path | None = Field(default=None, description="mesh: file of the articulation head")
    face_model: Path | None = Field(default=None, description="face_landmarker.task, instead of the installed one")
    checkout: Path | None = Field(default=None, description="echomimic: folder of the published code")
    weights: Path | None = Field(
        default=None,
        description="echomimic: folder of its weights; default: those in the checkout, else the installed ones",
    )
    variant: Literal["standard", "accelerated", "v2", "v2_accelerated"] = Field(
        default="standard",
        description="echomimic: standard moves a head, v2 (EchoMimicV2) head, arms and hands; accelerated: the *_acc "
        "weights and pipeline (6 steps, cfg 1)",
    )
    poses: Path | None = Field(
        default=None,
        description="echomimic v2: poses, 0.npy, 1.npy …; default: assets/halfbody_demo/pose/01 of the checkout",
    )
    max_frames: int = Field(default=1200, ge=1, description="echomimic: longer videos are refused (memory)")
    watermark: Path | None = Field(default=None, description="picture instead of our watermark")
    digital_auth: Path | None = Field(default=None, description='picture instead of our "AI generated" mark')
    threads: int = Field(default=0, ge=0, le=256, description="segments painted side by side; 0: the cores, at most 8")
    encoder: Literal["cpu", "nvenc"] = Field(default="cpu", description="nvenc: the GPU's own where it works")
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = Field(
        default="superfast", description="x264: slower makes smaller files"
    )
    max_audio_s: float = Field(default=3600.0, gt=0, description="longer audio is refused")
    ffmpeg: str | None = Field(default=None, description="ffmpeg program, instead of the bundled one")

    @field_validator("variant", mode="before")
    @classmethod
    def _release(cls, value: object) -> object:
        if str(value).lower().startswith("v3"):
            raise ValueError("EchoMimicV3 is not supported; standard, accelerated, v2 and v2_accelerated are")
        return value
