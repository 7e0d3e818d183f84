"""The poses that guide EchoMimicV2: one .npy a frame, named 0.npy, 1.npy … .

Each holds a pickled dict of numbers and arrays: ``hands`` (people, 21, 2) in 0..1, ``hands_score`` (people, 21),
``bodies``, and ``draw_pose_params``: height and width of the drawing, then top, bottom, left, right of its place in
the square. They are read without running anything that a file may hold beside numbers, and drawn by the
checkout's own function. When a video is longer than the poses, these run forward and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from inference import plain
from inference.base import EngineError

REFERENCE_WIDTH = 800  #: pixels at which its authors draw


class Poses:
    """The poses of a folder."""

    def __init__(self, folder: Path, side: int) -> None:
        self._folder, self._side = folder.expanduser(), side
        self.files: list[Path] = []
        if self._folder.is_dir():
            while (file := self._folder / f"{len(self.files)}.npy").is_file():
                self.files.append(file)
        if not self.files:
            raise EngineError(
                f"echomimic: {self._folder} holds no poses: 0.npy, 1.npy …",
                hint="name a folder of them in the option `poses`; the checkout has some in assets/halfbody_demo/pose",
            )
        self._placed(self.files[0])

    def drawn(
        self, frames: int, draw: Callable[..., NDArray[np.uint8]], check: Callable[[], None]
    ) -> NDArray[np.uint8]:
        """(3, frames, side, side) RGB 0..255; ``draw`` is ``draw_pose_select_v2`` of the checkout."""
        pictures = np.zeros((3, frames, self._side, self._side), np.uint8)
        there = [*range(len(self.files)), *range(len(self.files) - 2, 0, -1)]
        for frame in range(min(frames, len(there))):
            check()
            file = self.files[there[frame]]
            pose, (height, width, top, bottom, left, right) = self._placed(file)
            try:
                picture = draw(pose, height, width, ref_w=REFERENCE_WIDTH)
                pictures[:, frame, top:bottom, left:right] = picture
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise EngineError(
                    f"echomimic: the pose {file} cannot be drawn: {type(error).__name__}: {error}"
                ) from error
        for frame in range(len(there), frames):
            pictures[:, frame] = pictures[:, frame % len(there)]
        return pictures

    def _placed(self, file: Path) -> tuple[Mapping[str, Any], tuple[int, ...]]:
        """One pose and where it is drawn."""
        pose = read(file)
        place = pose.get("draw_pose_params")
        if not isinstance(place, (list, tuple)) or len(place) != 6 or not all(isinstance(each, int) for each in place):
            raise EngineError(f"echomimic: the pose {file} has no draw_pose_params of six whole numbers")
        height, width, top, bottom, left, right = place
        if not (0 <= top < bottom <= self._side and 0 <= left < right <= self._side) or (
            bottom - top,
            right - left,
        ) != (height, width):
            raise EngineError(
                f"echomimic: the pose {file} is drawn {height}×{width} at rows {top} to {bottom}, columns {left} to "
                f"{right}, which is no place in {self._side}×{self._side}"
            )
        return pose, tuple(place)


def read(file: Path) -> Mapping[str, Any]:
    """The dict in a pose file; raises EngineError naming the file and what it holds instead."""
    try:
        with file.open("rb") as stream:
            pose = _unpickled(stream)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"echomimic: the pose {file} cannot be read: {error}", hint="it must be as EchoMimicV2 saves them"
        ) from error
    if not isinstance(pose, dict):
        raise EngineError(f"echomimic: the pose {file} holds {type(pose).__name__}, not a dict")
    return pose


def _unpickled(stream: BinaryIO) -> Any:
    """What an .npy of one object holds."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = header(stream)
    if not dtype.hasobject:
        raise ValueError(f"it holds an array of {dtype}")
    content = plain.read(stream)
    return content.item() if isinstance(content, np.ndarray) and content.shape == () else content
