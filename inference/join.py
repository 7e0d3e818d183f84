"""Segments and their sound into one file, as they are: neither is encoded again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference import media
from inference.encode import command, failure
from inference.ffmpeg import Process


@dataclass(frozen=True)
class Part:
    """One finished segment, as :class:`inference.encode.VideoWriter` left it."""

    path: Path
    seconds: float  #: exactly


def join(
    parts: Sequence[Part],
    output: Path,
    track: Path | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    check: Callable[[], None] | None = None,
    ffmpeg: str | None = None,
) -> None:
    """Write ``output`` from segments that lie in one folder and were encoded alike, and remove the segments.

    ``track`` is the sound (:class:`inference.lipsync.sound.Track`).

    Each segment's length is stated exactly: what its own header says is rounded to milliseconds, and after
    eighty joins the picture would lead the sound by a frame. On an error, or when ``check`` raises, neither the
    output nor an ffmpeg is left.
    """
    import ffmpeg as builder

    if not parts:
        raise ValueError("no segments to join")
    lines = ["ffconcat version 1.0"]
    for part in parts:
        quoted = part.path.name.replace("'", "'\\''")
        lines += [f"file '{quoted}'", f"duration {part.seconds:.6f}"]
    listing = parts[0].path.parent / "segments.ffconcat"
    listing.write_text("\n".join(lines) + "\n", "utf-8")
    picture = builder.input(f"file:{listing}", format="concat", safe=0, protocol_whitelist=media.LOCAL_PROTOCOLS)["v:0"]
    sound = None if track is None else builder.input(f"file:{track}", protocol_whitelist=media.LOCAL_PROTOCOLS)["a:0"]
    copied = {"vcodec": "copy", "acodec": "copy"}
    process = Process(command(picture, sound, output, copied, metadata=metadata, ffmpeg=ffmpeg), "wait")
    try:
        if process.finish(check) != 0 or not output.is_file():
            raise failure(process, str(output))
    except BaseException:
        process.close()
        output.unlink(missing_ok=True)
        raise
    for path in (listing, *(part.path for part in parts)):
        path.unlink(missing_ok=True)
