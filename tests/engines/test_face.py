"""Faces: the mesh, finding and following, what is refused, pose, measures, filters, the kept analysis."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from inference import video, weights
from inference.base import EngineError, InputError
from inference.face import analysis, filters, measure, mesh, plausible, pose, shots, track
from inference.face.model import FaceModel, Region, region_of_detection, region_of_points
from inference.kept import Shelf
from inference.lipsync import engine

PORTRAIT = Path(__file__).resolve().parents[2] / "examples" / "portrait" / "mona_lisa.jpg"
MEDIA = os.environ.get("FILEPOOL_MEDIA", "")  #: a folder with more pictures, for those who have one

Film = Callable[..., Path]


@pytest.fixture(scope="session")
def model() -> FaceModel:
    try:
        return FaceModel(weights.find("face-landmarker/face_landmarker.task"))
    except weights.WeightError as error:
        pytest.skip(f"{error} ({error.hint})")


@pytest.fixture(scope="session")
def face() -> np.ndarray:
    """The painted portrait, (400, 320, 3)."""
    picture = cv2.imread(str(PORTRAIT))
    return np.asarray(cv2.resize(picture, (320, 400), interpolation=cv2.INTER_AREA), np.uint8)


@pytest.fixture
def film(tmp_path: Path) -> Film:
    def write(frames: list[np.ndarray], name: str = "film.mp4", fps: float = 25) -> Path:
        path = tmp_path / name
        height, width = frames[0].shape[:2]
        with video.VideoWriter(path, video.Encoding(width, height, fps, preset="ultrafast", crf=12)) as out:
            for frame in frames:
                out.write(frame)
        return path

    return write


def moved(picture: np.ndarray, x: float, y: float, degrees: float = 0, scale: float = 1) -> np.ndarray:
    return np.asarray(cv2.warpAffine(picture, motion(x, y, degrees, scale), (320, 400), borderMode=1), np.uint8)


def motion(x: float, y: float, degrees: float = 0, scale: float = 1) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((160, 200), degrees, scale)
    matrix[:, 2] += (x, y)
    return matrix


def swaying(picture: np.ndarray, count: int = 40) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames of a picture that sways, and the matrix of each."""
    steps = [(20 * np.sin(k / 7), 8 * np.cos(k / 5), 8 * np.sin(k / 6), 1 + 0.08 * np.sin(k / 8)) for k in range(count)]
    return [moved(picture, *step) for step in steps], [motion(*step) for step in steps]


# --- mesh -------------------------------------------------------------------------------------------------------------


def test_mesh_of_the_model_file(model: FaceModel) -> None:
    canonical = model.mesh
    assert canonical.vertices.shape == (478, 3)
    assert canonical.triangles.shape == (898, 3)
    assert canonical.edges.shape == (1365, 2)  # a disc: vertices − edges + triangles = 1
    assert len(np.unique(canonical.triangles)) - len(canonical.edges) + len(canonical.triangles) == 1
    corners = canonical.vertices[[mesh.EYE_CORNER_RIGHT, mesh.EYE_CORNER_LEFT]]
    assert np.linalg.norm(corners[0] - corners[1]) == pytest.approx(1, abs=1e-5)
    assert corners[0, 0] < 0 < corners[1, 0]
    assert canonical.vertices[mesh.LIP_INNER_TOP, 1] == pytest.approx(0.449, abs=0.01)
    assert canonical.vertices[mesh.CHIN, 1] == pytest.approx(1.058, abs=0.01)
    assert canonical.vertices[mesh.NOSE_TIP, 2] < canonical.vertices[mesh.EYE_CORNER_LEFT, 2]  # nearer
    assert 18 <= canonical.mouth_triangles.sum() <= 20
    with pytest.raises(ValueError, match="read-only"):
        canonical.vertices[0, 0] = 1


