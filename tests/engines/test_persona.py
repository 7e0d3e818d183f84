"""A persona from a talking video to a film painted with it: real models, real ffmpeg, a painted lady who speaks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from inference import media, weights
from inference.base import Cancelled, InputError, LocalContext
from inference.face import mesh, pose
from inference.face.analysis import TemplateAnalysis
from inference.face.people import Traits
from inference.lipsync import LipSync
from inference.lipsync.render import tracks
from inference.persona import Params, Training, engine, report, subject
from inference.persona.asked import Scale
from inference.persona.examples import Examples
from inference.persona.model import MOST_BYTES, Painter, Persona
from inference.persona.network import INPUTS, Network, operations
from inference.persona.patch import SIDE, Square
from inference.persona.training import Trainer
from inference.video import Encoding, VideoWriter, read_frames
from pool.format import codec

ROOT = Path(__file__).resolve().parents[2]
PORTRAIT = ROOT / "examples" / "portrait" / "mona_lisa.jpg"
DIALOGUE = ROOT / "examples" / "speech" / "two_speakers.flac"
SPEECH = ROOT / "examples" / "speech" / "address.flac"
FPS, SECONDS, SIZE = 12.5, 10.5, (320, 400)
LEAST_S = 9.0  # of a video to learn from; the real limit costs minutes
STEPS = 50

Frame = np.ndarray

pytestmark = pytest.mark.timeout(900)  # of a hang only; the first test with a model makes what the others share


# --- without models ---------------------------------------------------------------------------------------------------


def head(scale: float, x: float, y: float, roll: float = 0.0) -> pose.Pose:
    turn = pose.rotation_of(0, 0, roll)
    return pose.Pose(np.array([scale], np.float32), turn[None], np.array([[x, y, 0]], np.float32))


@pytest.fixture(scope="module")
def square() -> Square:
    angles = np.linspace(0, 2 * np.pi, 21, endpoint=False)
    ring = np.stack([0.5 * np.cos(angles), 0.65 + 0.35 * np.sin(angles), np.zeros(21)], axis=1)
    return Square(ring.astype(np.float32))


def test_a_square_is_laid_where_it_was_cut(square: Square) -> None:
    """Turned, shrunk and enlarged: a change that is laid into a picture is seen again where the square is cut."""
    spot = np.zeros((SIDE, SIDE, 3), np.float32)
    spot[40:60, 70:90] = 100
    spot = cv2.GaussianBlur(spot, (0, 0), 4)
    for scale, roll in ((60, 0), (110, 12), (260, -20)):
        picture = np.full((720, 720, 3), 50, np.uint8)
        at = head(scale, 360, 200, roll)
        square.lay(picture, spot, at)
        seen = square.cut(picture, at).astype(np.float32) - 50
        assert np.abs(seen - spot).max() < 9
        assert (square.cut(np.zeros((720, 720, 3), np.uint8), head(scale, 5000, 5000)) == 0).all()
    assert square.cover[[0, -1]].max() == square.cover[:, [0, -1]].max() == 0
    assert square.cover[SIDE // 2, SIDE // 2] > 0.99


def test_the_network_is_small() -> None:
    assert operations() <= 60e6
    assert sum(weight.numel() for weight in Network().parameters()) * 2 <= MOST_BYTES


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small steps that count: learning in seconds."""
    for name, value in {"BATCH": 4, "WARM": 5, "RATE": 5e-3}.items():
        monkeypatch.setattr(f"inference.persona.training.{name}", value)


