"""The picture a job brings, made ready: whose face it is, which part of it is shown, and in which size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inference.base import InputError
from inference.face import mesh
from inference.face.model import FaceModel, region_of_points
from inference.face.track import Choice, Seen, find
from inference.portrait.params import Params
from inference.portrait.picture import Frame, is_animation, read_picture, scaled
from inference.probe import MAX_PIXELS

LOOK_SIDE = 2048  #: pixels of the longer side at which faces are searched
REFINE = 3  #: looks at the same face; the mean of the last two is taken
WHOLE_SIDE, CROP_SIDE = 1280, 512  #: pixels, largest whole picture and crop unless a job asks for more
CROP_UNITS, CROP_UP = 3.7, 0.12  #: eye distances: side of a crop, how far its middle lies above the head's origin
MOUTH_SEEN = 0.7  #: share of the lips that must lie in the picture
ENLARGED = 2.0  #: times the size of the picture, from which on it is said
SMALL_UNIT, TINY_UNIT = 40.0, 14.0  #: pixels between the eyes: little to see, too little to work on


@dataclass(frozen=True)
class Rectangle:
    """Whole pixels of the original picture."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Reference:
    """One face in one picture, in the size of the video."""

    picture: Frame  #: (H, W, 3) BGR, even sides
    points: mesh.Points  #: (478, 3) pixels of it
    shown: Rectangle  #: what of the original it is
    original: tuple[int, int]  #: width, height of the original, upright
    faces: int  #: how many there were
    warnings: tuple[str, ...]


def load(job: Params, model: FaceModel) -> Reference:
    """Read the picture of a job and find its face; raises :class:`InputError` when there is none."""
    whole = read_picture(job.image)
    points, faces = _find(whole, job, model)
    shown, width, height, warnings = _view(whole, points, job)
    part = whole[shown.y : shown.y + shown.height, shown.x : shown.x + shown.width]
    picture = scaled(np.ascontiguousarray(part), width, height)
    ratio = np.array([width / shown.width, height / shown.height, width / shown.width], np.float32)
    moved = (points - np.array([shown.x, shown.y, 0], np.float32)) * ratio
    points = _refined(picture, moved, model)
    unit = float(np.linalg.norm(points[mesh.EYE_CORNER_LEFT] - points[mesh.EYE_CORNER_RIGHT]))
    if unit < TINY_UNIT:
        raise InputError(
            f"image: the face in {job.image} is too small to animate at {width}×{height}: {unit:.0f} pixels between "
            "the eyes",
            hint='keep="crop" shows only the head, or use a picture taken closer',
        )
    if unit < SMALL_UNIT:
        warnings.append(f'the face is small ({unit:.0f} pixels between the eyes); keep="crop" shows only the head')
    warnings += _outside(points, width, height, job)
    if ratio[0] >= ENLARGED:
        warnings.append(f"{shown.width}×{shown.height} pixels enlarged to {width}×{height} stay soft")
    if is_animation(job.image):
        warnings.append("the picture is an animation or has several pages; the first one is used")
    if faces > 1 and job.face == "largest":
        warnings.append(f"{faces} faces in the picture; the largest one talks")
    return Reference(picture, points, shown, (whole.shape[1], whole.shape[0]), faces, tuple(warnings))


def _outside(points: mesh.Points, width: int, height: int, job: Params) -> list[str]:
    """What to say about a mouth that the picture cuts off; raises :class:`InputError` where most of it is missing."""
    lips = points[mesh.LIP_OUTER, :2]
    inside = float(((lips >= 0) & (lips < [width, height])).all(axis=1).mean())
    if inside < MOUTH_SEEN:
        raise InputError(
            f"image: the mouth of the face in {job.image} lies outside the picture",
            hint="use a picture that shows the whole face",
        )
    return ["the picture cuts the mouth off"] if inside < 1 else []


def _find(whole: Frame, job: Params, model: FaceModel) -> tuple[mesh.Points, int]:
    """The points (478, 3) of the chosen face in pixels, and how many faces there are."""
    ratio = min(1.0, LOOK_SIDE / max(whole.shape[:2]))
    small = scaled(whole, round(whole.shape[1] * ratio), round(whole.shape[0] * ratio))
    seen = Seen()
    found = find(model, small, Choice.of(job.face, ratio), seen)
    if found is None and seen.most:
        raise InputError(
            f"face: {job.face} of {job.image}, which shows {seen.most}", hint=f"0 to {seen.most - 1}, the largest first"
        )
    if found is None:
        why = " (there is one, but too small)" if seen.small else ""
        why = why or (" (what looks like one is no person's)" if seen.refused else "")
        raise InputError(
            f"image: no human face was found in {job.image}{why}",
            hint="use a picture that shows a face from the front, not too small and not covered",
        )
    return np.asarray(found.points / np.float32(ratio), np.float32), seen.most


def _refined(picture: Frame, points: mesh.Points, model: FaceModel) -> mesh.Points:
    """The points looked at again in the final picture, where everything else is measured."""
    seen = []
    for _ in range(REFINE):
        points = model.landmarks(picture, region_of_points(points)).points
        seen.append(points)
    return np.asarray((seen[-1] + seen[-2]) / 2, np.float32)


def _view(whole: Frame, points: mesh.Points, job: Params) -> tuple[Rectangle, int, int, list[str]]:
    """What of the original is shown, the video's width and height, and what to say about it."""
    high, wide = whole.shape[:2]
    if job.keep == "crop":
        size = _even(job.size or CROP_SIDE)
        _check_area(size, size, size)
        return square(points, wide, high), size, size, []
    largest = job.size or min(WHOLE_SIDE, max(high, wide))
    ratio = largest / max(high, wide)
    width, height = _even(wide * ratio), _even(high * ratio)
    _check_area(width, height, largest)
    if ratio == 1 and (width, height) != (wide, high):  # odd sides lose a row rather than sharpness
        return Rectangle(0, 0, width, height), width, height, []
    warnings = [f"picture of {wide}×{high} scaled to {width}×{height}"] if not job.size and ratio < 1 else []
    return Rectangle(0, 0, wide, high), width, height, warnings


def _check_area(width: int, height: int, size: int) -> None:
    if width * height > MAX_PIXELS:
        most = _even(size * (MAX_PIXELS / (width * height)) ** 0.5)
        raise InputError(
            f"size: {size} would make a video of {width}×{height}; {MAX_PIXELS / 1e6:.1f} megapixels are the most",
            hint=f"size={most} is the largest for this picture",
        )


def square(points: mesh.Points, width: int, height: int) -> Rectangle:
    """The square round a head, (478, 3) points in a picture of that size; as much of it as the picture has."""
    unit = float(np.linalg.norm(points[mesh.EYE_CORNER_LEFT] - points[mesh.EYE_CORNER_RIGHT]))
    side = int(min(round(CROP_UNITS * unit), width, height))
    eyes = points[[mesh.EYE_CORNER_LEFT, mesh.EYE_CORNER_RIGHT], :2].mean(axis=0)
    mouth = points[mesh.LIP_INNER, :2].mean(axis=0)
    middle = eyes + 0.42 * (mouth - eyes) - [0, CROP_UP * unit]
    x = int(np.clip(round(float(middle[0]) - side / 2), 0, width - side))
    y = int(np.clip(round(float(middle[1]) - side / 2), 0, height - side))
    return Rectangle(x, y, side, side)


def _even(side: float) -> int:
    return max(2, int(side) // 2 * 2)
