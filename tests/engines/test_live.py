"""A video that is watched while it is made: the stream plays at every moment, and changes nothing about the file."""

from __future__ import annotations

import errno
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from inference import media
from inference.base import Cancelled
from inference.encode import Encoding, VideoWriter, as_rate
from inference.join import Part, join
from inference.lipsync import sound
from inference.live import NAME, Live, Segment, early

SPEECH = Path(__file__).resolve().parents[2] / "examples" / "speech" / "reading.flac"
SIZE = (192, 108)


class Sink:
    """A stream in memory. room: bytes that fit on its disk."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.data, self.end, self._room = bytearray(), "", room
        self.grown = threading.Condition()

    def write(self, data: bytes) -> None:
        if len(self.data) + len(data) > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        with self.grown:
            self.data += data
            self.grown.notify_all()

    def finish(self) -> None:
        self.end = "whole"

    def drop(self) -> None:
        self.end = "dropped"

    def wait_for(self, seconds: float, folder: Path) -> None:
        """Until so much of the picture can be decoded out of what there is."""
        with self.grown:
            assert self.grown.wait_for(lambda: len(self.data) and played(bytes(self.data), folder)[0] >= seconds, 60)


def packets(path: Path) -> list[str]:
    """Every frame that a player decodes, with its time in microseconds: picture and sound. None while there
    is no picture."""
    command = [media.ffmpeg_binary(), "-v", "error", "-i", str(path), "-map", "0:v", "-map", "0:a"]
    command += ["-enc_time_base", "1:1000000", "-fps_mode", "passthrough", "-f", "framemd5", "-"]
    talk = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    return [line for line in talk.stdout.decode().splitlines() if not line.startswith("#")]


def played(data: bytes, folder: Path) -> tuple[float, float]:
    """Seconds of picture and of sound in the beginning of a stream."""
    place = folder / "so-far.mp4"
    place.write_bytes(data)
    times = [[0.0], [0.0]]
    for line in packets(place):
        index, _, at, *_ = (part.strip() for part in line.split(","))
        times[int(index)].append(int(at) / 1e6)
    return times[0][-1], times[1][-1]


class Film:
    """Segments of moving noise and their sound, written bit by bit."""

    def __init__(self, folder: Path, fps: float, frames: tuple[int, ...], *, growing: bool) -> None:
        folder.mkdir()
        self.folder, self.fps, self.frames = folder, fps, frames
        self.encoding = Encoding(*SIZE, fps, preset="superfast", threads=1, growing=growing)
        rate = as_rate(fps)
        starts = [sum(frames[:number]) for number in range(len(frames))]
        self.paths = [folder / f"segment-{number}.mp4" for number in range(len(frames))]
        self.segments = [Segment(early(path), float(at / rate)) for path, at in zip(self.paths, starts, strict=True)]
        self.parts = [Part(path, float(count / rate)) for path, count in zip(self.paths, frames, strict=True)]
        self.seconds = float(sum(frames) / rate)
        self.track = sound.Track(sound.read(SPEECH, 60, lambda: None), folder, self.seconds, growing=growing)

    def draw(self, number: int, pause: Callable[[int], None] = lambda at: None) -> None:
        """Write one segment. pause: called after each frame."""
        rng = np.random.default_rng(number)
        base = rng.integers(0, 255, (SIZE[1] // 4, SIZE[0] // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        with VideoWriter(self.paths[number], self.encoding) as writer:
            for at in range(self.frames[number]):
                writer.write(np.ascontiguousarray(np.roll(base, 3 * at, 1)))
                pause(at)

    def join(self) -> bytes:
        """The finished file."""
        output = self.folder / "output.mp4"
        join(self.parts, output, self.track.finish(lambda: None), metadata={"comment": "made here"})
        return output.read_bytes()


@pytest.mark.parametrize("fps", [25.0, 29.97])
def test_the_stream_is_the_file_and_the_file_is_as_without(tmp_path: Path, fps: float) -> None:
    frames = (40, 67, 3)
    plain = Film(tmp_path / "plain", fps, frames, growing=False)
    for number in range(3):
        plain.draw(number)
    film, sink = Film(tmp_path / "it's [a] \\ | b", fps, frames, growing=True), Sink()
    with Live(lambda name: sink, film.track.early, film.seconds) as live:
        live.follow(film.segments)
        film.draw(2)  # segments are written side by side, and the last may be first
        film.draw(0, lambda at: sink.wait_for(0.4, tmp_path) if at == 39 else None)
        film.draw(1)
        film.track.finish(lambda: None)
        live.finish(lambda: None)
    assert (sink.end, live.note) == ("whole", "")
    watched, made = tmp_path / NAME, film.folder / "output.mp4"
    watched.write_bytes(sink.data)
    assert film.join() == plain.join()
    assert packets(watched)[:-1] == packets(made)[:-1]  # the encoder fills the last 23 ms of sound up
    assert len(packets(made)) > sum(frames)


def test_what_there_is_plays_at_every_moment(tmp_path: Path) -> None:
    """Cut anywhere, a stream is a file that plays up to there, with the sound of its picture."""
    film, sink = Film(tmp_path / "film", 25, (60, 60), growing=True), Sink()
    with Live(lambda name: sink, film.track.early, film.seconds) as live:
        live.follow(film.segments)
        film.draw(0)
        film.draw(1)
        film.track.finish(lambda: None)
        live.finish(lambda: None)
    picture, heard = played(bytes(sink.data), tmp_path)
    assert (picture, heard) == pytest.approx((4.76, 4.78), abs=0.03)
    ends = [at for at in range(len(sink.data)) if sink.data[at + 4 : at + 8] == b"moof"]
    assert len(ends) >= 20
    for end in ends[2:]:
        picture, heard = played(bytes(sink.data[:end]), tmp_path)
        assert -0.1 < heard - picture < 1.2, end


def test_a_full_disk_ends_the_stream_and_not_the_work(tmp_path: Path) -> None:
    film, sink = Film(tmp_path / "film", 25, (50,), growing=True), Sink(room=20_000)
    with Live(lambda name: sink, film.track.early, film.seconds) as live:
        live.follow(film.segments)
        film.draw(0)
        film.track.finish(lambda: None)
        live.finish(lambda: None)
    assert live.note == "stream: it ended early (No space left on device); the video is whole"
    assert sink.end == "dropped"
    assert len(film.join()) > 20_000

    again, sink = Film(tmp_path / "again", 25, (50,), growing=True), Sink()
    again.segments[0].path.mkdir()  # what ffmpeg cannot write, as when the disk is full just then
    with Live(lambda name: sink, again.track.early, again.seconds) as live:
        live.follow(again.segments)
        again.draw(0)
        again.track.finish(lambda: None)
        live.finish(lambda: None)
    assert "stream: it ended early" in live.note
    assert sink.end == "dropped"
    assert again.join() == (film.folder / "output.mp4").read_bytes()

    def full(name: str) -> Sink:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Live(full, film.track.early, 1.0) as live:
        live.follow(film.segments)
        live.finish(lambda: None)
    assert "No space left on device" in live.note


def test_a_job_that_is_cancelled_drops_its_stream(tmp_path: Path) -> None:
    film, sink = Film(tmp_path / "film", 25, (50, 50), growing=True), Sink()

    def cancelled() -> None:
        raise Cancelled

    with pytest.raises(Cancelled), Live(lambda name: sink, film.track.early, film.seconds) as live:  # noqa: PT012
        live.follow(film.segments)
        film.draw(0)
        live.finish(cancelled)
    assert sink.end == "dropped"
    assert not any(thread.name == "stream" for thread in threading.enumerate())
    film.track.finish(lambda: None)


def test_segments_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    film, sink = Film(tmp_path / "film", 25, (50, 50), growing=True), Sink()
    with Live(lambda name: sink, film.track.early, film.seconds) as live:
        live.follow(film.segments)
        film.draw(0)
        film.encoding = Encoding(*SIZE, 25, preset="medium", threads=1, growing=True)
        film.draw(1)
        film.track.finish(lambda: None)
        live.finish(lambda: None)
    assert "its segments were encoded differently" in live.note
    assert sink.end == "dropped"