def test_groups_are_symmetric(model: FaceModel) -> None:
    mirror = model.mesh.mirror
    assert np.array_equal(mirror[mirror], np.arange(478))
    for ring in (mesh.LIP_INNER_UPPER, mesh.LIP_INNER_LOWER, mesh.LIP_OUTER_UPPER, mesh.LIP_OUTER_LOWER):
        assert np.array_equal(mirror[ring], ring[::-1])
    assert np.array_equal(mirror[mesh.EYE_RIGHT], mesh.EYE_LEFT)
    for group in (mesh.OVAL, mesh.STABLE, mesh.LIP_INNER, mesh.LIP_OUTER):
        assert set(mirror[group]) == set(group)
    assert set(mirror[mesh.BROW_RIGHT]) == set(mesh.BROW_LEFT)
    assert len(mesh.LIP_INNER) == len(set(mesh.LIP_INNER)) == 20
    edges = {tuple(edge) for edge in model.mesh.edges}
    for ring in (mesh.OVAL, mesh.LIP_INNER, mesh.LIP_OUTER, mesh.EYE_RIGHT):
        assert all(tuple(sorted(pair)) in edges for pair in zip(ring, np.roll(ring, -1), strict=True))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "face.task"
    path.write_bytes(b"no zip")
    with pytest.raises(EngineError, match="no face mesh") as caught:
        FaceModel(path)
    assert "inference.weights install" in caught.value.hint


# --- model ------------------------------------------------------------------------------------------------------------


def test_detects_the_portrait(model: FaceModel, face: np.ndarray) -> None:
    (found,) = model.detect(face)
    x, y = found.centre
    assert 130 < x < 190
    assert 110 < y < 180
    assert found.score > 0.8
    right, left, nose, mouth = found.keypoints[:4]
    assert right[0] < nose[0] < left[0]
    assert right[1] < nose[1] < mouth[1]


def test_points_move_with_the_picture(model: FaceModel, face: np.ndarray) -> None:
    still = track.find(model, face)
    assert still is not None
    assert still.points.dtype == np.float32
    assert still.score > 0.99
    for step in ((30, -20, 0, 1), (0, 0, 25, 1), (0, 10, -40, 0.8), (0, 0, 5, 1.3)):
        there = track.find(model, moved(face, *step))
        assert there is not None
        matrix = motion(*step)
        expected = still.points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        error = np.linalg.norm(there.points[:, :2] - expected, axis=1) / there.eye_distance
        assert np.median(error) < 0.025
        assert there.eye_distance == pytest.approx(still.eye_distance * step[3], rel=0.04)


def test_small_and_very_large_faces(model: FaceModel, face: np.ndarray) -> None:
    wall = np.full((720, 1280, 3), 90, np.uint8)
    wall[400:500, 900:980] = cv2.resize(face, (80, 100), interpolation=cv2.INTER_AREA)
    assert not model.detect(wall)
    (found,) = model.detect(wall, thorough=True)
    assert 920 < found.centre[0] < 960
    close = track.find(model, face[70:250, 85:235])
    assert close is not None
    assert close.eye_distance > 40


def test_a_human_face_is_searched_for_behind_what_is_none(model: FaceModel, face: np.ndarray) -> None:
    """A large thing that looks like a face to the detector alone hides no small person."""
    wall = np.full((720, 1280, 3), 90, np.uint8)
    wall[200:600, 100:740] = cv2.resize(face, (640, 400))  # too wide for a person
    large = model.detect(wall, thorough=True)
    assert large
    assert not any(plausible.judge(model, wall, region_of_detection(one)).human for one in large)
    wall[300:425, 900:1000] = cv2.resize(face, (100, 125), interpolation=cv2.INTER_AREA)
    seen = track.Seen()
    found = track.find(model, wall, seen=seen)
    assert found is not None
    assert 900 < found.region.x < 1000
    assert plausible.MIN_EYES <= found.eye_distance < 22
    assert seen.refused == 0


def test_a_face_that_stands_on_its_head(model: FaceModel, face: np.ndarray) -> None:
    upright = track.find(model, face)
    assert upright is not None
    for scale in (1, 0.5):  # the detector alone takes the large one for an upright face, and finds nothing in the other
        picture = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        over = track.find(model, np.ascontiguousarray(picture[::-1, ::-1]))
        assert over is not None
        there = (np.array([319, 399]) - upright.points[:, :2] + 0.5) * scale - 0.5
        assert np.linalg.norm(over.points[:, :2] - there, axis=1).mean() < 0.06 * over.eye_distance


