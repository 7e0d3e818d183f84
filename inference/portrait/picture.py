"""A still picture from a file: decoded, upright, opaque, 8 bits, and not larger than it has to be.

Orientation notes of cameras (EXIF) are applied, transparency is laid on white, grey and 16-bit pictures become
8-bit BGR. What is no picture, is cut off or is absurdly large is refused by name.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inference import media
from inference.base import InputError

Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

MIN_SIDE = 64  #: pixels; under that there is no face to animate
MAX_PIXELS = 160_000_000  #: what is decoded at all: 8K is 33, the largest cameras give 151
MAX_BYTES = 512 << 20
BACKGROUND = 255  #: grey level behind transparent parts

_VIDEO_CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mpeg2video", "prores", "theora")
_SPINS = (None, cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)


def check_picture(path: str | Path) -> media.Probe:
    """What is in a picture's header, without decoding it; raises :class:`InputError`. 30 to 100 ms."""
    file = media.require_file(path, "image")
    if file.stat().st_size > MAX_BYTES:
        raise InputError(
            f"image: {file} has {file.stat().st_size >> 20} MB; up to {MAX_BYTES >> 20} MB are read",
            hint="save it as JPEG or PNG",
        )
    try:
        about = media.probe(file, "image")
    except InputError as error:
        raise InputError(f"image: {file} is no picture that can be read", hint="use JPEG, PNG or WebP") from error
    if not about.has_video:
        raise InputError(f"image: {file} is a sound file, not a picture", hint="`image` and `audio` swapped?")
    if about.video_codec in _VIDEO_CODECS and (about.duration_s or 0) > 0.2:
        raise InputError(
            f"image: {file} is a video of {about.duration_s:.1f} s, not a picture",
            hint="the engine lipsync takes videos; or save one frame as a picture",
        )
    width, height = about.width or 0, about.height or 0
    if width * height > MAX_PIXELS:
        raise InputError(
            f"image: {file} is {width}×{height}; up to {MAX_PIXELS // 1_000_000} megapixels are read",
            hint="scale it down first; 2000 pixels a side are plenty",
        )
    if width and height and min(width, height) < MIN_SIDE:
        raise InputError(
            f"image: {file} is {width}×{height}; at least {MIN_SIDE} pixels a side are needed",
            hint="use the original, not a thumbnail",
        )
    return about


def read_picture(path: str | Path) -> Frame:
    """(H, W, 3) uint8 BGR, upright, in its full size. Raises :class:`InputError` naming the file."""
    file = check_picture(path).path
    data = np.fromfile(file, np.uint8)
    if _cut_off(data):
        raise InputError(f"image: {file} is cut off", hint="copy or upload the file again")
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
        full = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"image: {file} cannot be decoded: {error.err}", hint="save it again as PNG") from error
    if bgr is None:
        raise InputError(f"image: {file} is no picture that can be read", hint="use JPEG, PNG or WebP")
    if full is not None and full.ndim == 3 and full.shape[2] == 4:
        bgr = _flatten(np.asarray(bgr, np.uint8), full)
    if min(bgr.shape[:2]) < MIN_SIDE:
        raise InputError(f"image: {file} is {bgr.shape[1]}×{bgr.shape[0]}; {MIN_SIDE} pixels a side are the least")
    return np.ascontiguousarray(bgr, np.uint8)


def is_animation(path: str | Path) -> bool:
    """Whether a file holds more than one picture, of which :func:`read_picture` takes the first."""
    try:
        return cv2.imcount(str(path)) > 1
    except cv2.error:
        return False


def scaled(picture: Frame, width: int, height: int) -> Frame:
    """The picture in another size; shrinking averages, enlarging is cubic."""
    if (picture.shape[1], picture.shape[0]) == (width, height):
        return picture
    smaller = width * height < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


def _flatten(bgr: Frame, full: NDArray[np.generic]) -> Frame:
    """The upright picture on a plain background, by the alpha of the undecorated one."""
    top = 255 if full.dtype == np.uint8 else 65535
    share = (full[..., 3].astype(np.float32) / top)[..., None]
    colour = full[..., :3].astype(np.float32) * (255 / top)
    flat = np.asarray(colour * share + BACKGROUND * (1 - share) + 0.5, np.uint8)
    if not bool((share < 1).any()):
        return bgr
    # Decoding with alpha leaves the orientation out; the other decoding tells what it is.
    plain = np.asarray(colour + 0.5, np.uint8)
    for mirrored in (False, True):
        for spin in _SPINS:
            if np.array_equal(_turned(plain, spin, mirrored).shape, bgr.shape) and _alike(
                _turned(plain, spin, mirrored), bgr
            ):
                return _turned(flat, spin, mirrored)
    return flat


def _turned(picture: Frame, spin: int | None, mirrored: bool) -> Frame:
    turned = picture if spin is None else cv2.rotate(picture, spin)
    return np.asarray(cv2.flip(turned, 1) if mirrored else turned, np.uint8)


def _alike(one: Frame, other: Frame) -> bool:
    return float(cv2.absdiff(one[::4, ::4].copy(), other[::4, ::4].copy()).mean()) < 2


def _cut_off(data: NDArray[np.uint8]) -> bool:
    """Whether a JPEG, PNG or WebP ends before its content does; decoders fill up with grey in silence."""
    head = data[:16].tobytes()
    if head.startswith(b"\xff\xd8"):
        whole = data.tobytes()
        return whole.rfind(b"\xff\xd9") < whole.rfind(b"\xff\xda")
    if head.startswith(b"\x89PNG"):
        return b"IEND" not in data[-(1 << 16) :].tobytes()
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return len(data) < int.from_bytes(head[4:8], "little") + 8
    return False
