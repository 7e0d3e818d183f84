"""A mouth in numbers: five channels per frame, in units of the eye distance.

All channels are read in head coordinates (see :mod:`inference.face.pose`), so neither a turn of the head nor
the size of the face moves them; ``of_pixels`` gives the two that need no pose. The channels are those of the
articulation model:

    opening     gap between the inner lips, 13–14
    width       mouth corners, 61–291
    lip_height  outer lips, 0–17
    protrusion  how far the lips stand out before the line of nose base and chin (larger = pursed)
    jaw         chin below the eyes' line
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh

Channel = NDArray[np.float32]  #: (N,)


@dataclass(frozen=True)
class Mouth:
    """One value per frame and channel; NaN where there was no face."""

    opening: Channel
    width: Channel
    lip_height: Channel
    protrusion: Channel
    jaw: Channel

    @property
    def table(self) -> NDArray[np.float32]:
        """(N, 5) in the order of :data:`CHANNELS`."""
        return np.stack(astuple(self), axis=1)


CHANNELS: tuple[str, ...] = tuple(field.name for field in fields(Mouth))


def mouth(head: mesh.Points) -> Mouth:
    """The channels of (N, 478, 3) points in head coordinates."""
    lips = head[:, [mesh.LIP_TOP, mesh.LIP_INNER_TOP, mesh.LIP_INNER_BOTTOM, mesh.LIP_BOTTOM], 2].mean(axis=1)
    ground = head[:, [mesh.NOSE_BASE, mesh.CHIN], 2].mean(axis=1)
    eyes = head[:, [mesh.EYE_CORNER_RIGHT, mesh.EYE_CORNER_LEFT], 1].mean(axis=1)
    return Mouth(
        opening=_gap(head, mesh.LIP_INNER_TOP, mesh.LIP_INNER_BOTTOM),
        width=_gap(head, mesh.MOUTH_CORNER_RIGHT, mesh.MOUTH_CORNER_LEFT),
        lip_height=_gap(head, mesh.LIP_TOP, mesh.LIP_BOTTOM),
        protrusion=np.asarray(ground - lips, np.float32),
        jaw=np.asarray(head[:, mesh.CHIN, 1] - eyes, np.float32),
    )


def of_pixels(points: mesh.Points) -> tuple[Channel, Channel]:
    """Opening and width of (N, 478, 3) points in pixels, over the eye distance in the same frame."""
    unit = _gap(points, mesh.EYE_CORNER_RIGHT, mesh.EYE_CORNER_LEFT)
    opening = _gap(points, mesh.LIP_INNER_TOP, mesh.LIP_INNER_BOTTOM) / unit
    width = _gap(points, mesh.MOUTH_CORNER_RIGHT, mesh.MOUTH_CORNER_LEFT) / unit
    return np.asarray(opening, np.float32), np.asarray(width, np.float32)


def eyes_open(head: mesh.Points) -> NDArray[np.float32]:
    """(N, 2) height over width of the right and left eye, about 0.3 open and under 0.12 shut."""
    ratios = []
    for upper, lower, outer, inner in ((159, 145, 33, 133), (386, 374, 263, 362)):
        ratios.append(_gap(head, upper, lower) / np.maximum(_gap(head, outer, inner), 1e-6))
    return np.asarray(np.stack(ratios, axis=1), np.float32)


def _gap(points: mesh.Points, one: int, other: int) -> Channel:
    return np.asarray(np.linalg.norm(points[:, one] - points[:, other], axis=1), np.float32)
