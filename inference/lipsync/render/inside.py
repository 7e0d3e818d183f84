"""What is seen between lips that are moved, whether they were shut or open in the picture they are moved in.

Lips that were shut get a drawn inside, and so do those that were parted only: of their own they keep teeth that can be
seen as such, where these are. Lips that were open keep what they show, over a drawn inside if that is teeth, row by row
if the dark is below them; shut, they are pressed on each other and given the seam that they could not supply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh, pose
from inference.lipsync.render import own_inside, seam
from inference.lipsync.render.basis import Basis, extend
from inference.lipsync.render.between import Between, Goal
from inference.lipsync.render.interior import Drawing, Interior, Mouth, Skin
from inference.lipsync.render.tracks import SHUT
from inference.lipsync.render.warp import Painter

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

PARTED = 0.11  #: opening at rest up to which the lips of a face are parted only
RIM = 0.008  #: eye distances at the edge of parted lips that belong to what is between them
TUCK = 0.012  #: eye distances by which moved lips go on behind a drawn inside
OWN_TEETH = 0.03  #: by how much parted lips may open further while the teeth that they showed are still seen
SOFT_LINE = 0.5  #: share of a drawn seam that parted lips get: they have a shade of their own
PRESS = 0.018  #: eye distances by which lips that are open in the picture are pressed on each other to shut them


@dataclass(frozen=True)
class Start:
    """A face before its mouth is moved."""

    shape: Array  #: (550, 3) head coordinates, the lips on their seam as far as they are shut
    ajar: float  #: 0 shut … 1 apart
    gap: float  #: opening that is there already, eye distances
    parted: bool  #: what it shows between its lips is not worth keeping, but for teeth

    @classmethod
    def of(cls, shape: mesh.Points, opening: float, offsets: Array, parted: bool) -> Start:
        """From a shape (478, 3), its opening and what :func:`seam.from_strips` says.

        ``parted`` says that the mouth at rest is not open further than PARTED: one answer for all frames of a face.
        """
        ajar = float(np.clip((opening - SHUT / 2) / (SHUT / 2), 0, 1))
        if ajar < 1:
            shape = shape + (1 - ajar) * (seam.close(shape, offsets) - shape)
        rim = RIM * ajar * parted
        if rim > 0:
            shape = _without_rim(shape, rim)
        return cls(extend(shape), ajar, ajar * opening + 2 * rim, parted)

    def moved(self, basis: Basis, opening: float, width: float) -> Array:
        """(550, 3) the shape with another opening, and wider or narrower."""
        moved: Array = self.shape + basis.move(opening - self.gap - self.press(opening), width)
        share = np.float32(self.ajar * self.parted)
        if share > 0:  # parted lips open as shut ones do, from the middle between them: so they meet all along
            upper, lower = mesh.LIP_INNER_UPPER, mesh.LIP_INNER_LOWER
            middle = (moved[upper] + moved[lower]) / 2
            apart = np.float32(max(opening, 0.0) / 2) * (basis.motion[0, lower] - basis.motion[0, upper])
            moved[upper] += share * (middle - apart - moved[upper])
            moved[lower] += share * (middle + apart - moved[lower])
        return moved

    def tucked(self, moved: Array) -> Array:
        """A moved shape whose parted lips go on behind what is drawn between them, so that nothing else shows there."""
        by = TUCK * self.ajar * self.parted
        if by <= 0:
            return moved
        result: Array = moved.copy()
        gap = np.maximum(moved[mesh.LIP_INNER_LOWER, 1] - moved[mesh.LIP_INNER_UPPER, 1], 0)
        inward = np.minimum(np.float32(0.45) * gap, np.float32(by))
        result[mesh.LIP_INNER_UPPER, 1] += inward
        result[mesh.LIP_INNER_LOWER, 1] -= inward
        return result

    def press(self, opening: float) -> float:
        """Eye distances by which lips overlap: landmarks of open lips lie a little outside them."""
        return 0.0 if self.parted else PRESS * self.ajar * max(0.0, 1 - opening / own_inside.LINE_BELOW)

    def meets(self, opening: float) -> bool:
        """Whether lips that are apart in the picture shall meet."""
        return self.ajar > 0 and opening < own_inside.LINE_BELOW


def _without_rim(shape: mesh.Points, rim: float) -> mesh.Points:
    """A shape (478, 3) whose inner lip rings lie ``rim`` deeper in the lips, less towards the corners.

    What is between parted lips shades their edges, and would be torn along with them.
    """
    deeper: mesh.Points = shape.copy()
    across = np.linspace(-1, 1, len(mesh.LIP_INNER_UPPER), dtype=np.float32)
    by = np.float32(rim) * (1 - across**4)
    deeper[mesh.LIP_INNER_UPPER, 1] -= by
    deeper[mesh.LIP_INNER_LOWER, 1] += by
    return deeper


@dataclass(frozen=True)
class Inside:
    """Finds what is to be seen in one face's mouth."""

    interior: Interior
    painter: Painter
    filled: bool  #: an open mouth of it shows teeth and no dark below them
    toothed: bool  #: a parted mouth of it shows teeth

    def layers(
        self,
        start: Start,
        places: tuple[Array, Array],
        head: pose.Pose,
        target: tuple[float, float],
        *,
        skin: Skin,
        picture: Callable[[], Frame],
    ) -> Iterator[tuple[float, Drawing]]:
        """Layers and their shares, in the order in which they are laid over the moved face.

        ``places`` are where its points (550, 3; pixels) lie with the mouth as it was and as it shall be, in the pose
        of ``head``; ``target`` is opening and width; ``picture`` gives the unmoved mouth in that pose.
        """
        (source, goal), (opening, width), unit = places, target, float(head.scale[0])
        own, contour = (0.0 if start.parted else start.ajar), self.interior.contour(goal)
        found: list[tuple[float, Drawing | None]] = []
        stays, teeth = 0.0, None  # how far the teeth that parted lips showed are still seen
        if start.parted and self.toothed:
            stays = start.ajar * float(np.clip(1 - (opening - start.gap) / OWN_TEETH, 0, 1))
        if stays > 0:
            teeth = own_inside.teeth(picture(), source, contour, unit)
            stays *= 0.0 if teeth is None else own_inside.a_row(teeth, source)
        if own < 1 or self.filled:  # two rows of upper teeth would have two edges
            found.append((1.0, self.interior.draw(goal, head, Mouth(opening, -width, 1 - max(own, stays)), skin)))
        if stays > 0:
            found.append((stays, teeth))
        if own > 0 and self.filled:
            found.append((own, own_inside.take(self.painter, picture(), places, contour, unit)))
        elif own > 0:
            there = Goal(goal, head.to_head(goal[None])[0], contour.astype(np.float32), unit)
            found.append((own, own_inside.laid(Between(self.painter), picture(), source, start.shape, there)))
        if start.meets(opening):
            share = start.ajar * (SOFT_LINE if start.parted else 1.0)
            found.append((share, own_inside.line(picture(), source, goal, unit, opening)))
        yield from ((share, layer) for share, layer in found if layer is not None)
