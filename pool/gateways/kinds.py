"""The media kind of a file, from its first bytes: image, audio or video."""

from __future__ import annotations

import re
from pathlib import PurePath

HEAD_BYTES = 512  # enough for every signature below

_IMAGE, _AUDIO, _VIDEO = "image", "audio", "video"
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", _IMAGE),
    (b"\xff\xd8\xff", _IMAGE),
    (b"GIF87a", _IMAGE),
    (b"GIF89a", _IMAGE),
    (b"II*\0", _IMAGE),
    (b"MM\0*", _IMAGE),
    (b"fLaC", _AUDIO),
    (b"ID3", _AUDIO),
    (b"#!AMR", _AUDIO),
    (b"caff", _AUDIO),
    (b"MAC ", _AUDIO),
    (b"wvpk", _AUDIO),
    (b".snd", _AUDIO),
    (b"\x1aE\xdf\xa3", _VIDEO),  # Matroska, WebM
    (b"OggS", _AUDIO),
    (b"0&\xb2u\x8ef\xcf\x11", _VIDEO),  # ASF: wmv, wma
    (b"FLV\x01", _VIDEO),
    (b"\0\0\x01\xba", _VIDEO),  # MPEG program stream
    (b"\0\0\x01\xb3", _VIDEO),
)
_AT_8 = {b"WAVE": _AUDIO, b"AVI ": _VIDEO, b"WEBP": _IMAGE, b"AIFF": _AUDIO, b"AIFC": _AUDIO}
_AUDIO_BRANDS = (b"M4A", b"M4B", b"F4A")
_IMAGE_BRANDS = (b"heic", b"heix", b"avif", b"mif1")
#: Containers may hold audio or video; the suffix of the file name decides.
_SUFFIXES = {
    _AUDIO: {".mp3", ".m4a", ".aac", ".wav", ".ogg", ".oga", ".opus", ".flac", ".wma", ".mpga", ".weba", ".amr"},
    _VIDEO: {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".wmv", ".ogv", ".mpeg", ".mpg", ".ts", ".flv"},
}
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")


def kind_of(head: bytes, name: str) -> str | None:
    """The kind of a file: "image", "audio" or "video"; None when no known format matches.

    head: the first HEAD_BYTES bytes of the file, or all of a shorter one. name: the file name; its suffix decides
    between audio and video.
    """
    detected = _kind_by_bytes(head)
    if detected in (None, _IMAGE):
        return detected
    suffix = PurePath(name).suffix.lower()
    return next((kind for kind, suffixes in _SUFFIXES.items() if suffix in suffixes), detected)


def _kind_by_bytes(head: bytes) -> str | None:
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[:4] in (b"RIFF", b"RF64", b"FORM"):
        return _AT_8.get(head[8:12])
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return _AUDIO if brand.startswith(_AUDIO_BRANDS) else _IMAGE if brand in _IMAGE_BRANDS else _VIDEO
    if head[4:8] in (b"moov", b"mdat", b"wide"):  # old QuickTime
        return _VIDEO
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x18 != 0x08:  # MPEG audio, ADTS
        return _AUDIO
    if len(head) > 188 and head[0] == head[188] == 0x47:  # MPEG transport stream
        return _VIDEO
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return _IMAGE
    return None


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case when it is a dot and 1-8 letters or digits, else ""."""
    suffix = PurePath(name).suffix.lower()
    return suffix if _SUFFIX.match(suffix) else ""
