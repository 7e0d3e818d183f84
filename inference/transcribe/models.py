"""The models that an option may name: installed ones by their names, others by their folders."""

from __future__ import annotations

from pathlib import Path

from inference import manifest, weights
from inference.base import EngineError


def installable(prefix: str) -> tuple[str, ...]:
    """The names of the manifest that begin so."""
    return tuple(model.name for model in manifest.MODELS if model.name.startswith(prefix))


WHISPER = installable("whisper-")  #: those that the backend whisper runs


def whisper(name: str | None) -> Path:
    """The folder of the Whisper model that the option ``model`` names; raises WeightError when it is not there."""
    if name is None or name in WHISPER:
        return weights.find_model(name or "whisper-base")
    return weights.find_model("whisper-base", name)


PUNCTUATION = "sherpa-punctuation"
SHERPA = tuple(name for name in installable("sherpa-") if name != PUNCTUATION)  #: those that the backend sherpa runs


def sherpa(name: str | None) -> Path:
    """The folder of the ONNX model that the option ``model`` names; raises EngineError when it is not there."""
    if name is None:
        raise EngineError(
            "options.model: the sherpa backend needs a model",
            hint=f"name an installed one ({', '.join(SHERPA)}) or a folder with model.onnx and tokens.txt",
        )
    return weights.find_model(name) if name in SHERPA else weights.find_model(SHERPA[0], name)


def punctuation(name: str | None) -> Path:
    """The folder of the model that the option ``punctuation`` names, else the installed one."""
    return weights.find_model(PUNCTUATION, None if name in (None, PUNCTUATION) else name)