def test_regions(model: FaceModel, face: np.ndarray) -> None:
    region = Region(100, 50, 80, 0.3)
    corner = np.array([100, 50]) @ region.matrix()[:, :2].T + region.matrix()[:, 2]
    assert corner == pytest.approx([127.5, 127.5])
    (found,) = model.detect(face)
    landmarks = model.landmarks(face, region_of_detection(found))
    again = region_of_points(landmarks.points)
    assert again.x == pytest.approx(found.centre[0], abs=12)
    assert again.angle == pytest.approx(0, abs=0.2)
    # A region ten times the network's input is averaged, not sampled: no different result.
    large = cv2.resize(face, None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    there = model.landmarks(large, Region(again.x * 6 + 2.5, again.y * 6 + 2.5, again.side * 6, again.angle))
    here = model.landmarks(face, again)
    assert np.abs((there.points[:, :2] - 2.5) / 6 - here.points[:, :2]).mean() < 0.02 * here.eye_distance


# --- what is a human face ---------------------------------------------------------------------------------------------


def verdict(model: FaceModel, picture: np.ndarray) -> plausible.Verdict | None:
    found = model.detect(picture, thorough=True)
    return plausible.judge(model, picture, region_of_detection(found[0])) if found else None


def test_a_painting_is_human_in_many_guises(model: FaceModel, face: np.ndarray) -> None:
    hidden = face.copy()
    (found,) = model.detect(face)
    x, y, width, height = (round(value) for value in found.box)
    cv2.rectangle(hidden, (x, y + round(0.66 * height)), (x + width, y + round(0.95 * height)), (90, 120, 160), -1)
    guises = {
        "plain": face,
        "mirrored": np.ascontiguousarray(face[:, ::-1]),
        "dark": (face * 0.3).astype(np.uint8),
        "grey": cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR),
        "turned": moved(face, 0, 0, 25),
        "soft": cv2.GaussianBlur(face, (0, 0), 2),
        "mouth hidden": hidden,
    }
    for name, picture in guises.items():
        judged = verdict(model, np.asarray(picture, np.uint8))
        assert judged is not None, name
        assert judged.human, name
        assert judged.margin > 1, name


def test_distorted_faces_and_textures_are_not(model: FaceModel, face: np.ndarray) -> None:
    # Wide and short-nosed, as an animal looks to the network.
    wide = cv2.resize(face, (640, 400))
    judged = verdict(model, np.asarray(wide, np.uint8))
    assert judged is None or not judged.human
    generator = np.random.default_rng(5)
    for size in (0, 2, 5, 12):
        noise = generator.uniform(0, 255, (200, 200, 3)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), size) if size else noise
        texture = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        assert track.find(model, texture) is None
        assert not plausible.judge(model, texture, Region(100, 100, 150, 0)).human
    assert track.find(model, np.ascontiguousarray(face[:110, :90])) is None  # landscape behind her
    assert track.find(model, np.full((300, 300, 3), 128, np.uint8)) is None


@pytest.mark.skipif(not MEDIA, reason="FILEPOOL_MEDIA names no folder")
def test_a_dog_is_refused(model: FaceModel) -> None:
    dog = cv2.imread(str(Path(MEDIA) / "dog_noface.jpg"))
    assert model.detect(dog)[0].score > 0.6
    seen = track.Seen()
    assert track.find(model, dog, seen=seen) is None
    assert seen.refused == 1


# --- pose and measures ------------------------------------------------------------------------------------------------


def test_angles_and_turns_are_inverse() -> None:
    generator = np.random.default_rng(1)
    for angles in generator.uniform(-60, 60, (50, 3)):
        turn = pose.rotation_of(*angles)
        assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-5)
        assert pose.angles_of(turn[None])[0] == pytest.approx(angles, abs=1e-3)
    assert (pose.rotation_of(20, 0, 0) @ np.array([0, 0, -1]))[0] > 0  # the nose points to larger x
    assert (pose.rotation_of(0, 20, 0) @ np.array([0, 0, -1]))[1] < 0  # … up
    assert (pose.rotation_of(0, 0, 20) @ np.array([0, -1, 0]))[0] > 0  # … the crown goes clockwise


