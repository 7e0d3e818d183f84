"""Arguments that are spelled in full, read without typer.

A process that lives as long as the pool must not hold what only a command line needs: typer, pydantic and rich would be
a third of its start and of its memory. What is not understood here is left to typer, which also has the help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read(words: Sequence[str], flags: Mapping[str, str]) -> dict[str, Any] | None:
    """What typer would make of these words: {"config": Path} and each flag that is given; None for everything else.

    flags: {"--verbose": "verbose", "-v": "verbose"}.
    """
    found: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if word in flags:
            found[flags[word]] = True
        elif word in ("--config", "-c") or (option == "--config" and equals):
            value = value if equals else next(rest, "")
            if not value or value.startswith("-"):
                return None
            found["config"] = Path(value)
        else:
            return None
    return found