def examples(count: int = 12) -> Examples:
    """Smooth pictures; the real ones are lighter where a wide opening is asked, and darker where a small one is."""
    numbers = np.random.default_rng(3)
    drawn = cv2.resize(numbers.integers(40, 200, (8, 8 * count), np.uint8), (SIDE * count, SIDE))
    pictures = np.repeat(drawn.reshape(SIDE, count, SIDE).transpose(1, 0, 2)[..., None], 3, axis=3)
    asked = numbers.normal(0, 1, (count, INPUTS)).astype(np.float32)
    real = np.clip(pictures + 40.0 * np.sign(asked[:, 4, None, None, None]), 0, 255).astype(np.uint8)
    return Examples(np.arange(count), pictures, real, asked)


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_learning_goes_on_as_if_it_had_not_been_stopped() -> None:
    """A state that went through the pool's format, in a new trainer: the same weights, bit by bit, at the end."""
    pairs, whole = examples(), np.ones((SIDE, SIDE), np.float32)
    straight = Trainer(pairs, whole, whole, steps=8)
    errors = [straight.learn() for _ in range(8)]
    first = Trainer(pairs, whole, whole, steps=8)
    for _ in range(5):
        first.learn()
    saved = codec.decode(codec.encode(first.state()))
    again = Trainer(pairs, whole, whole, steps=8)
    again.resume(saved)
    assert again.step == 5
    assert [again.learn() for _ in range(3)] == errors[5:]
    for name, value in straight.weights.items():
        assert (again.weights[name] == value).all(), name


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_it_learns_what_is_asked() -> None:
    pairs, whole = examples(), np.ones((SIDE, SIDE), np.float32)
    trainer = Trainer(pairs, whole, whole, steps=40)
    while trainer.step < trainer.steps:
        trainer.learn()
    made = Painter(trainer.weights, whole).painted(pairs.drawn, pairs.asked).astype(np.float32)
    before, after = (np.abs(pictures - pairs.real).mean() for pictures in (pairs.drawn.astype(np.float32), made))
    assert after < 0.6 * before


def test_it_stops_where_the_head_is_turned_further_than_it_was_learned() -> None:
    angles = np.array([[-8, -4, 0], [9, 6, 50], [12, 0, 0], [0, -7, 0], [15, 0, 0], [0, 40, 0]], np.float32)
    scale = Scale.of(np.array([0.0, 0.1]), np.array([0.5, 0.6]), angles[:2])
    assert scale.share(angles).tolist() == [1, 1, 0.5, 0.5, 0, 0]
    told = scale.inputs(np.array([0.0, 0.1, 5.0]), np.array([0.5, 0.6, 0.5]), angles[:3])
    assert told.shape == (3, INPUTS)
    assert np.abs(told).max() == 3  # an opening like nothing that was learned


def persona(square: Square) -> Persona:
    traits = Traits(np.ones(4, np.float32), np.zeros((3, 3), np.float32), np.zeros(4, np.float32))
    return Persona(
        Network().state_dict(),
        square,
        Scale((0.1, 0.6), (0.05, 0.02), (-8.0, -4.0), (9.0, 6.0)),
        traits,
        {"held_out_s": 3.0},
    )


def test_a_file_of_a_persona(square: Square, tmp_path: Path) -> None:
    made, path = persona(square), tmp_path / "a.persona"
    made.save(path)
    whole = path.read_bytes()
    made.save(path)
    assert path.read_bytes() == whole
    assert len(whole) <= MOST_BYTES
    known = Persona.load(path)
    assert known.report == made.report
    assert known.scale == made.scale
    assert (known.square.skin == square.skin).all()
    assert all((known.state[name] - value).abs().max() < 2e-3 for name, value in made.state.items())


def damaged(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]


