"""The lipsync engine from parameters to the finished file: real models, real ffmpeg, a painted lady as the template."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from inference import evaluate, evaluate_sheet, media, weights
from inference.articulation import Articulator
from inference.audio import Array
from inference.base import Cancelled, EngineError, InputError, LocalContext
from inference.face import analysis as face_analysis
from inference.face import mesh
from inference.kept import Shelf
from inference.lipsync import LipSync, Options, Params, mesh_backend, speech
from inference.lipsync.frames import Template, loop
from inference.video import Encoding, VideoWriter, probe_video, read_frames

ROOT = Path(__file__).resolve().parents[2]
PORTRAIT = ROOT / "examples" / "portrait" / "mona_lisa.jpg"
SPEECH = ROOT / "examples" / "speech" / "address.flac"
FRAMES, SIZE = 40, (320, 400)  # of the template; width, height
LOSS = 6  # grey levels that the best quality loses at most

Frame = np.ndarray
Ffmpeg = Callable[..., None]


def ffmpegs() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "ffmpeg" in child.name()]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A swaying portrait: 1.6 s at 25 fps."""
    path = tmp_path_factory.mktemp("template") / "lady.mp4"
    picture = cv2.resize(cv2.imread(str(PORTRAIT)), SIZE, interpolation=cv2.INTER_AREA)
    with VideoWriter(path, Encoding(*SIZE, 25, crf=12, preset="ultrafast")) as writer:
        for k in range(FRAMES):
            turn = cv2.getRotationMatrix2D((160, 200), 3 * np.sin(k / 9), 1 + 0.03 * np.sin(k / 11))
            turn[:, 2] += (6 * np.sin(k / 7), 3 * np.cos(k / 6))
            writer.write(np.asarray(cv2.warpAffine(picture, turn, SIZE, borderMode=1), np.uint8))
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of nothing, three seconds of speech, one second of nothing."""
    path = tmp_path_factory.mktemp("words") / "words.flac"
    command = [media.ffmpeg_binary(), "-v", "error", "-i", SPEECH, "-af", "adelay=500,apad=pad_dur=1"]
    subprocess.run([*map(str, command), "-t", "4.5", "-ss", "0", str(path)], check=True, stdin=subprocess.DEVNULL)
    cut = path.with_name("cut.flac")
    keep = "atrim=0:3.5,apad=pad_dur=1"
    subprocess.run(
        [media.ffmpeg_binary(), "-v", "error", "-i", str(path), "-af", keep, str(cut)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return cut


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def lipsync() -> Iterator[LipSync]:
    engine = LipSync()
    try:
        engine.load("cpu", {"threads": 2})
    except weights.WeightError as error:
        pytest.skip(f"{error} ({error.hint})")
    engine.warmup()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def made(lipsync: LipSync, template: Path, words: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One job, done once for the tests that look at its result."""
    output = tmp_path_factory.mktemp("made") / "said.mp4"
    return Made.run(lipsync, {"audio": words, "video": template, "output": output, "digital_auth": 1}, cache)


class Made:
    """A finished job."""

    def __init__(self, path: Path, result: dict[str, Any], updates: list[tuple[str, float, str]]) -> None:
        self.path, self.result, self.updates = path, result, updates

    @classmethod
    def run(cls, engine: LipSync, params: dict[str, Any], cache: Path, folder: Path | None = None) -> Made:
        with LocalContext(cache=cache, folder=folder) as context:
            result = engine.run(engine.check(params), context)
            scratch = context.scratch
        assert not scratch.exists()
        return cls(Path(str(result["output"])), result, context.updates)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


# --- parameters and options -------------------------------------------------------------------------------------------


