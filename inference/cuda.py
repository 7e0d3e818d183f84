"""GPUs: whether one can be used, how much memory it has, what to say when it has too little.

    python -m inference.cuda          what this interpreter and this machine have (--json for machines)

``cuda`` is NVIDIA's, and AMD's through ROCm builds of torch, which answer to the same names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from inference import console
from inference.base import EngineError, ResourceError

T = TypeVar("T")
MIB = 1 << 20
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: How torch, cuBLAS, cuDNN, CTranslate2 and ONNX Runtime say it.
SHORT = re.compile(
    r"out of memory|cu(blas|dnn)_status_(alloc_failed|not_initialized)|failed to allocate memory|can't allocate memory",
    re.IGNORECASE,
)


def is_gpu(device: str) -> bool:
    """Whether the device, e.g. "cuda" or "cuda:1", is a GPU of this kind."""
    return device.partition(":")[0] == "cuda"


def index_of(device: str) -> int:
    """Its number among those that are visible."""
    return int(device.partition(":")[2] or 0)


def missing(device: str) -> str:
    """Why torch cannot use the device; "" when it can, or when it is none of CUDA's."""
    if not is_gpu(device):
        return ""
    import torch

    visible = os.environ.get(VISIBLE)
    given = f" ({VISIBLE}={visible!r})" if visible is not None else ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU, or no driver for it{given}"
    count = torch.cuda.device_count()
    if index_of(device) >= count:
        return f"torch sees {count} GPU(s){given}"
    return ""


def require(device: str) -> None:
    """Raise EngineError when torch cannot use the device."""
    reason = missing(device)
    if reason:
        raise EngineError(
            f"{device} cannot be used: {reason}", hint="python -m inference.cuda tells what is there; see docs/GPU.md"
        )


def described(device: str) -> str:
    """The device and its memory in words. Raises EngineError when torch cannot use it."""
    require(device)
    room = free_and_total(device)
    return device if room is None else f"{device}, {room[0] // MIB} of {room[1] // MIB} MiB free"


def half(device: str) -> Any:
    """The type that weights of large networks are held in: torch.float16 on a GPU, else torch.float32.

    Processors add halves slowly or not at all.
    """
    import torch

    return torch.float16 if is_gpu(device) else torch.float32


def free_and_total(device: str) -> tuple[int, int] | None:
    """Bytes of the device that are free and that it has, by its driver; None when that cannot be told."""
    torch = sys.modules.get("torch")
    if torch is None or not is_gpu(device):
        return None
    try:
        free, total = torch.cuda.mem_get_info(index_of(device))
    except Exception:  # of a device that is ill, or without a driver: torch raises several kinds
        return None
    return int(free), int(total)


def held(device: str) -> int:
    """Bytes of the device that torch holds in this process; 0 before it has used it."""
    torch = sys.modules.get("torch")
    if torch is None or not is_gpu(device) or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved(index_of(device)))


def release(device: str) -> None:
    """Let torch give back what it holds and does not use."""
    torch = sys.modules.get("torch")
    if torch is not None and is_gpu(device) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException, device: str, doing: str, hint: str = "") -> ResourceError | None:
    """The error as a ResourceError with numbers when memory ran out; None when it is another one.

    ``doing`` says what was done, e.g. "64 faces of 96×96".
    """
    if isinstance(error, (EngineError, KeyError)):
        return None
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and SHORT.search(str(error))):
        return None
    room = free_and_total(device)
    numbers = "" if room is None else f": {room[0] // MIB} of {room[1] // MIB} MiB are free"
    ours = held(device)
    if ours:
        numbers += f", {ours // MIB} MiB are held by this worker"
    return ResourceError(
        f"{device} ran out of memory on {doing}{numbers}", hint=hint or "use fewer workers on this device"
    )


@contextlib.contextmanager
def guarded(device: str, doing: str, hint: str = "") -> Iterator[None]:
    """Turn an error that means too little memory into a ResourceError; others pass."""
    try:
        yield
    except Exception as error:
        short = out_of_memory(error, device, doing, hint)
        if short is None:
            raise
        raise short from error


def in_batches(
    work: Callable[[slice], T], count: int, device: str, what: str, smaller: Callable[[int], None]
) -> list[T]:
    """Do ``work`` on so many items: all at once or, where memory is short, half as many at a time, down to one.

    ``smaller`` is told how many items a batch may have from now on. ``what`` names items, for the ResourceError that
    is raised when there is no memory for a single one.
    """
    size = count
    while True:
        try:
            return [work(slice(at, at + size)) for at in range(0, count, size)]
        except RuntimeError as error:
            short = out_of_memory(error, device, f"{size} {what}", "use fewer workers on this device")
            if short is None:
                raise
            if size == 1:
                raise short from error
            release(device)
            size //= 2
            smaller(size)


def survey() -> dict[str, Any]:
    """What this interpreter and this machine have."""
    found: dict[str, Any] = {VISIBLE: os.environ.get(VISIBLE), "torch": None, "devices": [], "ctranslate2": None}
    with contextlib.suppress(ImportError):
        import torch

        found["torch"] = torch.__version__
        found["built_for"] = torch.version.cuda or torch.version.hip
        found["missing"] = missing("cuda")
        for index in range(0 if found["missing"] else torch.cuda.device_count()):
            about, room = torch.cuda.get_device_properties(index), free_and_total(f"cuda:{index}")
            found["devices"].append(
                {
                    "device": f"cuda:{index}",
                    "name": about.name,
                    "capability": f"{about.major}.{about.minor}",
                    "free_mib": None if room is None else room[0] // MIB,
                    "total_mib": about.total_memory // MIB,
                }
            )
    with contextlib.suppress(ImportError, OSError):
        import ctranslate2

        found["ctranslate2"] = {"version": ctranslate2.__version__, "devices": ctranslate2.get_cuda_device_count()}
    try:
        from inference.encode import nvenc_works

        found["nvenc"] = nvenc_works() or "works"
    except (ImportError, EngineError) as error:
        found["nvenc"] = str(error)
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 when torch can use a GPU, else 1."""
    parser = argparse.ArgumentParser(prog="python -m inference.cuda", description="What there is of GPUs.")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args(argv)
    found = survey()
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for line in _lines(found):
            print(line)
    return 0 if found["devices"] else 1


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{VISIBLE}: {'not set' if found[VISIBLE] is None else found[VISIBLE]!r}"
    if found["torch"] is None:
        yield "torch: not installed"
    else:
        yield f"torch: {found['torch']}, built for {found['built_for'] or 'processors only'}"
        if found["missing"]:
            yield f"  cuda cannot be used: {found['missing']}"
    for device in found["devices"]:
        yield (
            f"  {device['device']}: {device['name']}, compute capability {device['capability']}, "
            f"{device['free_mib']} of {device['total_mib']} MiB free"
        )
    whisper = found["ctranslate2"]
    yield "ctranslate2: " + (f"{whisper['version']}, {whisper['devices']} GPU(s)" if whisper else "not installed")
    nvenc = found["nvenc"]
    yield nvenc if str(nvenc).startswith("nvenc") else f"nvenc: {nvenc}"


if __name__ == "__main__":
    console.run(main)
