"""The renderer: one person in a template's frames with another mouth.

    follow(analysis)                  → the Tracks of each person
    prepare(people, frames, model)    one pass over the template → Materials of each (to be cached)
    MeshRenderer(tracks, materials)   light; one per person and process
    .plan(opening, width, frames)     the curve of a shot → Plan (the same in every process)
    .render(frame, index, target)     one frame; a function of its arguments and nothing else

Pixels that need not move are the template's own, bit by bit, and a frame without a face comes back as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.face import filters, mesh, pose
from inference.lipsync.render import compose, own_inside, seam
from inference.lipsync.render.basis import OPENING_MAX, Basis, build, extend, soften
from inference.lipsync.render.between import Goal
from inference.lipsync.render.inside import PARTED, Inside, Start
from inference.lipsync.render.interior import Interior
from inference.lipsync.render.materials import Materials
from inference.lipsync.render.mouths import Chooser, moments
from inference.lipsync.render.plan import Plan, Target, fade_jumps
from inference.lipsync.render.tracks import SHUT, Kind, Tracks
from inference.lipsync.render.transplant import Transplanter
from inference.lipsync.render.warp import Painter

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

CLOSED = 0.008  #: openings below this leave shut lips shut
WIDTH_LIMITS = (-0.14, 0.12)  #: eye distances a mouth may be narrower or wider than at rest
PLAIN_WIDTH = 0.57  #: eye distances between the corners of shut mouths: median of 17 people, who spread by .03
CORNERS_IN, CORNERS_SIGMA = 0.25, 1.5  #: share of a smile's greater width that shut lips lose; output frames
STRETCH = 1.7  #: how far an open mouth that is not filled with teeth may be stretched
AROUND = 0.3  #: eye distances beyond the resting face's box that rendering may look at
OWN_REACH = 0.045  #: own mouths are stretched at most this far beyond the widest of them


class MeshRenderer:
    """Renders one person. Safe to share between threads: nothing in it changes."""

    def __init__(self, tracks: Tracks, materials: Materials, face: mesh.Mesh) -> None:
        self.tracks = tracks
        self.materials = materials
        self.basis: Basis = build(face)
        self._painter = Painter(self.basis)
        self._mover = compose.Mover(self._painter)
        self.parted = self.tracks.rest_opening <= PARTED
        toothed = bool(materials.enamel.any())
        # Open lips meet nearer to the upper one: the jaw does most of the way.
        gap = float(np.nanmean(self.tracks.opening[self.tracks.found]))
        shut = seam.close(self.tracks.mean + self.basis.move(-gap, 0)[: mesh.POINTS], materials.seam)
        self.interior = Interior(shut, materials.white, materials.enamel if toothed else None)
        self.inside = Inside(self.interior, self._painter, materials.filled, toothed)
        self._own = self.tracks.kind is Kind.TALKING and len(materials.mouths) > 0
        if self._own:
            self._residual = residual(self.tracks, self.basis, materials.mouths.frame)
            self.transplant = Transplanter(self._painter, materials.mouths, self.tracks)
            self._chooser = Chooser(materials.mouths, self.tracks, self._residual)
            self._moments = moments(materials.mouths, self.tracks)

    @property
    def borrows(self) -> bool:
        """Whether the mouths it shows are the template's own."""
        return self._own

    def plan(self, opening: Array, width: Array, frames: NDArray[np.integer], first: int = 0) -> Plan:
        """What to show at each of T output frames.

        ``opening`` (T,) is the asked inner-lip gap and ``width`` (T,) how much wider than at rest the mouth shall
        be, both in eye distances; ``frames`` (T,) is the template frame that each output frame shows; ``first`` is the
        number of the first one in the video. No frame depends on any more than OVERLAP behind the end of its stretch
        of the path (:meth:`Chooser.choose`).
        """
        shown = np.asarray(frames, np.int32)
        asked = np.asarray(opening, np.float32)
        wide = np.clip(np.asarray(width, np.float32), *WIDTH_LIMITS)
        if not len(asked) == len(wide) == len(shown):
            raise ValueError(f"{len(asked)} openings, {len(wide)} widths, {len(shown)} frames: must be as many")
        if len(shown) and not 0 <= int(shown.min()) <= int(shown.max()) < self.tracks.frames:
            raise ValueError(f"frames must lie in 0..{self.tracks.frames - 1}")
        limited = soften(asked)
        mouths, blend = np.full((len(shown), 2), -1, np.int32), np.zeros(len(shown), np.float32)
        if self._own:
            widest = float(np.quantile(self.tracks.opening[self.materials.mouths.frame], 0.99)) + OWN_REACH
            if widest < OPENING_MAX:
                limited = soften(limited, top=widest, knee=0.75 * widest)
            chooser = self._chooser
            path = chooser.choose(limited, wide + self.tracks.rest_width, shown, first)
            mouths, blend = fade_jumps(path, self._moments, chooser.unlike(limited), chooser.apart)
        elif not self.parted and not self.materials.filled:  # it has nothing but its own inside
            widest = min(OPENING_MAX, STRETCH * self.tracks.rest_opening + OWN_REACH)
            limited = soften(limited, top=widest, knee=0.75 * widest)
        if not self._own and not self.parted:
            wide = np.maximum(wide - self._corners_in(limited), WIDTH_LIMITS[0])
        limited, wide = self.materials.calibration.drive(limited, wide)
        limited = np.where(limited < CLOSED, 0, limited).astype(np.float32)
        return Plan(shown, limited, wide, mouths, blend)

    def _corners_in(self, opening: Array) -> Array:
        """(T,) eye distances by which a smile is less wide while its lips are nearer to each other than at rest."""
        smile = max(0.0, self.tracks.rest_width - PLAIN_WIDTH)
        shut = np.clip(1 - opening / max(self.tracks.rest_opening, CLOSED), 0, 1)
        return np.asarray(CORNERS_IN * smile * filters.gaussian(shut, CORNERS_SIGMA), np.float32)

    def window(self, index: int, width: int, height: int) -> tuple[int, int, int, int] | None:
        """Left, top, right, bottom (even) of what rendering frame ``index`` looks at; None where it does nothing."""
        if not self.tracks.found[index] or self.tracks.strength[index] <= 0:
            return None
        unit = float(self.tracks.pose.scale[index])
        box = compose.face_box(self.tracks.pixels(index), unit, width, height)
        box = box.grow(round(AROUND * unit)).within(width, height)
        left, top = box.x // 2 * 2, box.y // 2 * 2
        right, bottom = (box.x + box.width + 1) // 2 * 2, (box.y + box.height + 1) // 2 * 2
        return None if box.empty else (left, top, min(width, right), min(height, bottom))

    def render(self, frame: Frame, index: int, target: Target, at: tuple[int, int] = (0, 0)) -> Frame:
        """(H, W, 3) template frame ``index`` with the target's mouth; a new array, or ``frame`` itself untouched.

        ``frame`` may be a part of it that holds ``window(index)`` and whose first pixel lies at ``at`` (x, y).
        """
        if not self.tracks.found[index] or self.tracks.strength[index] <= 0:
            return frame
        head = self.tracks.pose.take(index)
        if at != (0, 0):
            head = pose.Pose(head.scale, head.rotation, head.translation - np.array([*at, 0], np.float32))
        if target.pictures:
            return self._with_own_mouths(frame, index, target, head)
        return self._with_drawn_inside(frame, index, target, head)

    def _with_drawn_inside(self, frame: Frame, index: int, target: Target, head: pose.Pose) -> Frame:
        tracks = self.tracks
        strength, unit = float(tracks.strength[index]), float(head.scale[0])
        opening, width = target.opening * strength, target.width * strength
        start = Start.of(tracks.shape[index], float(tracks.opening[index]), self.materials.seam, self.parted)
        moved = start.moved(self.basis, opening, width)
        source, goal = head.to_pixels(start.shape[None])[0], head.to_pixels(moved[None])[0]
        change = self._mover.move(frame, source, head.to_pixels(start.tucked(moved)[None])[0], unit)
        if change is None:
            return frame
        result: Frame = frame.copy()
        box, pixels = change
        box.cut(result)[:] = pixels
        skin = compose.skin(frame, source, unit)
        for share, layer in self.inside.layers(
            start, (source, goal), head, (opening, width), skin=skin, picture=lambda: frame
        ):
            compose.lay(result, layer, share)
        return result

    def with_own_lips(self, index: int, target: Target, head: pose.Pose) -> tuple[Array, Goal]:
        """Where the points (550, 3; pixels) of template frame ``index`` are, and where they go for borrowed mouths."""
        tracks, strength = self.tracks, np.float32(self.tracks.strength[index])
        lips = [np.float32(share) * self._residual[mouth] for mouth, share in target.shapes]
        wanted = np.sum(lips, axis=0) + self.basis.move(target.opening, target.width + tracks.rest_width)
        start = extend(tracks.shape[index])
        moved = start + strength * self.basis.reach[:, None] * (wanted - start)
        pixels = head.to_pixels(moved[None])[0]
        goal = Goal(pixels, moved, self.interior.contour(pixels).astype(np.float32), float(head.scale[0]))
        return head.to_pixels(start[None])[0], goal

    def _with_own_mouths(self, frame: Frame, index: int, target: Target, head: pose.Pose) -> Frame:
        tracks = self.tracks
        unit, strength = float(head.scale[0]), np.float32(tracks.strength[index])
        source, goal = self.with_own_lips(index, target, head)
        result: Frame = frame.copy()
        change = self._mover.move(frame, source, goal.pixels, unit, lips=False)
        if change is not None:
            box, pixels = change
            box.cut(result)[:] = pixels
        self.transplant.lay(result, goal, target.pictures, float(strength))
        # Open mouths that had to be shut for want of shut ones: their teeth would show as a white seam.
        origin = self.materials.mouths.frame
        gap = sum(share * float(tracks.opening[origin[mouth]]) for mouth, share in target.pictures)
        forced = float(np.clip(gap / SHUT - 1, 0, 1)) * float(strength)
        if forced > 0:
            line = own_inside.line(result.copy(), goal.pixels, goal.pixels, unit, target.opening)
            if line is not None:
                compose.lay(result, line, forced)
        return result


def residual(tracks: Tracks, basis: Basis, frames: NDArray[np.integer]) -> Array:
    """(M, 550, 3) the shapes of some frames without what their own opening and width explain."""
    channels = np.stack([tracks.opening[frames], tracks.width[frames]], axis=1)
    return np.asarray(extend(tracks.shape[frames]) - np.einsum("nk,kvc->nvc", channels, basis.motion), np.float32)
