"""Frames in the order of the output, segments side by side, and their join: real files, real ffmpeg."""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from inference import media
from inference.base import Cancelled, EngineError, InputError
from inference.encode import as_rate, to_planes
from inference.join import Part, join
from inference.lipsync import frames as frames_module
from inference.lipsync import marks, sound
from inference.lipsync.frames import Ahead, Run, Template, loop, runs
from inference.lipsync.pipeline import HEAD_START_S, Render, cut
from inference.lipsync.planes import changed_box, to_bgr, with_changes
from inference.video import Encoding, VideoWriter, probe_video, read_frames

Frame = np.ndarray
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "speech"
SPEECH = EXAMPLES / "address.flac"


def ffmpegs() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "ffmpeg" in child.name()]


def numbered(path: Path, count: int, fps: float = 25, size: int = 64) -> Path:
    """A video whose frames tell their number by their brightness: 16 + 4 × number, for up to 54."""
    with VideoWriter(path, Encoding(size, size, fps, crf=0)) as writer:
        for number in range(count):
            writer.write(np.full((size, size, 3), 16 + 4 * number, np.uint8))
    return path


def number_of(planes: Frame) -> int:
    frame = to_bgr(planes)
    return round((float(frame[8:-8, 8:-8].mean()) - 16) / 4)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered(tmp_path_factory.mktemp("video") / "numbers.mp4", 50)


def test_loop_turns_without_showing_a_frame_twice() -> None:
    assert loop(9, 4).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert loop(3, 10).tolist() == [0, 1, 2]
    assert loop(3, 1).tolist() == [0, 0, 0]
    assert loop(5, 2).tolist() == [0, 1, 0, 1, 0]
    assert abs(np.diff(loop(1000, 7))).max() == 1
    with pytest.raises(ValueError, match="without frames"):
        loop(3, 0)


def test_runs_are_read_in_one_go() -> None:
    assert runs(loop(9, 4)) == [Run(0, 4, False), Run(0, 3, True), Run(1, 2, False)]
    assert runs(np.array([5, 5], np.int32)) == [Run(5, 1, False), Run(5, 1, False)]
    for start, stop, length in [(0, 100, 7), (13, 77, 30), (3, 4, 9), (5, 60, 2)]:
        order = loop(stop, length)[start:]
        back = [
            run.low + k for run in runs(order) for k in (range(run.count)[::-1] if run.backward else range(run.count))
        ]
        assert back == order.tolist()


