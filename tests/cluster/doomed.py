"""Real agents and ports that end themselves at a step: an operation on the disk, or a word to the servers.

python doomed.py node|port CONFIG NUMBER NOTE    serve; from when NOTE.armed is there, end before step NUMBER (0: never)
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from nats.aio.client import Client  # noqa: E402

from pool.cluster import processes  # noqa: E402
from pool.config.settings import load_config  # noqa: E402
from pool.spool import fsops  # noqa: E402

ENDED = 86
_ROUTINE = ("$KV.filepool_nodes.", "$JS.API.CONSUMER.", "$JS.API.STREAM.INFO", "_INBOX.")  # at any time, of no job


class Doom:
    """Counts steps from when it is armed."""

    def __init__(self, number: int, note: Path) -> None:
        self._number, self._note = number, note
        self._armed = note.with_name(f"{note.name}.armed")
        self._numbers = itertools.count(1)

    def step(self, what: str, where: str) -> None:
        if self._armed.exists() and next(self._numbers) == self._number:
            self._note.write_text(f"step {self._number}, {what} {where}")
            os._exit(ENDED)

    def on_the_disk(self, operation: str, path: str) -> None:
        routine = any(part in path for part in ("/run/nodes.json", "/run/status.json", "/run/supervisor.json"))
        if not routine and not path.startswith(str(self._note)):
            self.step(operation, path)

    def on_the_network(self) -> None:
        said: Any = Client.publish

        async def publish(client: Client, subject: str, payload: bytes = b"", *args: Any, **more: Any) -> None:
            if not subject.startswith(_ROUTINE) and payload != b"+WPI":
                self.step("publish", subject)
            await said(client, subject, payload, *args, **more)

        Client.publish = publish  # type: ignore[assignment,method-assign]


def main(kind: str, config: str, number: str, note: str) -> int:
    doom = Doom(int(number), Path(note))
    fsops.hook = doom.on_the_disk
    doom.on_the_network()
    chosen = load_config(Path(config), engines=False)
    if kind == "port":
        return processes.serve_port(chosen, tied=False)
    return processes.serve_node(chosen, start=False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
