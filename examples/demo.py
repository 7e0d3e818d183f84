"""The demo: three recordings go into the pool at once, two workers transcribe them, the transcripts come out.

    python examples/demo.py

The same from a shell, against the same pool:

    python -m pool.submit transcribe audio=examples/speech/two_speakers.flac output=two.srt
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import as_completed
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pool import FilePool  # noqa: E402

RECORDINGS = ("two_speakers.flac", "reading.flac", "address.flac")


def main() -> int:
    began = time.monotonic()
    print("Starting the pool: a supervisor and two workers, each loads Whisper base once …", flush=True)
    with FilePool(HERE.parent / "config.json") as pool:
        futures = {
            pool.submit("transcribe", audio=str(HERE / "speech" / name)): name for name in RECORDINGS
        }
        for future in as_completed(futures):
            result, record = future.result(), future.record
            assert record is not None
            seconds = (record.finished - record.started) / 1e6
            print(f"\n{futures[future]}  —  {result['duration_s']:.1f} s of speech, "
                  f"{result['language']}, {len(result['speakers'])} speaker(s), "
                  f"{seconds:.1f} s on worker {record.worker}")  # fmt: skip
            for segment in result["segments"]:
                speaker = segment["speaker"] or "-"
                print(f"  {clock(segment['start'])} → {clock(segment['end'])}  {speaker}: {segment['text'].strip()}")
    print(f"\n{time.monotonic() - began:.1f} s in all, model load included. Results stay in spool/out for 24 hours.")
    return 0


def clock(seconds: float) -> str:
    """90.25 -> 01:30.2"""
    return f"{int(seconds // 60):02d}:{seconds % 60:04.1f}"


if __name__ == "__main__":
    sys.exit(main())
