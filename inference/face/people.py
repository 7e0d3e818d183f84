"""Who is who: which shots of a video show the same person.

A shot's face is known by its skin from nose to chin, unwrapped through the mesh and without light
(:mod:`inference.face.covered`), by the shape of the bones that speech does not move, and by the colours of skin and
lips. Taking one person for two costs a few mouths that could have been shared; taking two for one lends somebody
another's mouth. So the least likeness lies above that of any two people measured: of 3,168 pairs of pieces of film with
two of 17 people the most alike reached .59; of 318 pairs with one person 98 % lie above .62, those below in half shade
or turned far aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh, pose
from inference.face.covered import Look, normal

Array = NDArray[np.float32]

SAMPLED = 100  #: frames of a shot that are enough to know a face
SAME = 0.62  #: likeness from which two faces are one person's
BONES, COLOUR = 8.0, 0.006  #: likeness lost per eye distance between bones, and per unit of a* or b*


@dataclass(frozen=True)
class Traits:
    """A face in one shot."""

    look: Array  #: (cells,) detail of the skin: mean 0, variance 1
    bones: Array  #: (P, 3) head coordinates
    colour: Array  #: (4,) a*, b* of skin and of lips

    def likeness(self, other: Traits) -> float:
        """1 for the same face in the same light: the correlation of the looks, less for other bones and colours."""
        alike = float((self.look * other.look).mean())
        bones = float(np.sqrt(((self.bones - other.bones) ** 2).sum(axis=1).mean()))
        return alike - BONES * bones - COLOUR * float(np.abs(self.colour - other.colour).max())


@dataclass(frozen=True)
class Seen:
    """What is known of N frames."""

    points: mesh.Points  #: (N, 478, 3) pixels
    looks: Look  #: (N, cells), of :class:`inference.face.covered.Sight`
    colours: Array  #: (N, 4), of the same


def people(seen: Seen, clear: NDArray[np.bool_], shots: NDArray[np.int32], canonical: mesh.Points) -> NDArray[np.int32]:
    """(N,) the person whom the shot of each frame shows, numbered as they come; −1 in shots without a clear frame.

    ``clear`` (N,) says which frames show the mouth, ``shots`` (N,) which shot each belongs to; ``canonical`` is the
    mesh's own shape.
    """
    result = np.full(len(shots), -1, np.int32)
    known: list[list[Traits]] = []
    for shot in np.unique(shots[clear]):
        at = np.flatnonzero(clear & (shots == shot))
        some = at[np.linspace(0, len(at) - 1, min(SAMPLED, len(at))).round().astype(int)]
        bones = pose.median_shape(seen.points[some], canonical)[mesh.STABLE]
        look = normal(np.median(seen.looks[some], axis=0).astype(np.float32)[None])[0]
        face = Traits(look, bones, np.asarray(np.median(seen.colours[some], axis=0), np.float32))
        number = _known(face, known)
        if number == len(known):
            known.append([])
        known[number].append(face)
        result[shots == shot] = number
    return result


def _known(face: Traits, known: Sequence[Sequence[Traits]]) -> int:
    """The number of the person who looks most like that in one of the shots before, or a new one."""
    likeness = [max(face.likeness(other) for other in faces) for faces in known]
    return int(np.argmax(likeness)) if max(likeness, default=0.0) >= SAME else len(known)
