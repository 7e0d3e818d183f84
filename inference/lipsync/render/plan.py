"""What each output frame shows: the asked shape made reachable, and the mouths it is shown with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

FADE, FADE_MORE = 4, 4  #: output frames over which one stretch of mouths becomes the next; more for those alike
APART = 3.0  #: how unlike two mouths look (:meth:`Chooser.apart`) from which a fade is no longer than FADE
FAIR = 3.0  #: difference in being unlike what is asked for up to which both mouths of a fade are as good
SHAPE_SIGMA, QUIET_SIGMA = 1.5, 5.0  #: output frames over which the shape of borrowed lips is smoothed; in silence
QUIET = 0.012  #: change of the opening within QUIET_SIGMA frames up to which a mouth is silent

#: output frames before the end of what is certain in a path of mouths from which a target may depend on what is not: a
#: jump behind that end shortens the fade of one before it, and shapes are smoothed over both
REACH = (FADE + FADE_MORE) * 3 // 2 + int(np.ceil(2.5 * QUIET_SIGMA))

Weights = tuple[tuple[int, float], ...]  #: (mouth, share) with shares adding up to 1


@dataclass(frozen=True)
class Target:
    """One output frame."""

    opening: float  #: eye distances, calibrated and limited
    width: float  #: eye distances wider than the mouth at rest, calibrated
    pictures: Weights = ()  #: the template's own mouths to be seen; none: the inside is drawn
    shapes: Weights = ()  #: and those whose lips give the shape


@dataclass(frozen=True)
class Plan:
    """T output frames; every array has T rows, so it can be saved, sent and cut freely."""

    frames: NDArray[np.int32]  #: (T,) template frame shown
    opening: Array  #: (T,)
    width: Array  #: (T,)
    mouths: NDArray[np.int32]  #: (T, 2) the two mouths blended, −1 where none
    blend: Array  #: (T,) share of the second one

    @classmethod
    def idle(cls, frames: NDArray[np.int32]) -> Plan:
        """Template frames (T,) that stay as they are."""
        still = np.zeros(len(frames), np.float32)
        return cls(frames, still, still, np.full((len(frames), 2), -1, np.int32), still)

    def __len__(self) -> int:
        return len(self.frames)

    def target(self, k: int) -> Target:
        """Output frame ``k``."""
        return Target(float(self.opening[k]), float(self.width[k]), self._pictures(k), self._shapes(k))

    def __getitem__(self, k: int) -> Target:
        return self.target(k)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """For numpy's savez; ``Plan(**arrays)`` is the way back."""
        return {
            "frames": self.frames,
            "opening": self.opening,
            "width": self.width,
            "mouths": self.mouths,
            "blend": self.blend,
        }

    def _pictures(self, k: int) -> Weights:
        one, other, share = int(self.mouths[k, 0]), int(self.mouths[k, 1]), float(self.blend[k])
        if one < 0:
            return ()
        if other < 0 or share <= 0 or one == other:
            return ((one, 1.0),)
        return ((one, 1 - share), (other, share))

    def _shapes(self, k: int) -> Weights:
        if self.mouths[k, 0] < 0:
            return ()
        around = self.opening[max(0, k - int(QUIET_SIGMA)) : k + int(QUIET_SIGMA) + 1]
        moving = min(1.0, max(0.0, float(around.max() - around.min()) / QUIET - 1))
        sigma = SHAPE_SIGMA * moving + QUIET_SIGMA * (1 - moving)
        reach = int(np.ceil(2.5 * sigma))
        shares: dict[int, float] = {}
        for at in range(max(0, k - reach), min(len(self), k + reach + 1)):
            gain = float(np.exp(-0.5 * ((at - k) / sigma) ** 2))
            for mouth, share in self._pictures(at):
                shares[mouth] = shares.get(mouth, 0.0) + gain * share
        total = sum(shares.values())
        return tuple((mouth, share / total) for mouth, share in sorted(shares.items()))


def fade_jumps(
    path: NDArray[np.int32],
    moment: NDArray[np.int64],
    unlike: Callable[[int, int], float],
    apart: Callable[[int, int], float],
) -> tuple[NDArray[np.int32], Array]:
    """(T, 2) mouths and (T,) shares for a path of mouths: at jumps two stretches run side by side for a moment.

    ``moment`` (M,) says when each mouth was seen (:func:`mouths.moments`); a stretch goes on in the template's own
    time as far as it has mouths. ``unlike(k, mouth)`` says how far a mouth is from what output frame k asks for: of
    two, the one that is further by more than FAIR counts less, by a factor of e per 1. A shut mouth must not shine
    through one that opens. ``apart(mouth, other)`` says how unlike two look: those that are alike fade for longer.
    """
    total = len(path)
    mouths = np.stack([path, np.full(total, -1, np.int32)], axis=1).astype(np.int32)
    blend = np.zeros(total, np.float32)
    step = moment[path[1:]] - moment[path[:-1]]
    jumps = np.flatnonzero((step < -1) | (step > 2)) + 1
    for number, at in enumerate(jumps.tolist()):
        before = int(jumps[number - 1]) if number else 0
        after = int(jumps[number + 1]) if number + 1 < len(jumps) else total
        near = max(0.0, 1 - apart(_run_on(int(path[at - 1]), 1, moment), int(path[at])) / APART)
        half = min((FADE + round(FADE_MORE * near)) // 2, (at - before) // 2, (after - at) // 2)
        for offset in range(-half, half):
            k = at + offset
            share = (offset + half + 0.5) / (2 * half)
            old = _run_on(int(path[at - 1]), offset + 1, moment)
            new = _run_on(int(path[at]), offset, moment)
            if offset < 0:
                old = int(path[k])
            else:
                new = int(path[k])
            mouths[k] = old, new
            better = unlike(k, old) - unlike(k, new)
            closer = float(np.exp(np.sign(better) * np.clip(abs(better) - FAIR, 0, 30)))
            blend[k] = share * closer / (1 - share + share * closer)
    return mouths, blend


def _run_on(mouth: int, steps: int, moment: NDArray[np.int64]) -> int:
    """The mouth ``steps`` frames on (or back), or the last one on the way that there is."""
    direction = 1 if steps > 0 else -1
    for _ in range(abs(steps)):
        following = mouth + direction
        if not 0 <= following < len(moment) or moment[following] != moment[mouth] + direction:
            break
        mouth = following
    return mouth