def test_fit_finds_the_pose_and_the_shape(model: FaceModel) -> None:
    generator = np.random.default_rng(2)
    person = model.mesh.vertices * np.float32([1, 1.08, 0.9])  # a longer, flatter face than the average
    person = person / np.linalg.norm(person[263] - person[33])
    true = pose.Pose(
        np.float32([80, 90, 100, 110, 120]),
        np.stack(
            [pose.rotation_of(*angles) for angles in ((0, 0, 0), (20, 5, 3), (-20, 0, -8), (5, -15, 0), (0, 9, 9))]
        ),
        generator.uniform(0, 300, (5, 3)).astype(np.float32),
    )
    points = true.to_pixels(person)
    points[3] = np.nan
    found = pose.fit(points, person)
    good = [0, 1, 2, 4]
    assert np.allclose(found.scale[good], true.scale[good], rtol=1e-4)
    assert np.allclose(found.angles[good], true.angles[good], atol=0.02)
    assert np.isnan(found.scale[3])
    assert np.allclose(found.to_head(points)[good], person, atol=1e-3)
    assert np.allclose(found.take(good).to_pixels(person), points[good], atol=0.05)
    own = pose.median_shape(points, model.mesh.vertices)
    assert np.linalg.norm(own[263] - own[33]) == pytest.approx(1, abs=1e-5)
    apart = own - person  # the place of its origin is a matter of definition
    assert np.abs(apart - apart.mean(axis=0)).mean() < 0.02
    with pytest.raises(ValueError, match="no frame"):
        pose.median_shape(np.full((2, 478, 3), np.nan, np.float32), model.mesh.vertices)


def test_channels_tell_the_mouth_apart(model: FaceModel) -> None:
    frames = np.repeat(model.mesh.vertices[None], 5, axis=0)
    frames[1, [14, 17, 152], 1] += 0.1  # opened
    frames[2, 61, 0] -= 0.05  # widened
    frames[3, [0, 13, 14, 17], 2] -= 0.07  # pursed
    frames[4] = np.nan
    mouth = measure.mouth(frames)
    change = mouth.table - mouth.table[0]
    assert mouth.table.shape == (5, len(measure.CHANNELS))
    assert change[1] == pytest.approx([0.1, 0, 0.1, 0, 0.1], abs=0.01)
    assert change[2] == pytest.approx([0, 0.05, 0, 0, 0], abs=0.002)
    assert change[3] == pytest.approx([0, 0, 0, 0.07, 0], abs=0.002)
    assert np.isnan(mouth.table[4]).all()
    turned = pose.Pose(np.float32([150]), pose.rotation_of(0, 0, 30)[None], np.float32([[200, 100, 0]]))
    opening, width = measure.of_pixels(turned.to_pixels(frames[1]))
    assert opening[0] == pytest.approx(mouth.opening[1], rel=1e-3)
    assert width[0] == pytest.approx(mouth.width[1], rel=1e-3)
    assert measure.eyes_open(frames[:1]) == pytest.approx(0.3, abs=0.15)


# --- filters ----------------------------------------------------------------------------------------------------------


def test_gaussian() -> None:
    steps = np.arange(60, dtype=np.float32)
    wave = np.stack([np.sin(steps / 8), steps, np.ones(60, np.float32)], axis=1)
    smooth = filters.gaussian(wave, 2)
    assert np.allclose(smooth[10:50], wave[10:50], atol=0.05)  # no shift, straight lines stay
    assert np.allclose(smooth[:, 2], 1)
    noisy = np.random.default_rng(0).normal(0, 1, (500, 3)).astype(np.float32)
    assert filters.gaussian(noisy, 2).std() < 0.45
    noisy[100:130] = np.nan
    gap = filters.gaussian(noisy, 2)
    assert np.array_equal(np.isnan(gap), np.isnan(noisy))
    changed = noisy.copy()
    changed[:100] += 100
    assert np.array_equal(filters.gaussian(changed, 2)[130:], gap[130:])
    assert np.array_equal(filters.gaussian(noisy, 0), noisy, equal_nan=True)
    assert filters.gaussian(np.ones((1, 4)), 3) == pytest.approx(1)


def test_smoothed_poses_are_poses() -> None:
    generator = np.random.default_rng(6)
    turns = np.stack([pose.rotation_of(*angles) for angles in generator.normal(0, 5, (30, 3))])
    rough = pose.Pose(np.full(30, 90, np.float32), turns, generator.normal(100, 3, (30, 3)).astype(np.float32))
    rough.rotation[7] = np.nan
    smooth = filters.smooth_pose(rough, 2)
    good = np.arange(30) != 7
    assert np.allclose(smooth.rotation[good] @ smooth.rotation[good].transpose(0, 2, 1), np.eye(3), atol=1e-5)
    assert smooth.angles[good].std() < 0.6 * rough.angles[good].std()
    assert np.isnan(smooth.rotation[7]).all()


