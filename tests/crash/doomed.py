"""Real processes that die at an operation: an engine that dooms its worker, and a supervisor.

python doomed.py CONFIG NUMBER NOTE         serve, and be killed at durable operation NUMBER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from crash.points import kill_at  # noqa: E402
from inference.fake import Fake  # noqa: E402


class Doomed(Fake):
    """Fake whose worker of generation n is killed at operation n * stride after its load; from `last` on, none is."""

    def load(self, device: str, options: Mapping[str, Any]) -> None:
        super().load(device, options)
        generation = int(os.environ["FILEPOOL_WORKER"].rpartition(".")[2])
        if generation < options["last"]:
            kill_at(generation * options["stride"], Path(options["notes"]) / f"worker-{generation}")


def main(config: str, number: str, note: str) -> int:
    from pool.config.settings import load_config
    from pool.supervise.supervisor import serve

    chosen = load_config(Path(config))
    kill_at(int(number), Path(note))
    return serve(chosen)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
