"""The training clips: who talks in them, what is heard, and what the mesh sees of the mouth.

Any folder of short videos of people talking will do; the speaker is told from the file name (the part before the
first underscore where several clips of one person share it, else the whole name). What is computed from a clip is kept
under the cache folder, named by the SHA-256 of its content, so a second run reads no video.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference import media, weights
from inference.articulation.curve import FPS
from inference.audio import Array
from inference.base import EngineError, InputError
from inference.face.analysis import Decoding, analyse
from inference.face.model import FaceModel

SUFFIXES = (".mp4", ".mpg", ".avi", ".mov", ".mkv", ".webm")
MOST_YAW = 25.0  #: degrees from the front; beyond, the mesh guesses half of the mouth
LEAST_FRAMES = 50  #: usable frames of a clip (2 s)
RECIPE = "mouth-1"  #: part of the cached files' names: raise it when the measuring changes
#: Clips of one person under different names (told by face and voice).
SAME_PERSON = {"grid_bbaf2n": "gs1", "grid_id2": "grid s2", "grid_pwij3p": "grid s2"}
#: Clips that are another one again.
DUPLICATES = {"grid_bbaf2n": "gs1_bbaf2n"}
SHARED_PREFIX = ("gs1",)  #: prefixes that name a person rather than a collection

_DIGESTS: dict[tuple[str, int, int], str] = {}
_face: FaceModel | None = None


@dataclass(frozen=True, eq=False)
class Clip:
    """One person talking, T frames at 25 per second."""

    name: str
    speaker: str
    digest: str  #: SHA-256 of the file
    samples: Array  #: 16 kHz mono
    mouth: Array  #: (T, 5) channels in eye distances, NaN without a face
    yaw: Array  #: (T,) degrees

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(T,) frames whose mouth can be believed."""
        return np.isfinite(self.mouth).all(axis=1) & (np.abs(np.nan_to_num(self.yaw, nan=90.0)) < MOST_YAW)


def speaker_of(name: str) -> str:
    """Who talks in the clip of that name."""
    prefix = name.split("_")[0]
    return SAME_PERSON.get(name) or (prefix if prefix in SHARED_PREFIX else name)


def find_clips(sources: Sequence[Path]) -> list[Path]:
    """The videos in the folders (not below them) and among the files named, sorted by name, without duplicates."""
    found: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise InputError(f"{source} does not exist", hint="name a folder of videos, or videos")
        for path in sorted(source.iterdir()) if source.is_dir() else [source]:
            if path.suffix.lower() in SUFFIXES:
                found[path.stem] = path
    return [path for name, path in sorted(found.items()) if DUPLICATES.get(name) not in found]


def read_clips(paths: Sequence[Path], cache: Path, say: Callable[[str], None] = lambda line: None) -> list[Clip]:
    """Clips with their measurements; those with too little to see are left out and said so."""
    cache.mkdir(parents=True, exist_ok=True)
    clips = []
    for path in paths:
        digest = digest_of(path)
        stored = cache / f"{digest[:16]}-{RECIPE}.npz"
        if not stored.exists():
            say(f"{path.name}: following the face")
            _store(stored, *_measure(path))
        with open(stored, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            clip = Clip(path.stem, speaker_of(path.stem), digest, arrays["samples"], arrays["mouth"], arrays["yaw"])
        if clip.usable.sum() < LEAST_FRAMES:
            say(f"{path.name}: left out, {clip.usable.sum()} of {len(clip.mouth)} frames show a mouth from the front")
            continue
        clips.append(clip)
    if not clips:
        raise InputError("no clip shows anybody talking", hint="name a folder of videos of faces with sound")
    return clips


def digest_of(path: Path) -> str:
    """SHA-256 of a file, read once per process."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _DIGESTS[key]


def _measure(path: Path) -> tuple[Array, Array, Array]:
    global _face
    if _face is None:
        _face = FaceModel(weights.find("face-landmarker/face_landmarker.task"))
    analysis = analyse(path, _face, decoding=Decoding(fps=FPS, threads=1))
    if not analysis.complete:
        raise EngineError(f"{path} is too long for a training clip", hint="cut it into pieces of under a minute")
    return media.read_audio(path), analysis.channels, analysis.pose.angles[:, 0]


def _store(target: Path, samples: Array, mouth: Array, yaw: Array) -> None:
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, samples=samples.astype(np.float32), mouth=mouth.astype(np.float32), yaw=yaw.astype(np.float32))
    os.replace(part, target)
