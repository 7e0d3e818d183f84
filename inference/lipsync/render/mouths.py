"""A talking template's own mouths: kept as small pictures, and chosen so that they say something else.

Which mouth for which output frame is a shortest path (Viterbi): being near to the asked opening, width and pose
costs little, going on in the template's own time nothing, jumping a lot, and the more so the less alike the two
mouths look. The idea is Video Rewrite's (Bregler, Covell, Slaney 1997); around each jump two mouths are
cross-faded on one geometry.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render import rows
from inference.lipsync.render.tracks import Tracks
from inference.lipsync.render.warp import Box, around

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

#: The skin in which a foreign mouth ends, from the nose to the chin.
HULL = (164, 167, 393, 206, 426, 216, 436, 212, 432, 214, 434, 210, 430, 211, 431, 32, 262, 208, 428, 199, 175)
FEATHER = 0.10  #: eye distances over which it fades
BUDGET = 64 << 20  #: bytes of pictures kept per template
RUN = 50  #: frames; when not all mouths fit, whole stretches of this length are kept

NEAR_OPENING, NEAR_WIDTH, NEAR_ANGLE = 0.02, 0.035, 7.0  #: differences that cost 1: eye distances, degrees
SKIP, STAY, BACK, JUMP, JUMP_MORE = 0.4, 0.3, 0.8, 3.0, 8.0  #: STAY < BACK / 2, or silence would swing to and fro
STAY_MOVED = 1.5  #: more for staying, per NEAR_OPENING by which the asked opening changes
NEAR_STRETCH, STRETCH_MOST = 0.12, 16.0  #: height of teeth beyond their own that costs 1; the most it costs
CROPPED, CROPPED_FROM = 0.5, 0.04  #: share of the cost that a mouth too far open is let off; opening from which it is
TOOTHED = 0.15  #: share of what lies between the lips that is teeth, from which it is let off all of that
SOFT_COST, TENSE_COST = 40.0, 0.5  #: of a blurred mouth (share of sharpness lost, squared), of an unusual one (unit)
OTHER_SHOT = 1.5  #: of a mouth seen in another shot: another light, another camera
LEAP = 100  #: frames
LIKE_OPEN = 12  #: mouths that are a little more, and as many that are a little less open, among which one is blurred
PARTED_COST, SHUT_BELOW = 5.0, 0.03  #: of teeth in a mouth that shall be shut, and when it shall be
LIGHTER = 30.0  #: grey levels between lips and what is between them that mean teeth
TENSE = 0.02  #: eye distances of lip shape off the usual that count as one unit
ALIKE = 9.0  #: grey levels between two thumbnails that cost 1
INNER = 0.3  #: of a thumbnail's width: beyond this from its middle looks count less
CANDIDATES = 160  #: mouths looked at per output frame
BLOCK, OVERLAP = 1500, 60  #: frames per stretch of the path, and beyond it, so that memory stays flat
LEAD = 110  #: frames of the first stretch: who waits for them waits for no more than these
THUMB = (20, 14)


@dataclass(frozen=True)
class Mouths:
    """M mouths of one template, in the order of its frames."""

    frame: NDArray[np.int32]  #: (M,) template frames
    origin: NDArray[np.int32]  #: (M, 2) x, y of each picture's first pixel in its frame
    pictures: tuple[Frame, ...]  #: M × (h, w, 3) BGR
    sharpness: Array  #: (M,) 1 = the median mouth
    parted: Array  #: (M,) 0..1, how much something light shows between the lips
    teeth: Array  #: (M, ROWS) how much of each row between the lips is teeth (:func:`rows.teeth`)
    thumb: NDArray[np.uint8]  #: (M, 14, 20) all in the same place and size, for comparing

    def __len__(self) -> int:
        return len(self.frame)

    def save(self) -> dict[str, NDArray[np.generic]]:
        """Arrays for numpy's savez."""
        sizes = np.array([picture.shape[:2] for picture in self.pictures], np.int32).reshape(-1, 2)
        flat = [picture.ravel() for picture in self.pictures]
        return {
            "mouth_frame": self.frame,
            "mouth_origin": self.origin,
            "mouth_size": sizes,
            "mouth_pixels": np.concatenate(flat) if flat else np.zeros(0, np.uint8),
            "mouth_sharpness": self.sharpness,
            "mouth_parted": self.parted,
            "mouth_teeth": self.teeth,
            "mouth_thumb": self.thumb,
        }

    @classmethod
    def load(cls, arrays: dict[str, NDArray[np.generic]]) -> Mouths:
        """From what ``save`` gave; KeyError when some are missing."""
        sizes = np.asarray(arrays["mouth_size"], np.int64)
        ends = np.concatenate([[0], np.cumsum(sizes.prod(axis=1) * 3)])
        pixels = np.asarray(arrays["mouth_pixels"], np.uint8)
        pictures = tuple(
            pixels[ends[k] : ends[k + 1]].reshape(int(height), int(width), 3) for k, (height, width) in enumerate(sizes)
        )
        return cls(
            np.asarray(arrays["mouth_frame"], np.int32),
            np.asarray(arrays["mouth_origin"], np.int32),
            pictures,
            np.asarray(arrays["mouth_sharpness"], np.float32),
            np.asarray(arrays["mouth_parted"], np.float32),
            np.asarray(arrays["mouth_teeth"], np.float32),
            np.asarray(arrays["mouth_thumb"], np.uint8),
        )


