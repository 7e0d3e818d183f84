"""Draw the two corner pictures: ``python -m inference.lipsync.marks.make``. Needs OpenCV 5, which brings a font.

They are drawn large and scaled to the video when they are used. Both must be readable on black and on white.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
HEIGHT = 128  #: pixels of the finished picture
FINER = 4  #: drawn this much larger, then averaged down
WHITE, DARK = (255, 255, 255), (24, 20, 18)

Mask = NDArray[np.uint8]


def text_mask(text: str, height: int, weight: int) -> Mask:
    """(H, W) white letters on black, cropped to their ink sideways; ``height`` is that of the whole line."""
    face = cv2.FontFace("sans")
    size = round(height * 0.62)
    canvas = np.zeros((height, height * len(text), 3), np.uint8)
    cv2.putText(canvas, text, (height // 4, round(height * 0.70)), (255, 255, 255), face, size, weight)
    mask = canvas[..., 0]
    ink = np.flatnonzero(mask.any(axis=0))
    return np.asarray(mask[:, ink[0] : ink[-1] + 1])


def layer(color: tuple[int, int, int], opacity: float, mask: Mask) -> NDArray[np.float32]:
    """(H, W, 4) premultiplied BGRA 0..1."""
    alpha = mask.astype(np.float32)[..., None] / 255 * opacity
    return np.concatenate([alpha * np.array(color, np.float32) / 255, alpha], axis=2)


def over(top: NDArray[np.float32], below: NDArray[np.float32]) -> NDArray[np.float32]:
    """One premultiplied layer on another."""
    return np.asarray(top + below * (1 - top[..., 3:]), np.float32)


def finish(picture: NDArray[np.float32], path: Path) -> None:
    """Average down, undo the premultiplication, write."""
    height = picture.shape[0] // FINER
    small = cv2.resize(picture, (picture.shape[1] // FINER, height), interpolation=cv2.INTER_AREA)
    alpha = np.maximum(small[..., 3:], 1e-6)
    plain = np.concatenate([small[..., :3] / alpha, small[..., 3:]], axis=2)
    cv2.imwrite(str(path), np.clip(plain * 255 + 0.5, 0, 255).astype(np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def watermark() -> NDArray[np.float32]:
    """The project's name, white, with a dark glow behind it."""
    height = HEIGHT * FINER
    letters = text_mask("filepool", height, 600)
    letters = np.pad(letters, ((0, 0), (height // 8, height // 8)))
    glow = cv2.GaussianBlur(letters, (0, 0), height * 0.04)
    glow = np.clip(glow.astype(np.float32) * 1.6, 0, 255).astype(np.uint8)
    return over(layer(WHITE, 0.80, letters), layer(DARK, 0.55, glow))


def ai_generated() -> NDArray[np.float32]:
    """ "AI generated", white on a dark rounded plate."""
    height = HEIGHT * FINER
    letters = text_mask("AI generated", height, 500)
    side = round(height * 0.42)
    width = letters.shape[1] + 2 * side
    plate = np.zeros((height, width), np.uint8)
    radius = height // 2
    cv2.rectangle(plate, (radius, 0), (width - radius, height), 255, -1)
    for x in (radius, width - radius - 1):
        cv2.circle(plate, (x, radius), radius - 1, 255, -1)
    wide = np.zeros((height, width), np.uint8)
    wide[:, side : side + letters.shape[1]] = letters
    return over(layer(WHITE, 0.95, wide), layer(DARK, 0.62, plate))


if __name__ == "__main__":
    finish(watermark(), HERE / "watermark.png")
    finish(ai_generated(), HERE / "ai_generated.png")
