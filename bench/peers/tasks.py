"""The work, the same for every peer. Imported by their workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARRAY_BYTES = 16 << 20


def echo(n: int) -> int:
    """Return the number."""
    return n


def array(n: int) -> Any:
    """16 MiB of float64."""
    import numpy as np

    return np.full(ARRAY_BYTES // 8, float(n))


def nap(n: int, seconds: float, witness: str) -> int:
    """Sleeps, then leaves a file that says so; the file name tells who did it."""
    begun = Path(witness, f"{n}.{os.getpid()}.begun")
    begun.touch()
    time.sleep(seconds)
    begun.rename(begun.with_suffix(".done"))
    return n


def take(content: bytes) -> int:
    """How many bytes arrived."""
    return len(content)


def give(n: int, size: int) -> bytes:
    """So many bytes that nothing can compress."""
    return os.urandom(size)


TASKS: dict[str, Callable[..., Any]] = {"echo": echo, "array": array, "nap": nap, "take": take, "give": give}


class Tasks:
    """The same work as an engine of filepool."""

    def load(self, device: str, options: dict[str, object]) -> None:
        """Nothing to load."""
        self.close()

    def check(self, params: dict[str, Any]) -> dict[str, Any]:
        """Anything goes."""
        return params

    def run(self, params: dict[str, Any], context: Any) -> Any:
        """Do the task that the parameters name."""
        return {"value": TASKS[params["task"]](*params["args"])}

    def close(self) -> None:
        """Nothing is held."""