@pytest.mark.parametrize("budget", ["held in memory", "read in blocks"])
def test_template_in_any_order(template: Path, budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if budget == "read in blocks":
        monkeypatch.setattr(frames_module, "BLOCK_BYTES", 5 * 64 * 96)
    source = Template(probe_video(template), 50)
    for start, stop in [(0, 7), (45, 60), (55, 90), (95, 120)]:
        order = loop(stop, 50)[start:]
        assert [number_of(frame) for frame in source.read(order)] == order.tolist()
    assert not ffmpegs()


def test_template_that_ends_early_is_an_error(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "BLOCK_BYTES", 1)
    source = Template(probe_video(template), 60)
    with pytest.raises(EngineError, match="gave 50 frames from frame 0 instead of 60"):
        list(source.read(loop(60, 60)))
    assert not ffmpegs()


def test_reading_ahead_ends_and_hands_over_errors() -> None:
    def endless() -> object:
        while True:
            yield np.zeros((2, 2, 3), np.uint8)

    with Ahead(endless(), 3) as stream:  # type: ignore[arg-type]
        assert next(stream).shape == (2, 2, 3)

    def broken() -> object:
        yield np.zeros((2, 2, 3), np.uint8)
        raise OSError("disk gone")

    with Ahead(broken(), 1) as stream:  # type: ignore[arg-type]
        next(stream)
        with pytest.raises(OSError, match="disk gone"):
            next(stream)
    with Ahead(iter([]), 1) as stream:
        assert list(stream) == []


def planes_of(frame: np.ndarray) -> np.ndarray:
    planes = np.empty((frame.shape[0] * 3 // 2, frame.shape[1]), np.uint8)
    to_planes(frame, planes)
    return planes


def test_only_what_changed_is_converted() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    planes = planes_of(noise)
    before = to_bgr(planes)
    assert with_changes(planes, before, before) is planes
    assert with_changes(planes, before, before.copy()) is planes
    for box in [(0, 0, 1, 1), (63, 47, 64, 48), (13, 7, 30, 29), (0, 0, 64, 48)]:
        left, top, right, bottom = box
        after = before.copy()
        after[top:bottom, left:right] = 255 - after[top:bottom, left:right]
        x0, y0, x1, y1 = changed_box(before, after) or (0, 0, 0, 0)
        assert x0 <= left < right <= x1 <= right + 1
        assert y0 <= top < bottom <= y1 <= bottom + 1
        result = with_changes(planes, before, after)
        whole, kept = planes_of(after), np.ones((48, 64), bool)
        kept[y0:y1, x0:x1] = False
        assert np.array_equal(result[:48][kept], planes[:48][kept])
        assert np.array_equal(result[:48][~kept], whole[:48][~kept])
        ours, theirs, old = (each[48:].reshape(2, 24, 32) for each in (result, whole, planes))
        half = kept[::2, ::2]
        assert np.array_equal(ours[:, half], old[:, half])
        assert np.array_equal(ours[:, ~half], theirs[:, ~half])


@pytest.mark.parametrize(("frames", "fps", "count"), [(1, 25, 1), (30, 25, 1), (150, 25, 4), (1500, 25, 8)])
def test_cuts_depend_on_the_length_alone(frames: int, fps: float, count: int) -> None:
    cuts = cut(frames, fps)
    assert len(cuts) == count
    assert (cuts[0][0], cuts[-1][1]) == (0, frames)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(cuts))
    lengths = [stop - start for start, stop in cuts]
    assert max(lengths) - min(lengths) <= 1


def test_long_jobs_have_short_segments() -> None:
    cuts = cut(15_000, 25)
    assert len(cuts) % 8 == 0
    assert 5 < (cuts[0][1] - cuts[0][0]) / 25 < 10


class Brighter:
    """Adds one grey level, and a mark that tells the output number."""

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
        assert len(frames) == len(outputs) <= self.batch
        return [np.clip(frame.astype(int) + 1, 0, 255).astype(np.uint8) for frame in frames]


class Noted(Brighter):
    """Notes which outputs are painted, in a list that all segments share. fails: the output at which it does."""

    def __init__(self, painted: list[int], fails: int = -1) -> None:
        super().__init__(2)
        self._painted, self._fails = painted, fails

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
        if self._fails in outputs:
            raise ValueError("bad mouth")
        self._painted += outputs
        return super().paint(frames, outputs)


def encoding(fps: float = 25, *, growing: bool = False) -> Encoding:
    return Encoding(64, 64, fps, crf=0, growing=growing)


def aac(folder: Path, seconds: float) -> Path:
    with sound.Track(sound.read(SPEECH, 60, lambda: None), folder, seconds) as track:
        return track.finish(lambda: None)


def video_steps(path: Path) -> tuple[list[int], int]:
    """Differences between the presentation times of successive frames, in ticks, and ticks per second."""
    command = [media.ffmpeg_binary(), "-v", "error", "-i", path, "-map", "0:v", "-c", "copy", "-f", "framecrc", "-"]
    talk = subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout.decode()
    unit = re.search(r"#tb 0: 1/(\d+)", talk)
    assert unit
    times = sorted(int(line.split(",")[2]) for line in talk.splitlines() if not line.startswith("#"))
    return np.diff(times).tolist(), int(unit[1])


@pytest.mark.parametrize(("fps", "total"), [(25.0, 140), (30.0, 331), (29.97, 205)])
def test_segments_join_without_a_seam(tmp_path: Path, fps: float, total: int) -> None:
    template = numbered(tmp_path / "template.mp4", 40, fps)
    info = probe_video(template)
    seen: list[int] = []
    render = Render(
        Template(info, 40), loop(total, 40), lambda a, b: Brighter(), encoding(fps), folder=tmp_path, workers=2
    )
    parts = render.run(lambda: None, seen.append)
    assert len(parts) == len(cut(total, fps)) > 1
    assert render.done == seen[-1] == total
    assert seen == sorted(seen)
    output = tmp_path / "output.part"
    join(parts, output, aac(tmp_path, total / fps), metadata={"comment": "made here"})
    assert not any(part.path.exists() for part in parts)
    steps, ticks = video_steps(output)
    assert len(steps) == total - 1
    assert {step * as_rate(fps) / ticks for step in steps} == {1}
    with read_frames(probe_video(output)) as reader:
        shown = [float(frame[8:-8, 8:-8].mean()) - 1 for frame in reader]
    assert np.allclose((np.array(shown) - 16) / 4, loop(total, 40), atol=0.75)
    about = media.probe(output)
    assert about.has_audio
    assert about.duration_s == pytest.approx(total / fps, abs=0.05)


def test_same_bytes_on_any_number_of_workers(template: Path, tmp_path: Path) -> None:
    digests = set()
    for workers in (1, 2, 5):
        folder = tmp_path / str(workers)
        folder.mkdir()
        source = Template(probe_video(template), 50)
        parts = Render(source, loop(130, 50), lambda a, b: Brighter(3), encoding(), folder=folder, workers=workers).run(
            lambda: None, lambda done: None
        )
        join(parts, folder / "out.mp4", aac(folder, 5.2))
        digests.add(hashlib.sha256((folder / "out.mp4").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_cancel_ends_every_ffmpeg(template: Path, tmp_path: Path) -> None:
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise Cancelled

    order = loop(100_000, 50)
    with pytest.raises(Cancelled), Template(probe_video(template), 50) as source:
        Render(source, order, lambda a, b: Brighter(), encoding(), folder=tmp_path, workers=3).run(
            check, lambda done: None
        )
    assert not ffmpegs()
    assert not list(tmp_path.glob("segment-*"))


def test_error_in_one_segment_is_the_jobs_error(template: Path, tmp_path: Path) -> None:
    class Fails(Brighter):
        def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
            if outputs[0] == 70:
                raise ValueError("bad mouth")
            return super().paint(frames, outputs)

    with pytest.raises(ValueError, match="bad mouth"), Template(probe_video(template), 50) as source:
        Render(source, loop(130, 50), lambda a, b: Fails(), encoding(), folder=tmp_path, workers=2).run(
            lambda: None, lambda done: None
        )
    assert not ffmpegs()


def test_what_is_watched_begins_with_its_first_second(template: Path, tmp_path: Path) -> None:
    """Other segments are begun once the first one is far enough to be played."""
    painted: list[int] = []
    with Template(probe_video(template), 50) as source:
        order = loop(130, 50)
        render = Render(source, order, lambda a, b: Noted(painted), encoding(growing=True), folder=tmp_path, workers=4)
        render.run(lambda: None, lambda done: None)
        assert sorted(painted) == list(range(130))
        others = next(at for at, output in enumerate(painted) if output >= cut(130, 25)[0][1])
        assert others >= min(cut(130, 25)[0][1], round(HEAD_START_S * 25)) > 25
        for broken in (Noted([], fails=0), Noted([], fails=20)):  # before that, which the others must not wait for
            failing = Render(
                source, order, lambda a, b, own=broken: own, encoding(growing=True), folder=tmp_path, workers=4
            )
            with pytest.raises(ValueError, match="bad mouth"):
                failing.run(lambda: None, lambda done: None)
    assert not ffmpegs()


def test_sound_begins_when_it_is_heard(tmp_path: Path, ffmpeg: Callable[..., None], speech: dict) -> None:
    """A stream that starts half a second into its file gets half a second of silence, as in a player."""
    late = tmp_path / "late.mp4"
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=25:duration=4")
    ffmpeg(*picture, "-itsoffset", 0.5, "-i", SPEECH, "-t", 4, "-c:a", "aac", late)
    prepared = sound.read(late, 60, lambda: None)
    straight = speech["address"]
    length = int(3.2 * media.SAMPLE_RATE)
    shift = np.fft.irfft(
        np.fft.rfft(prepared.samples[: 2 * length], 4 * length).conj() * np.fft.rfft(straight[:length], 4 * length)
    ).argmax()
    assert (4 * length - shift) / media.SAMPLE_RATE == pytest.approx(0.5, abs=0.03)
    assert prepared.seconds == pytest.approx(4.0, abs=0.1)
    with sound.Track(prepared, tmp_path, 4.0) as track:
        about = media.probe(track.finish(lambda: None))
    assert about.sample_rate in (44100, 48000)


def test_the_stream_with_sound_in_it_is_said(tmp_path: Path, ffmpeg: Callable[..., None], speech: dict) -> None:
    """Of several the one that transcribe hears; its length is not that of the file, and the track holds it alone."""
    film = tmp_path / "film.mp4"
    hush = ("-f", "lavfi", "-t", 9, "-i", "anullsrc=sample_rate=16000:channel_layout=stereo")
    ffmpeg(*hush, "-i", SPEECH, "-map", 0, "-map", 1, film)
    heard = sound.read(film, 60, lambda: None)
    assert (heard.stream, heard.notes) == (1, ("the file has 2 audio streams: 1 was heard, 0 is silent",))
    assert heard.seconds == pytest.approx(len(speech["address"]) / media.SAMPLE_RATE, abs=0.1)
    with sound.Track(heard, tmp_path, heard.seconds) as track:
        said = media.read_audio(track.finish(lambda: None))
    assert np.std(said) == pytest.approx(np.std(speech["address"]), rel=0.1)


@pytest.mark.parametrize(
    ("where", "factor", "told"),
    [
        (slice(None), 32768.0, "samples go beyond full scale, up to .*: they were made quieter or cut off"),
        (slice(100_000, None, 701), np.nan, r"\d+ samples are no numbers of a sound: they were heard as silence"),
        (slice(100_000, None, 701), np.inf, r"\d+ samples are no numbers of a sound: they were heard as silence"),
    ],
    ids=["another scale", "not a number", "infinite"],
)
def test_floats_that_are_no_sound_are_told_and_left_out(
    tmp_path: Path, ffmpeg: Callable[..., None], speech: dict, where: slice, factor: float, told: str
) -> None:
    wanted = speech["address"]
    written = wanted.copy()
    written[where] = (written[where] + 1e-6) * np.float32(factor)
    raw, path = tmp_path / "raw.f32", tmp_path / "floats.wav"
    np.stack([written, written], axis=1).astype("<f4").tofile(raw)
    ffmpeg("-f", "f32le", "-ar", media.SAMPLE_RATE, "-ac", 2, "-i", raw, "-c:a", "pcm_f32le", path)
    heard = sound.read(path, 60, lambda: None)
    assert [bool(re.fullmatch(told, note)) for note in heard.notes] == [True]
    with sound.Track(heard, tmp_path, heard.seconds) as track:
        said = media.read_audio(track.finish(lambda: None))
    for found in (heard.samples, said):
        assert np.max(np.abs(found)) <= 1.5  # two channels as one, and what AAC adds
        assert np.corrcoef(found[:100_000], wanted[:100_000])[0, 1] > 0.98


def test_channels_that_cancel_are_said(tmp_path: Path, ffmpeg: Callable[..., None], speech: dict) -> None:
    upside_down = tmp_path / "antiphase.wav"
    ffmpeg("-i", SPEECH, "-af", "pan=stereo|c0=c0|c1=-1*c0", upside_down)
    heard = sound.read(upside_down, 60, lambda: None)
    assert np.std(heard.samples) == pytest.approx(np.std(speech["address"]), rel=0.05)


def test_sound_that_cannot_be(tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    with pytest.raises(InputError, match="lasts longer than 2 s"):
        sound.read(SPEECH, 2, lambda: None)
    silent = tmp_path / "short.wav"
    ffmpeg("-f", "lavfi", "-i", "anullsrc=sample_rate=16000", "-t", 0.01, silent)
    with pytest.raises(InputError, match="no sound"):
        sound.read(silent, 2, lambda: None)
    noise = tmp_path / "noise.mp3"
    noise.write_bytes(b"\xff\xfb\x90\x00" + bytes(range(256)) * 20)
    with pytest.raises(InputError, match=r"noise\.mp3 is not a media file that ffmpeg can read"):
        sound.read(noise, 2, lambda: None)


@pytest.mark.parametrize("seconds", [2.0, 9.7])  # the speech lasts 7 s
def test_track_is_as_long_as_the_picture_and_as_early(tmp_path: Path, seconds: float) -> None:
    """Cut, or followed by silence; and the encoder's delay does not push the words back."""
    with VideoWriter(tmp_path / "picture.mp4", Encoding(64, 64, 25)) as writer:
        for _ in range(round(25 * seconds)):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    output = tmp_path / "out.mp4"
    join([Part(tmp_path / "picture.mp4", seconds)], output, aac(tmp_path, seconds))
    about = media.probe(output)
    assert about.duration_s == pytest.approx(seconds, abs=0.04)
    with media.decode(output) as stream:
        heard = np.concatenate(list(stream))
    with media.decode(SPEECH) as stream:
        said = np.concatenate(list(stream))
    assert len(heard) / media.SAMPLE_RATE == pytest.approx(seconds, abs=0.07)
    length = min(len(said), len(heard))
    size = 2 * length
    shift = np.fft.irfft(np.fft.rfft(said[:length], size).conj() * np.fft.rfft(heard[:length], size)).argmax()
    assert min(shift, size - shift) / media.SAMPLE_RATE < 0.003
    assert np.abs(heard[len(said) + 1600 :]).max(initial=0) < 0.01


def test_a_template_forgotten_while_it_is_fetched_ends_its_decoder(template: Path) -> None:
    before = {process.pid for process in ffmpegs()}
    with Template(probe_video(template), 50) as source:
        source.prefetch(loop(130, 50))
        assert number_of(next(iter(source.read(np.array([20], np.int32))))) == 20
    assert not {process.pid for process in ffmpegs()} - before
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    with Template(probe_video(template), 50) as source:
        source.prefetch(loop(130, 50), pause=10)  # and waits for somebody who never reads
    assert not {process.pid for process in ffmpegs()} - before
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_a_template_of_a_watched_job_is_fetched_as_far_as_its_first_seconds(template: Path) -> None:
    with Template(probe_video(template), 50) as source:
        source.prefetch(loop(130, 50), pause=10)
        (fetcher,) = (thread for thread in threading.enumerate() if thread.name == "prefetch")
        fetcher.join(0.5)  # it has nothing to do and does not end
        assert fetcher.is_alive()
        assert [number_of(frame) for frame in source.read(loop(3, 50))] == [0, 1, 2]
        fetcher.join(60)  # now it fetches the rest
        assert not fetcher.is_alive()
        assert [number_of(frame) for frame in source.read(loop(50, 50))] == list(range(50))


def test_marks_sit_ten_pixels_from_their_corners(tmp_path: Path) -> None:
    size = (640, 360)
    chosen = marks.overlays(size, tmp_path, watermark=True, digital_auth=True)
    path = tmp_path / "marked.mp4"
    grey = np.full((360, 640, 3), 128, np.uint8)
    with VideoWriter(path, Encoding(*size, 25, crf=0, overlays=chosen)) as writer:
        for _ in range(3):
            writer.write(grey)
    with read_frames(probe_video(path)) as reader:
        frame = list(reader)[2]
    changed = np.abs(frame.astype(int) - 128).max(axis=2) > 20
    lower, upper = changed.copy(), changed.copy()
    lower[:180] = upper[180:] = False
    rows, columns = np.nonzero(upper)
    assert (rows.min(), columns.max()) == (pytest.approx(10, abs=1), pytest.approx(629, abs=2))
    assert rows.max() - rows.min() < 24
    rows, columns = np.nonzero(lower)
    assert (rows.max(), columns.max()) == (pytest.approx(345, abs=8), pytest.approx(627, abs=4))
    assert marks.overlays(size, tmp_path, watermark=False, digital_auth=False) == ()


def test_own_marks(tmp_path: Path) -> None:
    own = tmp_path / "logo.png"
    cv2.imwrite(str(own), np.full((20, 30, 4), 255, np.uint8))
    (chosen,) = marks.overlays((640, 360), tmp_path, watermark=True, digital_auth=False, watermark_path=own)
    assert (chosen.path, chosen.corner) == (own, "lower right")
    marks.require(own, "watermark")
    with pytest.raises(EngineError, match="no picture"):
        marks.require(SPEECH, "watermark")