# --- following --------------------------------------------------------------------------------------------------------


def test_follows_loses_and_finds_again(model: FaceModel, face: np.ndarray) -> None:
    frames, matrices = swaying(face, 24)
    for index in (10, 11, 12):
        frames[index] = np.full_like(face, 60)
    frames[18] = np.roll(frames[18], 90, axis=1)  # a jump within one frame
    still = track.find(model, face)
    assert still is not None
    tracker = track.Tracker(model)
    for index, (frame, matrix) in enumerate(zip(frames, matrices, strict=True)):
        landmarks = tracker.feed(frame)
        assert (landmarks is None) == (index in (10, 11, 12))
        if landmarks is not None:
            expected = still.points[:, :2] @ matrix[:, :2].T + matrix[:, 2] + (90 if index == 18 else 0, 0)
            assert np.linalg.norm(landmarks.points[:, :2] - expected, axis=1).mean() < 0.05 * still.eye_distance
    assert tracker.seen.frames == 24


def test_choice_among_several(model: FaceModel, face: np.ndarray) -> None:
    small = cv2.resize(face, (200, 250), interpolation=cv2.INTER_AREA)
    both = np.full((400, 540, 3), 70, np.uint8)
    both[:, :320] = face
    both[100:350, 330:530] = small
    largest = track.find(model, both)
    second = track.find(model, both, track.Choice(1))
    named = track.find(model, both, track.Choice(point=(430, 190)))
    assert largest is not None
    assert second is not None
    assert named is not None
    assert largest.region.x < 320 < second.region.x
    assert named.region.x == pytest.approx(second.region.x, abs=2)
    seen = track.Seen()
    assert track.find(model, both, track.Choice(2), seen) is None
    assert "at most 2" in seen.describe()


def test_does_not_run_over_to_somebody_else(model: FaceModel, face: np.ndarray) -> None:
    small = np.asarray(cv2.resize(face, (160, 200), interpolation=cv2.INTER_AREA), np.uint8)

    def scene(with_large: bool) -> np.ndarray:
        frame = np.full((400, 700, 3), 70, np.uint8)
        if with_large:
            frame[:, :320] = face
        frame[150:350, 520:680] = small
        return frame

    tracker = track.Tracker(model)
    here, gone = scene(True), scene(False)
    assert all(tracker.feed(here) is not None for _ in range(2))
    assert all(tracker.feed(gone) is None for _ in range(track.WAIT_FRAMES))
    after = tracker.feed(gone)
    assert after is not None
    assert after.region.x > 500


# --- analysis ---------------------------------------------------------------------------------------------------------


def test_analysis_of_a_video(model: FaceModel, face: np.ndarray, film: Film) -> None:
    frames, matrices = swaying(face)
    frames[15] = frames[16] = np.full_like(face, 40)
    frames[25:27] = [np.full_like(face, 40)] * 2
    told: list[tuple[int, int]] = []
    result = analysis.analyse(film(frames), model, lambda done, of: told.append((done, of)))
    assert (result.frames, result.size, result.fps, result.complete) == (40, (320, 400), 25.0, True)
    assert list(np.flatnonzero(~result.found)) == [15, 16, 25, 26]
    assert np.isnan(result.points[15]).all()
    assert told[-1] == (40, 40)
    still = track.find(model, face)
    assert still is not None
    for index in np.flatnonzero(result.found):
        expected = still.points[:, :2] @ matrices[index][:, :2].T + matrices[index][:, 2]
        away = np.linalg.norm(result.points[index, :, :2] - expected, axis=1).mean()
        assert away < 0.03 * result.scale[index]
    # The head sways, the mouth does not: channels see the second.
    rolls = np.degrees([np.arctan2(matrix[1, 0], matrix[0, 0]) for matrix in matrices])
    assert np.corrcoef(result.pose.angles[result.found, 2], rolls[result.found])[0, 1] > 0.99
    assert np.nanstd(result.openings) < 0.01
    assert np.nanstd(result.widths) < 0.02
    assert result.head.shape == (40, 478, 3)
    with pytest.raises(ValueError, match="read-only"):
        result.points[0] = 0


