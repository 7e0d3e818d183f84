"""Engines, or parts of one, that live in an interpreter of their own: an old Python, a conda environment, another CUDA.

    probe    what an interpreter is and what it can import, asked before anything is started in it
    host     starts a guest there, once per worker, and hands it jobs
    life     what a guest shows of itself, and whether it still lives
    family   all that it has started, ended with it
    engine   `"engine": "inference.foreign:Foreign"`: an engine whose whole work an SDK does there
    guest/   what runs there: the standard library only, valid from Python 3.6 on

Where Python 3.8 or newer can have `msgpack`, `watchdog` and `filelock`, the worker itself may run there instead
(`"python"` in config.json); a guest is for what cannot, and for a part of an engine, such as the backend `heygem`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.foreign.engine import Foreign

__all__ = ("Foreign",)


def __getattr__(name: str) -> Any:
    # The probe is used without the packages of an engine.
    if name == "Foreign":
        from inference.foreign.engine import Foreign

        return Foreign
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