def hull_box(points: Array, unit: float) -> Box:
    """Where the mouth lies in a frame whose points (V, 3) are given in pixels, with its fading margin."""
    return around(points[list(HULL), :2], FEATHER * unit + 3)


def frames_wanted(tracks: Tracks, width: int, height: int, budget: int = BUDGET) -> NDArray[np.int64]:
    """The template frames whose mouths to keep: all that have a whole face, or evenly spread stretches of them."""
    good = []
    total = 0
    for index in np.flatnonzero(tracks.found & (tracks.strength >= 1)):
        box = hull_box(tracks.pixels(int(index)), float(tracks.pose.scale[index]))
        if box.within(width, height) == box:
            good.append(int(index))
            total += box.width * box.height * 3
    if total <= budget or not good:
        return np.array(good, np.int64)
    runs = [good[start : start + RUN] for start in range(0, len(good), RUN)]
    keep = max(1, int(len(runs) * budget / total))
    chosen = np.unique(np.linspace(0, len(runs) - 1, keep).round().astype(int))
    return np.array([index for k in chosen for index in runs[k]], np.int64)


class Collector:
    """Gathers mouths, frame by frame."""

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        self._frames: list[int] = []
        self._origins: list[tuple[int, int]] = []
        self._crops: list[Frame] = []
        self._thumbs: list[NDArray[np.uint8]] = []
        self._sharpness: list[float] = []
        self._parted: list[float] = []
        self._teeth: list[Array] = []

    def add(self, index: int, picture: Frame) -> None:
        """The mouth in the template frame ``index``, (H, W, 3) BGR; they come in order."""
        points, unit = self._tracks.pixels(index), float(self._tracks.pose.scale[index])
        box = hull_box(points, unit).within(picture.shape[1], picture.shape[0])
        thumb, sharp = look(picture, points, unit)
        self._frames.append(index)
        self._origins.append((box.x, box.y))
        self._crops.append(box.cut(picture).copy())
        self._thumbs.append(thumb)
        self._sharpness.append(sharp)
        self._parted.append(_parted(picture, points))
        self._teeth.append(rows.teeth(picture, points))

    def mouths(self) -> Mouths:
        """All that were added."""
        relative = np.array(self._sharpness, np.float32)
        if len(relative):
            relative /= max(float(np.median(relative)), 1e-6)
        return Mouths(
            np.array(self._frames, np.int32),
            np.array(self._origins, np.int32).reshape(-1, 2),
            tuple(self._crops),
            relative,
            np.array(self._parted, np.float32),
            np.array(self._teeth, np.float32).reshape(-1, rows.ROWS),
            np.array(self._thumbs, np.uint8).reshape(-1, THUMB[1], THUMB[0]),
        )


