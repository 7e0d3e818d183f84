"""What an engine needs and this machine does not have: a shared library, a Python package, a program.

The loader says only "libGL.so.1: cannot open shared object file"; people need the package that brings it.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator

_FFMPEG = ("avcodec", "avdevice", "avfilter", "avformat", "avutil", "swresample", "swscale")
# start of a library's name -> what brings it; names of Debian and Ubuntu. The first that fits.
_LIBRARIES = (
    ("libGL.so", "apt-get install libgl1, or pip install opencv-python-headless in place of opencv-python"),
    ("libEGL.so", "apt-get install libegl1"),
    ("libgthread-2", "apt-get install libglib2.0-0"),
    ("libglib-2", "apt-get install libglib2.0-0"),
    ("libgobject-2", "apt-get install libglib2.0-0"),
    ("libSM.so", "apt-get install libsm6"),
    ("libICE.so", "apt-get install libice6"),
    ("libXext.so", "apt-get install libxext6"),
    ("libXrender.so", "apt-get install libxrender1"),
    ("libX11.so", "apt-get install libx11-6"),
    ("libxcb.so", "apt-get install libxcb1"),
    ("libsndfile", "apt-get install libsndfile1"),
    ("libportaudio", "apt-get install libportaudio2"),
    ("libsox.so", "apt-get install libsox3"),
    ("libgomp.so", "apt-get install libgomp1"),
    ("libopenblas.so", "apt-get install libopenblas0"),
    ("libtbb.so", "apt-get install libtbb12"),
    ("libstdc++.so", "apt-get install libstdc++6"),
    *((f"lib{part}.so", "apt-get install ffmpeg") for part in _FFMPEG),
    ("libcuda.so", "install the NVIDIA driver; in a container, start it with the GPU (--gpus all)"),
    ("libnvidia-", "install the NVIDIA driver; in a container, start it with the GPU (--gpus all)"),
    ("libcudart.so.11", "pip install nvidia-cuda-runtime-cu11"),
    ("libcudart.so.12", "pip install nvidia-cuda-runtime-cu12"),
    ("libcudart.so", "install the CUDA runtime of that version"),
    ("libcublas.so.11", "pip install nvidia-cublas-cu11"),
    ("libcublasLt.so.11", "pip install nvidia-cublas-cu11"),
    ("libcublas.so.12", "pip install nvidia-cublas-cu12"),
    ("libcublasLt.so.12", "pip install nvidia-cublas-cu12"),
    ("libcudnn", "pip install nvidia-cudnn-cu12, in the version that the package was built for"),
    ("libcu", "install the CUDA toolkit that the package was built for"),
    ("libnccl", "pip install nvidia-nccl-cu12"),
    ("libnvinfer", "pip install tensorrt"),
)
_PROGRAMS = {"ffmpeg": "ffmpeg", "ffprobe": "ffmpeg", "sox": "sox", "espeak": "espeak", "espeak-ng": "espeak-ng"}
_SAID = (
    re.compile(r"(?P<name>[^\s:'\"/]+\.so[.\d]*): cannot open shared object file"),  # glibc
    re.compile(r"Error loading shared library (?P<name>[^\s:'\"/]+\.so[.\d]*)"),  # musl
)
_NOT_FOUND = re.compile(r"(?P<name>sndfile|PortAudio) library not found", re.IGNORECASE)  # soundfile, sounddevice
_OTHER_BUILD = ("undefined symbol", "wrong ELF class", "invalid ELF header", "version `GLIBC", "version `CXXABI")
_CAUSES = 8


def cure_of(error: BaseException) -> str:
    """What is missing on this machine and what brings it, "" when the error is about something else."""
    for each in _chain(error):
        if found := _cure(each):
            return found
    return ""


def is_missing(error: BaseException) -> bool:
    """Whether something is missing on this machine that no other start can bring."""
    return bool(cure_of(error))


def _cure(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        program = error.filename if error.errno == errno.ENOENT else None
        if isinstance(program, str) and program in _PROGRAMS:
            return f"the program {program} is missing on this machine: apt-get install {_PROGRAMS[program]}"
        return ""
    if not isinstance(error, (ImportError, OSError)):
        return ""
    said = str(error)
    for pattern in _SAID:
        if found := pattern.search(said):
            return f"the library {found['name']} is missing on this machine: {_package(found['name'])}"
    if found := _NOT_FOUND.search(said):
        library = f"lib{found['name'].lower()}"
        return f"the library {library} is missing on this machine: {_package(library)}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the Python module {error.name} is missing: install its package for {sys.executable}"
    if isinstance(error, ImportError) and any(words in said for words in _OTHER_BUILD):
        return f"it was built for another system or another version of a library: install it again for {sys.executable}"
    return ""


def _package(library: str) -> str:
    """What brings a library, in one line."""
    for start, command in _LIBRARIES:
        if library.startswith(start):
            return command
    return f"install the package of the system that holds it (`apt-file search {library}` names it)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    current: BaseException | None = error
    for _ in range(_CAUSES):
        if current is None:
            return
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
