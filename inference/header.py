"""What ffmpeg says about a file when it opens it: the text on its stderr, as fields.

Neither program nor library of ffmpeg says it in a form that is easier to read and holds as much: the length of files
without one, the turn of a phone's picture, where a file is cut off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_INPUT = re.compile(r"Input #0, (\S+), from ")
_STREAM = re.compile(r"Stream #0:\d+(?:\[\w+\])?(?:\((\w+)\))?.*?: (\w+): (.*)")
_START = re.compile(r"[,:] start:? (-?\d+\.\d+)")
_LAYOUT = re.compile(r" Hz, ([^,]+)")
_CHANNELS = {"mono": 1, "stereo": 2, "downmix": 2, "binaural": 2, "quad": 4, "hexagonal": 6, "octagonal": 8}
_DURATION = re.compile(r"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")
_SIZE = re.compile(r"[ ,](\d{1,5})x(\d{1,5})(?=[ ,\[]|$)")
_PIXELS = re.compile(r", (\w+)(?:\(([^()]*)\))?, \d+x\d+")
_SHAPE = re.compile(r"SAR (\d+):(\d+)")
_FPS = re.compile(r"(\d+(?:\.\d+)?)(k?) (?:fps|tbr)")
_HERTZ = re.compile(r"(\d+) Hz")
_TURN = re.compile(r"rotation of (-?\d+(?:\.\d+)?) degrees")
_ALPHA_TAG = re.compile(r"alpha_mode\s*: 1")
_ALPHA = re.compile(r"yuva|rgba|bgra|argb|abgr|gbrap|ya8|ya16|pal8|ayuv|vuya")
_RGB = re.compile(r"rgb|bgr|gbr|argb|abgr|0rgb|0bgr|pal8|x2rgb|x2bgr")
_TEXT = "tty"  #: the format as which ffmpeg draws any text file
_DECORATION = re.compile(r"^(\[[^\]]*@ 0x[0-9a-f]+\] )+")
_SUBJECT = re.compile(r"^(Error opening input file |Error opening input: )?(file:\S+: )?")


@dataclass(frozen=True)
class Sound:
    """One audio stream, by ffmpeg's line about it."""

    line: str
    language: str = ""  #: as the container names it: eng, zho …; "" where it does not

    @property
    def codec(self) -> str:
        """ffmpeg's name of the codec."""
        return re.split(r"[ ,]", self.line)[0]

    @property
    def hertz(self) -> int | None:
        """Samples per second."""
        found = _HERTZ.search(self.line)
        return int(found[1]) if found else None

    @property
    def channels(self) -> int | None:
        """How many channels it has; None where their layout has a name that is not known here."""
        count = re.fullmatch(r"(\d+) channels", self.layout)
        parts = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", self.layout)
        if count:
            return int(count[1])
        return sum(int(part or 0) for part in parts.groups()) if parts else _CHANNELS.get(self.layout.split("(")[0])

    @property
    def layout(self) -> str:
        """ffmpeg's name of how the channels stand: mono, stereo, 5.1(side), 4 channels …"""
        found = _LAYOUT.search(self.line)
        return found[1].strip() if found else ""

    @property
    def default(self) -> bool:
        """Whether the container marks it as the one to play."""
        return "(default)" in self.line

    @property
    def start_s(self) -> float:
        """Seconds on the container's clock at which it begins."""
        found = _START.search(self.line)
        return float(found[1]) if found else 0.0


@dataclass(frozen=True)
class Picture:
    """One video stream, by ffmpeg's line about it."""

    line: str

    @property
    def codec(self) -> str:
        """ffmpeg's name of the codec."""
        return re.split(r"[ ,]", self.line)[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) as stored, pixels."""
        found = _SIZE.search(self.line)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def pixel_shape(self) -> float:
        """Width of a pixel over its height; 1.0 when nothing is said."""
        found = _SHAPE.search(self.line)
        return int(found[1]) / int(found[2]) if found and int(found[1]) and int(found[2]) else 1.0

    @property
    def fps(self) -> float | None:
        """Frames per second, as stated."""
        found = _FPS.search(self.line)
        return float(found[1]) * (1000 if found[2] else 1) if found else None

    @property
    def notes(self) -> str:
        """What stands in brackets behind the pixel format: range, colours, order of fields."""
        found = _PIXELS.search(self.line)
        return found[2] or "" if found else ""

    @property
    def interlaced(self) -> bool:
        """Whether a frame is two fields."""
        return "top first" in self.notes or "bottom first" in self.notes

    @property
    def alpha(self) -> bool:
        """Whether its pixel format has transparency."""
        return _ALPHA.match(self._format) is not None

    @property
    def rgb(self) -> bool:
        """Whether it is stored as RGB."""
        return _RGB.match(self._format) is not None

    @property
    def _format(self) -> str:
        found = _PIXELS.search(self.line)
        return found[1] if found else ""


@dataclass(frozen=True)
class Header:
    """The text of one ffmpeg run about its one input."""

    text: str

    @cached_property
    def container(self) -> str:
        """ffmpeg's name of the format; "" for what is no media file, which plain text is not either."""
        found = _INPUT.search(self.text)
        return found[1] if found and found[1] != _TEXT else ""

    @property
    def complaint(self) -> str:
        """Why it is no media file, in ffmpeg's words."""
        return "plain text" if f"Input #0, {_TEXT}" in self.text else last_line(self.text.splitlines())

    @property
    def duration_s(self) -> float | None:
        """Seconds, where the file says or lets guess them."""
        found = _DURATION.search(self.text)
        return int(found[1]) * 3600.0 + int(found[2]) * 60.0 + float(found[3]) if found else None

    @property
    def duration_exact(self) -> bool:
        """False when ffmpeg only estimated it from the bit rate."""
        return "Estimating duration from bitrate" not in self.text

    @property
    def start_s(self) -> float:
        """Seconds on the container's clock at which its first stream begins."""
        found = next((line for line in self.text.splitlines() if _DURATION.search(line)), "")
        start = _START.search(found)
        return float(start[1]) if start else 0.0

    @cached_property
    def sounds(self) -> tuple[Sound, ...]:
        """The audio streams."""
        return tuple(Sound(line, language or "") for language, kind, line in self._streams if kind == "Audio")

    @property
    def streams(self) -> int:
        """How many streams it has, of any kind; the cover of a song is none."""
        return sum("attached pic" not in line for _, _, line in self._streams)

    @cached_property
    def picture(self) -> Picture | None:
        """The first video stream that is not the cover of a song."""
        line = next((line for _, kind, line in self._streams if kind == "Video" and "attached pic" not in line), None)
        return None if line is None else Picture(line)

    @property
    def rotation(self) -> int:
        """Degrees clockwise, 0 … 359, that the picture is to be turned by."""
        found = _TURN.search(self.text)
        return round(-float(found[1])) % 360 if found else 0

    @property
    def alpha_tag(self) -> bool:
        """Whether a VP8 or VP9 stream says that it has transparency, which its pixel format does not tell."""
        return _ALPHA_TAG.search(self.text) is not None

    @cached_property
    def _streams(self) -> list[tuple[str | None, str, str]]:
        found = (match for match in map(_STREAM.search, self.text.splitlines()) if match)
        return [(match[1], match[2], match[3]) for match in found]


def last_line(lines: list[str]) -> str:
    """The last line that says something, without ffmpeg's ``[demuxer @ 0x…]`` and ``file:`` decoration."""
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return _SUBJECT.sub("", _DECORATION.sub("", said))[:300]
