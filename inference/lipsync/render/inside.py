"""What is seen between lips that are moved, whether they were shut or open in the picture they are moved in.

Lips that were shut get a drawn inside. Lips that were open keep what they show, over a drawn one if that is teeth;
shut, they are pressed on each other and given the seam that they could not supply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh, pose
from inference.lipsync.render import own_inside, seam
from inference.lipsync.render.basis import Basis, extend
from inference.lipsync.render.interior import Drawing, Interior, Mouth, Skin
from inference.lipsync.render.tracks import SHUT
from inference.lipsync.render.warp import Painter

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

PRESS = 0.018  #: eye distances by which lips that are open in the picture are pressed on each other to shut them


@dataclass(frozen=True)
class Start:
    """A face before its mouth is moved."""

    shape: Array  #: (550, 3) head coordinates, the lips on their seam as far as they are shut
    ajar: float  #: 0 shut … 1 open
    gap: float  #: opening that is there already, eye distances

    @classmethod
    def of(cls, shape: mesh.Points, opening: float, offsets: Array) -> Start:
        """From a shape (478, 3), its opening and what :func:`seam.from_strips` says."""
        ajar = float(np.clip((opening - SHUT / 2) / (SHUT / 2), 0, 1))
        if ajar < 1:
            shape = shape + (1 - ajar) * (seam.close(shape, offsets) - shape)
        return cls(extend(shape), ajar, ajar * opening)

    def moved(self, basis: Basis, opening: float, width: float) -> Array:
        """(550, 3) the shape with another opening, and wider or narrower."""
        return self.shape + basis.move(opening - self.gap - self.press(opening), width)

    def press(self, opening: float) -> float:
        """Eye distances by which lips overlap: landmarks of open lips lie a little outside them."""
        return PRESS * self.ajar * max(0.0, 1 - opening / own_inside.LINE_BELOW)


@dataclass(frozen=True)
class Inside:
    """Finds what is to be seen in one face's mouth."""

    interior: Interior
    painter: Painter
    filled: bool  #: an open mouth of it shows teeth and no dark below them

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
        (_, goal), (opening, width), unit = places, target, float(head.scale[0])
        ajar = start.ajar
        found: list[tuple[float, Drawing | None]] = []
        if ajar < 1 or self.filled:
            found.append((1.0, self.interior.draw(goal, head, Mouth(opening, -width, 1 - ajar), skin)))
        if ajar > 0 and self.filled:
            contour = self.interior.contour(goal)
            found.append((ajar, own_inside.take(self.painter, picture(), places, contour, unit)))
        if ajar > 0:
            found.append((ajar, own_inside.line(goal, unit, opening, self.interior.palette(skin).seam)))
        yield from ((share, layer) for share, layer in found if layer is not None)