def test_a_file_that_is_no_persona(square: Square, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at any place, changed at any place, of another version, of another kind: named, with what to do."""
    path = tmp_path / "a.persona"
    persona(square).save(path)
    whole = path.read_bytes()
    wrong = [b"", b"hello", PORTRAIT.read_bytes(), whole + bytes(MOST_BYTES)]
    wrong += [whole[: len(whole) * part // 10] for part in range(1, 10)]
    wrong += [damaged(whole, len(whole) * part // 20 + 200) for part in range(1, 19)]
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"persona: .*a\.persona") as told:
            Persona.load(path)
        assert told.value.hint
    np.savez(path.with_suffix(".npz"), about=np.frombuffer(json.dumps({"format": "x"}).encode(), np.uint8))
    path.with_suffix(".npz").replace(path)
    with pytest.raises(InputError, match="no persona"):
        Persona.load(path)
    with pytest.raises(InputError, match="does not exist"):
        Persona.load(tmp_path / "b.persona")
    monkeypatch.setattr("inference.persona.model.VERSION", 2)
    persona(square).save(path)
    monkeypatch.undo()
    with pytest.raises(InputError, match="of version 2, not 1"):
        Persona.load(path)


def test_parameters() -> None:
    assert (subject.LEAST_S, subject.MOST_S) == (20, 300)
    assert Params(video="v.mp4").output is None  # type: ignore[arg-type]
    for wrong in ({"output": "x.mp4"}, {"steps": 0}, {"face": "smallest"}, {"audio": "a.wav"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Params(video="v.mp4", **wrong)  # type: ignore[arg-type]


def test_muddy_and_blurred_mouths_are_told(square: Square) -> None:
    """A moving picture of a mouth, shown as it is, a little softer, as fog, and as something else."""
    picture = cv2.imread(str(PORTRAIT))
    at = [(300 + 2 * k, 180 + k) for k in range(6)]
    real = np.stack([picture[y : y + SIDE, x : x + SIDE] for y, x in at])
    assert real.shape[1:3] == (SIDE, SIDE)
    lips = np.ones((SIDE, SIDE), np.float32)

    def told(shown: Frame) -> list[str]:
        measured = {**asdict(report.likeness(shown, real, square.cover, lips)), "opening_r": 0.9, "closures": 1.0}
        return list(engine.doubts({"mesh": measured, "persona": measured}))

    softer = np.stack([cv2.addWeighted(p, 0.8, cv2.GaussianBlur(p, (0, 0), 0.8), 0.2, 0) for p in real])
    fog = np.stack([cv2.GaussianBlur(p, (0, 0), 1.5) for p in real])
    assert told(real) == told(softer) == []
    (blurred,) = (line for line in told(fog) if "sharpness" in line)
    assert "blurred" in blurred
    (muddy,) = told(np.ascontiguousarray(real[:, ::-1, ::-1]))
    assert "unlike the real one (gradient_deviation" in muddy


# --- with them --------------------------------------------------------------------------------------------------------


def swaying(path: Path, picture: Frame, seconds: float) -> Path:
    """A picture that moves a little."""
    with VideoWriter(path, Encoding(*SIZE, FPS, crf=10, preset="ultrafast")) as writer:
        for k in range(round(seconds * FPS)):
            turn = cv2.getRotationMatrix2D((160, 200), 2 * np.sin(k / 9), 1 + 0.02 * np.sin(k / 11))
            turn[:, 2] += (4 * np.sin(k / 7), 2 * np.cos(k / 6))
            writer.write(np.asarray(cv2.warpAffine(picture, turn, SIZE, borderMode=1), np.uint8))
    return path


def cut(path: Path, source: Path, *arguments: str) -> Path:
    command = [media.ffmpeg_binary(), "-v", "error", "-i", str(source), *arguments, str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("persona")


@pytest.fixture(scope="module")
def lipsync() -> Iterator[LipSync]:
    made = LipSync()
    try:
        made.load("cpu", {"threads": 2})
    except weights.WeightError as error:
        pytest.skip(f"{error} ({error.hint})")
    yield made
    made.close()


@pytest.fixture(scope="module")
def training(lipsync: LipSync) -> Iterator[Training]:
    made = Training()
    made.load("cpu", {})
    with pytest.MonkeyPatch.context() as patch:  # few steps, each of which counts
        patch.setattr("inference.persona.training.WARM", 20)
        patch.setattr("inference.persona.subject.LEAST_S", LEAST_S)
        yield made
    made.close()


def ran(engine: Any, params: dict[str, Any], folder: Path) -> dict[str, Any]:
    with LocalContext(cache=folder / "cache", folder=folder) as context:
        return dict(engine.run(engine.check(params), context))


@pytest.fixture(scope="module")
def talking(lipsync: LipSync, folder: Path) -> Path:
    """A painted lady who talks, with her voice."""
    picture = cv2.resize(cv2.imread(str(PORTRAIT)), SIZE, interpolation=cv2.INTER_AREA)
    silent = swaying(folder / "silent.mp4", picture, 3)
    voice = cut(folder / "voice.flac", DIALOGUE, "-t", str(SECONDS))
    ran(lipsync, {"audio": voice, "video": silent, "output": folder / "talking.mp4", "crf": 8}, folder)
    return folder / "talking.mp4"


@pytest.fixture(scope="module")
def learned(training: Training, talking: Path, folder: Path) -> dict[str, Any]:
    """The result of learning her mouth, briefly."""
    return ran(training, {"video": talking, "output": folder / "lady.persona", "steps": STEPS}, folder)


@pytest.mark.long
def test_a_persona_is_learned_and_measured(learned: dict[str, Any], folder: Path) -> None:
    assert learned["bytes"] == (folder / "lady.persona").stat().st_size <= MOST_BYTES
    assert learned["steps"] == STEPS
    assert learned["resumed_at_step"] == 0
    report = learned["report"]
    assert report["held_out_s"] == pytest.approx(3.0, abs=0.1)
    for name in ("mesh", "persona"):
        assert report[name]["psnr_db"] > 20
        assert 0 <= report[name]["gradient_deviation"] < 0.5
        assert 0.3 < report[name]["jitter"] < 5
    assert report["persona"]["psnr_db"] > report["mesh"]["psnr_db"]
    assert report["persona"]["opening_r"] > report["mesh"]["opening_r"] - 0.2
    assert Persona.load(folder / "lady.persona").report == report


@pytest.mark.long
def test_what_is_left_out_is_counted(talking: Path, learned: dict[str, Any], folder: Path) -> None:
    """A hand before the mouth, and another person's shot: not among the frames that are learned from."""
    known = [TemplateAnalysis.load(path) for path in (folder / "cache" / "analyses").glob("*.npz")]
    same = [one for one in known if one.frames == learned["frames"]]
    seen = max(same, key=lambda one: float(np.nanstd(one.openings)))  # others are of pictures that do not talk
    vertices = mesh.load(weights.find("face-landmarker/face_landmarker.task")).vertices
    covered, person, shot = seen.covered.copy(), seen.person.copy(), seen.shot.copy()
    covered[10:14] = True
    person[20:25], shot[20:25], shot[25:] = 1, 1, 2
    looks = replace(seen, covered=covered, person=person, shot=shot, shape=np.concatenate([seen.shape, seen.shape]))
    whole, partly = (subject.choose(talking, one, tracks.follow(one, vertices)) for one in (seen, looks))
    assert whole.warnings == ()
    assert partly.number == 0
    covers, others = partly.warnings
    assert f"something is before the mouth in 4 of {seen.frames} frames" in covers
    assert f"another person or no mouth is seen in 5 of {seen.frames} frames" in others
    assert not set(range(10, 14)) & set(partly.learned.tolist())
    assert not set(range(20, 25)) & set(partly.learned.tolist())
    assert len(partly.learned) < len(whole.learned)


@pytest.mark.long
def test_learning_that_was_killed_gives_the_same_file(
    training: Training, talking: Path, learned: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVED_S", 0.0)
    monkeypatch.setattr(engine, "SAVING_SHARE", 0.0)
    params = training.check({"video": talking, "output": folder / "again.persona", "steps": STEPS})

    class Dies(LocalContext):
        def checkpoint(self, state: Any) -> None:
            super().checkpoint(codec.decode(codec.encode(state)))

    dying = Dies(cache=folder / "cache", is_cancelled=lambda: dying.saved is not None and dying.saved["step"] >= 20)
    with pytest.raises(Cancelled), dying:
        training.run(params, dying)
    assert not (folder / "again.persona").exists()
    assert not list(folder.glob(".again*"))
    with Dies(cache=folder / "cache") as context:
        context.saved = dying.saved
        result = training.run(params, context)
        percents = [percent for _, percent, _ in context.updates]
    assert percents == sorted(percents)
    assert result["resumed_at_step"] == 20
    assert result["report"] == learned["report"]
    assert (folder / "again.persona").read_bytes() == (folder / "lady.persona").read_bytes()


@pytest.mark.long
def test_lipsync_paints_with_it(lipsync: LipSync, talking: Path, learned: dict[str, Any], folder: Path) -> None:
    """Over her own video, watched while it is made: the mouth changes, all else is what the mesh backend gives."""
    voice = cut(folder / "short.flac", SPEECH, "-t", "2")
    films = []
    for given in ({}, {"persona": folder / "lady.persona", "stream": True}):
        output = folder / f"painted{len(films)}.mp4"
        ran(lipsync, {"audio": voice, "video": talking, "output": output, "crf": 1, **given}, folder)
        with read_frames(output) as frames:
            films.append(np.stack(list(frames)).astype(np.int16))
    assert films[0].shape == films[1].shape
    changed = np.abs(films[1] - films[0]).max(axis=(0, 3))
    mouth, above = changed[150:260, 90:240], changed[:100]
    assert mouth.max() >= 5
    assert above.mean() < 0.1 * mouth.mean()  # the encoder's loss


@pytest.mark.long
def test_a_persona_paints_nobody_else(lipsync: LipSync, learned: dict[str, Any], talking: Path, folder: Path) -> None:
    """Another face, a template in which nobody talks, another backend, a broken file: refused, with what to do."""
    voice = folder / "voice.flac"
    persona = folder / "lady.persona"
    picture = cv2.resize(cv2.imread(str(PORTRAIT)), SIZE, interpolation=cv2.INTER_AREA)
    other = swaying(folder / "other.mp4", np.ascontiguousarray(picture[:, ::-1]), 1.2)
    with pytest.raises(InputError, match="of another face") as told:
        ran(lipsync, {"audio": voice, "video": other, "persona": persona}, folder)
    assert "leave it out" in told.value.hint
    with pytest.raises(InputError, match="nobody does"):
        ran(lipsync, {"audio": voice, "video": folder / "silent.mp4", "persona": persona}, folder)
    with pytest.raises(InputError, match="no persona"):
        lipsync.check({"audio": voice, "video": talking, "persona": PORTRAIT})
    same = {"persona": folder / "lady.mp4", "output": folder / "lady.mp4"}
    (folder / "lady.mp4").write_bytes(persona.read_bytes())
    with pytest.raises(InputError, match=r"output: .* is the persona itself"):
        lipsync.check({"audio": voice, "video": talking, **same})
    asked = lipsync.check({"audio": voice, "video": talking, "persona": persona})
    assert persona in lipsync.files(asked).inputs


@pytest.mark.long
def test_what_cannot_be_learned_from(training: Training, talking: Path, folder: Path) -> None:
    mute = cut(folder / "mute.mp4", talking, "-c:v", "copy", "-an")
    with pytest.raises(InputError, match="no sound"):
        training.check({"video": mute})
    short = cut(folder / "brief.mp4", talking, "-t", "5", "-c", "copy")
    with pytest.raises(InputError, match=r"lasts 5\.\d s; a persona needs 9 s"):
        training.check({"video": short})
    picture = cv2.resize(cv2.imread(str(PORTRAIT)), SIZE, interpolation=cv2.INTER_AREA)
    still = swaying(folder / "still.mp4", picture, SECONDS)
    quiet = cut(folder / "quiet.mp4", still, "-f", "lavfi", "-i", "anoisesrc=a=0.002:d=10", "-c:v", "copy", "-shortest")
    with pytest.raises(InputError, match="somebody speaks for"):
        ran(training, {"video": quiet}, folder)
    voiced = cut(folder / "voiced.mp4", still, "-i", str(folder / "voice.flac"), "-c:v", "copy", "-shortest")
    with pytest.raises(InputError, match="nobody talks"):
        ran(training, {"video": voiced}, folder)
    away = np.full((*SIZE[::-1], 3), 90, np.uint8)
    gone = swaying(folder / "gone.mp4", away, 3)
    listing = folder / "list.txt"
    listing.write_text(f"file '{gone}'\nfile '{short}'\nfile '{gone}'\nfile '{gone}'\n")
    mostly = folder / "mostly.mp4"
    command = [media.ffmpeg_binary(), "-v", "error", "-f", "concat", "-safe", "0", "-i", str(listing)]
    command += ["-i", str(folder / "voice.flac"), "-map", "0:v", "-map", "1:a", "-r", str(FPS), str(mostly)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    with pytest.raises(InputError, match=r"shows a mouth to learn from in \d\.\d s of") as told:
        ran(training, {"video": mostly}, folder)
    assert "no mouth is seen in" in told.value.hint
