"""When the first picture and the first sound of a file come, and how far its sound lies from a recording."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

from inference import media


def first_time(path: Path, stream: str, ffmpeg: str | None) -> float | None:
    """Seconds at which a stream's first packet is shown; the encoder's priming is not shown."""
    command = [
        media.ffmpeg_binary(ffmpeg),
        *(
            "-v",
            "error",
            "-nostdin",
            "-protocol_whitelist",
            media.LOCAL_PROTOCOLS,
            "-copyts",
            "-i",
            f"file:{path.absolute()}",
        ),
        *("-map", f"0:{stream}", "-c", "copy", "-t", "2", "-f", "framecrc", "pipe:1"),
    ]
    talk = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).stdout.decode()
    unit = re.search(r"#tb 0: (\d+)/(\d+)", talk)
    times = [int(line.split(",")[2]) for line in talk.splitlines() if not line.startswith("#") and "0x" in line]
    shown = [time for time in times if time >= 0]
    return min(shown) * int(unit[1]) / int(unit[2]) if unit and shown else None


def sound_offset(path: Path, audio: Path, ffmpeg: str | None) -> float | None:
    """Milliseconds by which the video's sound lies behind the recording's, from their first minute."""
    most = 60 * media.SAMPLE_RATE
    heard, wanted = media.read_audio(path, ffmpeg)[:most], media.read_audio(audio, ffmpeg)[:most]
    size = 1 << (len(heard) + len(wanted)).bit_length()
    if not heard.any() or not wanted.any():
        return None
    likeness = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(wanted, size).conj(), size)
    lag = int(likeness.argmax())
    return round(1000 * (lag if lag < size // 2 else lag - size) / media.SAMPLE_RATE, 2)
