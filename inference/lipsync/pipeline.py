"""From frames to a file: segments decoded, painted and encoded side by side, then joined.

    template ── decode (thread) ─→ paint ─→ encode (ffmpeg) ─→ segment 0 ┐
    template ── decode (thread) ─→ paint ─→ encode (ffmpeg) ─→ segment 1 ┼→ joined, sound added → output
    …                                                                    ┘

How the work is cut depends on nothing but its length, and each segment is encoded by one thread, so the same
job gives the same bytes on any number of cores. Segments begin with a key frame and are joined as they are.
The decoder and the encoder are processes of their own, and OpenCV and numpy release Python's lock where it
counts, so threads are enough here.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from inference.encode import Encoding, Frame, Planes, VideoWriter, as_rate
from inference.join import Part
from inference.lipsync.frames import Size, ahead
from inference.lipsync.planes import to_bgr, with_changes
from inference.live import Segment, early

POLL_S = 0.1  #: between looks at cancellation and progress
#: seconds of video up to which a job is cut into so many segments
CUTS = ((1.5, 1), (4.0, 2), (20.0, 4), (60.0, 8))
SEGMENT_S = 7.5  #: of longer jobs
HEAD_START_S = 1.6  #: of video that is made alone when it is watched at once: a second, and what the encoder holds back


class Painter(Protocol):
    """Makes output frames out of template frames; one per segment, so it may keep a state."""

    batch: int  #: how many frames it likes to get at a time

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> Sequence[Frame]:
        """The finished frames of some consecutive output numbers. The given ones must stay as they are."""
        ...


@runtime_checkable
class PlanePainter(Protocol):
    """A painter that looks at a part of each frame only, and is faster when it is given planes."""

    def paint_planes(self, planes: Planes, output: int) -> Planes:
        """One finished frame, good until the next is asked for. The given one must stay as it is."""
        ...


class Source(Protocol):
    """Where template frames come from: a :class:`inference.lipsync.frames.Template`, or a picture."""

    @property
    def info(self) -> Size:
        """The size of its frames."""
        ...

    def read(self, order: NDArray[np.int32], threads: int | None = None) -> Iterator[Frame | Planes]:
        """The frames of that order, as (H, W, 3) BGR or as planes (H·3/2, W)."""
        ...


class Stopped(Exception):
    """Raised in the threads of segments that are given up because another one failed or the job was cancelled."""


def cut(frames: int, fps: float) -> list[tuple[int, int]]:
    """Output frames [start, stop) of every segment."""
    seconds = frames / fps
    count = next((count for limit, count in CUTS if seconds <= limit), 0) or -(-int(seconds / SEGMENT_S) // 8) * 8
    edges = np.linspace(0, frames, max(1, min(count, frames)) + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


class Render:
    """One job's picture. ``run`` blocks until all segments are there, or raises what stopped it."""

    def __init__(
        self,
        template: Source,
        order: NDArray[np.int32],
        painter: Callable[[int, int], Painter],
        encoding: Encoding,
        *,
        folder: Path,
        workers: int,
    ) -> None:
        self.template, self.order, self.encoding = template, order, encoding
        self.done = 0  #: frames finished
        self._cuts = cut(len(order), encoding.fps)
        self._paths = [folder / f"segment-{number:04}.mp4" for number in range(len(self._cuts))]
        self._painter = painter  #: called with the start and stop of a segment, in its thread
        self._workers = max(1, workers)
        self._stop, self._begun = threading.Event(), threading.Event()
        self._count = threading.Lock()
        self.codec, self.note = "", ""  #: of the encoder that was used

    @property
    def segments(self) -> list[Segment]:
        """Where its segments can be read while they are written, in order."""
        rate = as_rate(self.encoding.fps)
        return [
            Segment(early(path), float(start / rate)) for path, (start, _) in zip(self._paths, self._cuts, strict=True)
        ]

    def run(self, check: Callable[[], None], progress: Callable[[int], None]) -> list[Part]:
        """The segments in order. ``check`` and ``progress(frames done)`` are called by this thread only."""
        cuts, paths = self._cuts, self._paths
        try:
            with ThreadPoolExecutor(min(self._workers, len(cuts)), thread_name_prefix="segment") as pool:
                futures: list[Future[None]] = [
                    pool.submit(self._segment, start, stop, path)
                    for (start, stop), path in zip(cuts, paths, strict=True)
                ]
                try:
                    self._watch(futures, check, progress)
                except BaseException:
                    self._stop.set()
                    for future in futures:
                        future.cancel()
                    raise  # leaving the pool waits for its threads, which end at their next frame
        except BaseException:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        rate = as_rate(self.encoding.fps)
        return [Part(path, float((stop - start) / rate)) for (start, stop), path in zip(cuts, paths, strict=True)]

    def _watch(
        self, futures: Sequence[Future[None]], check: Callable[[], None], progress: Callable[[int], None]
    ) -> None:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, POLL_S, FIRST_EXCEPTION)
            check()
            for future in done:
                future.result()
            progress(self.done)

    def _segment(self, start: int, stop: int, path: Path) -> None:
        if start and self.encoding.growing:  # somebody waits for the first second
            while not self._begun.wait(POLL_S):
                self._check()
        self._check()
        threads = 1 if self._workers > 1 else None
        painter = self._painter(start, stop)
        ahead_of_others = min(stop, round(HEAD_START_S * self.encoding.fps))
        with (
            ahead(self.template.read(self.order[start:stop], threads), self.template.info) as frames,
            VideoWriter(path, replace(self.encoding, threads=1), check=self._check) as writer,
        ):
            self.codec, self.note = writer.codec, writer.note
            for at in range(start, stop, painter.batch):
                outputs = range(at, min(at + painter.batch, stop))
                for picture in painted(painter, [next(frames) for _ in outputs], outputs):
                    if picture.ndim == 2:
                        writer.write_planes(picture)
                    else:
                        writer.write(picture)
                    with self._count:
                        self.done += 1
                if at + len(outputs) >= ahead_of_others:
                    self._begun.set()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped


def painted(painter: Painter, given: Sequence[Frame | Planes], outputs: Sequence[int]) -> Iterator[Frame | Planes]:
    """The finished frames, each in the form it was given in: as (H, W, 3) BGR or as planes."""
    if given[0].ndim == 3:
        yield from painter.paint(given, outputs)
    elif isinstance(painter, PlanePainter):
        yield from map(painter.paint_planes, given, outputs)
    else:
        plain = [to_bgr(planes) for planes in given]
        yield from map(with_changes, given, plain, painter.paint(plain, outputs))
