"""The portrait engine on a painting and real speech, and its parts one by one."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from inference import media, weights
from inference.base import Cancelled, EngineError, InputError, LocalContext
from inference.face import measure, mesh, pose
from inference.face.model import FaceModel, region_of_points
from inference.portrait import Params, Portrait, motion, reference
from inference.portrait.animate import Animator
from inference.portrait.picture import read_picture
from inference.video import probe_video, read_frames

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMAGE, AUDIO = EXAMPLES / "portrait" / "mona_lisa.jpg", EXAMPLES / "speech" / "reading.flac"
FPS = 25.0

needs_models = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel(weights.find("face-landmarker/face_landmarker.task"))


@pytest.fixture(scope="module")
def face(model: FaceModel) -> reference.Reference:
    return reference.load(Params(image=IMAGE, audio=AUDIO, keep="crop", size=384), model)


@pytest.fixture(scope="module")
def animator(face: reference.Reference, model: FaceModel) -> Animator:
    return Animator(face.picture, face.points, model)


@pytest.fixture(scope="module")
def engine() -> Iterator[Portrait]:
    loaded = Portrait()
    loaded.load("cpu", {"threads": 2})
    yield loaded
    loaded.close()


def run(engine: Portrait, **params: Any) -> tuple[dict[str, Any], list[tuple[str, float, str]]]:
    with LocalContext() as context:
        job = engine.check({"image": str(IMAGE), "audio": str(AUDIO), "keep": "crop", "size": 256, **params})
        return engine.run(job, context), context.updates


# ------------------------------------------------------------------ motion


def speechlike(frames: int) -> np.ndarray:
    return (np.sin(np.arange(frames) / 3.1) > 0).astype(np.float32) * (np.arange(frames) % 100 < 70)


def test_motion_is_made_from_the_seed_alone() -> None:
    loud = speechlike(200)
    one, same, other = (motion.generate(200, FPS, seed, loud) for seed in (7, 7, 8))
    assert all(np.array_equal(getattr(one, name), getattr(same, name)) for name in vars(one))
    assert not np.array_equal(one.angles, other.angles)
    longer = motion.generate(400, FPS, 7, np.concatenate([loud, loud]))
    assert np.abs(longer.angles[:120] - one.angles[:120]).max() < 0.05


def test_motion_stays_in_its_limits_and_is_smooth() -> None:
    for seed in range(6):
        moves = motion.generate(1500, FPS, seed, speechlike(1500))
        assert (np.abs(moves.angles) <= motion.LIMITS).all()
        assert np.abs(moves.angles).max(axis=0).min() > 1.0  # it moves on every axis
        assert np.abs(np.diff(moves.angles, axis=0)).max() < 1.3  # degrees per frame
        assert np.abs(moves.breath).max() <= 1
        assert np.array_equal(moves.angles[0], [0, 0, 0])  # it begins as the picture is


def test_blinks_come_every_two_to_six_seconds_and_close_faster_than_they_open() -> None:
    for seed in range(6):
        lid = motion.generate(3000, FPS, seed, speechlike(3000)).blink
        starts = np.flatnonzero((lid[1:] > 0) & (lid[:-1] == 0))
        gaps = np.diff(starts) / FPS
        assert gaps.min() > 1.8
        assert gaps.max() < 6.2
        for start in starts[:-1]:
            course = lid[start : start + 14]
            peak = int(course.argmax())
            assert course[peak] > 0.85
            assert peak <= 4
            assert 4 <= np.count_nonzero(course) <= 11
            shut = np.flatnonzero(course > 0.9)
            assert np.count_nonzero(course[: shut[0]]) <= np.count_nonzero(course[shut[-1] + 1 :])


def test_speech_is_nodded_to() -> None:
    loud = speechlike(2000)
    talking, silent = (motion.generate(2000, FPS, 1, values) for values in (loud, np.zeros_like(loud)))
    assert talking.angles[:, 1].std() > 1.15 * silent.angles[:, 1].std()
    assert talking.brow.max() > 0.2
    assert silent.brow.max() == 0


def test_loudness_knows_silence_and_speech(speech: dict[str, np.ndarray]) -> None:
    samples = speech["reading"]
    frames = int(len(samples) / media.SAMPLE_RATE * FPS)
    loud = motion.loudness(samples, media.SAMPLE_RATE, FPS, frames)
    assert loud.shape == (frames,)
    assert loud.min() < 0.2
    assert 0.3 < loud.mean() < 0.9
    assert motion.loudness(np.zeros(16000, np.float32), 16000, FPS, 25).max() == 0


# ------------------------------------------------------------------ warp, lids, mouth


def still(frames: int, **changed: np.ndarray) -> motion.Motion:
    zeros = {name: np.zeros(frames, np.float32) for name in ("breath", "blink", "brow")}
    flat = {"angles": np.zeros((frames, 3), np.float32), "gaze": np.zeros((frames, 2), np.float32), **zeros, **changed}
    return motion.Motion(**flat)


def tracked(frame: np.ndarray, animator: Animator, model: FaceModel) -> mesh.Points:
    points = animator._mouth.tracks.points[0]
    for _ in range(2):
        points = model.landmarks(frame, region_of_points(points)).points
    return points


@needs_models
def test_turned_heads_are_turned(animator: Animator, model: FaceModel) -> None:
    asked = np.float32([[4, 0, 0], [-4, 0, 0], [0, 3, 0], [0, -3, 0], [0, 0, 2.5], [0, 0, -2.5]])
    plan = animator.plan(np.zeros(6, np.float32), np.zeros(6, np.float32))
    moves = still(6, angles=asked)
    shape = animator._mouth.tracks.shape[0]
    rest = pose.fit(tracked(animator.picture, animator, model)[None], shape).angles[0]
    for k in range(6):
        seen = pose.fit(tracked(animator.frame(plan, moves, k), animator, model)[None], shape).angles[0] - rest
        axis = int(np.abs(asked[k]).argmax())
        # The landmarker believes in frontal faces: it sees four fifths of a yaw and half of a pitch.
        low, high = ((0.5, 1.2), (0.25, 1.2), (0.85, 1.15))[axis]
        assert low < seen[axis] / asked[k, axis] < high
        assert np.abs(np.delete(seen, axis)).max() < 1.5


@needs_models
def test_nothing_folds_and_edges_stay(animator: Animator) -> None:
    for angles in ([4, 3, 2.5], [-4, -3, -2.5], [4, -3, -2.5]):
        turned = animator.warp.turned(np.float32(angles), 0.01, 1.0)
        x, y = animator.warp.maps(turned)
        assert np.diff(x, axis=1).min() > 0.6
        assert np.diff(y, axis=0).min() > 0.6
        left, top, right, bottom = animator.warp.box
        height, width = animator.picture.shape[:2]
        if left == 0:
            assert np.abs(x[:, 0]).max() < 0.5
        if right == width:
            assert np.abs(x[:, -1] - (width - 1)).max() < 0.5
        if top == 0:
            assert np.abs(y[0]).max() < 0.5
        if bottom == height:
            assert np.abs(y[-1] - (height - 1)).max() < 0.5


@needs_models
def test_a_still_head_is_the_picture(animator: Animator) -> None:
    plan = animator.plan(np.zeros(1, np.float32), np.zeros(1, np.float32))
    frame = animator.frame(plan, still(1), 0)
    assert np.abs(frame.astype(int) - animator.picture).mean() < 2.5  # sharpened a little, nothing else
    beyond = animator.warp.spread(animator.warp.share) < 1e-3
    assert beyond.mean() > 0.02
    assert np.array_equal(frame[beyond], animator.picture[beyond])


@needs_models
def test_lids_close_and_open(animator: Animator, model: FaceModel) -> None:
    shut = np.float32([0, 0.3, 0.6, 1.0, 0])
    plan = animator.plan(np.zeros(5, np.float32), np.zeros(5, np.float32))
    moves = still(5, blink=shut)
    frames = [animator.frame(plan, moves, k) for k in range(5)]
    points = np.stack([tracked(frame, animator, model) for frame in frames])
    head = pose.fit(points, animator._mouth.tracks.shape[0]).to_head(points)
    openness = measure.eyes_open(head).mean(axis=1)
    assert (np.diff(openness[:4]) < 0.01).all()
    assert openness[3] < 0.55 * openness[0]
    assert np.array_equal(frames[0], frames[4])


@needs_models
def test_the_mouth_opens_as_asked_while_the_head_moves(animator: Animator, model: FaceModel) -> None:
    frames = 24
    asked = (0.09 + 0.08 * np.sin(np.arange(frames) * 1.3)).astype(np.float32)
    asked[::6] = 0
    plan = animator.plan(asked, np.zeros(frames, np.float32))
    loud = np.ones(frames, np.float32)
    moves = motion.generate(frames, 4.0, 3, loud)  # 4 fps: all of the range within 24 frames
    points = np.stack([tracked(animator.frame(plan, moves, k), animator, model) for k in range(frames)])
    head = pose.fit(points, animator._mouth.tracks.shape[0]).to_head(points)
    seen = measure.mouth(head).opening
    assert np.corrcoef(seen, asked)[0, 1] > 0.9
    assert 0.6 < np.polyfit(asked, seen, 1)[0] < 1.4


@needs_models
def test_an_open_mouth_keeps_its_teeth_and_can_shut(model: FaceModel, animator: Animator) -> None:
    """A still frame with its mouth open already: shut, as it is, and wider."""
    plan = animator.plan(np.full(1, 0.15, np.float32), np.zeros(1, np.float32))
    picture = animator.frame(plan, still(1), 0)
    points = tracked(picture, animator, model)
    smiling = Animator(picture, points, model)
    asked = np.float32([0, 0.05, 0.1, 0.2])
    plan = smiling.plan(asked, np.zeros(4, np.float32))
    moves = still(4, angles=np.float32([[3, 1, 1]] * 4))
    found = np.stack([tracked(smiling.frame(plan, moves, k), smiling, model) for k in range(4)])
    seen = measure.mouth(pose.fit(found, smiling._mouth.tracks.shape[0]).to_head(found)).opening
    assert (np.diff(seen) > 0).all()
    assert seen[0] < 0.075


@needs_models
def test_a_mouth_that_opens_wide_gets_narrower(animator: Animator) -> None:
    plan = animator.plan(np.float32([0, 0.1, 0.2]), np.zeros(3, np.float32))
    assert plan.width[0] == pytest.approx(0, abs=1e-6)
    # What the mouth measures wider by opening alone is taken off as well; more must be.
    given = animator._mouth.plan(np.float32([0, 0.1, 0.2]), np.zeros(3, np.float32), np.zeros(3, np.int32))
    more = given.width - plan.width
    assert 0.005 < more[1] < more[2] < 0.1


@needs_models
def test_a_grey_picture_stays_grey(face: reference.Reference, model: FaceModel) -> None:
    grey = cv2.cvtColor(cv2.cvtColor(face.picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    drawn = Animator(grey, face.points, model)
    plan = drawn.plan(np.float32([0.15]), np.zeros(1, np.float32))
    frame = drawn.frame(plan, still(1), 0)
    assert np.ptp(frame.astype(int), axis=2).max() <= 1
    lips = drawn._mouth.tracks.points[0][mesh.LIP_INNER, :2].mean(axis=0).round().astype(int)
    around = slice(lips[1] - 8, lips[1] + 16), slice(lips[0] - 8, lips[0] + 8)
    assert frame[around].min() < 0.6 * grey[around].min()  # the mouth is open


@needs_models
def test_turned_pictures_are_as_sharp_as_the_still_one(animator: Animator) -> None:
    def detail(picture: np.ndarray) -> float:
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)
        return float(cv2.Laplacian(grey, cv2.CV_32F)[animator.warp.spread(animator.warp.weight) > 0.9].std())

    plan = animator.plan(np.zeros(5, np.float32), np.zeros(5, np.float32))
    moves = still(5, angles=np.float32([[0.1, 0, 0], [0.4, 0.3, 0], [1, 1, 0.5], [-2, 0.5, 1], [3, -2, -1]]))
    shares = [detail(animator.frame(plan, moves, k)) / detail(animator.picture) for k in range(5)]
    assert 0.85 < min(shares) <= max(shares) < 1.15
    assert max(shares) - min(shares) < 0.1  # or the picture would breathe with the motion


# ------------------------------------------------------------------ pictures


def exif(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    block = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def test_pictures_are_upright_opaque_and_eight_bit(tmp_path: Path) -> None:
    bgr = cv2.imread(str(IMAGE))
    lying = cv2.imencode(".jpg", cv2.rotate(bgr, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    (tmp_path / "lying.jpg").write_bytes(exif(lying, 6))
    assert np.abs(read_picture(tmp_path / "lying.jpg").astype(int) - bgr).mean() < 4
    alpha = np.zeros(bgr.shape[:2], np.uint8)
    alpha[100:500, 100:500] = 255
    cv2.imwrite(str(tmp_path / "cut.png"), np.dstack([bgr, alpha]))
    flat = read_picture(tmp_path / "cut.png")
    assert np.array_equal(flat[200:300, 200:300], bgr[200:300, 200:300])
    assert (flat[:50] == 255).all()
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / "grey.png"), grey.astype(np.uint16) * 257)
    assert np.abs(read_picture(tmp_path / "grey.png")[..., 0].astype(int) - grey).max() <= 1
    cv2.imwrite(str(tmp_path / "face.webp"), bgr)
    (tmp_path / "face.webp").rename(tmp_path / "face.jpg")  # a wrong ending is no matter
    assert read_picture(tmp_path / "face.jpg").shape == bgr.shape


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    whole = IMAGE.read_bytes()
    bgr = cv2.imread(str(IMAGE))
    png = cv2.imencode(".png", bgr)[1].tobytes()
    cases = {
        "empty.jpg": (b"", "empty"),
        "cut.jpg": (whole[: len(whole) // 2], "cut off"),
        "cut.png": (png[: len(png) // 2], "cut off"),
        "text.jpg": (b"not a picture at all\n" * 40, "no picture"),
        "tiny.png": (cv2.imencode(".png", cv2.resize(bgr, (48, 48)))[1].tobytes(), "at least 64"),
        "sound.png": (AUDIO.read_bytes(), "sound file"),
    }
    for name, (content, says) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=says) as caught:
            read_picture(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(InputError, match=r"missing\.jpg"):
        read_picture(tmp_path / "missing.jpg")


@needs_models
def test_a_picture_without_a_face_is_refused(tmp_path: Path, model: FaceModel) -> None:
    hills = np.full((300, 400, 3), (200, 160, 120), np.uint8)
    cv2.ellipse(hills, (120, 320), (180, 140), 0, 0, 360, (60, 120, 60), cv2.FILLED)
    cv2.circle(hills, (320, 60), 30, (120, 220, 250), cv2.FILLED)
    cv2.imwrite(str(tmp_path / "hills.png"), hills)
    with pytest.raises(InputError, match=r"no human face .*hills\.png"):
        reference.load(Params(image=tmp_path / "hills.png", audio=AUDIO), model)


@needs_models
def test_a_mouth_must_be_in_the_picture(tmp_path: Path, model: FaceModel, face: reference.Reference) -> None:
    lips = face.points[mesh.LIP_OUTER, 1]
    cv2.imwrite(str(tmp_path / "cut.png"), face.picture[: int(lips.min())])
    with pytest.raises(InputError, match=r"mouth .*cut\.png lies outside"):
        reference.load(Params(image=tmp_path / "cut.png", audio=AUDIO), model)


@needs_models
def test_what_was_done_to_a_picture_is_said(tmp_path: Path, model: FaceModel, face: reference.Reference) -> None:
    small = cv2.resize(face.picture, (128, 128), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "small.png"), small)
    got = reference.load(Params(image=tmp_path / "small.png", audio=AUDIO, keep="crop"), model)
    assert "pixels enlarged to 512×512" in got.warnings[0]
    cv2.imwritemulti(str(tmp_path / "pages.tiff"), [face.picture, face.picture[::-1].copy()])
    got = reference.load(Params(image=tmp_path / "pages.tiff", audio=AUDIO), model)
    assert got.warnings == ("the picture is an animation or has several pages; the first one is used",)
    assert np.array_equal(got.picture, face.picture)
    with pytest.raises(InputError, match="4096×4096") as caught:
        reference.load(Params(image=tmp_path / "pages.tiff", audio=AUDIO, size=4096), model)
    assert caught.value.hint == "size=3072 is the largest for this picture"


@needs_models
def test_sizes(tmp_path: Path, model: FaceModel) -> None:
    bgr = cv2.imread(str(IMAGE))
    odd = tmp_path / "odd.png"
    cv2.imwrite(str(odd), bgr[:555, :501])
    got = reference.load(Params(image=odd, audio=AUDIO), model)
    assert got.picture.shape == (554, 500, 3)
    assert np.array_equal(got.picture, bgr[:554, :500])
    large = tmp_path / "large.jpg"
    cv2.imwrite(str(large), cv2.resize(bgr, (4320, 5400)))
    got = reference.load(Params(image=large, audio=AUDIO), model)
    assert got.picture.shape == (1280, 1024, 3)
    assert got.warnings == ("picture of 4320×5400 scaled to 1024×1280",)
    got = reference.load(Params(image=large, audio=AUDIO, keep="crop"), model)
    assert got.picture.shape == (512, 512, 3)
    eyes = got.points[[mesh.EYE_CORNER_RIGHT, mesh.EYE_CORNER_LEFT], :2]
    assert 100 < np.linalg.norm(eyes[1] - eyes[0]) < 170
    assert 150 < eyes[:, 1].mean() < 290


@needs_models
def test_one_of_several_faces(tmp_path: Path, model: FaceModel) -> None:
    bgr = cv2.imread(str(IMAGE))[60:500, 60:560]
    small = cv2.resize(bgr, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    both = np.full((440, 860, 3), 90, np.uint8)
    both[:, :500], both[: small.shape[0], 505 : 505 + small.shape[1]] = bgr, small
    file = tmp_path / "two.png"
    cv2.imwrite(str(file), both)
    first = reference.load(Params(image=file, audio=AUDIO), model)
    assert first.faces == 2
    assert "2 faces" in first.warnings[0]
    assert first.points[:, 0].mean() < 500
    for choice in (1, "700,150"):
        other = reference.load(Params(image=file, audio=AUDIO, face=choice), model)
        assert other.points[:, 0].mean() > 500
    with pytest.raises(InputError, match="face: 2 of"):
        reference.load(Params(image=file, audio=AUDIO, face=2), model)


# ------------------------------------------------------------------ the engine


@needs_models
def test_makes_a_video(engine: Portrait, tmp_path: Path) -> None:
    out = tmp_path / "talking.mp4"
    result, updates = run(engine, output=str(out), watermark=1, digital_auth="1", frames_num=40, seed=4)
    assert result["output"] == str(out)
    assert (result["frames"], result["duration_s"], result["seed"], result["backend"]) == (40, 1.6, 4, "mesh")
    info = probe_video(out)
    assert (info.width, info.height, info.fps, info.frames, info.has_audio) == (256, 256, 25.0, 40, True)
    sound = media.probe(out)
    assert sound.duration_s == pytest.approx(1.6, abs=0.05)
    statuses = [status for status, _, _ in updates]
    assert list(dict.fromkeys(statuses)) == ["face_detecting", "inference", "merging_audio"]
    percents = [percent for _, percent, _ in updates]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    frames = list(read_frames(out))
    assert len(frames) == 40
    assert float(np.abs(frames[30].astype(int) - frames[0]).mean()) > 1
    assert not list(tmp_path.glob(".*"))


@needs_models
@pytest.mark.long
def test_the_same_seed_gives_the_same_bytes(engine: Portrait, tmp_path: Path) -> None:
    made = []
    for number, seed in enumerate((1, 1, 2, None, 0)):
        run(engine, output=str(tmp_path / f"{number}.mp4"), frames_num=12, seed=seed, stream=number in (1, 4))
        made.append((tmp_path / f"{number}.mp4").read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert made[3] == made[4]


@needs_models
@pytest.mark.long
def test_length_is_the_audios_or_that_asked_for(engine: Portrait, tmp_path: Path, ffmpeg: Any) -> None:
    short = tmp_path / "short.wav"
    ffmpeg("-i", AUDIO, "-t", "0.61", short)
    out = tmp_path / "out.mp4"
    result, _ = run(engine, audio=str(short), output=str(out))
    assert result["frames"] == 16
    assert result["warnings"] == []
    result, _ = run(engine, audio=str(short), output=str(out), frames_num=30)
    assert result["warnings"] == ["audio of 0.61 s followed by silence up to 1.20 s"]
    assert probe_video(out).frames == 30
    samples = media.read_audio(out)
    assert len(samples) / media.SAMPLE_RATE == pytest.approx(1.2, abs=0.06)
    assert np.abs(samples[int(0.8 * media.SAMPLE_RATE) :]).max() < 0.01
    result, _ = run(engine, audio=str(short), output=str(out), frames_num=8, fps=30)
    assert result["duration_s"] == pytest.approx(8 / 30, abs=1e-3)
    assert result["warnings"] == ["audio of 0.61 s cut to 0.27 s (8 frames)"]


@needs_models
def test_parameters_of_generative_backends_warn(engine: Portrait) -> None:
    result, _ = run(engine, frames_num=2, steps=25, cfg=2.5)
    assert result["warnings"][-1] == "steps and cfg mean nothing to the mesh backend and were not used"


@pytest.mark.long
@needs_models
def test_a_free_seed_depends_on_the_job_alone(engine: Portrait) -> None:
    first, _ = run(engine, frames_num=2, seed=-1)
    again, _ = run(engine, frames_num=2, seed=-1)
    assert first["seed"] == again["seed"] > 0


@needs_models
def test_cancel_leaves_nothing(engine: Portrait, tmp_path: Path) -> None:
    out = tmp_path / "never.mp4"
    updates: list[float] = []
    context = LocalContext(
        lambda status, percent, message: updates.append(percent), is_cancelled=lambda: max(updates) > 30
    )
    job = engine.check(
        {"image": str(IMAGE), "audio": str(AUDIO), "output": str(out), "keep": "crop", "frames_num": 100}
    )
    with pytest.raises(Cancelled), context:
        engine.run(job, context)
    assert list(tmp_path.iterdir()) == []
    assert not context.scratch.exists()


@needs_models
def test_refusals(engine: Portrait, tmp_path: Path, ffmpeg: Any) -> None:
    silent = tmp_path / "silent.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=size=128x128:rate=25:duration=1", silent)
    good = {"image": str(IMAGE), "audio": str(AUDIO)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"audio": str(silent)}, "video without sound"),
        ({"audio": str(IMAGE)}, "picture or a video without sound"),
        ({"audio": str(tmp_path / "none.wav")}, "none.wav"),
        ({"image": str(silent)}, "a video of 1.0 s, not a picture"),
        ({"output": str(tmp_path / "x.avi")}, "does not end in .mp4"),
        ({"output": str(tmp_path / "no" / "x.mp4")}, "does not exist"),
        ({"frames_num": 0}, "frames_num"),
        ({"size": 10}, "size"),
        ({"face": "second"}, "face"),
        ({"colour": 1}, "colour"),
    ]
    for changed, says in cases:
        with pytest.raises(InputError, match=says):
            engine.check({**good, **changed})


def test_options_and_weights_are_named_when_wrong(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"options\.backnd"):
        Portrait().load("cpu", {"backnd": "mesh"})
    with pytest.raises(EngineError, match=r"nothing\.task"):
        Portrait().load("cpu", {"face_model": str(tmp_path / "nothing.task")})
    with pytest.raises(EngineError, match="load"):
        Portrait().run(Params(image=IMAGE, audio=AUDIO), LocalContext())
