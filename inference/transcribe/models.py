"""The models that an option may name: installed ones by their names, others by their folders."""

from __future__ import annotations

from pathlib import Path

from inference import manifest, weights


def installable(prefix: str) -> tuple[str, ...]:
    """The names of the manifest that begin so."""
    return tuple(model.name for model in manifest.MODELS if model.name.startswith(prefix))


WHISPER = installable("whisper-")  #: those that the backend whisper runs


def whisper(name: str | None) -> Path:
    """The folder of the Whisper model that the option ``model`` names; raises WeightError when it is not there."""
    if name is None or name in WHISPER:
        return weights.find_model(name or "whisper-base")
    return weights.find_model("whisper-base", name)
