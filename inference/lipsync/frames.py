"""The template's frames in the order in which the output needs them: forward, back, forward again.

The turns show no frame twice, so motion only changes its direction. A video can be decoded forward only:
stretches that run back are read in blocks that fit into memory, each handed out from its end. A template so
short that it fits whole is decoded once for all.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.base import EngineError
from inference.encode import Frame, Planes
from inference.lipsync.planes import PlaneReader
from inference.video import VideoInfo

__all__ = ("Ahead", "Frame", "Planes", "Run", "Size", "Template", "ahead", "frame_bytes", "held", "loop", "runs")

BLOCK_BYTES = 96 << 20  #: of decoded frames held at once by one reader
HELD_BYTES = 400 << 20  #: of a whole template held for all its readers: 12 s of 720p
LEAST_BLOCK = 8  #: frames; for 4K this is 100 MB
AHEAD_BYTES = 24 << 20  #: decoded before they are asked for
REOPEN = 12  #: frames that are rather decoded and dropped than skipped by opening the file again


def loop(frames: int, length: int) -> NDArray[np.int32]:
    """(frames,) the template frame of every output frame: 0 1 … n−1 n−2 … 1 0 1 …"""
    if length < 1:
        raise ValueError("a template without frames")
    if length == 1:
        return np.zeros(frames, np.int32)
    phase = np.arange(frames) % (2 * length - 2)
    return np.where(phase < length, phase, 2 * length - 2 - phase).astype(np.int32)


class Size(Protocol):
    """Anything that has the size of frames, in pixels: a :class:`VideoInfo`, or a picture's."""

    @property
    def width(self) -> int:
        """Pixels."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...


@dataclass(frozen=True)
class Run:
    """Consecutive output frames whose template frames rise or fall by one."""

    low: int  #: first template frame, in the file's order
    count: int
    backward: bool


def runs(order: NDArray[np.int32]) -> list[Run]:
    """The order cut into stretches that can be read in one go."""
    result: list[Run] = []
    at = 0
    while at < len(order):
        end = at + 1
        step = int(order[end] - order[at]) if end < len(order) else 0
        if step in (-1, 1):
            while end < len(order) and order[end] - order[end - 1] == step:
                end += 1
        first, last = int(order[at]), int(order[end - 1])
        result.append(Run(min(first, last), end - at, step == -1 and end - at > 1))
        at = end
    return result


def held(info: Size, length: int) -> bool:
    """Whether the whole template fits into memory decoded."""
    return length * frame_bytes(info) <= HELD_BYTES


def frame_bytes(info: Size) -> int:
    """Memory of one decoded frame."""
    return info.width * info.height * 3 // 2


class Template:
    """The frames of one template as planes, for several readers at once. Nobody may write into them.

    A template that is held is decoded by whoever first needs a frame that is not there yet, and only once:
    readers of their own would each have to begin at the last key frame. A context manager, which ends that decoder.
    """

    def __init__(self, info: VideoInfo, length: int, ffmpeg: str | None = None) -> None:
        self.info = info
        self.length = length  #: frames that can really be decoded
        self.ffmpeg = ffmpeg
        self._kept: list[Planes] = []
        self._decoder: Generator[Planes] | None = None
        self._failed: BaseException | None = None
        self._lock = threading.Lock()
        self._closed, self._wanted = threading.Event(), threading.Event()
        self._prefetcher: threading.Thread | None = None

    def prefetch(self, order: NDArray[np.int32], pause: int | None = None) -> None:
        """Begin to decode what that order needs, if it can be held; call it once.

        After ``pause`` frames it waits for the first reader, and leaves the processor to what that waits for.
        """
        if len(order) and held(self.info, self.length):
            last = int(order.max()) + 1
            stops = (last if pause is None else min(pause, last)), last
            self._prefetcher = threading.Thread(target=self._prefetch, args=stops, name="prefetch")
            self._prefetcher.start()

    def _prefetch(self, *stops: int) -> None:
        with contextlib.suppress(Exception):  # readers meet the same one, and report it
            for start, stop in itertools.pairwise((0, *stops)):
                if start:
                    self._wanted.wait()
                for index in range(start, stop):
                    if self._closed.is_set():
                        return
                    self._frame(index)

    def read(self, order: NDArray[np.int32], threads: int | None = None) -> Iterator[Planes]:
        """The frames of that order; close the iterator to end its decoder."""
        self._wanted.set()
        if held(self.info, self.length):
            for index in order.tolist():
                yield self._frame(index)
            return
        block = max(LEAST_BLOCK, BLOCK_BYTES // frame_bytes(self.info))
        for run in runs(order):
            if not run.backward:
                yield from self._forward(run.low, run.count, threads)
                continue
            for high in range(run.low + run.count, run.low, -block):
                low = max(run.low, high - block)
                frames = list(self._forward(low, high - low, threads))
                while frames:
                    yield frames.pop()

    def _frame(self, index: int) -> Planes:
        while len(self._kept) <= index:
            with self._lock:  # for one frame only, so that readers which need less than others go on first
                if len(self._kept) <= index:
                    self._decode()
        return self._kept[index]

    def _decode(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._decoder is None:
            self._decoder = self._forward(0, self.length, 1)
        try:
            self._kept.append(next(self._decoder))
        except BaseException as error:
            self._failed = error
            raise
        if len(self._kept) == self.length:
            self._decoder.close()

    def close(self) -> None:
        """End the decoder and free the frames."""
        self._closed.set()
        self._wanted.set()
        if self._prefetcher is not None:
            self._prefetcher.join()
        with self._lock:
            if self._decoder is not None:
                self._decoder.close()
            self._decoder, self._failed, self._kept = None, None, []

    def __enter__(self) -> Template:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _forward(self, low: int, count: int, threads: int | None) -> Generator[Planes]:
        start = low if low > REOPEN else 0
        got = 0
        with PlaneReader(
            self.info, start=start, count=low - start + count, threads=threads, ffmpeg=self.ffmpeg
        ) as reader:
            for index, planes in enumerate(reader, start):
                if index >= low:
                    got += 1
                    yield planes
        if got < count:
            raise EngineError(
                f"video: {self.info.path} gave {got} frames from frame {low} instead of {count} "
                f"({reader.error or 'no reason given'})",
                hint="the file changed, or the disk failed, after the template was analysed",
            )


class Ahead(Iterator[Frame]):
    """Frames decoded by a thread of its own before they are asked for. A context manager."""

    def __init__(self, frames: Iterator[Frame], depth: int) -> None:
        self._frames = frames
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(max(1, depth))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="decode", daemon=True)
        self._thread.start()

    def _pull(self) -> None:
        end: BaseException | None = None
        try:
            for frame in self._frames:
                if not self._put(frame):
                    return
        except BaseException as error:  # handed over to whoever asks for the next frame
            end = error
        finally:
            close = getattr(self._frames, "close", None)
            if close is not None:
                close()
            self._put(end)

    def _put(self, item: Frame | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Frame:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            raise StopIteration
        return item

    def close(self) -> None:
        """End the decoder."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def ahead(frames: Iterator[Frame], info: Size) -> Ahead:
    """Decode a few frames in advance: as many as fit into AHEAD_BYTES, at least 2."""
    return Ahead(frames, max(2, min(16, AHEAD_BYTES // frame_bytes(info))))
