"""A painted face laid over the frame, by a mask with a soft edge.

Resampling of pictures that are parsed, and of masks, is Pillow's, whose filters grow when a picture shrinks: what the
parsing network was trained with, and what the published code uses.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.encode import Frame

EXPAND = 1.5  #: side of the square that is parsed, in longer sides of the face's box
FEATHER = 0.05  #: side of the blur's window, in sides of that square


class Box(NamedTuple):
    """Pixels; right and bottom are the first outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.right - self.left, self.bottom - self.top


def surroundings(face: Box) -> Box:
    """The square round a face's box that is parsed; it may reach over the edges of the frame."""
    half = int(max(face.size) // 2 * EXPAND)
    x, y = (face.left + face.right) // 2, (face.top + face.bottom) // 2
    return Box(x - half, y - half, x + half, y + half)


def scaled(frame: Frame, face: Box, side: int) -> Frame:
    """(side, side, 3) BGR: the face as the autoencoder sees it."""
    part = frame[face.top : face.bottom, face.left : face.right]
    return np.asarray(cv2.resize(part, (side, side), interpolation=cv2.INTER_LANCZOS4), np.uint8)


def parsed_picture(frame: Frame, face: Box, side: int) -> NDArray[np.uint8]:
    """(side, side, 3) RGB: the surroundings of a face, black where they reach over the frame."""
    picture = Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).crop(surroundings(face))
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))


def soft_mask(shown: NDArray[np.uint8], face: Box) -> NDArray[np.uint8]:
    """0..255, as large as the face's box: how much of the painted face shows.

    ``shown`` is a mask of the face's surroundings, of any size. Only the lower half of the surroundings is painted:
    what lies inside the box and below its middle.
    """
    around = surroundings(face)
    across, down = around.size
    left, top = face.left - around.left, face.top - around.top
    right, bottom = left + face.size[0], top + face.size[1]
    whole = np.asarray(Image.fromarray(shown).resize((across, down), Image.Resampling.BICUBIC))
    lower = np.zeros((down, across), np.uint8)
    middle = max(top, down // 2)
    lower[middle:bottom, left:right] = whole[middle:bottom, left:right]
    window = int(FEATHER * across // 2 * 2) + 1
    return np.asarray(cv2.GaussianBlur(lower, (window, window), 0)[top:bottom, left:right], np.uint8)


def laid(frame: Frame, painted: Frame, face: Box, mask: NDArray[np.uint8]) -> Frame:
    """A copy of the frame with a painted face, of any size, in its box."""
    region = frame[face.top : face.bottom, face.left : face.right].astype(np.uint32)
    over = cv2.resize(painted, face.size, interpolation=cv2.INTER_LINEAR).astype(np.uint32)
    share = mask[..., None].astype(np.uint32)
    mixed = (over * share + region * (255 - share) + 127) // 255
    result: Frame = frame.copy()
    result[face.top : face.bottom, face.left : face.right] = mixed.astype(np.uint8)
    return result
