"""The notes in an ONNX file, which say what its model is and needs.

sherpa-onnx ends the process on a file that it cannot use, so a file is read here before it is handed over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from inference.base import EngineError

NETWORKS = ("model.int8.onnx", "model.onnx")  #: in a folder as sherpa-onnx publishes them; the first that is there


def file_in(folder: Path, names: Sequence[str], option: str) -> Path:
    """The first of the names that is in the folder that an option names; raises EngineError when none is."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise EngineError(
            f"options.{option}: {folder} holds no {' or '.join(names)}",
            hint="name a folder as sherpa-onnx publishes them, or an installed model: python -m inference.weights",
        )
    return found


def read(network: Path) -> Mapping[str, str]:
    """Name and value of each note; raises EngineError for a file that is no ONNX model."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.enable_cpu_mem_arena = False
    settings.log_severity_level = 4
    try:
        found = onnxruntime.InferenceSession(str(network), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for each kind of damage
        raise EngineError(
            f"{network} cannot be read as an ONNX model: {str(error)[:200]}", hint="install or copy it again"
        ) from error
    notes: dict[str, str] = found.get_modelmeta().custom_metadata_map
    return notes


def demand(network: Path, notes: Mapping[str, str], needed: Collection[str]) -> None:
    """Raise EngineError that names the notes that sherpa-onnx needs and the file does not have."""
    missing = sorted(name for name in needed if not notes.get(name))
    if missing:
        raise EngineError(
            f"{network} is no model that sherpa-onnx can run here: it says nothing of {', '.join(missing)}",
            hint="take SenseVoice, Paraformer and CT-Transformer as sherpa-onnx publishes them",
        )
