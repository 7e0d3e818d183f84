"""Frames in which something is before the mouth: a hand, a cup, a microphone.

The landmarker goes on to see a mouth there, and one drawn on a hand is the worst of all results. A mouth that is
shut throughout the template looks the same in all frames, so one that does not is hidden, and its frame is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from inference.lipsync.render.mouths import look
from inference.lipsync.render.tracks import Tracks

Frame = NDArray[np.uint8]

EVERY = 3  #: frames from one look to the next
ALIKE = 0.75  #: correlation with the usual look below which a mouth is hidden; shut mouths have .96, behind a hand .55
MOST = 0.45  #: share of hidden frames from which on it is rather the usual look that is wrong
LEAST_CONTRAST = 4.0  #: grey levels


def seen(picture: Frame, tracks: Tracks, index: int) -> NDArray[np.float32]:
    """What :func:`hidden` wants to know of a frame: how the mouth looks, whatever the light."""
    thumb = look(picture, tracks.pixels(index), float(tracks.pose.scale[index]))[0].ravel().astype(np.float32)
    thumb -= thumb.mean()
    return np.asarray(thumb / max(float(thumb.std()), LEAST_CONTRAST), np.float32)


def hidden(looks: Mapping[int, NDArray[np.float32]], frames: int) -> NDArray[np.bool_]:
    """(frames,) True where the mouth is hidden, given the looks of every third frame or so."""
    result = np.zeros(frames, bool)
    if len(looks) < 2:
        return result
    usual = np.median(np.stack(list(looks.values())), axis=0)
    usual = (usual - usual.mean()) / max(float(usual.std()), 1e-3)
    covered = [index for index, thumb in looks.items() if float((thumb * usual).mean()) < ALIKE]
    if len(covered) > MOST * len(looks):
        return result
    for index in covered:
        result[max(0, index - EVERY + 1) : index + EVERY] = True
    return result