def look(picture: Frame, points: Array, unit: float) -> tuple[NDArray[np.uint8], float]:
    """A thumbnail of the mouth, upright and of fixed size, and how sharp it is."""
    side = 96
    centre = points[mesh.LIP_OUTER, :2].mean(axis=0)
    axis = points[mesh.EYE_CORNER_LEFT, :2] - points[mesh.EYE_CORNER_RIGHT, :2]
    axis = axis / max(float(np.linalg.norm(axis)), 1e-6)
    scale = side / (0.8 * unit)
    turn = np.array([[axis[0], axis[1]], [-axis[1], axis[0]]]) * scale
    shift = np.array([side / 2, side * 0.35]) - turn @ centre
    matrix = np.concatenate([turn, shift[:, None]], axis=1)
    upright = cv2.warpAffine(picture, matrix, (side, round(side * 0.7)), borderMode=cv2.BORDER_REPLICATE)
    gray = cv2.cvtColor(upright, cv2.COLOR_BGR2GRAY)
    detail = cv2.Laplacian(cv2.GaussianBlur(gray, (0, 0), 0.8), cv2.CV_32F)
    thumb = np.asarray(cv2.resize(gray, THUMB, interpolation=cv2.INTER_AREA), np.uint8)
    return thumb, float(np.sqrt((detail**2).mean()))


def _parted(picture: Frame, points: Array) -> float:
    """How much lighter the line between the lips is than the lips, 0..1: teeth, however small the gap measures."""
    upper, lower = points[mesh.LIP_INNER_UPPER[3:-3], :2], points[mesh.LIP_INNER_LOWER[3:-3], :2]
    outer = points[mesh.LIP_OUTER_UPPER[3:-3], :2], points[mesh.LIP_OUTER_LOWER[3:-3], :2]
    at = np.stack([(upper + lower) / 2, (upper + outer[0]) / 2, (lower + outer[1]) / 2]).astype(np.float32)
    gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    between, above, below = cv2.remap(gray, at[..., 0].copy(), at[..., 1].copy(), cv2.INTER_LINEAR).mean(axis=1)
    return float(np.clip((between - (above + below) / 2) / LIGHTER, 0, 1))


