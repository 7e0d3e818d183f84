"""Transcribe a file in this process, without the pool: ``python -m inference.transcribe FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from inference import console
from inference.base import EngineError, LocalContext
from inference.transcribe import Transcribe
from inference.transcribe.outputs import as_txt
from inference.transcribe.params import OUTPUT_SUFFIXES


def main(argv: list[str] | None = None) -> int:
    """The command line; exit code 0 done, 1 failed."""
    parser = argparse.ArgumentParser("python -m inference.transcribe", description="Speech to text with speakers.")
    parser.add_argument("audio", type=Path)
    parser.add_argument("--language")
    parser.add_argument("--task", choices=("transcribe", "translate"), help="translate: into English")
    parser.add_argument("--stream", type=int, help="which audio stream, from 0 on")
    parser.add_argument("--channels", choices=("mix", "split"))
    parser.add_argument("--speakers", type=int)
    parser.add_argument("--hotword")
    parser.add_argument("--output", type=Path, help=f"transcript as {', '.join(OUTPUT_SUFFIXES)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--options", type=json.loads, default={}, help="engine options as JSON")
    parser.add_argument("--json", action="store_true", help="the whole result on stdout")
    given = parser.parse_args(argv)
    wanted = ("audio", "language", "task", "stream", "channels", "speakers", "hotword", "output")
    engine = Transcribe()

    def show(status: str, percent: float, message: str) -> None:
        print(f"\r{percent:5.1f} % {status}: {message:<50}", end="", file=sys.stderr)

    try:
        engine.load(given.device, given.options)
        job = engine.check({key: getattr(given, key) for key in wanted if getattr(given, key) is not None})
        with LocalContext(show if sys.stderr.isatty() else None) as context:
            result = engine.run(job, context)
    except EngineError as error:
        print(f"{error.kind} error: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return 1
    finally:
        engine.close()
    print(json.dumps(result, ensure_ascii=False, indent=1) if given.json else as_txt(result), end="")
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    console.run(main)
