"""What is before a mouth is told from what is not: hands and masks from shade, turns and speech."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference import video, weights
from inference.face import analysis, mesh
from inference.face.model import FaceModel, region_of_detection
from inference.lipsync.engine import _seen

pytestmark = [pytest.mark.long, pytest.mark.model]  # the landmarker's file

PICTURE = Path(__file__).resolve().parents[2] / "examples" / "portrait" / "mona_lisa.jpg"
SIZE = (400, 500)
COUNT = 48

Frame = np.ndarray
Change = Callable[[int, Frame], Frame]


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel(weights.find("face-landmarker/face_landmarker.task"))


@pytest.fixture(scope="module")
def face() -> Frame:
    return np.asarray(cv2.resize(cv2.imread(str(PICTURE)), SIZE, interpolation=cv2.INTER_AREA), np.uint8)


@pytest.fixture(scope="module")
def mouth(face: Frame, model: FaceModel) -> tuple[int, int, float]:
    """x, y of its middle, and the eye distance, pixels."""
    (found,) = model.detect(face, thorough=True)
    points = model.landmarks(face, region_of_detection(found)).points
    middle = points[mesh.LIP_INNER, :2].mean(axis=0)
    unit = np.linalg.norm(points[mesh.EYE_CORNER_LEFT, :2] - points[mesh.EYE_CORNER_RIGHT, :2])
    return round(float(middle[0])), round(float(middle[1])), float(unit)


def seen(tmp_path: Path, model: FaceModel, face: Frame, change: Change) -> analysis.TemplateAnalysis:
    """A face that sways a little, with what is done to each frame before that."""
    path = tmp_path / "film.mp4"
    with video.VideoWriter(path, video.Encoding(*SIZE, 25, preset="ultrafast", crf=14)) as out:
        for k in range(COUNT):
            turn = cv2.getRotationMatrix2D((200, 180), 3 * np.sin(k / 8), 1)
            turn[:, 2] += [4 * np.sin(k / 5), 3 * np.cos(k / 6)]
            out.write(np.asarray(cv2.warpAffine(change(k, face.copy()), turn, SIZE, borderMode=1), np.uint8))
    return analysis.analyse(path, model)


def grain(seed: int, strength: float) -> Frame:
    noise = np.random.default_rng(seed).normal(0, 1, (SIZE[1], SIZE[0])).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.asarray(strength * soft / soft.std(), np.float32)


def laid(frame: Frame, shape: Frame, colour: tuple[int, int, int], seed: int = 3, strength: float = 5) -> Frame:
    """Something of one colour, with a grain of its own, over a frame. shape: (H, W) 0..1."""
    stuff = np.clip(np.float32(colour) + grain(seed, strength)[..., None], 0, 255)
    soft = cv2.GaussianBlur(shape, (0, 0), 1.5)[..., None]
    return np.asarray(frame * (1 - soft) + stuff * soft, np.uint8)


def ellipse(x: int, y: int, wide: float, high: float) -> Frame:
    shape = np.zeros((SIZE[1], SIZE[0]), np.float32)
    cv2.ellipse(shape, (x, y), (round(wide), round(high)), 0, 0, 360, 1.0, cv2.FILLED)
    return shape


def test_a_hand_that_comes_and_goes(
    tmp_path: Path, model: FaceModel, face: Frame, mouth: tuple[int, int, float]
) -> None:
    x, y, unit = mouth

    def change(k: int, frame: Frame) -> Frame:
        away = max(0, 14 - k, k - 33)  # it takes some frames to come
        return laid(frame, ellipse(x, y + round(away * unit / 4), 0.5 * unit, 0.5 * unit), (95, 130, 175))

    found = seen(tmp_path, model, face, change)
    assert found.found.all()
    assert found.covered[16:32].all()
    assert not found.covered[:8].any()
    assert not found.covered[40:].any()
    (told,) = _seen(found, "")
    count = int(found.covered.sum())
    assert told.startswith(f"video: something is before the mouth in {count} of 48 frames (0.")


def test_a_hand_with_the_colours_of_a_mouth(
    tmp_path: Path, model: FaceModel, face: Frame, mouth: tuple[int, int, float]
) -> None:
    """Fingers are red where lips would be: only what the skin looks like tells."""
    x, y, unit = mouth

    def change(k: int, frame: Frame) -> Frame:
        if not 16 <= k < 32:
            return frame
        hand = laid(frame, ellipse(x, y, 0.5 * unit, 0.5 * unit), (95, 130, 175), strength=12)
        return laid(hand, ellipse(x, y, 0.3 * unit, 0.1 * unit), (60, 60, 170))

    found = seen(tmp_path, model, face, change)
    assert found.covered[16:32].all()
    assert not found.covered[:13].any()
    assert not found.covered[35:].any()


def test_a_hand_that_stays_for_most_of_the_time(
    tmp_path: Path, model: FaceModel, face: Frame, mouth: tuple[int, int, float]
) -> None:
    """The usual look is that of the hand, and yet no mouth."""
    x, y, unit = mouth
    hand = ellipse(x, y, 0.5 * unit, 0.5 * unit)
    found = seen(tmp_path, model, face, lambda k, frame: laid(frame, hand, (95, 130, 175)) if k >= 16 else frame)
    assert found.covered[16:].all()
    assert not found.covered[:13].any()


def test_shade_that_passes_over_half_of_the_face(tmp_path: Path, model: FaceModel, face: Frame) -> None:
    columns = np.arange(SIZE[0], dtype=np.float32)

    def change(k: int, frame: Frame) -> Frame:
        edge = np.clip((columns - 195) / 20, 0, 1) if 14 <= k < 34 else np.zeros_like(columns)
        return np.asarray(frame * (1 - 0.6 * edge)[None, :, None], np.uint8)

    found = seen(tmp_path, model, face, change)
    assert found.found.all()
    assert not found.covered.any()
    assert _seen(found, "") == ()


@pytest.mark.long
def test_a_mask_in_every_frame(tmp_path: Path, model: FaceModel, face: Frame, mouth: tuple[int, int, float]) -> None:
    x, y, unit = mouth
    cloth = ellipse(x, y + round(0.1 * unit), 0.75 * unit, 0.6 * unit)
    found = seen(tmp_path, model, face, lambda k, frame: laid(frame, cloth, (205, 190, 170), seed=k, strength=1.5))
    assert found.found.any()
    assert not found.clear.any()


def test_two_shots_are_judged_each_by_itself(tmp_path: Path, model: FaceModel, face: Frame) -> None:
    """A face that looks otherwise after a cut is nothing before the first one's mouth."""
    other = np.ascontiguousarray(255 - (255 - face.astype(np.int16)) // 2)[:, ::-1].astype(np.uint8)
    found = seen(tmp_path, model, face, lambda k, frame: frame if k < 24 else other)
    assert found.shot.tolist() == [0] * 24 + [1] * 24
    assert not found.covered.any()
