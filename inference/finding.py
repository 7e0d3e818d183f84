"""What an engine's ``diagnose(device, options)`` reports to ``python -m pool doctor``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inference.base import EngineError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. hint: what fixes it; "" where there is nothing to fix."""

    check: str
    ok: bool
    message: str
    hint: str = ""


def tried(check: str, look: Callable[[], object]) -> Finding:
    """What a look at one thing gives: its result as text, or the :class:`EngineError` that it raised."""
    try:
        return Finding(check, True, str(look()))
    except EngineError as error:
        return Finding(check, False, str(error), error.hint)
