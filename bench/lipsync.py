"""The lipsync engine from a recording to the finished mp4 at 720p and 25 frames a second, as a multiple of real time.

The template is made for it: the portrait of the examples, swaying. Once with nothing known of it, then with its
analysis in the cache, best of several; then with a stream of it, in turn with the one without. Needs the weights; not
part of `python -m bench`.

python -m bench.lipsync [--json] [--quick] [--dir DIR]
"""

from __future__ import annotations

import os
import re
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
from inference.base import LocalContext, LocalStream
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


class Watching(LocalContext):
    """Notes when how much of the stream was there."""

    def stream(self, name: str) -> LocalStream:
        """The stream, which notes what is written."""
        made = super().stream(name)
        self.grown: list[tuple[float, int]] = []  # seconds of the monotonic clock, bytes so far
        write = made.write

        def noted(data: bytes) -> None:
            write(data)
            self.grown.append((time.monotonic(), made.path.stat().st_size))

        made.write = noted  # type: ignore[method-assign]
        return made

    def first_second(self, place: Path) -> float:
        """When one second of the picture could be decoded out of the stream, in seconds of the monotonic clock."""
        data = self.streams[0].path.read_bytes()
        for at, size in self.grown:
            place.write_bytes(data[:size])
            command = [media.ffmpeg_binary(), "-v", "info", "-i", str(place), "-map", "0:v", "-f", "null", "-"]
            talk = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True).stderr
            frames = re.findall(rb"frame=\s*(\d+)", talk)
            if frames and int(frames[-1]) >= FPS:
                return at
        raise RuntimeError("the stream holds less than a second")


def measure(sizes: Sizes, place: Path) -> harness.Measured:
    """Seconds of work per second of video, with the template new and known."""
    video, audio = place / "template.mp4", place / "speech.flac"
    template(video, sizes.template_s)
    loop = [media.ffmpeg_binary(), "-v", "error", "-stream_loop", "-1", "-i", str(SPEECH), "-t", str(sizes.audio_s)]
    subprocess.run([*loop, str(audio)], check=True, stdin=subprocess.DEVNULL)
    engine = LipSync()
    engine.load("cpu", {})
    engine.warmup()
    ratios: dict[bool, list[float]] = {False: [], True: []}  # with a stream, and without
    costs: dict[bool, list[float]] = {False: [], True: []}
    firsts = []
    load = os.getloadavg()[0]
    for watched in (False, *(False, True) * sizes.repeats):
        context = Watching(cache=place / "cache")
        with context:
            asked = {"audio": audio, "video": video, "output": place / "output.mp4", "stream": watched}
            job = engine.check(asked)
            began, used = time.monotonic(), processor_s()
            frames = engine.run(job, context)["frames"]
            ratios[watched].append(sizes.audio_s / (time.monotonic() - began))
            costs[watched].append(1000 * (processor_s() - used) / frames)
            if watched:
                firsts.append(context.first_second(place / "so-far.mp4") - began)
    engine.close()
    plain, new = costs[False][1:], ratios[False].pop(0)
    figures: dict[str, Any] = {
        "uncached_x": round(new, 2),
        "cached_x": round(max(ratios[False]), 2),
        "uncached_cpu_ms": round(costs[False][0], 1),
        "cached_cpu_ms": round(min(plain), 1),
        "stream_x": round(max(ratios[True]), 2),
        "stream_cpu_ms": round(min(costs[True]), 1),
        "first_second_s": round(min(firsts), 2),
        "load": round(load, 1),
    }
    note = f"{sizes.audio_s:g} s of speech, template of {sizes.template_s:g} s, load {load:.1f} before it began"
    rows = [
        harness.Row("new template", f"{figures['uncached_x']} × real time", note),
        harness.Row("template in the cache", f"{figures['cached_x']} × real time", f"best of {sizes.repeats}"),
        harness.Row("processor time per output frame", f"{figures['cached_cpu_ms']} ms", "ffmpeg included; cached"),
        harness.Row("the same with a stream", f"{figures['stream_cpu_ms']} ms", "in turn with those without"),
        harness.Row("first second that can be watched", f"{figures['first_second_s']} s", "after the start; cached"),
    ]
    return harness.Measured("lipsync", figures, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(10, 30, 3), Sizes(2, 4, 1)))
