"""Media files of every odd kind: what they hold, their sound as a stream, and friendly refusals."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import psutil
import pytest

from inference import media
from inference.audio import Array
from inference.base import EngineError, InputError
from inference.header import Header, last_line

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "speech"
SPEECH = EXAMPLES / "address.flac"


def ffmpegs() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "ffmpeg" in child.name()]


def test_probe_of_sound() -> None:
    about = media.probe(SPEECH)
    assert about.duration_s == pytest.approx(11.0, abs=0.1)
    assert (about.has_audio, about.has_video, about.audio_codec, about.sample_rate) == (True, False, "flac", 16000)
    assert about.mono


def test_complaints_say_what_and_not_where_in_memory() -> None:
    said = "[aist#0:0/flac @ 0x55d0c0] [dec:flac @ 0x563f658bd3c0] Error submitting packet to decoder"
    assert last_line([said, " "]) == "Error submitting packet to decoder"


def test_headers_are_read_again_when_the_file_changes(tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    path = tmp_path / "sound.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=r=16000:d=1", path)
    first = media.probe(path)
    assert media.probe(path) is first
    ffmpeg("-f", "lavfi", "-i", "sine=r=8000:d=2", "-ac", 2, path)
    assert (media.probe(path).sample_rate, media.probe(path).duration_s, media.probe(path).mono) == (8000, 2.0, False)
    path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        media.probe(path)


def test_probe_of_video(tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    video = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=320x240:rate=30:duration=1", "-i", SPEECH, "-shortest", video)
    about = media.probe(video)
    assert (about.has_audio, about.has_video, about.width, about.height, about.fps) == (True, True, 320, 240, 30)


def test_rotated_video_is_measured_as_displayed() -> None:
    talk = (
        "Input #0, mov,mp4, from 'x.mov':\n  Duration: 00:01:02.50, start: 0.0\n"
        "  Stream #0:0(und): Video: h264 (High) (avc1 / 0x31637661), yuv420p, 1920x1080, 29.97 fps, 30 tbr\n"
        "    Side data:\n      displaymatrix: rotation of -90.00 degrees\n"
        "  Stream #0:1: Video: mjpeg, yuvj420p, 600x600 (attached pic)\n"
    )
    about = media.described(Path("x.mov"), "video", Header(talk))
    assert (about.width, about.height, about.fps, about.duration_s) == (1080, 1920, 29.97, 62.5)
    assert not about.has_audio


def test_cover_art_is_no_video(tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    song = tmp_path / "song.mp3"
    picture = ("-f", "lavfi", "-i", "color=red:size=64x64:duration=0.04")
    ffmpeg("-i", SPEECH, *picture, "-map", 0, "-map", 1, "-c:v", "mjpeg", "-disposition:v", "attached_pic", song)
    about = media.probe(song)
    assert about.has_audio
    assert not about.has_video


NO_INDEX = "its index .* is missing or broken"
MP4 = (24).to_bytes(4, "big") + b"ftypM4A \0\0\2\0M4A isom"  # how such a file begins


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("Dear diary, today nothing was recorded.\n" * 50), "not a media file"),
        (lambda path: path.write_bytes(Random(0).randbytes(5000)), "not a media file"),
        (os.mkfifo, "not a regular file"),
        (
            lambda path: path.write_bytes(MP4 + (40).to_bytes(4, "big") + b"mdat" + bytes(32)),
            NO_INDEX,
        ),
        (
            lambda path: path.write_bytes(MP4 + (40).to_bytes(4, "big") + b"moov" + b"\1" * 32),
            NO_INDEX,
        ),
    ],
    ids=[
        "missing",
        "directory",
        "empty",
        "text",
        "noise",
        "fifo",
        "no index",
        "broken index",
    ],  # ffmpeg takes 1 in 300 such noises for lyrics
)
def test_what_is_no_media_file(tmp_path: Path, make: Callable[[Path], object], complaint: str) -> None:
    path = tmp_path / "talk.wav"
    make(path)
    with pytest.raises(InputError, match=complaint) as caught:
        media.probe(path)
    assert str(path) in str(caught.value)
    assert caught.value.kind == "input"


def test_names_that_look_like_something_else(tmp_path: Path) -> None:
    for name in ("-i.flac", "http:example.flac", "a b'c\"; echo $HOME.flac", "concat:x|y.flac", "语音%d.flac"):
        path = tmp_path / name
        path.write_bytes(SPEECH.read_bytes())
        assert media.probe(path).duration_s == pytest.approx(11.0, abs=0.1)
        assert len(media.read_audio(path)) == pytest.approx(176000, abs=1600)


def test_nul_in_path() -> None:
    with pytest.raises(InputError):
        media.probe("a\0b.wav")


def test_playlist_cannot_reach_the_network(tmp_path: Path) -> None:
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/segment.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError):
        media.probe(playlist)


def test_decoded_in_blocks(speech: dict[str, Array]) -> None:
    with media.decode(SPEECH, block_s=0.7) as stream:
        blocks = list(stream)
    assert {len(block) for block in blocks[:-1]} == {11200}
    assert np.array_equal(np.concatenate(blocks), speech["address"])
    assert blocks[0].dtype == np.float32
    assert stream.error == ""
    assert stream.position_s == pytest.approx(11.0, abs=0.05)


def test_stereo_44k_becomes_mono_16k(tmp_path: Path, ffmpeg: Callable[..., None], speech: dict[str, Array]) -> None:
    song = tmp_path / "stereo.m4a"
    ffmpeg("-i", SPEECH, "-ac", 2, "-ar", 44100, song)
    samples = media.read_audio(song)
    assert len(samples) == pytest.approx(len(speech["address"]), abs=2000)
    assert np.std(samples) == pytest.approx(np.std(speech["address"]), rel=0.1)


def test_truncated_file_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    path.write_bytes(SPEECH.read_bytes()[: SPEECH.stat().st_size // 2])
    with media.decode(path) as stream:
        blocks = list(stream)
    assert 3 < stream.position_s < 8
    assert blocks
    assert stream.error


def test_ffmpeg_is_ended_on_close_and_when_forgotten(tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    long = tmp_path / "long.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=sample_rate=16000:duration=600", "-ar", 16000, long)
    with media.decode(long, block_s=1) as stream:
        next(iter(stream))
        assert len(ffmpegs()) == 1
    assert not ffmpegs()
    stream = media.decode(long, block_s=1)
    next(iter(stream))
    assert len(ffmpegs()) == 1
    del stream
    gc.collect()
    assert not ffmpegs()


@pytest.mark.long
def test_memory_is_constant(tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    long = tmp_path / "long.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=sample_rate=16000:duration=1800", "-ar", 16000, long)
    tracemalloc.start()
    try:
        with media.decode(long) as stream:
            seconds = sum(len(block) for block in stream) / media.SAMPLE_RATE
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds == pytest.approx(1800)
    assert peak < 8e6  # the whole would be 115 MB


def test_configured_ffmpeg_must_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no program"):
        media.probe(SPEECH, ffmpeg=str(tmp_path / "ffmpeg"))