def test_a_mouth_that_the_picture_cuts_off(model: FaceModel, face: np.ndarray, film: Film) -> None:
    still = track.find(model, face)
    assert still is not None
    end = int(still.points[mesh.LIP_INNER_BOTTOM, 1]) // 2 * 2
    above = np.ascontiguousarray(face[:end])
    assert analysis.analyse(film([above] * 3), model).cut_off.all()
    assert not analysis.analyse(film([face] * 3, "whole.mp4"), model).cut_off.any()


def test_shots_and_people_are_told(model: FaceModel, face: np.ndarray, film: Film) -> None:
    """A jump cut, somebody else (skin, bones and colours are mirrored), and the first one again in less light."""
    near = np.full_like(face, 90)
    near[100:350, 60:260] = cv2.resize(face, (200, 250), interpolation=cv2.INTER_AREA)
    other, dark = np.ascontiguousarray(face[:, ::-1]), (face * 0.6).astype(np.uint8)
    seen = analysis.analyse(film([face] * 4 + [near] * 4 + [other] * 4 + [dark] * 4), model)
    assert seen.shot.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert seen.person.tolist() == [0] * 8 + [1] * 4 + [0] * 4
    assert seen.shape.shape == (2, 478, 3)
    assert np.ptp(seen.openings[seen.person == 0]) < 0.01  # measured on her own shape
    (told,) = engine._seen(seen, "")
    assert told.startswith("video: 4 shots (cuts at 0.2 s, 0.3 s, 0.5 s) show 2 people")
    assert engine._seen(analysis.analyse(film([face] * 5, "one.mp4"), model), "") == ()


def test_a_face_that_leaps_is_another() -> None:
    """Whom the search takes up after the first one is gone."""
    eyes = np.array([[100, 100], [160, 100]], np.float32) + np.zeros((12, 1, 1), np.float32)
    eyes += np.arange(12, dtype=np.float32)[:, None, None]  # moving is no leap
    eyes[7:] += [150, 0]
    eyes[5:7] = np.nan
    none = np.zeros(12, np.int32)
    assert shots.leaps(none, eyes).tolist() == [0] * 7 + [1] * 5
    assert shots.leaps(np.repeat(np.int32([0, 1]), 6), eyes).tolist() == [0] * 6 + [1] * 6  # told by the picture
    assert not shots.leaps(none, eyes[:1].repeat(12, axis=0)).any()
    assert not shots.leaps(none, np.full((12, 2, 2), np.nan, np.float32)).any()


@pytest.mark.long
def test_a_face_is_followed_back_to_where_it_was_missed(model: FaceModel, face: np.ndarray, film: Film) -> None:
    """A small face comes between two of the searches that see small ones."""
    wall = np.full((720, 1280, 3), 90, np.uint8)
    small = wall.copy()
    small[300:450, 900:1020] = cv2.resize(face, (120, 150), interpolation=cv2.INTER_AREA)
    frames = [wall if k < 4 else small for k in range(16)]
    tracker = track.Tracker(model)
    assert [tracker.feed(frame) is not None for frame in frames].index(True) > 4
    seen = analysis.analyse(film(frames), model)
    assert seen.found.tolist() == [k >= 4 for k in range(16)]
    assert np.ptp(seen.points[4:, 1, 0]) < 3


def test_only_so_much_of_a_long_video(model: FaceModel, face: np.ndarray, film: Film) -> None:
    path = film([face] * 12)
    part = analysis.analyse(path, model, limit=5)
    assert (part.frames, part.complete) == (5, False)
    assert analysis.analyse(path, model, limit=12).complete


def test_one_picture_and_a_large_one(model: FaceModel, face: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "small.png"), face)
    cv2.imwrite(str(tmp_path / "large.png"), cv2.resize(face, None, fx=6, fy=6, interpolation=cv2.INTER_LINEAR))
    small = analysis.analyse(tmp_path / "small.png", model)
    large = analysis.analyse(tmp_path / "large.png", model)
    assert (small.frames, large.frames) == (1, 1)
    assert large.size == (1920, 2400)
    assert max(large.size) > analysis.ANALYSIS_SIDE
    scaled = (large.points[0, :, :2] - 2.5) / 6
    assert np.abs(scaled - small.points[0, :, :2]).mean() < 0.02 * small.scale[0]


