"""Video files of every odd kind: what they hold, frames by number, writing, and friendly refusals."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from inference import media, video
from inference.base import EngineError, InputError
from inference.encode import to_planes
from inference.join import Part, join
from inference.lipsync.sound import Track, read
from inference.probe import _timing

SPEECH = Path(__file__).resolve().parents[2] / "examples" / "speech" / "address.flac"
Make = Callable[..., Path]


def ffmpegs() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "ffmpeg" in child.name()]


def picture(number: int, width: int = 192, height: int = 108) -> np.ndarray:
    """A smooth picture with its number as a row of 8 black or white blocks."""
    x = np.linspace(40, 200, width, dtype=np.float32)
    frame = np.repeat(np.stack([x, x[::-1], np.full_like(x, 120)], axis=1)[None], height, axis=0).astype(np.uint8)
    for bit in range(8):
        frame[-24:-8, 16 + bit * 16 : 32 + bit * 16] = 235 if number >> bit & 1 else 20
    return frame


def number(frame: np.ndarray) -> int:
    """The number that :func:`picture` drew, on frames of any even multiple of the size."""
    height, width = frame.shape[:2]
    unit = width / 192
    row = frame[round(height - 16 * unit)]
    return sum(int(row[round((24 + bit * 16) * unit)].mean() > 128) << bit for bit in range(8))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a numbered test video through VideoWriter."""

    def write(name: str = "clip.mp4", count: int = 40, fps: float = 25, **options: Any) -> Path:
        path = tmp_path / name
        encoding = video.Encoding(192, 108, fps, **{"preset": "ultrafast", **options})
        with video.VideoWriter(path, encoding) as out:
            for index in range(count):
                out.write(picture(index))
        return path

    return write


def test_round_trip_of_every_frame(make: Make) -> None:
    path = make(count=40)
    about = video.probe_video(path)
    assert (about.width, about.height, about.fps, about.frames) == (192, 108, 25.0, 40)
    assert (about.has_audio, about.alpha, about.variable_rate, about.rotation) == (False, False, False, 0)
    with video.read_frames(about) as frames:
        assert [number(frame) for frame in frames] == list(range(40))
    assert frames.error == ""
    assert not ffmpegs()


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts", "mpg"])
@pytest.mark.parametrize("fps", [29.97, pytest.param(25, marks=pytest.mark.long)])
def test_any_start_gives_the_same_frames(
    make: Make, ffmpeg: Callable[..., None], tmp_path: Path, ending: str, fps: float
) -> None:
    path = tmp_path / f"clip.{ending}"
    codec = ["-c", "copy"] if ending in ("mp4", "mkv", "ts") else ["-c:v", "mpeg2video", "-q:v", "2"]
    ffmpeg("-i", make("source.mp4", count=70, fps=fps), *codec, "-g", 12, path)
    about = video.probe_video(path)
    whole = [number(frame) for frame in video.read_frames(about)]
    assert whole == list(range(len(whole)))
    assert len(whole) == 70
    for start in (1, 24, 65):
        assert [number(frame) for frame in video.read_frames(about, start=start, count=3)] == whole[start : start + 3]


def test_other_rate_and_size(make: Make) -> None:
    path = make(count=40, fps=25)
    frames = list(video.read_frames(path, fps=50, size=(384, 216)))
    assert len(frames) == 80
    assert frames[0].shape == (216, 384, 3)
    assert [number(frame) for frame in frames[::2]] == list(range(40))
    assert len(list(video.read_frames(path, fps=12.5))) == 20


def test_pixels_nobody_touched_come_back_exactly() -> None:
    planes = np.random.default_rng(3).integers(60, 190, (108 * 3 // 2, 192), np.uint8)
    planes[108:] = cv2.GaussianBlur(planes[108:], (0, 0), 2) // 4 + 96  # colours that RGB can hold
    frame = np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420), np.uint8)
    again = np.empty_like(planes)
    to_planes(frame, again)
    assert np.abs(again.astype(int) - planes).max() <= 1
    assert (again != planes).mean() < 0.02


