"""What the jobs that end in a video have in common: how their parameters may be written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

STREAM = "true: the video can be watched while it is made (GET /jobs/<id>/stream)"
Face = Literal["largest"] | int | tuple[float, float]


class VideoParams(BaseModel):
    """A job with an ``output``, two corner marks and a ``face``; each engine lists and describes its own fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("output", check_fields=False)
    @classmethod
    def _suffix(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() != ".mp4":
            raise ValueError(f"{value.name!r} does not end in .mp4")
        return value

    @field_validator("watermark", "digital_auth", mode="before", check_fields=False)
    @classmethod
    def _switch(cls, value: object) -> object:
        return {"0": 0, "1": 1, False: 0, True: 1}.get(value, value) if isinstance(value, str | bool) else value

    @field_validator("face", mode="before", check_fields=False)
    @classmethod
    def _choice(cls, value: object) -> object:
        if isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise ValueError("a face's number starts at 0")
        if isinstance(value, str):
            if re.fullmatch(r"\d+", value.strip()):
                return int(value)
            numbers = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*", value)
            if numbers:
                return float(numbers[1]), float(numbers[2])
            if value.strip().lower() != "largest":
                raise ValueError('"largest", a number, or a point "x,y"')
            return "largest"
        return value
