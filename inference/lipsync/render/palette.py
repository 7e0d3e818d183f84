"""The colours of a drawn mouth, from the skin round it and from what the picture calls white."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

GREY = np.array([0.114, 0.587, 0.299], np.float32)  #: luminance of BGR
COLOURED = 0.10  #: spread of the skin's channels over its light, from which a picture counts as coloured
SKIN_BGR = np.array([0.76, 0.95, 1.22], np.float32)  #: ordinary skin over its light
HUE = 0.7  #: how far the hue of the skin rules the inside
DEEP_BGR = np.array([0.125, 0.115, 0.25], np.float32)  #: of the skin's light
SHADOW_BGR = np.array([0.16, 0.15, 0.28], np.float32)  #: of teeth in the dark
FLESH_BGR = np.array([0.36, 0.33, 0.62], np.float32)
TONGUE_BGR = np.array([0.47, 0.45, 0.82], np.float32)
SEAM_BGR = np.array([0.24, 0.22, 0.36], np.float32)
TEETH_GAIN, TEETH_TINT = 1.28, 0.30  #: light over that of the skin (real ones: 1.35–1.49); share of the skin's colour
TEETH_MOST = 235.0
WHITE = 0.85  #: how far the white of the eyes rules the colour of drawn teeth
WHITE_LIMITS = (0.55, 1.04)
PAINTED = 0.30, 0.26  #: lack of blue in a white that only paint has; by how much paint is then darker
ENAMEL_LIGHT = 0.50, 0.75  #: light of teeth over that of the lips: none of them, all of them
ENAMEL_RED = 0.50, 0.80  #: redness of teeth over that of the lips: all of them, none
LEAST_RED = 0.15  #: redness of lips below which a picture has no colours to tell teeth by
LEAST_PIXELS = 24  #: of the white of the eyes, below which it is not believed


@dataclass(frozen=True)
class Palette:
    """BGR, (3,) each, 0..255."""

    deep: Array  #: where no light comes
    shadow: Array  #: teeth without light
    flesh: Array  #: behind the lips' edge
    tongue: Array
    enamel: Array  #: teeth in full light
    seam: Array  #: the line between shut lips
    chroma: float  #: 0 in a grey picture … 1


def palette(skin: Array, white: Array | None = None) -> Palette:
    """For a skin (3,) BGR and the picture's :func:`white`; all grey in a grey picture."""
    light = max(float(skin @ GREY), 1.0)
    hue = np.float32(light) * (1 + HUE * (skin / light / SKIN_BGR - 1))
    enamel = usual_teeth(skin) * np.float32(min(light * TEETH_GAIN, TEETH_MOST))
    lit = np.stack([FLESH_BGR * hue, TONGUE_BGR * hue, enamel])
    dark = np.stack([DEEP_BGR * hue, SHADOW_BGR * hue])
    if white is not None:
        painted = min(max((1 - float(white[0])) / PAINTED[0], 0.0), 1.0)
        lit, dark = lit * white * np.float32(1 - PAINTED[1] * painted), dark * white
    colours = np.concatenate([dark, lit, SEAM_BGR[None] * np.float32(light)])
    colour = np.float32(min(float(np.ptp(skin)) / light / COLOURED, 1.0))
    if colour < 1:
        grey = (colours @ GREY)[:, None]
        colours = grey + colour * (colours - grey)
    deep, shadow, flesh, tongue, enamel, seam = colours.astype(np.float32)
    return Palette(deep, shadow, flesh, tongue, enamel, seam, float(colour))


def usual_teeth(skin: Array) -> Array:
    """(3,) the hue of ordinary teeth in the light of a skin."""
    return np.asarray((1 - TEETH_TINT) + TEETH_TINT * skin / max(float(skin @ GREY), 1.0), np.float32)


def white(picture: Frame, points: mesh.Points, skin: Array) -> Array:
    """(3,) factors that turn ordinary teeth into those of this picture, by the white of its eyes.

    In a photograph they are near 1; under the varnish of a painting white is yellow. ``points`` (478, 3) are
    pixels of the picture.
    """
    found = []
    for ring, iris in ((mesh.EYE_RIGHT, mesh.IRIS_RIGHT), (mesh.EYE_LEFT, mesh.IRIS_LEFT)):
        mask = np.zeros(picture.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.round(points[ring, :2]).astype(np.int32)], 255)
        radius = np.linalg.norm(points[iris[1:], :2] - points[iris[0], :2], axis=1).mean()
        centre = (round(float(points[iris[0], 0])), round(float(points[iris[0], 1])))
        cv2.circle(mask, centre, round(1.15 * float(radius)), 0, cv2.FILLED)
        found.append(picture[mask > 0].astype(np.float32))
    pixels = np.concatenate(found)
    if len(pixels) < LEAST_PIXELS:
        return np.ones(3, np.float32)
    light = np.maximum(pixels @ GREY, 1)
    pixels, light = pixels[light >= np.median(light)], light[light >= np.median(light)]
    blue = pixels[:, 0] / light  # lids and veins are redder than the white between them
    tint = np.median((pixels / light[:, None])[blue >= np.quantile(blue, 0.6)], axis=0)
    factors = np.clip((tint / usual_teeth(skin)) ** WHITE, *WHITE_LIMITS)
    return np.asarray(factors / float(factors @ GREY), np.float32)


def lips(picture: Frame, points: mesh.Points) -> Array:
    """(3,) the colour of the lips by the median. ``points`` (V, 3) are pixels of the picture."""
    rings = ((mesh.LIP_INNER_UPPER, mesh.LIP_OUTER_UPPER), (mesh.LIP_INNER_LOWER, mesh.LIP_OUTER_LOWER))
    at = np.concatenate([(points[inner[2:-2], :2] + points[outer[2:-2], :2]) / 2 for inner, outer in rings])
    x, y = at.astype(np.float32).T
    found = cv2.remap(picture, x.copy(), y.copy(), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(np.median(found.reshape(-1, 3), axis=0), np.float32)


def enamel(pixels: Array, lip: Array) -> Array:
    """(…,) how far pixels (…, 3) BGR have the colour of teeth, 0..1, beside lips of the colour ``lip`` (3,).

    Teeth are about as light as the lips or lighter, and paler: gums, tongue and the lips' own rim are as red as they
    are. In a grey picture light decides alone.
    """
    light, lip_light = np.maximum(pixels @ GREY, 1), max(float(lip @ GREY), 1.0)
    bright = np.clip((light / lip_light - ENAMEL_LIGHT[0]) / (ENAMEL_LIGHT[1] - ENAMEL_LIGHT[0]), 0, 1)
    lip_red = _redness(lip[None], np.array([lip_light], np.float32))[0]
    if lip_red < LEAST_RED:
        return np.asarray(bright, np.float32)
    red = _redness(pixels, light) / lip_red
    return np.asarray(bright * np.clip((ENAMEL_RED[1] - red) / (ENAMEL_RED[1] - ENAMEL_RED[0]), 0, 1), np.float32)


def _redness(pixels: Array, light: Array) -> Array:
    return np.asarray((pixels[..., 2] - (pixels[..., 0] + pixels[..., 1]) / 2) / light, np.float32)