def test_colour_declaration_is_passed_on(make: Make, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    hd = make("hd.mp4", color=video.Color("bt709", "bt709", "bt709"))
    assert video.probe_video(hd).color == video.Color("bt709", "bt709", "bt709")
    none = make("none.mp4", color=video.Color())
    assert video.probe_video(none).color == video.Color()
    # What the declaration says does not change the stored values, which are what a re-encode must keep.
    one, other = (next(video.read_frames(path)) for path in (hd, none))
    assert np.array_equal(one, other)


def test_rotated_phone_video(make: Make, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    ffmpeg("-display_rotation", 90, "-i", make(), "-c", "copy", path)
    about = video.probe_video(path)
    assert (about.width, about.height, about.rotation) == (108, 192, 270)
    frame = next(video.read_frames(about))
    assert frame.shape == (192, 108, 3)
    upright = np.asarray(cv2.rotate(frame, cv2.ROTATE_90_CLOCKWISE), np.uint8)
    assert np.abs(upright.astype(int) - picture(0)).mean() < 3


def test_odd_sides_lose_a_row_and_a_column(ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=193x109:rate=25:duration=0.2", "-pix_fmt", "yuv444p", path)
    about = video.probe_video(path)
    assert (about.width, about.height, about.source_size) == (192, 108, (193, 109))
    assert next(video.read_frames(about)).shape == (108, 192, 3)


def test_square_pixels(make: Make, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    ffmpeg("-i", make(), "-vf", "setsar=4/3", path)
    about = video.probe_video(path)
    assert (about.width, about.height) == (256, 108)


def test_uneven_timing_becomes_constant(make: Make, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "uneven.mp4"
    ffmpeg("-i", make(count=61), "-vf", "select='not(eq(mod(n,7),3))'", "-fps_mode", "vfr", path)
    about = video.probe_video(path)
    assert about.variable_rate
    assert (about.fps, about.frames) == (25.0, 61)
    seen = [number(frame) for frame in video.read_frames(about)]
    # A missing frame is replaced by a neighbour; all the others stand at their time.
    assert len(seen) == 61
    assert all(abs(value - index) <= (1 if index % 7 == 3 else 0) for index, value in enumerate(seen))


@pytest.mark.parametrize(
    ("times", "stated", "expected"),
    [
        ([k / 25 for k in range(50)], 25.0, (25.0, False)),
        ([round(k * 1001 / 30000, 3) for k in range(60)], 29.97, (30000 / 1001, False)),
        ([0.0], 1000.0, (25.0, False)),
        ([0.0], None, (25.0, False)),
        ([k / 30 for k in range(90) if k % 5], 24.1, (30.0, True)),
        ([k / 240 for k in range(480)], 240.0, (60.0, False)),
        ([k / 12.5 for k in range(30)], 12.5, (12.5, False)),
        ([k / 30 for k in range(62) if k != 60], 29.04, (30.0, False)),  # cut by packets: one hole
        ([k / 30 for k in range(90) if k not in (1, 88)], 29.33, (30.0, True)),
        ([round(k / 30, 3) for k in range(62) if k != 60], None, (30.0, False)),
        ([0.0, 0.02, 0.08, 0.1, 0.16], None, (25.0, True)),
    ],
)
def test_rates(times: list[float], stated: float | None, expected: tuple[float, bool]) -> None:
    assert _timing(times, stated) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize(("transfer", "name"), [("arib-std-b67", "HLG"), ("smpte2084", "PQ")])
def test_a_high_dynamic_range_is_mapped(ffmpeg: Callable[..., None], tmp_path: Path, transfer: str, name: str) -> None:
    """A picture of BT.709 that went through HDR comes back with its colours, and is told to be BT.709."""
    path, plain = tmp_path / "hdr.mov", tmp_path / "plain.png"
    cv2.imwrite(str(plain), np.tile(np.array([60, 110, 170], np.uint8), (96, 128, 1)))  # skin
    bright = f"zscale=t=linear:npl=100,zscale=p=bt2020:t={transfer}:m=2020_ncl:r=tv,format=yuv420p10le"
    tags = f"setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc"
    source = "setparams=color_primaries=bt709:color_trc=bt709,format=gbrpf32le"
    ffmpeg("-loop", 1, "-i", plain, "-t", 0.2, "-vf", f"{source},{bright},{tags}", "-c:v", "libx265", path)
    about = video.probe_video(path)
    assert (about.hdr, about.color) == (name, video.Color("bt709", "bt709", "bt709"))
    with video.read_frames(about) as frames:
        planes = frames.read_planes()
    stored, u, v = (float(part.mean()) for part in (planes[:96], planes[96:120], planes[120:]))
    luma = (stored - 16) * 255 / 219
    blue, green, red = luma + 2.11 * (u - 128), luma - 0.21 * (u - 128) - 0.53 * (v - 128), luma + 1.79 * (v - 128)
    assert (blue, green, red) == pytest.approx((60, 110, 170), abs=8)


def test_a_high_dynamic_range_without_the_filter_is_refused(
    ffmpeg: Callable[..., None], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hlg.mp4"
    ffmpeg("-i", make(count=3), "-vf", "setparams=color_trc=arib-std-b67:colorspace=bt2020nc", path)
    monkeypatch.setattr(media, "has_filter", lambda name, ffmpeg=None: False)
    with pytest.raises(InputError, match=r"hlg\.mp4 has a high dynamic range \(HLG\).*no filter zscale"):
        video.probe_video(path)


def test_a_cut_without_decoding_keeps_every_frame(make: Make, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    """Cut by packets, the last pictures are there and those they stand before are not: a hole is no other rate."""
    path = tmp_path / "cut.mp4"
    whole = make("whole.mp4", count=60, fps=30, preset="medium")
    ffmpeg("-ss", 0.5, "-t", 1.03, "-i", whole, "-c", "copy", path)
    about = video.probe_video(path)
    assert about.fps == 30
    with video.read_frames(about) as frames:
        seen = [number(frame) for frame in frames]
    assert max(np.diff(seen).tolist()) <= 2
    assert sum(step != 1 for step in np.diff(seen).tolist()) <= 4  # at the hole alone


def test_transparency_lies_on_black(ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    source = np.full((96, 128, 4), (40, 80, 200, 255), np.uint8)
    source[:, :64, 3] = 0
    cv2.imwrite(str(tmp_path / "half.png"), source)
    film = tmp_path / "half.webm"
    ffmpeg("-loop", 1, "-i", tmp_path / "half.png", "-t", 0.2, "-pix_fmt", "yuva420p", "-c:v", "libvpx-vp9", film)
    for path in (tmp_path / "half.png", film):
        about = video.probe_video(path)
        assert about.alpha
        frame = next(video.read_frames(about))
        assert frame[:, :56].max() < 12
        assert np.abs(frame[:, 72:].reshape(-1, 3).mean(axis=0) - (40, 80, 200)).max() < 6


def test_a_large_photo_is_read_smaller(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), cv2.resize(picture(77), (4032, 3024)))
    about = video.probe_video(path)
    assert (about.width, about.height, about.shrunk) == (1920, 1440, 1920 / 4032)
    frame = next(video.read_frames(about))
    assert frame.shape == (1440, 1920, 3)
    assert np.abs(frame.astype(int) - cv2.resize(picture(77), (1920, 1440))).mean() < 4


def test_one_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.jpg"), picture(77))
    shutil.copy(tmp_path / "one.jpg", tmp_path / "misnamed.mp4")
    for name in ("one.jpg", "misnamed.mp4"):
        about = video.probe_video(tmp_path / name)
        assert (about.frames, about.fps) == (1, 25.0)
        assert [number(frame) for frame in video.read_frames(about)] == [77]


def test_a_video_is_probed_by_one_run_of_ffmpeg_and_remembered(make: Make, tmp_path: Path) -> None:
    program, log = tmp_path / "ffmpeg", tmp_path / "log"
    program.write_text(f'#!/bin/sh\necho run >> {log}\nexec {media.ffmpeg_binary()} "$@"\n')
    program.chmod(0o755)
    path = make(count=3)
    for _ in range(2):
        assert video.probe_video(path, ffmpeg=str(program)).frames == 3
    assert log.read_text().split() == ["run"]


def test_wrong_extension_is_read_by_content(make: Make, tmp_path: Path) -> None:
    path = make(count=3).rename(tmp_path / "clip.txt")
    assert video.probe_video(path).frames == 3


def test_refusals(make: Make, tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    whole = make("whole.mp4", count=200)
    data = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    ffmpeg("-i", whole, "-c", "copy", tmp_path / "whole.mkv")
    (tmp_path / "cut.mkv").write_bytes((tmp_path / "whole.mkv").read_bytes()[: len(data) // 2])
    source = "color=gray:rate=25:duration=0.08:size="
    ffmpeg("-f", "lavfi", "-i", f"{source}7680x4320", "-preset", "ultrafast", tmp_path / "8k.mp4")
    ffmpeg("-f", "lavfi", "-i", f"{source}48x48", tmp_path / "thumb.mp4")
    cases = {
        "missing.mp4": "does not exist",
        "empty.mp4": "0 bytes",
        "text.mp4": "not a media file",
        "cut.mp4": "is cut off",
        "cut.mkv": "is cut off",
        "8k.mp4": "7680×4320",
        "thumb.mp4": "at least 64",
    }
    for name, words in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            video.probe_video(tmp_path / name, "template")
        assert str(tmp_path / name) in str(caught.value)
        assert str(caught.value).startswith("template: ")
        assert caught.value.hint
    with pytest.raises(InputError, match="only sound"):
        video.probe_video(SPEECH)
    assert not ffmpegs()


def test_a_file_that_cannot_be_decoded(tmp_path: Path, make: Make) -> None:
    about = video.probe_video(make())
    data = bytearray(about.path.read_bytes())
    start = data.find(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    about.path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="could be decoded"):
        list(video.read_frames(about))


def test_reader_ends_ffmpeg(make: Make) -> None:
    path = make(count=100)
    frames = video.read_frames(path)
    next(frames)
    assert len(ffmpegs()) == 1
    frames.close()
    frames.close()
    assert not ffmpegs()
    assert list(frames) == []
    forgotten = video.read_frames(path)
    next(forgotten)
    del forgotten
    gc.collect()
    assert not ffmpegs()
    with pytest.raises(RuntimeError), video.read_frames(path) as frames:
        raise RuntimeError
    assert not ffmpegs()


def test_the_finished_file_is_what_was_asked_for(make: Make, tmp_path: Path) -> None:
    words = {"title": 'it\'s "a" title; 50 %', "comment": "made by a machine", "synthetic": "yes"}
    path = tmp_path / ".clip.mp4.part"
    with Track(read(SPEECH, 60, lambda: None), tmp_path, 2.0) as track:
        part = Part(make(count=50, fps=25), 2.0)
        join([part], path, track.finish(lambda: None), metadata=words)
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")
    about, sound = video.probe_video(path), media.probe(path)
    assert (about.fps, about.frames, about.has_audio) == (25.0, 50, True)
    assert (sound.audio_codec, sound.video_codec) == ("aac", "h264")
    assert sound.duration_s == pytest.approx(2.0, abs=0.04)
    for value in words.values():
        assert value.encode() in data


def test_corner_pictures(make: Make, tmp_path: Path) -> None:
    for name, color in (("mark.png", (0, 0, 255, 255)), ("stamp.png", (0, 255, 0, 255))):
        cv2.imwrite(str(tmp_path / name), np.full((12, 30, 4), color, np.uint8))
    cv2.imwrite(str(tmp_path / "huge.png"), np.full((900, 900, 4), (255, 0, 0, 128), np.uint8))
    marks = [
        video.Overlay(tmp_path / "mark.png", "lower right", "watermark"),
        video.Overlay(tmp_path / "stamp.png", "upper right", "digital_auth"),
    ]
    frame = list(video.read_frames(make(count=5, overlays=marks, crf=10)))[4].astype(int)
    assert np.abs(frame[86:98, 152:182] - (0, 0, 255)).mean() < 30  # 10 px from both edges
    assert np.abs(frame[10:22, 152:182] - (0, 255, 0)).mean() < 30
    assert np.abs(frame[30:80] - picture(4)[30:80].astype(int)).mean() < 3
    huge = make(count=2, overlays=[video.Overlay(tmp_path / "huge.png", "upper left")])
    assert len(list(video.read_frames(huge))) == 2
    with pytest.raises(InputError, match=r"watermark.*does not exist"):
        make(overlays=[video.Overlay(tmp_path / "gone.png", "lower right", "watermark")])


def test_segments_join_without_a_seam(make: Make, tmp_path: Path) -> None:
    parts = []
    for index in range(3):
        path = tmp_path / f"it's {index}.mp4"
        with video.VideoWriter(path, video.Encoding(192, 108, 29.97)) as out:
            for k in range(20):
                out.write(picture(index * 20 + k))
        parts.append(Part(path, float(20 / video.as_rate(29.97))))
    whole = tmp_path / "whole.mp4"
    with Track(read(SPEECH, 60, lambda: None), tmp_path, 2.0) as track:
        join(parts, whole, track.finish(lambda: None), metadata={"comment": "joined"})
    about = video.probe_video(whole)
    assert (about.frames, about.variable_rate, about.has_audio) == (60, False, True)
    assert about.fps == pytest.approx(30000 / 1001)
    assert [number(frame) for frame in video.read_frames(whole)] == list(range(60))


def test_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(ZeroDivisionError), video.VideoWriter(path, video.Encoding(192, 108, 25)) as out:  # noqa: PT012
        out.write(picture(0))
        raise ZeroDivisionError
    assert not path.exists()
    assert not ffmpegs()
    out = video.VideoWriter(path, video.Encoding(192, 108, 25), check=stop)
    with pytest.raises(KeyboardInterrupt), out:
        out.write(picture(0))
    assert not path.exists()
    forgotten = video.VideoWriter(path, video.Encoding(192, 108, 25))
    forgotten.write(picture(0))
    del forgotten
    gc.collect()
    assert not ffmpegs()


def test_writer_tells_why_it_failed(tmp_path: Path, make: Make) -> None:
    with pytest.raises(EngineError, match="ffmpeg failed to write") as caught:
        make(count=400, preset="unheard-of")
    assert "preset" in str(caught.value)
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        video.VideoWriter(tmp_path / "no" / "out.mp4", video.Encoding(192, 108, 25))
    with pytest.raises(ValueError, match="even"):
        video.VideoWriter(tmp_path / "out.mp4", video.Encoding(191, 108, 25))
    writer = video.VideoWriter(tmp_path / "out.mp4", video.Encoding(192, 108, 25))
    with pytest.raises(EngineError), writer:  # noqa: PT012
        for process in ffmpegs():
            process.kill()
        for _ in range(500):
            writer.write(picture(0))
    assert not (tmp_path / "out.mp4").exists()


def test_gpu_encoder_only_when_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = video.nvenc_works() == ""
    for asked in ("cpu", "nvenc"):
        path = tmp_path / f"{asked}.mp4"
        with video.VideoWriter(path, video.Encoding(192, 108, 25, encoder=asked)) as out:
            for index in range(5):
                out.write(picture(index))
        assert out.codec == ("h264_nvenc" if asked == "nvenc" and works else "libx264")
        assert bool(out.note) == (asked == "nvenc" and not works)
        assert video.probe_video(path).frames == 5


def test_talkative_ffmpeg_does_not_block(make: Make, tmp_path: Path) -> None:
    path = make(count=200)
    data = bytearray(path.read_bytes())
    spots = np.random.default_rng(0).integers(len(data) // 3, len(data), 3000)
    for spot in spots:
        data[spot] ^= 0x5A
    path.write_bytes(bytes(data))
    with video.read_frames(path) as frames:
        count = sum(1 for _ in frames)
    assert 0 < count <= 210
    assert frames.error
    assert len(frames.error) <= 600
