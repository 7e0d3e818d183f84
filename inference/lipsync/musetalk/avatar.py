"""What is kept of a template: where its face is, and what the networks make of each frame before any sound is heard.

The crop MuseTalk was trained on is defined by 68 landmarks (iBUG 300-W numbering): left and right are the outermost
ones, the bottom is the lowest, and the top lies as far above the third point of the nose's bridge, number 29, as the
bottom lies below it. Only what is below that point is painted anew. Here the same box comes from the face mesh:

    68 landmarks                           the mesh of 478
    0 … 16, the line of the jaw            the face's oval from one ear past the chin to the other (JAW)
    29, on the bridge of the nose          5

In the mean 300-W face, number 29 lies 46 % of the way down from the corners of the eyes to the base of the nose; in the
canonical mesh vertex 5 lies 48 % of that way, its neighbours 195 and 4 lie 33 % and 66 %.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.encode import Frame
from inference.face import filters, mesh
from inference.lipsync.musetalk import parsing
from inference.lipsync.musetalk.blend import Box, parsed_picture, scaled
from inference.lipsync.musetalk.networks import SIDE, Networks
from inference.lipsync.musetalk.parsing import Mask, Painted

VERSION = 2  #: of what is saved; raise it when painting would read an old avatar wrongly
GROUP = 4  #: frames that are looked at together, always the same ones, so that no earlier job shapes the bytes
JAW = mesh.OVAL[8:29]  #: from the person's left ear past the chin to the right one
HALF_FACE = 5
BOX_FRAMES = 5  #: frames over which boxes are averaged
LEAST = 16  #: pixels of a box that is worth painting

Latents = NDArray[np.floating]


def boxes(
    points: mesh.Points, found: NDArray[np.bool_], shot: NDArray[np.int32], size: tuple[int, int], margin: int
) -> list[Box | None]:
    """The face's box in every frame, inside a frame of ``size`` (width, height); None where there is no face.

    ``points``: (N, 478, 3) pixels, ``found``: (N,), ``shot``: (N,) the shot of each frame, within which boxes are
    averaged. ``margin``: pixels added below the chin.
    """
    jaw, half = points[:, JAW, :2], points[:, HALF_FACE, 1]
    low, high = jaw.min(axis=1), jaw.max(axis=1)
    edges = np.stack((low[:, 0], 2 * half - high[:, 1], high[:, 0], high[:, 1]), axis=1)
    edges = np.where(found[:, None], edges, np.nan).astype(np.float64)
    steady = filters.local_mean(edges, shot, BOX_FRAMES)
    result: list[Box | None] = [None] * len(points)
    for index in np.flatnonzero(found).tolist():
        left, top, right, bottom = np.floor(steady[index]).astype(int).tolist()
        box = Box(max(0, left), max(0, top), min(size[0], right), min(size[1], bottom + margin))
        result[index] = box if min(box.size) >= LEAST else None
    return result


@dataclass(frozen=True)
class Avatar:
    """The first N frames of a template as the networks see them."""

    latents: Latents  #: (N, 8, 32, 32) as :meth:`Networks.encode` gave them; zeros without a face
    masks: tuple[bytes, ...]  #: N masks of the face's surroundings, deflated; empty without a face

    @property
    def frames(self) -> int:
        """How many there are."""
        return len(self.masks)

    def mask(self, index: int) -> Mask:
        """(512, 512) 0 or 255: what is painted, in the square that was parsed."""
        bits = np.frombuffer(zlib.decompress(self.masks[index]), np.uint8)
        shown = np.unpackbits(bits).reshape(parsing.SIDE, parsing.SIDE)
        return np.asarray(shown * np.uint8(255), np.uint8)

    def joined(self, more: Avatar) -> Avatar:
        """These frames, then those."""
        return Avatar(np.concatenate((self.latents, more.latents)), self.masks + more.masks)

    def save(self, path: Path) -> None:
        """Write one .npz, by rename: a reader sees the old file or the new one."""
        ends = np.cumsum([0, *map(len, self.masks)])
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        bits = np.frombuffer(b"".join(self.masks), np.uint8)
        try:
            with part.open("wb") as out:
                np.savez(out, version=np.int32(VERSION), latents=self.latents, masks=bits, ends=ends)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Avatar:
        """Raises ValueError, OSError or KeyError when the file is not of this version."""
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            if int(stored["version"]) != VERSION:
                raise ValueError(f"{path} holds an avatar of another version")
            bits, ends = stored["masks"].tobytes(), stored["ends"].tolist()
            masks = tuple(bits[start:end] for start, end in pairwise(ends))
            latents = stored["latents"]
        if len(latents) != len(masks):
            raise ValueError(f"{path} holds {len(latents)} latents and {len(masks)} masks")
        return cls(latents, masks)


def prepare(
    networks: Networks,
    painted: Painted,
    frames: Iterator[Frame],
    found: list[Box | None],
    tick: Callable[[int], None],
) -> Avatar:
    """Look at consecutive frames, as many as ``found`` has boxes; ``tick(how many)`` is called before each group."""
    made: list[Avatar] = []
    for start in range(0, len(found), GROUP):
        tick(start)
        group = found[start : start + GROUP]
        made.append(_look(networks, painted, [next(frames) for _ in group], group))
    tick(len(found))
    return Avatar(np.concatenate([each.latents for each in made]), tuple(mask for each in made for mask in each.masks))


def _look(networks: Networks, painted: Painted, frames: list[Frame], found: list[Box | None]) -> Avatar:
    seen = [(place, frame, box) for place, (frame, box) in enumerate(zip(frames, found, strict=True)) if box]
    latents = np.zeros((len(frames), *networks.latent_shape), networks.latent_type)
    masks = [b""] * len(frames)
    if seen:
        places = [place for place, _, _ in seen]
        latents[places] = networks.encode(np.stack([scaled(frame, box, SIDE) for _, frame, box in seen]))
        labels = networks.parse([parsed_picture(frame, box, parsing.SIDE) for _, frame, box in seen])
        for place, each in zip(places, labels, strict=True):
            masks[place] = zlib.compress(np.packbits(painted.mask(each) > 0).tobytes(), 1)
    return Avatar(latents, tuple(masks))
