"""The packages that an engine needs: those that are missing are named together, with the command that installs them.

`pip install filepool` brings none of them; each extra brings those of one engine.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from inference.base import EngineError

#: extra -> module -> the package that holds it. The program ffmpeg may come from elsewhere: see `media.ffmpeg_binary`.
PACKAGES: Mapping[str, Mapping[str, str]] = {
    "transcribe": {
        "faster_whisper": "faster-whisper",
        "ffmpeg": "ffmpeg-python",
        "kaldi_native_fbank": "kaldi-native-fbank",
        "numpy": "numpy",
        "onnxruntime": "onnxruntime",
        "torch": "torch",
    },
    "lipsync": {"cv2": "opencv-python", "ffmpeg": "ffmpeg-python", "numpy": "numpy", "torch": "torch"},
    "musetalk": {
        "PIL": "pillow",
        "cv2": "opencv-python",
        "diffusers": "diffusers",
        "ffmpeg": "ffmpeg-python",
        "numpy": "numpy",
        "safetensors": "safetensors",
        "torch": "torch",
        "transformers": "transformers",
    },
    "portrait": {"cv2": "opencv-python", "ffmpeg": "ffmpeg-python", "numpy": "numpy", "torch": "torch"},
}
#: the start of a library's name -> what brings it to a machine without a desktop
LIBRARIES: Mapping[str, str] = {
    "libGL.so": "apt-get install libgl1",
    "libgthread-": "apt-get install libglib2.0-0",
    "libglib-": "apt-get install libglib2.0-0",
    "libxcb": "apt-get install libxcb1",
}
HEADLESS = "pip uninstall opencv-python && pip install opencv-python-headless, which needs no such library"
_NO_LIBRARY = re.compile(r"(lib[^\s:/]+\.so[.\d]*): cannot open shared object file")


class MissingPackage(EngineError, ImportError):
    """A package of the engine's extra, or a library of the system that a package needs, is not installed."""


def require(extra: str) -> None:
    """Raise :class:`MissingPackage` that names every package of the extra that is not installed. Imports nothing."""
    missing = [package for module, package in PACKAGES[extra].items() if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingPackage(
            f"{extra} needs {', '.join(missing)}, which {verb} not installed", hint=f"pip install 'filepool[{extra}]'"
        )


@contextlib.contextmanager
def needed(extra: str) -> Iterator[None]:
    """Around the import of an engine: what is missing raises :class:`MissingPackage`, all else passes."""
    try:
        yield
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES[extra]:
            require(extra)
        if library := _NO_LIBRARY.search(str(error)):
            raise MissingPackage(
                f"{extra} cannot start: the library {library[1]} is missing on this machine", hint=_cure(library[1])
            ) from error
        raise


def _cure(library: str) -> str:
    """What brings a library, in one line."""
    for start, command in LIBRARIES.items():
        if library.startswith(start):
            return f"{command}, or {HEADLESS}"
    return f"install the package of the system that holds {library}"
