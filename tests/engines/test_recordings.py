"""Recordings as people have them: late, with holes, in several streams and channels, quiet, upside down."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference import media
from inference.audio import Array, level_dbfs, mixed
from inference.base import InputError, LocalContext
from inference.evaluate_speech import errors, units
from inference.header import Sound as Stream
from inference.transcribe import Params, Transcribe
from inference.transcribe.crosstalk import Crosstalk
from inference.transcribe.sound import Sound

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "speech"
ADDRESS = EXAMPLES / "address.flac"
READING = EXAMPLES / "reading.flac"
PICTURE = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=10:duration=15")
HUSH = ("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono:d=11")
RATE = media.SAMPLE_RATE

Ffmpeg = Callable[..., None]


def hear(path: Path, **params: object) -> tuple[list[Array], list[str]]:
    """The channels of a recording as a recogniser is given them, and what is told about the file."""
    job = Params.model_validate({"audio": path, **params})
    with Sound(media.probe(path), job, None, lambda: None) as sound:
        blocks = list(sound)
    return [np.concatenate(parts) for parts in zip(*blocks, strict=True)], sound.warnings


def delay_s(heard: Array, reference: Array) -> float:
    """How much later the reference begins in what was heard, by cross-correlation."""
    size = len(heard) + len(reference)
    found = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(reference, size)))
    return int(np.argmax(found[: len(heard)])) / RATE


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "ts"])
def test_sound_that_begins_late_keeps_its_time(
    tmp_path: Path, ffmpeg: Ffmpeg, speech: dict[str, Array], kind: str
) -> None:
    video = tmp_path / f"late.{kind}"
    ffmpeg(*PICTURE, "-itsoffset", 4, "-i", ADDRESS, "-map", "0:v", "-map", "1:a", "-c:a", "aac", video)
    (heard,), warnings = hear(video)
    assert delay_s(heard, speech["address"]) == pytest.approx(4.0, abs=0.05)
    assert warnings == []
    assert delay_s(media.read_audio(video), speech["address"]) == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize("kind", ["mkv", "ts"])
@pytest.mark.parametrize("hole_s", [6, 20])
def test_a_hole_is_silence(tmp_path: Path, ffmpeg: Ffmpeg, speech: dict[str, Array], kind: str, hole_s: int) -> None:
    call = tmp_path / f"call.{kind}"
    jump = f"asetpts=if(gt(T\\,5)\\,PTS+{hole_s}/TB\\,PTS)"
    ffmpeg("-i", ADDRESS, "-af", jump, "-c:a", "aac", call)
    (heard,), warnings = hear(call)
    later = speech["address"][7 * RATE :]
    assert delay_s(heard, later) == pytest.approx(7 + hole_s, abs=0.1)
    assert level_dbfs(heard[int(5.5 * RATE) : int((4.9 + hole_s) * RATE)]) < -80
    assert warnings == []


def test_sound_shorter_than_its_picture_is_not_truncated(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    for kind in ("mp4", "mkv"):
        video = tmp_path / f"clip.{kind}"
        ffmpeg(*PICTURE, "-i", ADDRESS, video)
        assert hear(video)[1] == []


@pytest.mark.parametrize("kind", ["wav", "mkv", "mp4"])
def test_what_is_cut_off_is_told(tmp_path: Path, ffmpeg: Ffmpeg, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    picture = PICTURE if kind != "wav" else ()
    ffmpeg(*picture, "-i", ADDRESS, *(("-movflags", "+faststart") if kind == "mp4" else ()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in hear(path)[1][0]


def test_the_default_stream_is_heard(tmp_path: Path, ffmpeg: Ffmpeg, speech: dict[str, Array]) -> None:
    film = tmp_path / "film.mkv"
    marks = ("-disposition:a:0", 0, "-disposition:a:1", "default", "-metadata:s:a:1", "language=eng")
    ffmpeg("-i", READING, "-i", ADDRESS, "-map", 0, "-map", 1, *marks, film)
    (heard,), warnings = hear(film)
    assert delay_s(heard, speech["address"]) == pytest.approx(0, abs=0.05)
    assert warnings == ["the file has 2 audio streams: 1 (eng, default) was heard; `stream` chooses another"]
    (heard,), warnings = hear(film, stream=0)
    assert len(heard) == pytest.approx(len(speech["reading"]), abs=0.1 * RATE)
    assert warnings == []


def test_a_silent_stream_is_passed_over(tmp_path: Path, ffmpeg: Ffmpeg, speech: dict[str, Array]) -> None:
    film = tmp_path / "film.mp4"
    ffmpeg(*HUSH, "-i", ADDRESS, "-map", 0, "-map", 1, film)
    (heard,), warnings = hear(film)
    assert delay_s(heard, speech["address"]) == pytest.approx(0, abs=0.05)
    assert warnings == ["the file has 2 audio streams: 1 was heard, 0 is silent; `stream` chooses another"]
    assert not np.any(np.abs(hear(film, stream=0)[0][0]) > 1e-3)


def test_a_stream_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="has 1 audio stream"):
        Transcribe().check({"audio": str(ADDRESS), "stream": 1})


def test_channels_that_cancel_are_heard(tmp_path: Path, ffmpeg: Ffmpeg, speech: dict[str, Array]) -> None:
    path = tmp_path / "antiphase.wav"
    ffmpeg("-i", ADDRESS, "-af", "pan=stereo|c0=c0|c1=-1*c0", path)
    (heard,), warnings = hear(path)
    assert np.std(heard) == pytest.approx(np.std(speech["address"]), rel=0.01)
    assert len(warnings) == 1
    assert "upside down" in warnings[0]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_one_channel_that_sounds_is_no_cancelling(count: int, speech: dict[str, Array]) -> None:
    frames = np.zeros((RATE, count), np.float32)
    frames[:, 1] = speech["address"][RATE : 2 * RATE]
    assert np.allclose(mixed(frames), frames[:, 1] / count**0.5)


def stereo(tmp_path: Path, ffmpeg: Ffmpeg, left: str, right: str) -> Path:
    path = tmp_path / "stereo.wav"
    ffmpeg("-i", ADDRESS, "-i", READING, "-filter_complex", f"[0]{left}[l];[1]{right}[r];[l][r]amerge", path)
    return path


@pytest.mark.parametrize("right", ["adelay=11000", "anull"], ids=["in turn", "at once"])
def test_different_channels_are_noticed(tmp_path: Path, ffmpeg: Ffmpeg, right: str) -> None:
    path = stereo(tmp_path, ffmpeg, "apad=whole_dur=18" if right != "anull" else "anull", right)
    assert hear(path)[1] == ['the channels hold different voices: channels="split" hears each by itself']
    channels, warnings = hear(path, channels="split")
    assert len(channels) == 2
    assert warnings == []


def test_a_room_in_stereo_is_one_recording(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    room = tmp_path / "room.wav"
    ffmpeg("-i", ADDRESS, "-filter_complex", "asplit[a][b];[b]adelay=0.2,volume=0.6[c];[a][c]amerge", room)
    assert hear(room)[1] == []
    hiss = tmp_path / "hiss.wav"
    noise = ("-f", "lavfi", "-i", "anoisesrc=r=16000:a=0.0005:d=11")
    ffmpeg("-i", ADDRESS, *noise, "-filter_complex", "[0][1]amerge", hiss)
    assert hear(hiss)[1] == []


def test_same_channels_are_not_worth_splitting(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "twice.wav"
    ffmpeg("-i", ADDRESS, "-ac", 2, path)
    assert hear(path)[1] == []
    assert "twice" in hear(path, channels="split")[1][0]
    with pytest.raises(InputError, match="one channel"):
        hear(ADDRESS, channels="split")


def test_quiet_sound_is_made_louder_and_told(speech: dict[str, Array], write_wav: Callable[[str, Array], Path]) -> None:
    quiet = speech["address"] * 10 ** (-40 / 20)
    (heard,), warnings = hear(write_wav("quiet.wav", quiet))
    assert level_dbfs(heard) > level_dbfs(quiet) + 20
    assert np.max(np.abs(heard)) <= 1
    assert "quiet" in warnings[0]
    (heard,), warnings = hear(write_wav("loud.wav", speech["address"]))
    assert np.allclose(heard, speech["address"], atol=1e-4)
    assert warnings == []


def test_an_ogg_file_without_its_end_is_told(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    whole = tmp_path / "whole.ogg"
    ffmpeg("-i", ADDRESS, "-c:a", "libopus", whole)
    assert hear(whole)[1] == []
    data = whole.read_bytes()
    last = data.rindex(b"OggS")
    for size in (len(data) // 2, last, last + 20, len(data) - 1):
        cut = tmp_path / f"{size}.ogg"
        cut.write_bytes(data[:size])
        assert "truncated" in " ".join(hear(cut)[1]), size


@pytest.mark.parametrize(
    ("where", "factor", "warning"),
    [
        (slice(None), 32768.0, "samples go beyond full scale, up to .*: they were made quieter or cut off"),
        (slice(50_000, 50_003), 1e4, "samples go beyond full scale, up to .*: they were made quieter or cut off"),
        (slice(100_000, None, 7), 1e30, r"\d+ samples are no numbers of a sound: they were heard as silence"),
        (slice(100_000, None, 7), float("nan"), r"\d+ samples are no numbers of a sound: they were heard as silence"),
    ],
    ids=["another scale", "damage", "too large", "not a number"],
)
def test_floats_that_are_no_sound(
    tmp_path: Path, ffmpeg: Ffmpeg, speech: dict[str, Array], where: slice, factor: float, warning: str
) -> None:
    wanted = speech["address"]
    written = wanted.copy()
    written[where] *= np.float32(factor)
    raw, path = tmp_path / "raw.f32", tmp_path / "floats.wav"
    written.astype("<f4").tofile(raw)
    ffmpeg("-f", "f32le", "-ar", RATE, "-ac", 1, "-i", raw, "-c:a", "pcm_f32le", path)
    (heard,), warnings = hear(path)
    assert np.max(np.abs(heard)) <= 1
    assert [bool(re.fullmatch(warning, told)) for told in warnings] == [True]
    left = slice(0, 50_000)
    assert np.corrcoef(heard[left], wanted[left])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("line", "channels", "start_s"),
    [
        ("aac (LC), 44100 Hz, stereo, fltp, start 4.000000 (default)", 2, 4.0),
        ("ac3, 48000 Hz, 5.1(side), fltp, 384 kb/s", 6, 0.0),
        ("opus, 48000 Hz, 3.1.2, fltp", 6, 0.0),
        ("pcm_s16le, 16000 Hz, 4 channels, s16, 1024 kb/s", 4, 0.0),
        ("mp3, 0 channels, fltp", None, 0.0),
    ],
)
def test_streams_are_read_from_the_header(line: str, channels: int | None, start_s: float) -> None:
    assert (Stream(line).channels, Stream(line).start_s, Stream(line).default) == (channels, start_s, "def" in line)


@pytest.mark.parametrize("leak_db", [-10, -20, -30])
@pytest.mark.parametrize("room", [False, True], ids=["wire", "room"])
def test_the_channel_of_a_voice_is_found(speech: dict[str, Array], leak_db: int, room: bool) -> None:
    """One in the first 11 s, another 20 dB quieter from 8 s on, so both at once between."""
    rng = np.random.default_rng(5)
    one, other = speech["address"], speech["reading"][: 6 * RATE] * np.float32(0.1)
    own = np.zeros((14 * RATE, 2), np.float32)
    own[: len(one), 0], own[8 * RATE :, 1] = one, other
    path = np.r_[np.zeros(64), 1.0, 0.3 * np.exp(-np.arange(400) / 100) * rng.normal(size=400)] if room else np.ones(1)
    leak = np.stack([np.convolve(voice, path)[: len(own)] for voice in own[:, ::-1].T], axis=1)
    leak *= 10 ** (leak_db / 20) / np.sqrt(np.sum(path**2))
    crosstalk = Crosstalk(2)
    for block in np.array_split(own + leak + rng.normal(scale=3e-5, size=own.shape), 5):
        crosstalk.hear(block.astype(np.float32))
    alone, both, after = (0.5, 7.5), (8.5, 10.5), (11.5, 13.5)
    assert [crosstalk.source(1, at, at + 1.0) for at in np.arange(*alone)] == [0] * 7
    assert [crosstalk.source(0, *span) for span in (alone, both)] == [None, None]
    assert crosstalk.source(1, *after) is None
    if leak_db == -30:
        assert crosstalk.source(1, *both) is None, "a quiet voice is its own where what leaks is quieter still"
    assert crosstalk.source(0, *after) == 1


@pytest.mark.model
def test_channels_are_speakers_and_nothing_is_said_twice(engine: Transcribe, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    """One talks while the other does, and after it; each is heard faintly on the channel of the other."""
    apart = stereo(tmp_path, ffmpeg, "apad=whole_dur=24", "adelay=7000,apad=whole_dur=24")
    path = tmp_path / "leaking.wav"
    ffmpeg("-i", apart, "-af", "pan=stereo|c0=c0+0.0316*c1|c1=c1+0.1*c0", path)  # 30 and 20 dB quieter
    with LocalContext() as context:
        result: dict[str, Any] = engine.run(engine.check({"audio": str(path), "channels": "split"}), context)
    said = {
        speaker: " ".join(segment["text"] for segment in result["segments"] if segment["speaker"] == speaker)
        for speaker in ("spk0", "spk1")
    }
    assert result["speakers"] == ["spk0", "spk1"]
    assert errors(units((EXAMPLES / "address.txt").read_text("utf-8")), units(said["spk0"])) <= 2
    assert errors(units((EXAMPLES / "reading.txt").read_text("utf-8")), units(said["spk1"])) <= 2
    starts = [segment["start"] for segment in result["segments"]]
    assert starts == sorted(starts)
    told = r"\d+ word\(s\) on the channel of spk1 are the voice of spk0, which is louder on its own: they were left out"
    assert any(re.match(told, warning) for warning in result["warnings"])
    handed_out = [word["word"] for part in context.partials for word in part["words"]]
    assert len(handed_out) == sum(len(segment["words"]) for segment in result["segments"])


@pytest.mark.model
def test_words_of_a_late_video_are_late(engine: Transcribe, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    video = tmp_path / "late.mkv"
    ffmpeg(*PICTURE, "-itsoffset", 4, "-i", ADDRESS, "-map", "0:v", "-map", "1:a", video)
    with LocalContext() as context:
        result = engine.run(engine.check({"audio": str(video)}), context)
    assert result["segments"][0]["start"] == pytest.approx(4.3, abs=0.3)
    assert result["warnings"] == []
