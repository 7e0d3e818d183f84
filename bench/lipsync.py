"""The lipsync engine from a recording to the finished mp4 at 720p and 25 frames a second, as a multiple of real time.

The template is made for it: the portrait of the examples, swaying. Once with nothing known of it, then with its
analysis in the cache, best of several. Needs the weights; not part of `python -m bench`.

python -m bench.lipsync [--json] [--quick] [--dir DIR]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench import harness
from inference import media
from inference.base import LocalContext
from inference.encode import Encoding, VideoWriter
from inference.lipsync import LipSync

PORTRAIT = harness.ROOT / "examples" / "portrait" / "mona_lisa.jpg"
SPEECH = harness.ROOT / "examples" / "speech" / "reading.flac"
WIDTH, HEIGHT, FPS = 1280, 720, 25


@dataclass(frozen=True)
class Sizes:
    """Seconds of template and sound, and how often it is repeated."""

    template_s: float
    audio_s: float
    repeats: int  #: with the template in the cache


def template(path: Path, seconds: float) -> None:
    """The portrait, moving a little, on a wide picture."""
    picture = cv2.imread(str(PORTRAIT))
    if picture is None:
        raise FileNotFoundError(PORTRAIT)
    face = cv2.resize(
        picture, (round(picture.shape[1] * HEIGHT / picture.shape[0]), HEIGHT), interpolation=cv2.INTER_AREA
    )
    side = (WIDTH - face.shape[1]) // 2
    wide = cv2.copyMakeBorder(face, 0, 0, side, WIDTH - face.shape[1] - side, cv2.BORDER_REFLECT)
    with VideoWriter(path, Encoding(WIDTH, HEIGHT, FPS, crf=16, preset="veryfast")) as writer:
        for k in range(round(seconds * FPS)):
            turn = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 2 * np.sin(k / 19), 1.25 + 0.02 * np.sin(k / 23))
            turn[:, 2] += (8 * np.sin(k / 17), 4 * np.cos(k / 13))
            writer.write(
                np.asarray(cv2.warpAffine(wide, turn, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT), np.uint8)
            )


def processor_s() -> float:
    """Of this process and of all the ffmpegs it has seen the end of."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in both)


def measure(sizes: Sizes, place: Path) -> harness.Measured:
    """Seconds of work per second of video, with the template new and known."""
    video, audio = place / "template.mp4", place / "speech.flac"
    template(video, sizes.template_s)
    loop = [media.ffmpeg_binary(), "-v", "error", "-stream_loop", "-1", "-i", str(SPEECH), "-t", str(sizes.audio_s)]
    subprocess.run([*loop, str(audio)], check=True, stdin=subprocess.DEVNULL)
    engine = LipSync()
    engine.load("cpu", {})
    engine.warmup()
    ratios, costs = [], []
    load = os.getloadavg()[0]
    for _ in range(1 + sizes.repeats):
        with LocalContext(cache=place / "cache") as context:
            job = engine.check({"audio": audio, "video": video, "output": place / "output.mp4"})
            began, used = time.monotonic(), processor_s()
            frames = engine.run(job, context)["frames"]
            ratios.append(sizes.audio_s / (time.monotonic() - began))
            costs.append(1000 * (processor_s() - used) / frames)
    engine.close()
    figures: dict[str, Any] = {
        "uncached_x": round(ratios[0], 2),
        "cached_x": round(max(ratios[1:]), 2),
        "uncached_cpu_ms": round(costs[0], 1),
        "cached_cpu_ms": round(min(costs[1:]), 1),
        "load": round(load, 1),
    }
    note = f"{sizes.audio_s:g} s of speech, template of {sizes.template_s:g} s, load {load:.1f} before it began"
    rows = [
        harness.Row("new template", f"{figures['uncached_x']} × real time", note),
        harness.Row("template in the cache", f"{figures['cached_x']} × real time", f"best of {sizes.repeats}"),
        harness.Row("processor time per output frame", f"{figures['cached_cpu_ms']} ms", "ffmpeg included; cached"),
    ]
    return harness.Measured("lipsync", figures, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(10, 30, 3), Sizes(2, 4, 1)))
