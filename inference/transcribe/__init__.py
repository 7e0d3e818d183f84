"""Speech to text with speakers: ``"engine": "inference.transcribe:Transcribe"``.

    sound → vad → windows → recogniser (whisper, funasr) → words ─┐
               └→ voices (one vector per moment) → cluster ───────┴→ segments → outputs

Importing this package is light; models load in ``Transcribe.load``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference import extras

if TYPE_CHECKING:
    from inference.transcribe.engine import Transcribe
    from inference.transcribe.params import Options, Params

__all__ = ("Options", "Params", "Transcribe")


def __getattr__(name: str) -> Any:
    # The parameters can be read where the packages of the engine are not installed.
    if name == "Transcribe":
        with extras.needed("transcribe"):
            from inference.transcribe.engine import Transcribe
        return Transcribe
    if name in ("Options", "Params"):
        from inference.transcribe import params

        return getattr(params, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