class Chooser:
    """Chooses mouths for a curve."""

    def __init__(self, mouths: Mouths, tracks: Tracks, residual: Array) -> None:
        """``residual`` (M, V, 3): their shapes without the part that opening and width explain."""
        at = mouths.frame
        self.count = len(mouths)
        self._opening, self._width = tracks.opening[at], tracks.width[at]
        self._angles = tracks.pose.angles[:, :2]
        self._own_angles = self._angles[at]
        lips = residual[:, np.concatenate([mesh.LIP_INNER, mesh.LIP_OUTER])]
        lips = lips - lips.mean(axis=1, keepdims=True)
        usual = np.median(lips, axis=0)
        tense = np.sqrt(((lips - usual) ** 2).sum(axis=2).mean(axis=1)) / TENSE
        self._parted, self._teeth = mouths.parted, mouths.teeth
        usual = usual_sharpness(mouths.sharpness, self._opening)
        soft = np.maximum(0, 1 - mouths.sharpness / np.maximum(usual, 1))
        self._own_cost = (TENSE_COST * tense**2 + SOFT_COST * soft**2).astype(np.float32)
        self._looks = _looks(mouths)
        self._shot, self._own_shot = tracks.shot, tracks.shot[at]
        self._transition = _transitions(moments(mouths, tracks), lips, self._looks)

    def choose(self, opening: Array, width: Array, frames: NDArray[np.integer], first: int = 0) -> NDArray[np.int32]:
        """(T,) the mouth for each output frame, given its target shape and the template frame it shows.

        ``first`` is the number of the first one. The path in a stretch, which ends after LEAD frames of the video and
        then after every BLOCK, depends on no frame more than OVERLAP behind its end.
        """
        total = len(opening)
        path = np.empty(total, np.int32)
        before = -1
        for start, stop in itertools.pairwise(_edges(first, total)):
            ahead = min(total, stop + OVERLAP)
            cost = self._costs(opening[start:ahead], width[start:ahead], frames[start:ahead])
            if before >= 0:
                cost[0] += self._transition[before]
            path[start:stop] = self._shortest(cost, _changes(opening[start:ahead]))[: stop - start]
            before = int(path[stop - 1])
        return path

    def unlike(self, opening: Array) -> Callable[[int, int], float]:
        """How far, of (T,) openings, the k-th is from that of a mouth: the square over NEAR_OPENING, as it is felt."""
        asked, own = _felt(opening) / NEAR_OPENING, _felt(self._opening) / NEAR_OPENING
        return lambda k, mouth: float((asked[k] - own[mouth]) ** 2)

    def apart(self, one: int, other: int) -> float:
        """How unlike two mouths look; 1 is just about seen when they follow each other."""
        return float(np.linalg.norm(self._looks[one] - self._looks[other]))

    def _costs(self, opening: Array, width: Array, frames: NDArray[np.integer]) -> Array:
        lacks = _felt(opening)[:, None] - _felt(self._opening)
        # Teeth of a mouth that is too far open are covered by the lips: that looks better than pulling them.
        toothed = np.clip(self._teeth.mean(axis=1) / TOOTHED, 0, 1)
        spare = CROPPED * np.clip(opening[:, None] / CROPPED_FROM - 1, 0, 1) * (lacks < 0) * toothed
        cost = (1 - spare) * (lacks / NEAR_OPENING) ** 2
        pulled = np.maximum(rows.stretch(self._teeth, self._opening, opening) - 1, 0) / NEAR_STRETCH
        cost += np.minimum(pulled**2, STRETCH_MOST)
        cost += ((width[:, None] - self._width) / NEAR_WIDTH) ** 2
        for axis in (0, 1):
            angle = np.nan_to_num(self._angles[frames, axis])
            cost += ((angle[:, None] - self._own_angles[:, axis]) / NEAR_ANGLE) ** 2
        cost += OTHER_SHOT * (self._shot[frames][:, None] != self._own_shot)
        shut = np.clip(1 - opening / SHUT_BELOW, 0, 1)
        return np.asarray(cost + self._own_cost + PARTED_COST * shut[:, None] * self._parted, np.float32)

    def _shortest(self, cost: Array, changes: Array) -> NDArray[np.int32]:
        """The cheapest path through (T, M) costs, of the CANDIDATES cheapest mouths at every step.

        ``changes`` (T,) is what it costs more to stay, since something else is asked for than a frame before.
        """
        total = len(cost)
        count = min(CANDIDATES, self.count)
        if count < self.count:
            chosen = np.sort(np.argpartition(cost, count - 1, axis=1)[:, :count], axis=1)
        else:
            chosen = np.broadcast_to(np.arange(count), (total, count))
        back = np.zeros((total, count), np.int16)
        best = cost[0, chosen[0]]
        columns = np.arange(count)
        for step in range(1, total):
            reach = best[:, None] + self._transition[chosen[step - 1][:, None], chosen[step][None, :]]
            if changes[step] > 0:
                reach[chosen[step - 1][:, None] == chosen[step][None, :]] += changes[step]
            back[step] = reach.argmin(axis=0)
            best = reach[back[step], columns] + cost[step, chosen[step]]
        path = np.empty(total, np.int32)
        at = int(best.argmin())
        for step in range(total - 1, -1, -1):
            path[step] = chosen[step, at]
            at = int(back[step, at])
        return path


