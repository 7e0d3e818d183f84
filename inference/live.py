"""A job's picture and sound as one growing MP4, put together out of files that are still being written.

The encoders write fragmented MP4s (ISO/IEC 14496-12, 8.8): a head without samples, then fragments that stand alone. So
what has been encoded can be handed on at once: one head that names both tracks, then the fragments of all segments
in order, each after its sound. Only numbers are changed: those of tracks and fragments,
and the time at which a segment begins. Nothing is encoded or read twice, and it is one thread that mostly sleeps.

    segment 0 ─ fragments ─┐
    segment 1 ─ fragments ─┼→ head, fragments in the order of their times → the context's stream
    sound     ─ fragments ─┘
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from inference.base import Stream

NAME = "stream.mp4"
FRAGMENT_S = 0.25  #: seconds of a fragment
POLL_S = 0.05  #: between looks whether more was written
READ_BYTES = 1 << 20
VIDEO, AUDIO = 1, 2  #: the tracks
#: ffmpeg's options for a file that :class:`Live` can read. The head waits for the first fragment: before, the muxer
#: does not know by how much the encoder delays. When the disk is full, only this file suffers.
_GROWING = {
    "f": "mp4",
    "movflags": "+delay_moov+default_base_moof",
    "frag_duration": round(FRAGMENT_S * 1e6),
    "flush_packets": 1,
    "onfail": "ignore",
}


def early(path: Path) -> Path:
    """The file beside another one that holds the same in fragments."""
    return path.with_name(f"{path.stem}-early.mp4")


def both(path: Path, movflags: str) -> dict[str, str]:
    """ffmpeg's options for an MP4 at ``path`` and the same, encoded once, in fragments at :func:`early`.

    Both, as a file that is joined out of fragments states another bit rate, by a few bits, than one out of plain files.
    """
    outputs = _output(path, {"f": "mp4", "movflags": movflags}), _output(early(path), _GROWING)
    return {"filename": "|".join(outputs), "format": "tee", "flags": "+global_header"}  # which `tee` does not ask for


def _output(path: Path, options: Mapping[str, object]) -> str:
    """One output of ffmpeg's `tee`, in whose list these characters mean something."""
    given = ":".join(f"{key}={value}" for key, value in options.items() if value)
    return f"[{given}]" + re.sub(r"([\\'|\[\]\s])", r"\\\1", f"file:{path.absolute()}")


@dataclass(frozen=True)
class Segment:
    """A part of the picture. path: in fragments. start: seconds of the whole before it, exactly."""

    path: Path
    start: float


