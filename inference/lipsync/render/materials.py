"""What rendering needs to know of a person in a template beyond the landmarks; made in one pass, worth keeping."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render.calibrate import Calibration
from inference.lipsync.render.mouths import THUMB, Mouths
from inference.lipsync.render.rows import ROWS

VERSION = 14  #: of what is saved; raise it when rendering would read old materials wrongly


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
    """Everything measured in the pixels of one person in a template."""

    seam: NDArray[np.float32] = field(default_factory=lambda: np.zeros(len(mesh.LIP_INNER_UPPER), np.float32))
    mouths: Mouths = field(default_factory=no_mouths)
    calibration: Calibration = field(default_factory=Calibration)
    white: NDArray[np.float32] = field(default_factory=lambda: np.ones(3, np.float32))  #: :func:`palette.white`
    filled: bool = True  #: an open mouth of the template shows teeth and no dark below them
    enamel: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(3, np.float32)
    )  #: of its teeth (:mod:`prepare`)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """For numpy's savez."""
        own = {"seam": self.seam, "white": self.white, "filled": np.asarray(self.filled), "enamel": self.enamel}
        return {**own, **self.mouths.save(), **self.calibration.arrays()}

    @classmethod
    def of(cls, arrays: dict[str, NDArray[np.generic]]) -> Materials:
        """From what ``arrays`` gave; KeyError when some are missing."""
        return cls(
            np.asarray(arrays["seam"], np.float32),
            Mouths.load(arrays),
            Calibration.load(arrays),
            np.asarray(arrays["white"], np.float32),
            bool(arrays["filled"]),
            np.asarray(arrays["enamel"], np.float32),
        )


def save(people: Sequence[Materials], path: Path) -> None:
    """Write those of each person into one .npz, by rename: a reader sees the old file or the new one."""
    arrays: dict[str, Any] = {"version": np.int32(VERSION), "people": np.int32(len(people))}
    for number, materials in enumerate(people):
        arrays |= {f"{number} {name}": values for name, values in materials.arrays().items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            np.savez(out, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> tuple[Materials, ...]:
    """What ``save`` wrote. Raises ValueError or OSError when the file is not of this version."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if int(arrays.get("version", -1)) != VERSION:
        raise ValueError(f"{path} holds materials of another version")
    parts: list[dict[str, NDArray[np.generic]]] = [{} for _ in range(int(arrays["people"]))]
    for name, values in arrays.items():
        number, _, key = name.partition(" ")
        if key:
            parts[int(number)][key] = values
    return tuple(Materials.of(part) for part in parts)