def _edges(first: int, count: int) -> list[int]:
    """Where the stretches of ``count`` frames from number ``first`` on begin and end, from 0."""
    inner = range(LEAD - first, count, BLOCK)
    return sorted({0, *(edge for edge in inner if edge > 0), count})


def _felt(opening: Array) -> Array:
    """Openings on a scale of what an eye notices: ajar or shut matters more than wide or wider."""
    return np.asarray(opening + 0.04 * (1 - np.exp(-np.maximum(opening, 0) / 0.03)), np.float32)


def _changes(opening: Array) -> Array:
    """(T,) what it costs more to stay with a mouth at each of T openings."""
    moved = np.abs(np.diff(_felt(opening), prepend=_felt(opening[:1]))) / NEAR_OPENING
    return np.asarray(STAY_MOVED * moved, np.float32)


def usual_sharpness(sharpness: Array, opening: Array) -> Array:
    """(M,) the median sharpness of mouths about as far open: teeth have more edges than lips, blurred or not."""
    order = np.argsort(opening, kind="stable")
    reach = min(LIKE_OPEN, (len(order) - 1) // 2)
    padded = np.pad(sharpness[order], reach, mode="reflect")
    usual = np.empty_like(sharpness)
    usual[order] = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)
    return np.maximum(usual, 1e-3)


def _looks(mouths: Mouths) -> Array:
    """(M, 280) thumbnails as vectors whose distance is 1 when they are ALIKE grey levels apart."""
    count = len(mouths)
    down, across = np.mgrid[: THUMB[1], : THUMB[0]].astype(np.float32)
    # The mouth lies at a third of the height (see :func:`look`), and what is in it is what one sees change.
    off = np.hypot(across - (THUMB[0] - 1) / 2, down - 0.4 * (THUMB[1] - 1)) / (INNER * THUMB[0])
    weight = np.exp(-0.5 * off**2).astype(np.float32) + np.float32(0.25)
    weight *= np.sqrt(weight.size / np.square(weight).sum())
    thumbs = mouths.thumb.reshape(count, -1).astype(np.float32)
    thumbs = (thumbs - thumbs.mean(axis=1, keepdims=True)) * weight.ravel()
    return np.asarray(thumbs / np.float32(ALIKE * np.sqrt(weight.size)), np.float32)


def moments(mouths: Mouths, tracks: Tracks) -> NDArray[np.int64]:
    """(M,) when each mouth was seen, in frames, with a leap at every cut: none goes on from one shot into the next."""
    return np.asarray(mouths.frame + LEAP * tracks.shot[mouths.frame].astype(np.int64), np.int64)


def _transitions(moment: NDArray[np.int64], lips: Array, looks: Array) -> Array:
    """(M, M) what it costs to show mouth k after mouth j."""
    count = len(moment)
    step = moment[None, :] - moment[:, None]
    # What would have come next is what a jump is seen against.
    following = np.minimum(np.arange(count) + 1, count - 1)
    following = np.where(moment[following] == moment + 1, following, np.arange(count))
    seen = np.sqrt(_squared(looks[following], looks))
    flat = lips.reshape(count, -1)
    shapes = np.sqrt(_squared(flat[following], flat) / lips.shape[1]) / TENSE
    cost: Array = (JUMP + np.minimum(JUMP_MORE, seen + shapes)).astype(np.float32)
    cost[step == 1] = 0
    cost[step == 2] = SKIP
    cost[step == 0] = STAY
    cost[step == -1] = BACK
    return cost


def _squared(one: Array, other: Array) -> Array:
    distance = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None, :] - 2 * one @ other.T
    return np.asarray(np.maximum(distance, 0), np.float32)
