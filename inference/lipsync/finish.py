"""A persona's last touch on what the mesh renderer has drawn (:mod:`inference.persona`).

It paints the mouth of the one person that it knows, in every shot that shows that person, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inference.base import InputError
from inference.face.model import FaceModel
from inference.face.people import SAME
from inference.face.pose import Pose
from inference.lipsync.planes import to_bgr
from inference.lipsync.render.cast import Cast, Script
from inference.lipsync.render.tracks import Tracks
from inference.lipsync.work import Work

if TYPE_CHECKING:
    from inference.persona.model import Painter, Persona

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

LOOKED = 250  #: clear frames of a person, the first ones, among which some are looked at to know the face


class Finish:
    """Paints with a persona. Safe to share between threads."""

    def __init__(self, persona: Persona, painter: Painter, tracks: Tracks, script: Script, mine: list[bool]) -> None:
        """``mine``: for each plan of the script whether it is for the persona's person, whose ``tracks`` these are."""
        self._square, self._painter, self._tracks, self._script = persona.square, painter, tracks, script
        self._mine = np.zeros(len(script), np.bool_)
        self._asked, self._share = np.zeros((len(script), 0), np.float32), np.zeros(len(script), np.float32)
        ends = [*script.starts[1:].tolist(), len(script)]
        told, shares = [], []
        for plan, own, start, stop in zip(script.plans, mine, script.starts.tolist(), ends, strict=True):
            self._mine[start:stop] = own
            angles = np.nan_to_num(tracks.pose.angles[plan.frames])
            told.append(persona.scale.inputs(plan.opening, plan.width + tracks.rest_width, angles))
            shares.append(persona.scale.share(angles))
        if told:
            self._asked, self._share = np.concatenate(told), np.concatenate(shares)

    @property
    def beyond(self) -> int:
        """Output frames of its person whose head is turned further than it was learned."""
        return int((self._mine & self._tracks.found[self._script.frames] & (self._share < 1)).sum())

    def laid(self, drawn: Frame, k: int, at: tuple[int, int]) -> Frame:
        """Output frame ``k``, or the part of it that begins at ``at`` (x, y), with the person's own mouth."""
        index = int(self._script.frames[k])
        strength = float(self._tracks.strength[index] * self._share[k])
        if not self._mine[k] or not self._tracks.found[index] or strength <= 0:
            return drawn
        head = self._tracks.pose.take(index)
        head = Pose(head.scale, head.rotation, head.translation - np.array([*at, 0], np.float32))
        square = self._square.cut(drawn, head)
        change = self._painter.changes(square[None], self._asked[k : k + 1])[0]
        result: Frame = drawn.copy()
        self._square.lay(result, change * np.float32(strength), head)
        return result


def finishing(work: Work, cast: Cast, script: Script, model: FaceModel, device: str) -> Finish:
    """What paints with the job's persona. Raises :class:`InputError` when it is not of anybody in the template."""
    from inference.persona.model import Painter, Persona

    assert work.persona is not None
    persona = Persona.load(work.persona)
    number = _whose(work, persona, model, len(cast.renderers))
    renderer = cast.renderers[number]
    if not renderer.borrows:
        raise InputError(
            f"persona: {work.persona} corrects mouths that are borrowed from a template in which the person "
            f"talks; in {work.info.path} nobody does",
            hint="use a template in which the person talks, such as the video it was learned from, or leave it out",
        )
    painter = Painter(persona.state, persona.square.cover, device)
    finish = Finish(persona, painter, renderer.tracks, script, [person == number for person in script.people])
    if finish.beyond:
        work.warn(
            f"persona: the head is turned further than it was learned in {finish.beyond} of {len(script)} frames; "
            "it paints less in them, or nothing"
        )
    return finish


def _whose(work: Work, persona: Persona, model: FaceModel, people: int) -> int:
    """The number of the person whom the persona is of."""
    alike = [_likeness(work, persona, model, number) for number in range(people)]
    best = int(np.argmax(alike))
    if alike[best] < SAME:
        raise InputError(
            f"persona: {work.persona} is of another face than {work.info.path} shows "
            f"(likeness {alike[best]:.2f}, at least {SAME:g} for the same person)",
            hint="use the persona of this person, or leave it out",
        )
    return best


def _likeness(work: Work, persona: Persona, model: FaceModel, number: int) -> float:
    from inference.persona.identity import Sitter, chosen

    wanted = chosen(work.analysis, number, within=LOOKED)
    among = set(wanted.tolist())
    sitter = Sitter(work.analysis, number, model.mesh)

    def seen() -> Iterator[tuple[int, Frame]]:
        stretch = np.arange(wanted[0], wanted[-1] + 1, dtype=np.int32)  # in one go: each jump opens the file again
        for index, planes in zip(stretch.tolist(), work.template.read(stretch), strict=True):
            work.check()
            if index in among:
                yield index, to_bgr(planes)

    return sitter.see_all(seen()).traits().likeness(persona.traits)
