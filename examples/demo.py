"""The demo: recordings become transcripts with speakers, and a painting says two of them.

    python examples/demo.py

Three recordings are transcribed by two workers. Meanwhile `portrait` sets the painting in motion to the first recording
(demo/portrait.mp4), and then `lipsync` lets the person in that video say the second one (demo/talking.mp4).
The same from a shell, against the same pool:

    python -m pool.submit transcribe audio=examples/speech/two_speakers.flac output=two.srt
    python -m pool.submit portrait image=examples/portrait/mona_lisa.jpg \
        audio=examples/speech/address.flac output=portrait.mp4
    python -m pool.submit lipsync video=portrait.mp4 audio=examples/speech/reading.flac output=talking.mp4
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pool import FilePool  # noqa: E402
from pool.client.future import JobFuture  # noqa: E402

SPEECH = HERE / "speech"
RECORDINGS = ("two_speakers.flac", "reading.flac", "address.flac")
MADE = HERE.parent / "demo"


def main() -> int:
    began = time.monotonic()
    print("Starting the pool: a supervisor and four workers, each loads its own models once …", flush=True)
    MADE.mkdir(exist_ok=True)
    portrait, talking = MADE / "portrait.mp4", MADE / "talking.mp4"
    with FilePool(HERE.parent / "config.json") as pool:
        painting = pool.submit(
            "portrait",
            image=str(HERE / "portrait" / "mona_lisa.jpg"),
            audio=str(SPEECH / "address.flac"),
            output=str(portrait),
        )
        futures = {pool.submit("transcribe", audio=str(SPEECH / name)): name for name in RECORDINGS}
        for future in as_completed(futures):
            print_transcript(futures[future], future)
        print("\nA painting learns to talk: portrait, then lipsync on the video that comes out", flush=True)
        follow(painting, portrait)
        dubbed = pool.submit(
            "lipsync", video=str(portrait), audio=str(SPEECH / "reading.flac"), output=str(talking), digital_auth=1
        )
        follow(dubbed, talking)
    print(f"\n{time.monotonic() - began:.1f} s in all, model loads included. Results stay in spool/out for 24 hours.")
    return 0


def print_transcript(name: str, future: JobFuture) -> None:
    """Who said what, and how long it took."""
    result = future.result()
    print(
        f"\n{name}  —  {result['duration_s']:.1f} s of speech, {result['language']}, "
        f"{len(result['speakers'])} speaker(s), {worked(future)}"
    )
    for segment in result["segments"]:
        speaker = segment["speaker"] or "-"
        print(f"  {clock(segment['start'])} → {clock(segment['end'])}  {speaker}: {segment['text'].strip()}")


def follow(future: JobFuture, path: Path) -> None:
    """One line per status of a job that makes a video, then the video."""
    status = ""
    for update in future.progress():
        if update.status != status:
            status = update.status
            print(f"  {status:<15} {update.percent:3.0f} %  {update.message}", flush=True)
    made: Mapping[str, Any] = future.result()
    print(
        f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}: "
        f"{made['width']}×{made['height']}, {made['duration_s']:.1f} s at {made['fps']:g} fps, {worked(future)}"
    )


def worked(future: JobFuture) -> str:
    """Seconds and worker of a job that has ended."""
    record = future.record
    assert record is not None
    return f"{(record.finished - record.started) / 1e6:.1f} s on worker {record.worker}"


def clock(seconds: float) -> str:
    """90.25 -> 01:30.2"""
    return f"{int(seconds // 60):02d}:{seconds % 60:04.1f}"


if __name__ == "__main__":
    sys.exit(main())
