"""What rendering needs to know of a template beyond its landmarks; made in one pass, worth keeping."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render.calibrate import Calibration
from inference.lipsync.render.mouths import THUMB, Mouths
from inference.lipsync.render.rows import ROWS

VERSION = 9  #: of what is saved; raise it when rendering would read old materials wrongly


def no_mouths() -> Mouths:
    """For templates whose mouths are of no use."""
    nothing = np.zeros(0, np.float32)
    return Mouths(
        np.zeros(0, np.int32),
        np.zeros((0, 2), np.int32),
        (),
        nothing,
        nothing,
        np.zeros((0, ROWS), np.float32),
        np.zeros((0, THUMB[1], THUMB[0]), np.uint8),
    )


@dataclass(frozen=True)
class Materials:
    """Everything measured in the template's pixels."""

    seam: NDArray[np.float32] = field(default_factory=lambda: np.zeros(len(mesh.LIP_INNER_UPPER), np.float32))
    mouths: Mouths = field(default_factory=no_mouths)
    calibration: Calibration = field(default_factory=Calibration)
    white: NDArray[np.float32] = field(default_factory=lambda: np.ones(3, np.float32))  #: :func:`palette.white`
    filled: bool = True  #: an open mouth of the template shows teeth and no dark below them
    enamel: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(3, np.float32)
    )  #: of its teeth (:mod:`prepare`)

    def save(self, path: Path) -> None:
        """Write one .npz, by rename: a reader sees the old file or the new one."""
        arrays = {"version": np.int32(VERSION), "seam": self.seam, **self.mouths.save(), **self.calibration.arrays()}
        arrays |= {"filled": np.bool_(self.filled), "enamel": self.enamel, "white": self.white}
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as out:
                np.savez(out, **arrays)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Materials:
        """Raises ValueError or OSError when the file is not of this version."""
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if int(arrays.get("version", -1)) != VERSION:
            raise ValueError(f"{path} holds materials of another version")
        return cls(
            np.asarray(arrays["seam"], np.float32),
            Mouths.load(arrays),
            Calibration.load(arrays),
            np.asarray(arrays["white"], np.float32),
            bool(arrays["filled"]),
            np.asarray(arrays["enamel"], np.float32),
        )
