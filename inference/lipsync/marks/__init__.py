"""The pictures in the corners: a watermark, and a mark that says the video is generated.

Ours (drawn by ``make.py``) are scaled to the video; a picture of the user's is shown as large as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2

from inference.base import EngineError
from inference.encode import Overlay

HERE = Path(__file__).resolve().parent
SHARE = 0.045  #: height of our marks over the shorter side of the video
LEAST = 20  #: pixels; smaller letters cannot be read


@dataclass(frozen=True)
class Mark:
    """A corner picture of ours."""

    name: str  #: of the job's parameter, and of the option that replaces the picture
    path: Path
    corner: str


WATERMARK = Mark("watermark", HERE / "watermark.png", "lower right")
AI_GENERATED = Mark("digital_auth", HERE / "ai_generated.png", "upper right")


def overlays(
    size: tuple[int, int],
    folder: Path,
    *,
    watermark: bool,
    digital_auth: bool,
    watermark_path: Path | None = None,
    digital_auth_path: Path | None = None,
) -> tuple[Overlay, ...]:
    """The corner pictures of a video of ``size`` (width, height); ours are put into ``folder`` at its scale."""
    chosen = []
    if watermark:
        chosen.append(_overlay(WATERMARK, watermark_path, size, folder))
    if digital_auth:
        chosen.append(_overlay(AI_GENERATED, digital_auth_path, size, folder))
    return tuple(chosen)


def require(path: Path | None, what: str) -> None:
    """Refuse a picture of the options that cannot be read, when the engine loads rather than in the first job."""
    if path is not None and cv2.imread(str(path.expanduser()), cv2.IMREAD_UNCHANGED) is None:
        raise EngineError(f"options.{what}: {path} is no picture that can be read", hint="name a PNG, or leave it out")


def _overlay(mark: Mark, own: Path | None, size: tuple[int, int], folder: Path) -> Overlay:
    if own is not None:
        return Overlay(own.expanduser().absolute(), mark.corner, mark.name)
    picture = cv2.imread(str(mark.path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise EngineError(f"{mark.path} cannot be read", hint="install the project again")
    height = max(LEAST, round(SHARE * min(size)))
    width = round(picture.shape[1] * height / picture.shape[0])
    path = folder / f"{mark.name}.png"
    cv2.imwrite(str(path), cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
    return Overlay(path, mark.corner, mark.name)