def test_nobody_there(model: FaceModel, face: np.ndarray, film: Film) -> None:
    path = film([np.full_like(face, shade) for shade in range(40, 60)])
    with pytest.raises(InputError, match="does not show a human face") as caught:
        analysis.analyse(path, model)
    assert str(path) in str(caught.value)
    assert "20 frames were looked at" in str(caught.value)
    blink = [np.full_like(face, 50)] * 20
    blink[9] = face  # one frame is no person talking
    with pytest.raises(InputError, match="does not show"):
        analysis.analyse(film(blink), model)
    with pytest.raises(InputError, match=r"face 2 by size \(8 frames were looked at; only one"):
        analysis.analyse(film([face] * 8), model, choice=track.Choice(1))


@pytest.mark.long
def test_memory_does_not_grow_with_frames(model: FaceModel, face: np.ndarray, film: Film) -> None:
    path = film([face] * 60)
    tracemalloc.start()
    analysis.analyse(path, model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * face.nbytes / 2


def test_save_and_load(model: FaceModel, face: np.ndarray, film: Film, tmp_path: Path) -> None:
    result = analysis.analyse(film([face] * 4), model)
    path = tmp_path / "kept.npz"
    result.save(path)
    again = analysis.TemplateAnalysis.load(path)
    assert again.size == result.size
    assert again.complete is True
    for name in ("points", "found", "rotation", "channels", "shape"):
        assert np.array_equal(getattr(again, name), getattr(result, name), equal_nan=name != "found")
    assert [item.name for item in tmp_path.glob(".kept*")] == []
    data = path.read_bytes()
    for bad in (b"", data[:500], data[: len(data) // 2], b"not a zip" * 100):
        path.write_bytes(bad)
        with pytest.raises((ValueError, OSError)):
            analysis.TemplateAnalysis.load(path)
    np.savez(path, version=np.asarray(0))
    with pytest.raises(ValueError, match="version"):
        analysis.TemplateAnalysis.load(path)


def test_cache_is_kept_by_content(
    model: FaceModel, face: np.ndarray, film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = analysis.analyse

    def counted(*arguments: object, **options: object) -> analysis.TemplateAnalysis:
        calls.append("call")
        time.sleep(0.2)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(analysis, "analyse", counted)
    path, folder = film([face] * 4), tmp_path / "cache"
    first = analysis.cached(Shelf(folder), path, model)
    copy = tmp_path / "copy of it.mp4"
    copy.write_bytes(path.read_bytes())
    second = analysis.cached(Shelf(folder), copy, model)
    assert len(calls) == 1
    assert np.array_equal(first.points, second.points)
    analysis.cached(Shelf(folder), path, model, choice=track.Choice(point=(160, 150)))
    assert len(calls) == 2
    for kept in folder.glob("*.npz"):
        kept.write_bytes(b"damaged")
    analysis.cached(Shelf(folder), path, model)
    assert len(calls) == 3
    # Two at once share one.
    other = film([moved(face, 3, 0)] * 4, "other.mp4")
    threads = [threading.Thread(target=analysis.cached, args=(Shelf(folder), other, model)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 4


def test_cache_is_pruned(model: FaceModel, face: np.ndarray, film: Film, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    one, two = film([face] * 2, "one.mp4"), film([face] * 3, "two.mp4")
    analysis.cached(Shelf(folder), one, model)
    (old,) = folder.glob("*.npz")
    os.utime(old, (1, 1))
    analysis.cached(Shelf(folder, keep=old.stat().st_size * 2), two, model)
    assert not old.exists()
    assert len(list(folder.glob("*.npz"))) == 1


@pytest.mark.long
def test_cancel_leaves_nothing(model: FaceModel, face: np.ndarray, film: Film, tmp_path: Path) -> None:
    path, folder = film([face] * 30), tmp_path / "cache"
    left = [10]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analysis.cached(Shelf(folder), path, model, check=check)
    assert not list(folder.glob("*.npz"))
    assert not [child for child in psutil.Process().children() if "ffmpeg" in child.name()]
    assert analysis.cached(Shelf(folder), path, model).frames == 30  # the lock was let go