class Live:
    """Follows the files until all are whole. A context manager: its end ends the thread, and drops what is not whole.

    ``make`` gives the stream; None: none was asked for, and nothing is done. ``sound`` is the file of the sound,
    ``seconds`` the length of the whole. ``note`` is why there is no whole stream, "" when there is or none was asked
    for: a full disk ends the stream and not the job.
    """

    def __init__(self, make: Callable[[str], Stream] | None, sound: Path, seconds: float) -> None:
        self.note = ""
        self._make, self._sound, self._seconds = make, _Growing(sound), seconds
        self._stop, self._wake = threading.Event(), threading.Event()
        self._ending = False  #: nothing more is written
        self._number = 0  #: fragments written
        self._waiting: list[_Fragment] = []  #: sound that is to be heard later
        self._scale = 1  #: ticks of the sound's clock in a second
        self._thread: threading.Thread | None = None

    def follow(self, segments: Sequence[Segment]) -> None:
        """Begin, before the first of these files is there."""
        if self._make is None:
            return
        try:
            stream = self._make(NAME)
        except OSError as error:
            self._failed(error)
            return
        self._thread = threading.Thread(target=self._run, args=(stream, segments), name="stream", daemon=True)
        self._thread.start()

    def finish(self, check: Callable[[], None]) -> None:
        """Wait until all that was written is in the stream; the files may go then. Call it when they are whole."""
        self._wake.set()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(POLL_S)
            check()

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    # ---- in the thread

    def _run(self, stream: Stream, segments: Sequence[Segment]) -> None:
        try:
            self._join(stream, segments)
            stream.finish()
        except _Stopped:
            _drop(stream)
        except (OSError, ValueError, struct.error) as error:
            self._failed(error)
            _drop(stream)
        finally:
            self._sound.close()

    def _failed(self, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.note = f"stream: it ended early ({reason}); the video is whole"

    def _join(self, stream: Stream, segments: Sequence[Segment]) -> None:
        first: _Head | None = None
        for segment in segments:
            source = _Growing(segment.path)
            try:
                for fragment in self._each(source):
                    head = source.head()
                    if first is None:
                        first = head
                        self._begin(stream, head)
                    elif head.codec != first.codec:
                        raise ValueError("its segments were encoded differently")
                    at = fragment.time / head.scale + segment.start
                    self._sound_until(stream, at + FRAGMENT_S)
                    self._put(stream, fragment, VIDEO, round(segment.start * head.scale))
            finally:
                source.close()
            segment.path.unlink(missing_ok=True)
        self._sound_until(stream, None)

    def _begin(self, stream: Stream, picture: _Head) -> None:
        """Write the head, once the sound has one."""
        self._waiting += self._wait(lambda: self._sound.more() or None)
        sound = self._sound.head()
        self._scale = sound.scale
        stream.write(joined_heads(picture, sound, self._seconds))

    def _sound_until(self, stream: Stream, seconds: float | None) -> None:
        """The sound that begins before that; None: the rest."""
        while True:
            while self._waiting and (seconds is None or self._waiting[0].time < seconds * self._scale):
                self._put(stream, self._waiting.pop(0), AUDIO, 0)
            if self._waiting or self._sound.ended:
                return
            self._waiting += self._wait(lambda: self._sound.more() or (self._sound.ended and []))

    def _put(self, stream: Stream, fragment: _Fragment, track: int, later: int) -> None:
        self._number += 1
        fragment.renumber(self._number, track, later)
        stream.write(bytes(fragment.data))

    def _each(self, source: _Growing) -> Iterator[_Fragment]:
        while True:
            yield from source.more()
            if source.ended:
                return
            self._pause()

    def _wait(self, look: Callable[[], list[_Fragment] | bool | None]) -> list[_Fragment]:
        while not isinstance(found := look(), list):
            self._pause()
        return found

    def _pause(self) -> None:
        if self._stop.is_set():
            raise _Stopped
        if self._ending:
            raise ValueError("its files ended early")
        self._ending = self._wake.is_set()  # then there is one more look
        if not self._ending:
            self._wake.wait(POLL_S)


def _drop(stream: Stream) -> None:
    try:
        stream.drop()
    except OSError:
        pass  # the folder of the attempt takes it along


class _Stopped(Exception):
    """The job ended before its files were whole."""


# ---- boxes


def boxes(data: bytes | bytearray, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(type, begin, end) of the whole boxes that follow each other there, header included."""
    stop = len(data) if stop is None else stop
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size == 1 and start + 16 <= stop:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        if size < 8:
            raise ValueError(f"a box of {size} bytes")
        if start + size > stop:
            return
        yield kind, start, start + size
        start += size


def find(data: bytes | bytearray, *path: bytes, start: int = 0, stop: int | None = None) -> tuple[int, int]:
    """(begin, end) of the first box at the end of a path such as moov, trak, mdia. Raises ValueError."""
    for kind, begin, end in boxes(data, start, stop):
        if kind == path[0]:
            return (begin, end) if len(path) == 1 else find(data, *path[1:], start=begin + 8, stop=end)
    raise ValueError(f"there is no box {path[0].decode('latin-1')}")


def box(kind: bytes, *content: bytes | bytearray) -> bytes:
    """One box with that content."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _times(data: bytes | bytearray, begin: int) -> int:
    """Where a full box continues behind its creation and modification times: they are 4 or 8 bytes long."""
    return begin + (28 if data[begin + 8] else 20)


class _Head:
    """The head of a fragmented file of one track: ftyp and moov."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        media = find(data, b"moov", b"trak", b"mdia", b"mdhd")
        self.scale: int = struct.unpack_from(">I", data, _times(data, media[0]))[0]  #: ticks in a second
        begin, end = find(data, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
        self.codec = data[begin:end]  #: how to decode it

    def part(self, *path: bytes) -> bytearray:
        """A copy of one box."""
        begin, end = find(self.data, *path)
        return bytearray(self.data[begin:end])

    def track(self, number: int) -> tuple[bytearray, bytearray]:
        """(trak, trex) under that number."""
        trak, trex = self.part(b"moov", b"trak"), self.part(b"moov", b"mvex", b"trex")
        struct.pack_into(">I", trak, _times(trak, find(trak, b"tkhd", start=8)[0]), number)
        struct.pack_into(">I", trex, 12, number)
        return trak, trex


def joined_heads(picture: _Head, sound: _Head, seconds: float) -> bytes:
    """One head for both tracks that says how long the whole will be."""
    mvhd = picture.part(b"moov", b"mvhd")
    (scale,) = struct.unpack_from(">I", mvhd, _times(mvhd, 0))
    struct.pack_into(">I", mvhd, len(mvhd) - 4, AUDIO + 1)  # the number of the next track
    mehd = box(b"mehd", struct.pack(">IQ", 1 << 24, round(seconds * scale)))
    (seen, seen_more), (heard, heard_more) = picture.track(VIDEO), sound.track(AUDIO)
    return bytes(picture.part(b"ftyp")) + box(b"moov", mvhd, seen, heard, box(b"mvex", mehd, seen_more, heard_more))


class _Fragment:
    """One moof and its mdat, of one track."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        (self._at, _) = find(data, b"moof", b"traf", b"tfdt")
        self._layout = ">Q" if data[self._at + 8] else ">I"
        self.time: int = struct.unpack_from(self._layout, data, self._at + 12)[0]  #: ticks, in its file

    def renumber(self, number: int, track: int, later: int) -> None:
        """The number of the fragment and of its track, and by how many ticks it comes later than in its file."""
        struct.pack_into(">I", self.data, find(self.data, b"moof", b"mfhd")[0] + 12, number)
        struct.pack_into(">I", self.data, find(self.data, b"moof", b"traf", b"tfhd")[0] + 12, track)
        struct.pack_into(self._layout, self.data, self._at + 12, self.time + later)


class _Growing:
    """A fragmented file that an encoder is writing, and that may not be there yet. ended: nothing more comes."""

    def __init__(self, path: Path) -> None:
        self.ended = False
        self._path = path
        self._file: BinaryIO | None = None
        self._held, self._head, self._moof = bytearray(), b"", bytearray()
        self._known: _Head | None = None

    def head(self) -> _Head:
        """Its head; there once there is a fragment."""
        if self._known is None:
            self._known = _Head(self._head)
        return self._known

    def more(self) -> list[_Fragment]:
        """Fragments that have become whole since the last call."""
        found: list[_Fragment] = []
        if self._file is None:
            try:
                self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
            except FileNotFoundError:
                return found
        while data := self._file.read(READ_BYTES):
            self._held += data
            taken = 0
            for kind, begin, end in boxes(self._held):
                taken = end
                if kind == b"moof":
                    self._moof = self._held[begin:end]
                elif kind == b"mdat":
                    found.append(_Fragment(self._moof + self._held[begin:end]))
                elif kind == b"mfra":  # which the muxer writes last
                    self.ended = True
                else:
                    self._head += self._held[begin:end]
            del self._held[:taken]
        return found

    def close(self) -> None:
        """Free the descriptor."""
        if self._file is not None:
            self._file.close()