def test_parameters() -> None:
    plain = Params(audio="a.wav", video="v.mp4")  # type: ignore[arg-type]
    assert (plain.watermark, plain.digital_auth, plain.crf, plain.face, plain.output) == (0, 0, 18, "largest", None)
    for given, meant in {"largest": "largest", "2": 2, 0: 0, "10, 20.5": (10.0, 20.5), (3, 4): (3.0, 4.0)}.items():
        assert Params(audio="a", video="v", face=given).face == meant  # type: ignore[arg-type]
    assert Params(audio="a", video="v", watermark="1", digital_auth=True).watermark == 1  # type: ignore[arg-type]
    for wrong in [
        {"face": "smallest"},
        {"face": -1},
        {"face": True},
        {"face": (1, 2, 3)},
        {"watermark": 2},
        {"crf": 60},
        {"output": "x.avi"},
        {"backend": "magic"},
        {"colour": "red"},
    ]:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Params(audio="a", video="v", **wrong)  # type: ignore[arg-type]
    assert Params.model_json_schema()["properties"]["crf"]["default"] == 18


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"beckend": "mesh"}, "beckend"),
        ({"backend": "wav2lip"}, "needs a checkpoint"),
        ({"backend": "wav2lip", "checkpoint": "/nowhere/wav2lip.pth"}, "does not exist"),
        ({"watermark": str(SPEECH)}, "no picture"),
        ({"ffmpeg": "/nowhere/ffmpeg"}, "no program"),
        ({"face_model": "/nowhere/face.task"}, "does not exist"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(EngineError, match=complaint) as caught:
        LipSync().load("cpu", options)
    assert caught.value.hint
    assert Options().backend == "mesh"


# --- refused before the model is used ---------------------------------------------------------------------------------


def silent_video(path: Path, ffmpeg: Ffmpeg) -> Path:
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=1", path)
    return path


BAD_VIDEO: dict[str, tuple[Callable[[Path, Path, Ffmpeg], object], str]] = {
    "missing": (lambda path, good, ffmpeg: None, "video: .* does not exist"),
    "0 bytes": (lambda path, good, ffmpeg: path.touch(), r"video: .* is empty \(0 bytes\)"),
    "a directory": (lambda path, good, ffmpeg: path.mkdir(), "is a directory"),
    "truncated": (
        lambda path, good, ffmpeg: path.write_bytes(good.read_bytes()[: good.stat().st_size * 2 // 3]),
        "video: .* is cut off",
    ),
    "text": (lambda path, good, ffmpeg: path.write_text("no video\n" * 100), "not a media file"),
    "sound only": (
        lambda path, good, ffmpeg: path.write_bytes(SPEECH.read_bytes()),
        "has no picture, only sound",
    ),
    "8K": (
        lambda path, good, ffmpeg: ffmpeg(
            "-f", "lavfi", "-i", "color=size=7680x4320:duration=0.08", "-f", "mjpeg", path
        ),
        "is 7680×4320; pictures up to",
    ),
    "thumbnail": (
        lambda path, good, ffmpeg: ffmpeg("-f", "lavfi", "-i", "testsrc=size=48x48:duration=1", path),
        "at least 64 pixels",
    ),
}


@pytest.mark.parametrize("case", BAD_VIDEO)
def test_templates_that_are_refused(case: str, template: Path, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "template.mp4"
    make, complaint = BAD_VIDEO[case]
    make(path, ffmpeg=ffmpeg, good=template)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=complaint) as caught:
        LipSync().check({"audio": SPEECH, "video": path})
    assert str(path) in str(caught.value)


def test_recordings_that_are_refused(template: Path, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    def refused(path: Path, complaint: str) -> None:
        with pytest.raises(InputError, match=complaint):
            LipSync().check({"audio": path, "video": template})

    refused(tmp_path / "none.wav", "audio: .* does not exist")
    refused(silent_video(tmp_path / "silent.mp4", ffmpeg), "audio: .* is a video without sound")
    empty = tmp_path / "empty.wav"
    empty.touch()
    refused(empty, "is empty")
    short = tmp_path / "short.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.05", short)
    refused(short, "too short to say anything")
    long = tmp_path / "long.wav"
    ffmpeg("-f", "lavfi", "-i", "anullsrc=sample_rate=8000", "-t", 4000, long)
    refused(long, "lasts 4000 s, more than 3600 s")


def test_outputs_that_are_refused(template: Path, tmp_path: Path) -> None:
    def refused(complaint: str, **more: object) -> None:
        with pytest.raises(InputError, match=complaint):
            LipSync().check({"audio": SPEECH, "video": template, **more})

    refused("is the template itself", output=template)
    refused("does not exist", output=tmp_path / "no" / "x.mp4")
    refused("output: .* does not end in .mp4", output=tmp_path / "x.mkv")
    (tmp_path / "folder.mp4").mkdir()
    refused("is a directory", output=tmp_path / "folder.mp4")
    refused("outside the picture", face="400,20")
    refused("colour", colour="red")


def test_content_counts_not_the_ending(template: Path, tmp_path: Path) -> None:
    odd = tmp_path / "template.txt"
    odd.write_bytes(template.read_bytes())
    job = LipSync().check({"audio": SPEECH, "video": odd})
    assert job.video == odd


# --- what is asked of a mouth -----------------------------------------------------------------------------------------


def articulation(count: int, **channels: Array) -> Any:
    from inference.articulation.curve import CHANNELS, Articulation

    rest = dict.fromkeys(CHANNELS, -1.0) | {"width": 0.4}
    table = {name: channels.get(name, np.full(count, rest[name], np.float32)) for name in CHANNELS}
    closed = channels.get("closed", np.zeros(count)).astype(bool)
    voiced = channels.get("voiced", np.ones(count, np.float32)).astype(np.float32)
    return Articulation(table, closed, voiced, dict.fromkeys(CHANNELS, 1.0), rest)


def test_rest_is_shut_and_as_wide_as_it_is() -> None:
    asked = speech.asked(articulation(50, voiced=np.zeros(50)), speech.TYPICAL, 60, 30)
    assert np.abs(asked.opening).max() < 1e-6
    assert np.abs(asked.width).max() < 1e-6


def test_openings_grow_with_the_articulation() -> None:
    rising = np.linspace(-1, 2, 50).astype(np.float32)
    asked = speech.asked(articulation(50, opening=rising), speech.TYPICAL, 50, 25)
    assert (np.diff(asked.opening) > 0).all()
    assert asked.opening[np.abs(rising).argmin()] == pytest.approx(speech.TYPICAL.opening_mean, abs=0.003)
    assert asked.opening[-1] == pytest.approx(0.075 + 2 * 0.054, abs=1e-3)


@pytest.mark.parametrize("fps", [15.0, 25.0, 29.97, 60.0])
def test_closures_survive_any_frame_rate(fps: float) -> None:
    closed = np.zeros(100)
    closed[[10, 40, 41, 77]] = 1
    frames = int(4 * fps)
    heard = articulation(100, opening=np.ones(100, np.float32), closed=closed)
    asked = speech.asked(heard, speech.TYPICAL, frames, fps)
    assert (asked.opening[asked.closed] == 0).all()
    for k in np.flatnonzero(closed):
        near = (np.arange(frames) + 0.5) / fps
        assert asked.opening[np.abs(near - (k + 0.5) / 25).argmin()] == 0
    assert (asked.opening > 0.1).mean() > 0.85


def test_a_template_that_talks_shows_its_own_manner() -> None:
    random = np.random.default_rng(0)
    opening = np.abs(random.normal(0.09, 0.06, 300)).astype(np.float32)
    own = speech.manner(opening, random.normal(0.6, 0.03, 300).astype(np.float32), talks=True)
    assert own.opening_spread > 0.04
    assert 0.05 <= own.opening_mean <= 0.12
    assert speech.manner(opening, opening, talks=False) == speech.TYPICAL


# --- whole jobs -------------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_file(made: Made, words: Path) -> None:
    assert made.result["frames"] == round(4.5 * 25)
    assert (made.result["width"], made.result["height"], made.result["fps"]) == (*SIZE, 25.0)
    about = probe_video(made.path)
    assert (about.width, about.height, about.fps, about.frames) == (*SIZE, 25.0, 112)
    talk = subprocess.run(
        [media.ffmpeg_binary(), "-i", str(made.path)], stdin=subprocess.DEVNULL, capture_output=True
    ).stderr.decode()
    assert "Video: h264 (High)" in talk
    assert "yuv420p" in talk
    assert "Audio: aac" in talk
    assert "AI-generated" in talk
    assert "compositeWithTrainedAlgorithmicMedia" in talk
    data = made.path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it still downloads
    assert media.probe(made.path).duration_s == pytest.approx(4.5, abs=0.05)


@pytest.mark.model
def test_progress_in_the_words_callers_know(made: Made) -> None:
    statuses = list(dict.fromkeys(status for status, _, _ in made.updates))
    assert statuses == ["face_detecting", "inference", "merging_audio"]
    shares = [percent for _, percent, _ in made.updates]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 100.0)
    assert len({round(share) for share in shares}) > 10


@pytest.mark.model
def test_the_mouth_says_it(made: Made, template: Path, words: Path, tmp_path: Path) -> None:
    """Judged by landmarks on the encoded file; the painting is small, so a little less is asked than of a camera's."""
    picture, worst = tmp_path / "sheet.png", tmp_path / "worst.png"
    report = evaluate.evaluate(made.path, words, template, sheet_path=picture, worst_path=worst)
    assert report.follows_r is not None
    assert report.follows_r > 0.9
    assert abs(report.lag_frames or 0) <= 1
    assert report.rest_jitter is None or report.rest_jitter < 0.006
    assert (report.closures or 1) > 0.8
    assert abs(report.start_offset_ms or 0) < 1
    assert abs(report.sound_offset_ms or 0) < 5
    assert abs(report.duration_error_frames or 0) <= 1
    assert (report.flicker or 9) < 3
    assert 0 < (report.seam or 99) < 20  # her skin has cracks, which move with the mouth
    assert (report.likeness or 0) > 0.8
    assert (report.likeness_least or 0) > 0.7
    assert report.donor_held is None  # she never talks by herself
    assert set(report.worst) == {"flicker", "seam", "likeness"}
    sheets = [cv2.imread(str(path)) for path in (picture, worst)]
    assert sheets[0].shape[1] > 1500
    assert sheets[1].shape[0] > 3 * 2 * evaluate_sheet.SIDE


@pytest.mark.long
@pytest.mark.model
def test_outside_the_face_nothing_changes(
    lipsync: LipSync, template: Path, words: Path, cache: Path, tmp_path: Path
) -> None:
    """In the best quality everything but the lower face is the template's, and browsers play the file."""
    output = tmp_path / "best.mp4"
    made = Made.run(lipsync, {"audio": words, "video": template, "output": output, "crf": 0}, cache)
    assert any("crf: 0 is lossless" in warning for warning in made.result["warnings"])
    said = subprocess.run([media.ffmpeg_binary(), "-i", output], capture_output=True, text=True, check=False).stderr
    assert "h264 (High)" in said  # lossless would be "High 4:4:4 Predictive"
    seen = face_analysis.cached(Shelf(cache / "analyses"), template, lipsync._model)
    order = loop(112, FRAMES)
    ours = Template(probe_video(output), 112).read(np.arange(112, dtype=np.int32))
    theirs = Template(probe_video(template), FRAMES).read(order)
    moved = 0
    for index, one, other in zip(order, ours, theirs, strict=True):
        keep = evaluate.outside_mask(seen.points[index], *SIZE)
        keep[:60] = True  # no marks here
        apart = np.abs(one[: SIZE[1]].astype(int) - other[: SIZE[1]])
        assert apart[keep].max() <= LOSS
        moved += bool(apart.max() > 4 * LOSS)
    assert moved > 50


@pytest.mark.long
@pytest.mark.model
def test_the_second_job_looks_at_nothing_again_and_gives_the_same_bytes(
    lipsync: LipSync,
    made: Made,
    template: Path,
    words: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("looked at the template again")

    monkeypatch.setattr(face_analysis, "analyse", never)
    monkeypatch.setattr(mesh_backend, "prepare", never)
    again = Made.run(
        lipsync, {"audio": words, "video": template, "digital_auth": 1, "output": tmp_path / "again.mp4"}, cache
    )
    assert again.digest == made.digest
    monkeypatch.setattr(lipsync, "_threads", 1)
    asked = {"audio": words, "video": template, "digital_auth": 1, "output": tmp_path / "alone.mp4", "stream": True}
    with LocalContext(cache=cache, folder=tmp_path) as context:
        alone = lipsync.run(lipsync.check(asked), context)
        (watched,) = context.streams
    assert hashlib.sha256((tmp_path / "alone.mp4").read_bytes()).hexdigest() == made.digest
    assert alone["warnings"] == made.result["warnings"]
    assert watched.whole
    assert probe_video(watched.path).frames == made.result["frames"]
    assert media.probe(watched.path).has_audio


@pytest.mark.model
@pytest.mark.long
def test_who_watches_waits_for_the_first_words_and_no_more(
    lipsync: LipSync, template: Path, cache: Path, tmp_path: Path, ffmpeg: Ffmpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Painting begins when one window of two was heard, and it is the same video."""
    audio = tmp_path / "words.flac"
    ffmpeg("-stream_loop", -1, "-i", SPEECH, "-t", 14, audio)
    windows: list[int] = []
    hear, paint = Articulator.hear, mesh_backend.MeshPainter.paint_planes
    heard = 0

    def hearing(*given: Any) -> Array:
        nonlocal heard
        heard += 1
        return hear(*given)

    def painting(*given: Any) -> Any:
        windows.append(heard)
        return paint(*given)

    monkeypatch.setattr(Articulator, "hear", hearing)
    monkeypatch.setattr(mesh_backend.MeshPainter, "paint_planes", painting)
    digests = set()
    for watched in (True, False):
        heard = 0
        windows.clear()
        output = tmp_path / f"{watched}.mp4"
        made = Made.run(lipsync, {"audio": audio, "video": template, "output": output, "stream": watched}, cache)
        digests.add(made.digest)
        assert len(windows) == 14 * 25
        assert (windows[0], max(windows)) == (1 if watched else 2, 2)
    assert len(digests) == 1


@pytest.mark.model
@pytest.mark.long
def test_two_jobs_at_once_share_one_look(
    template: Path, words: Path, tmp_path: Path, lipsync: LipSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    analyse, prepare = face_analysis.analyse, mesh_backend.prepare

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            looks.append(name)
            return work(*args, **more)

        return run

    monkeypatch.setattr(face_analysis, "analyse", counted("analyse", analyse))
    monkeypatch.setattr(mesh_backend, "prepare", counted("prepare", prepare))
    done: list[Made] = []

    def work(number: int) -> None:
        output = tmp_path / f"{number}.mp4"
        done.append(Made.run(lipsync, {"audio": words, "video": template, "output": output}, tmp_path / "cache"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(looks) == ["analyse", "prepare"]
    assert len({made.digest for made in done}) == 1


@pytest.mark.model
@pytest.mark.parametrize("when", ["face_detecting", "inference", "merging_audio"])
def test_cancel_leaves_nothing(
    when: str, lipsync: LipSync, template: Path, words: Path, cache: Path, tmp_path: Path
) -> None:
    status = ""

    def listen(now: str, percent: float, message: str) -> None:
        nonlocal status
        status = now

    store = tmp_path / "cache" if when == "face_detecting" else cache
    output = tmp_path / "out" / "said.mp4"
    output.parent.mkdir()
    with (
        pytest.raises(Cancelled),
        LocalContext(listen, cache=store, is_cancelled=lambda: status == when) as context,
    ):
        lipsync.run(lipsync.check({"audio": words, "video": template, "output": output}), context)
    assert status == when
    assert not ffmpegs()
    assert not list(output.parent.iterdir())
    assert not context.scratch.exists()


@pytest.mark.model
def test_damaged_cache_is_made_again(lipsync: LipSync, made: Made, template: Path, words: Path, cache: Path) -> None:
    folder = made.path.parent
    (kept,) = (cache / "materials").glob("*.npz")
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    params = {"audio": words, "video": template, "digital_auth": 1, "output": folder / "after.mp4"}
    assert Made.run(lipsync, params, cache).digest == made.digest
    assert len(kept.read_bytes()) == len(whole)


@pytest.mark.model
def test_still_picture_and_default_place(lipsync: LipSync, words: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    picture = tmp_path / "lady.png"
    cv2.imwrite(str(picture), cv2.resize(cv2.imread(str(PORTRAIT)), (255, 319), interpolation=cv2.INTER_AREA))
    made = Made.run(lipsync, {"audio": words, "video": picture}, tmp_path / "cache", folder)
    assert made.path == Path("output.mp4")
    about = probe_video(folder / "output.mp4")
    assert (about.width, about.height, about.fps, about.frames) == (254, 318, 25.0, 112)
    assert made.result["template_frames"] == 1


@pytest.mark.long
@pytest.mark.model
def test_phone_video_comes_out_upright(
    lipsync: LipSync, template: Path, words: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    """Stored lying, with a note to turn it, as phones do."""
    lying, phone = tmp_path / "lying.mp4", tmp_path / "phone.mp4"
    ffmpeg("-i", template, "-vf", "transpose=2", "-t", 0.4, "-crf", 12, lying)
    ffmpeg("-display_rotation:v:0", -90, "-i", lying, "-c", "copy", phone)
    assert probe_video(phone).rotation == 90
    made = Made.run(lipsync, {"audio": words, "video": phone, "output": tmp_path / "up.mp4"}, tmp_path / "cache")
    about = probe_video(made.path)
    assert (about.width, about.height, about.rotation) == (*SIZE, 0)
    assert made.result["template_frames_with_face"] == made.result["template_frames"]


@pytest.mark.model
def test_template_without_a_face(lipsync: LipSync, words: Path, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    output = tmp_path / "x.mp4"
    video = silent_video(tmp_path / "bars.mp4", ffmpeg)
    with (
        pytest.raises(InputError, match=r"bars.mp4 does not show a human face \(25 frames were looked at"),
        LocalContext(cache=tmp_path / "cache") as context,
    ):
        lipsync.run(lipsync.check({"audio": words, "video": video, "output": output}), context)
    assert not output.exists()


@pytest.mark.model
@pytest.mark.long
def test_frames_without_a_face_pass_untouched(
    lipsync: LipSync, template: Path, words: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    half = tmp_path / "half.mp4"
    gone = "drawbox=color=gray:t=fill:enable='gte(n,20)'"
    ffmpeg("-i", template, "-vf", gone, "-crf", 12, half)
    made = Made.run(
        lipsync, {"audio": words, "video": half, "output": tmp_path / "x.mp4", "crf": 0}, tmp_path / "cache"
    )
    assert made.result["template_frames_with_face"] == 20
    assert any("no face in 20 of 40 frames" in warning for warning in made.result["warnings"])
    order = loop(112, FRAMES)
    with read_frames(probe_video(made.path)) as ours, read_frames(probe_video(half)) as theirs:
        originals = list(theirs)
        for index, frame in zip(order, ours, strict=True):
            if index >= 20:
                assert np.abs(frame.astype(int) - originals[index]).max() <= 2 * LOSS


@pytest.mark.model
def test_marks_are_in_the_picture(made: Made, template: Path) -> None:
    """The upper right corner carries the mark that was asked for, the lower right one does not."""
    order = loop(112, FRAMES)
    with read_frames(probe_video(made.path)) as ours, read_frames(probe_video(template)) as theirs:
        originals = list(theirs)
        apart = np.mean([np.abs(f.astype(int) - originals[k]).max(axis=2) for k, f in zip(order, ours, strict=True)], 0)
    mark = apart[10:30, SIZE[0] - 110 : SIZE[0] - 10]
    assert mark.mean() > 20
    assert apart[-40:, -60:].mean() < 5
    assert apart[:8].mean() < 5


@pytest.mark.model
def test_fingerprint_follows_the_options(lipsync: LipSync) -> None:
    other = LipSync()
    other.load("cpu", {"preset": "medium"})
    assert lipsync.fingerprint() == lipsync.fingerprint()
    assert other.fingerprint() != lipsync.fingerprint()
    other.close()
    with pytest.raises(EngineError, match="not loaded"):
        other.run(Params(audio=SPEECH, video=SPEECH), LocalContext())


@pytest.mark.model
def test_files_of_a_job(lipsync: LipSync, tmp_path: Path) -> None:
    files = lipsync.files(Params(audio=SPEECH, video=PORTRAIT, output=tmp_path / "x.mp4"))
    assert files.inputs == (SPEECH, PORTRAIT)
    assert files.outputs == (tmp_path / "x.mp4",)
    with pytest.raises(InputError, match="wav2lip is not set up here"):
        lipsync.check({"audio": SPEECH, "video": PORTRAIT, "backend": "wav2lip"})


@pytest.mark.model
@pytest.mark.long
def test_wav2lip_from_end_to_end(words: Path, template: Path, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    """With made-up weights the mouth is noise, but it is in the right place, at the right time, in a proper file."""
    torch = pytest.importorskip("torch")
    from test_wav2lip import published
    from test_wav2lip import weights as random_weights

    checkpoint = tmp_path / "wav2lip.pth"
    torch.save({"state_dict": random_weights(published("96"))}, checkpoint)
    engine = LipSync()
    engine.load("cpu", {"backend": "wav2lip", "checkpoint": str(checkpoint), "threads": 2})
    engine.warmup()
    short = tmp_path / "short.flac"
    ffmpeg("-i", words, "-t", 1, short)
    params = {"audio": short, "video": template, "output": tmp_path / "x.mp4", "crf": 0}
    made = Made.run(engine, params, tmp_path / "cache")
    assert made.result["backend"] == "wav2lip"
    with LocalContext(cache=tmp_path / "cache", folder=tmp_path) as context:
        again = engine.run(engine.check({**params, "output": tmp_path / "y.mp4", "stream": True}), context)
        (stream,) = context.streams
    assert hashlib.sha256((tmp_path / "y.mp4").read_bytes()).hexdigest() == made.digest
    assert stream.whole, again["warnings"]
    assert (probe_video(stream.path).frames, media.probe(stream.path).has_audio) == (25, True)
    data = stream.path.read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: data.rindex(b"moof") - 4])  # as it was seen a moment before its end
    with read_frames(probe_video(tmp_path / "half.mp4")) as beginning:
        assert 6 <= len(list(beginning)) <= 25
    seen = face_analysis.cached(Shelf(tmp_path / "cache" / "analyses"), template, engine._model)
    order = loop(25, FRAMES)
    with read_frames(probe_video(made.path)) as ours, read_frames(probe_video(template)) as theirs:
        originals = list(theirs)
        for index, frame in zip(order, ours, strict=True):
            changed = (np.abs(frame.astype(int) - originals[index]).max(axis=2) > 3 * LOSS).nonzero()
            oval = seen.points[index][mesh.OVAL, :2]
            assert len(changed[0]) > 500
            assert changed[0].min() > seen.points[index][6, 1]  # below the bridge of the nose
            assert changed[0].max() < oval[:, 1].max() + 12
            assert oval[:, 0].min() - 6 < changed[1].min() < changed[1].max() < oval[:, 0].max() + 6
    engine.close()


@pytest.mark.model
@pytest.mark.long
def test_evaluation_on_the_command_line(made: Made, words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--video", str(made.path), "--audio", str(words)]
    # As her own template she is one who talks, and whose mouths are borrowed.
    assert evaluate.main([*arguments, "--template", str(made.path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 112
    assert report["psnr_outside_db"] > 80
    assert report["seam"] == 0
    assert report["likeness"] > 0.99
    assert report["donor_held_frames"] <= 6
    assert report["donor_held"] < 0.1
    assert {"held", "stretch"} <= set(report["worst"])
    assert evaluate.main(arguments) == 0
    assert "follows_r" in capsys.readouterr().out
    assert evaluate.main(["--video", str(SPEECH), "--audio", str(words)]) == 1
    assert "has no picture" in capsys.readouterr().err


def test_correlation_finds_the_lag() -> None:
    random = np.random.default_rng(0)
    asked = random.normal(size=200).astype(np.float32)
    for lag in (-3, 0, 4):
        shown = np.roll(asked, lag)
        found = {k: evaluate.correlation(asked, shown, k) for k in range(-8, 9)}
        assert max(found, key=lambda k: found[k]) == lag
        assert found[lag] > 0.99
    shown[::3] = np.nan
    assert evaluate.correlation(asked, np.full(200, np.nan, np.float32), 0) == 0


@pytest.mark.slow
@pytest.mark.model
def test_memory_does_not_grow_with_the_recording(
    lipsync: LipSync, template: Path, cache: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    process, most = psutil.Process(), []
    for seconds in (40, 130):  # from half a minute on the recording is heard in windows of that length
        audio = tmp_path / f"{seconds}.flac"
        ffmpeg("-stream_loop", -1, "-i", SPEECH, "-t", seconds, audio)
        peak = 0

        def listen(status: str, percent: float, message: str) -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)

        with LocalContext(listen, cache=cache) as context:
            lipsync.run(
                lipsync.check({"audio": audio, "video": template, "output": tmp_path / f"{seconds}.mp4"}), context
            )
        most.append(peak)
    assert most[1] - most[0] < 60e6
