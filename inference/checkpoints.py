"""Files of weights made with torch.save, read without running what else may be pickled in them.

Tensors, plain containers and numpy's numbers and arrays are let in. Anything else is refused, with the names of
the classes and functions that the file would have called, and with what to do about it.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from inference import pickled
from inference.base import EngineError

PROTOCOL = 2  #: of pickle, in files of weights
SHOWN = 5  #: names in a message


def read(file: Path, hint: str) -> Any:
    """What a file of weights holds, on the CPU; raises :class:`EngineError` naming the file and what is in the way.

    ``hint`` is for a file that is none of torch at all.
    """
    import torch  # takes seconds

    numbers = _numbers()
    failed: Exception | None = None
    # torch takes names of its own for what it lets in from 2.7 on, and lets anything in from 2.5 on
    for let_in in (numbers, [each for each, _ in numbers]):
        try:
            with _allowed(let_in):
                return torch.load(str(file), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises nearly every kind of exception for a file that is none of its own
            failed = failed or error
    names: list[str] = []
    with contextlib.suppress(ValueError, OSError):
        names = pickled.calls(file)
        # Old versions of torch take none of numpy's numbers, and cannot be told to.
        names = names or sorted(set(re.findall(r"\bnumpy\.[\w.]+", str(failed))))
    if names or _protocol(file) > PROTOCOL:
        raise _refusal(file, names) from failed
    # What torch says of pickled code is advice to run it.
    reason = "" if "weights_only" in str(failed) else f": {str(failed).strip()[:200]}"
    raise EngineError(f"checkpoint: {file} is no file of weights that can be read{reason}", hint=hint) from failed


def _refusal(file: Path, names: list[str]) -> EngineError:
    names = sorted(names, key=lambda name: (name.startswith(("torch.", "__builtin__.", "builtins.")), name))
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    load = f'save the weights alone: saved = torch.load("{file}", map_location="cpu", weights_only=False)'
    trust = "this runs code from the file, so only where you trust its source"
    if any(name.startswith("torch.nn.modules.") for name in names):
        return EngineError(
            f"checkpoint: {file} holds a whole pickled model ({shown}), not its weights",
            hint=f'where its code can be imported, {load}; torch.save(saved.state_dict(), "weights.pth"); {trust}',
        )
    if not names:
        return EngineError(
            f"checkpoint: {file} is pickled with protocol {_protocol(file)}; torch reads weights up to {PROTOCOL}",
            hint=f'{load}; torch.save(saved, "weights.pth"); {trust}',
        )
    return EngineError(
        f"checkpoint: {file} holds more than weights: {shown}",
        hint=f'{load}; torch.save(saved["state_dict"], "weights.pth"); {trust}',
    )


def _numbers() -> list[tuple[Any, str]]:
    """What numpy's scalars and arrays are pickled with, and its names in numpy 1 and 2."""
    core = getattr(np, "_core", None) or np.core
    functions = {name: getattr(core.multiarray, name) for name in ("scalar", "_reconstruct")}
    made = [
        (each, f"{place}.multiarray.{name}")
        for place in ("numpy.core", "numpy._core")
        for name, each in functions.items()
    ]
    made += [(np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]
    kinds = {type(np.dtype(letter)) for letter in "?bBhHiIlLqQefdFD"}
    return made + [(kind, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds]


def _allowed(what: list[Any]) -> contextlib.AbstractContextManager[Any]:
    """Let torch take these besides its own, where it is new enough to be told."""
    import torch

    allow = getattr(torch.serialization, "safe_globals", None)
    return contextlib.nullcontext() if allow is None else allow(what)


def _protocol(file: Path) -> int:
    """The protocol of the file's first pickle; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                name = next((name for name in archive.namelist() if name.endswith("data.pkl")), "")
                start = archive.read(name)[:2] if name else b""
        else:
            with file.open("rb") as stream:
                start = stream.read(2)
        return start[1] if start[:1] == b"\x80" else 0
    return 0
