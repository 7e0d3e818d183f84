"""The long storm: `make chaos`, or

    python tests/chaos [--seconds 1800] [--seed N] [--clients 3] [--real] [--json FILE] [--folder DIR]

Prints its seed, a line every half minute, and a summary as JSON; the exit code is 1 when something was lost, ran
twice, overlapped, or ended without a reason. The folder is kept then.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from crash.rig import History  # noqa: E402
from scenarios.world import World  # noqa: E402

from chaos.storm import Storm, set_up  # noqa: E402

EXAMPLES = TESTS.parent / "examples"
REAL: dict[str, dict[str, Any]] = {
    "transcribe": {
        "engine": "inference.transcribe:Transcribe",
        "max_concurrent_tasks": 1,
        "retry_times": 90,
        "start_limit": 1000,
        "bench_s": 2,
    },
    "portrait": {
        "engine": "inference.portrait:Portrait",
        "max_concurrent_tasks": 1,
        "options": {"backend": "mesh"},
        "retry_times": 90,
        "start_limit": 1000,
        "bench_s": 2,
    },
    "lipsync": {
        "engine": "inference.lipsync:LipSync",
        "max_concurrent_tasks": 1,
        "options": {"backend": "mesh"},
        "retry_times": 90,
        "start_limit": 1000,
        "bench_s": 2,
    },
}
for section in REAL.values():
    section.update(stall_timeout_s=300, load_timeout_s=600)


def real_jobs(world: World) -> list[dict[str, Any]]:
    """Before the storm a painting becomes a video; in the storm that video gets other words."""
    video = world.folder / "template.mp4"
    speech = str(EXAMPLES / "speech" / "reading.flac")
    pool = world.pool()
    image = str(EXAMPLES / "portrait" / "mona_lisa.jpg")
    made = pool.submit("portrait", image=image, audio=speech, output=str(video))
    made.result(1200)
    pool.close()
    History(world.folder / "history").say("accepted", id=made.id)
    return [
        {"engine": "transcribe", "params": {"audio": speech}, "suffix": ".srt"},
        {"engine": "lipsync", "params": {"video": str(video), "audio": speech}, "suffix": ".mp4"},
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--real", action="store_true", help="mix in transcribe and lipsync")
    parser.add_argument("--json", type=Path, help="write the summary there, too")
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    print(f"--seed {chosen.seed}", flush=True)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="filepool-storm-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    world = set_up(folder, REAL if chosen.real else None)
    try:
        world.serve(ready=2)
        real = real_jobs(world) if chosen.real else []
        storm = Storm(world, chosen.seed, clients=chosen.clients, real=real)
        storm.run(chosen.seconds, lambda text: print(text, flush=True))
        report = storm.settle()
    finally:
        world.close()
    text = json.dumps(storm.summary(report), indent=2)
    print(text)
    if chosen.json is not None:
        chosen.json.write_text(text + "\n")
    faults = storm.faults(report)
    for fault in faults[:50]:
        print(fault, file=sys.stderr)
    if not faults and chosen.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif faults:
        print(f"{len(faults)} faults; see {folder}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
