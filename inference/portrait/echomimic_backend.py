"""The ``echomimic`` backend: a generated square, shown as it is or pasted back into its picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.base import InputError
from inference.face import mesh
from inference.lipsync.frames import Frame
from inference.portrait.echomimic import EchoMimic, Request, check_length
from inference.portrait.params import CFG, FAST_CFG, FAST_STEPS, STEPS, Options
from inference.portrait.reference import Rectangle, Reference, square
from inference.portrait.work import Work

FEATHER = 0.10  #: share of the square's side over which it blends into the picture
#: of the face's oval in the pictures that EchoMimicV2 was made for, as shares of their side (measured on the 12
#: first of its examples: 0.503 ± 0.001, 0.242 ± 0.001, 0.216 ± 0.003)
BODY_X, BODY_Y, BODY_HEIGHT = 0.503, 0.242, 0.216
LEAST_BODY = 0.75  #: share of that square that a picture must have
MADE = 0.95  #: share of all work that is done once the square exists


class EchoMimicBackend:
    """The published pipeline as a backend."""

    generative = True

    def __init__(self, options: Options, device: str) -> None:
        self._options = options
        self._pipeline = EchoMimic(options.checkout, options.weights, options.variant, device, poses=options.poses)

    def prepare(
        self, work: Work, scratch: Path, check: Callable[[], None], progress: Callable[[float], None]
    ) -> tuple[Callable[[int, int], Paster], float]:
        """All frames are generated here; what is left is pasting them."""
        variant = self._pipeline.variant
        cfg = work.job.cfg or (FAST_CFG if variant.fast else CFG)
        if cfg <= 1 and not variant.fast:  # its pipeline always reckons with two batches
            raise InputError(
                f"cfg: {cfg:g} is too little for EchoMimic's {self._options.variant} variant: more than 1 is needed",
                hint=f"{CFG} is usual; the accelerated variants (option `variant`) take 1",
            )
        picture, points = work.reference.picture, work.reference.points
        if variant.poses:
            place = body(work.reference, work.job.keep)
        else:
            place = square(points, picture.shape[1], picture.shape[0])
        face = picture[place.y : place.y + place.height, place.x : place.x + place.width]
        ratio = variant.side / place.width
        inside = (points[mesh.OVAL, :2] - [place.x, place.y]) * ratio
        low, high = inside.min(axis=0), inside.max(axis=0)
        how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
        request = Request(
            face=np.asarray(cv2.resize(face, (variant.side, variant.side), interpolation=how), np.uint8),
            box=(float(low[0]), float(low[1]), float(high[0]), float(high[1])),
            samples=work.samples,
            frames=work.frames,
            fps=work.job.fps,
            seed=work.seed,
            steps=work.job.steps or (FAST_STEPS if variant.fast else STEPS),
            cfg=cfg,
        )
        frames = self._pipeline.generate(request, scratch, check, lambda share: progress(MADE * share))
        cover = feather(place, picture.shape[1], picture.shape[0])
        return (lambda start, stop: Paster(picture, frames, place, cover)), MADE

    def check_length(self, frames: int) -> None:
        """Raise InputError for more frames than ``max_frames``."""
        check_length(frames, self._options.max_frames)

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        return self._pipeline.files()

    def settings(self) -> dict[str, object]:
        """The options that shape a video."""
        return {"backend": "echomimic", "variant": self._options.variant}

    def warmup(self) -> None:
        """Nothing: one pass takes as long as a job's."""

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline.close()


def body(reference: Reference, keep: str) -> Rectangle:
    """The square round head, arms and hands, laid so that the face is where EchoMimicV2 expects it; as much of it as
    the picture has. Raises :class:`InputError` when that is too little."""
    height, width = reference.picture.shape[:2]
    oval = reference.points[mesh.OVAL, :2]
    wanted = float(np.ptp(oval[:, 1])) / BODY_HEIGHT
    side = int(min(wanted, width, height))
    if side < LEAST_BODY * wanted:
        raise InputError(
            "image: EchoMimicV2 moves head, arms and hands, and the picture shows little more than a head",
            hint='leave out keep="crop"'
            if keep == "crop"
            else f"use a picture that shows the body round the face, about {wanted:.0f}×{wanted:.0f} pixels of it",
        )
    middle = oval.mean(axis=0)
    x = int(np.clip(round(float(middle[0]) - BODY_X * side), 0, width - side))
    y = int(np.clip(round(float(middle[1]) - BODY_Y * side), 0, height - side))
    return Rectangle(x, y, side, side)


class Paster:
    """Lays generated squares over the picture."""

    batch = 1

    def __init__(self, picture: Frame, frames: NDArray[np.uint8], place: Rectangle, cover: NDArray[np.float32]) -> None:
        self._picture, self._frames, self._place, self._cover = picture, frames, place, cover[..., None]

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
        """(H, W, 3) each: the pictures of some output numbers."""
        return [self._one(k) for k in outputs]

    def _one(self, k: int) -> Frame:
        place, made = self._place, self._frames[k]
        how = cv2.INTER_AREA if place.width < made.shape[1] else cv2.INTER_CUBIC
        made = cv2.resize(made, (place.width, place.height), interpolation=how)
        result: Frame = self._picture.copy()
        part = result[place.y : place.y + place.height, place.x : place.x + place.width]
        part[:] = np.rint(part + (made.astype(np.float32) - part) * self._cover).astype(np.uint8)
        return result


def feather(place: Rectangle, width: int, height: int) -> NDArray[np.float32]:
    """(side, side) 1 inside the square, 0 at those of its edges that lie inside the picture."""
    at = (np.arange(place.width, dtype=np.float32) + 0.5) / (FEATHER * place.width)

    def ramp(near: bool, far: bool) -> NDArray[np.float32]:
        up = np.clip(at, 0, 1) if near else np.ones_like(at)
        down = np.clip(at[::-1], 0, 1) if far else np.ones_like(at)
        both = np.minimum(up, down)
        return np.asarray(both * both * (3 - 2 * both), np.float32)

    across = ramp(place.x > 0, place.x + place.width < width)
    along = ramp(place.y > 0, place.y + place.height < height)
    return np.asarray(along[:, None] * across[None, :], np.float32)
