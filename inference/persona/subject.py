"""Who is learned, and from which frames: what is left out is counted, and what cannot be learned from is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.base import InputError
from inference.face.analysis import TemplateAnalysis
from inference.lipsync.render.tracks import Kind, Tracks

LEAST_S, MOST_S = 20.0, 300.0  #: of the mouth, to learn from
HELD, HELD_S = 0.15, (3.0, 10.0)  #: share of the frames that are held out to judge by, at the end; limits in seconds
FOLD_S = 2.0  #: what is drawn of such a stretch borrows mouths from the stretches beside it
TURNED, FAR = 30.0, 20.0  #: degrees of yaw or pitch, and away from the usual pose, beyond which a frame is left out
BETWEEN_S = 0.4  #: seconds before what is held out that are not learned from either: neighbours look the same


@dataclass(frozen=True)
class Subject:
    """One person in a video, and the frames (by number) to learn from and to judge by."""

    number: int  #: of the person
    tracks: Tracks
    fps: float
    learned: NDArray[np.int64]
    held: NDArray[np.int64]
    warnings: tuple[str, ...]

    @property
    def fold(self) -> NDArray[np.int64]:
        """(N,) 0 or 1 for every frame of the video: stretches, alternately."""
        return np.asarray((np.arange(self.tracks.frames) / self.fps // FOLD_S) % 2, np.int64)

    @property
    def shots(self) -> Iterator[slice]:
        """Stretches of consecutive frames in one shot that show the person."""
        tracks = self.tracks
        edges = np.flatnonzero(np.diff(np.where(tracks.found, tracks.shot, -1), prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if tracks.found[start]:
                yield slice(start, stop)


def choose(path: Path, analysis: TemplateAnalysis, people: tuple[Tracks, ...]) -> Subject:
    """The person who is seen for longest. Raises :class:`InputError` when there is too little to learn from."""
    fps = analysis.fps
    number = int(np.argmax([int(person.found.sum()) for person in people]))
    tracks = people[number]
    seen = np.flatnonzero(tracks.found & (tracks.strength >= 1) & ~analysis.cut_off)
    angles = tracks.pose.angles[:, :2]
    usual = np.median(angles[seen], axis=0) if len(seen) else np.zeros(2)
    far = np.maximum(np.abs(angles[seen]).max(axis=1) - TURNED, np.abs(angles[seen] - usual).max(axis=1) - FAR)
    aside = np.asarray(far > 0, np.bool_)
    good = seen[~aside & (seen < MOST_S * fps)]
    if len(good) < LEAST_S * fps:
        there = f"{len(good) / fps:.1f} s of {analysis.frames / fps:.1f} s"
        raise InputError(
            f"video: {path} shows a mouth to learn from in {there}; a persona needs {LEAST_S:.0f} s",
            hint=f"use 20 s to 5 min of one person who talks to the camera{_told(_left_out(analysis, number, aside))}",
        )
    if tracks.kind is not Kind.TALKING:
        raise InputError(
            f"video: the mouth in {path} hardly moves: nobody talks in it",
            hint="use a video in which the person talks; lipsync without a persona needs none",
        )
    low, high = HELD_S
    count = round(min(max(HELD * len(good), low * fps), high * fps))
    held = good[-count:]
    learned = good[good < held[0] - BETWEEN_S * fps]
    left_out = tuple(_left_out(analysis, number, aside))
    return Subject(number, tracks, fps, learned, held, left_out)


def _left_out(analysis: TemplateAnalysis, number: int, aside: NDArray[np.bool_]) -> Iterator[str]:
    covered = int((analysis.covered & (analysis.person == number)).sum())
    others = int((analysis.person != number).sum())
    counts = (
        (covered, "something is before the mouth"),
        (others, "another person or no mouth is seen"),
        (int(aside.sum()), "the head is turned far aside"),
        (int(analysis.cut_off.sum()), "the picture ends before the mouth"),
    )
    for count, why in counts:
        if count:
            yield f"video: {why} in {count} of {analysis.frames} frames; nothing is learned from them"
    if not analysis.complete or analysis.frames > MOST_S * analysis.fps:
        yield f"video: only its first {MOST_S:.0f} s are learned from"


def _told(notes: Iterator[str]) -> str:
    told = "; ".join(note.removeprefix("video: ").partition(";")[0] for note in notes)
    return f" ({told})" if told else ""
