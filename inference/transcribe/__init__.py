"""Speech to text with speakers: ``"engine": "inference.transcribe:Transcribe"``.

    media.decode → vad → windows → recogniser (whisper, funasr) → words ─┐
                    └→ voices (one vector per moment) → cluster ─────────┴→ segments → JSON, SRT, TXT

Importing this package is light; models load in ``Transcribe.load``.
"""

from inference.transcribe.engine import Transcribe
from inference.transcribe.params import Options, Params

__all__ = ("Options", "Params", "Transcribe")
