"""Files of weights made with torch.save, read without running what else may be pickled in them.

Tensors, plain containers and numpy's numbers and arrays are let in. Anything else is refused, with the names of
the classes and functions that the file would have called, and with what to do about it.
"""

from __future__ import annotations

import contextlib
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inference.base import EngineError

#: pickled by torch.save for tensors themselves
OWN = ("torch._utils.", "torch.storage.", "torch.serialization.", "torch._tensor.", "torch.nn.parameter.")
PLAIN = frozenset(
    ["collections.OrderedDict", "collections.defaultdict", "_codecs.encode", "torch.Size", "torch.device"]
)
PROTOCOL = 2  #: of pickle, in files of weights
SHOWN = 5  #: names in a message
LEGACY_PICKLES = 5  #: of an old file: a number, a version, the system, the content, the keys of its tensors


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
    names = foreign(file)
    protocol = max((value for name, value in _operations(file) if name == "PROTO"), default=PROTOCOL)
    if names or protocol > PROTOCOL:
        raise _refusal(file, names, protocol) from failed
    # What torch says of pickled code is advice to run it.
    reason = "" if "weights_only" in str(failed) else f": {str(failed).strip()[:200]}"
    raise EngineError(f"checkpoint: {file} is no file of weights that can be read{reason}", hint=hint) from failed


def foreign(file: Path) -> list[str]:
    """The classes and functions pickled in a file that are not torch's own, nor numpy's where torch takes these."""
    import torch

    known = {name for _, name in _numbers()} if hasattr(torch.serialization, "safe_globals") else set()
    found: list[str] = []
    for name in _looked_up(file):
        numeric = name in PLAIN or name in known or name.startswith(OWN)
        storage = name.startswith("torch.") and name.count(".") == 1  # torch.FloatStorage, torch.float32
        if not numeric and not storage and name not in found:
            found.append(name)
    return found


def _refusal(file: Path, names: list[str], protocol: int) -> EngineError:
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
            f"checkpoint: {file} is pickled with protocol {protocol}; torch reads weights up to protocol {PROTOCOL}",
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


def _operations(file: Path) -> Iterator[tuple[str, Any]]:
    """Name and argument of each step of unpickling the file, as far as it can be read; nothing is run."""
    with contextlib.suppress(OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError):
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        for code, value, _ in pickletools.genops(archive.read(name)):
                            yield code.name, value
            return
        with file.open("rb") as stream:
            for _ in range(LEGACY_PICKLES):
                for code, value, _ in pickletools.genops(stream):
                    yield code.name, value


def _looked_up(file: Path) -> Iterator[str]:
    """``module.name`` of everything that unpickling the file would look up."""
    texts: list[str] = []  # as they are pushed; the last two name what STACK_GLOBAL looks up
    memo: dict[int, str] = {}
    pushed = ""  # by the step before, if that was a text
    for name, value in _operations(file):
        text = ""
        if name == "PROTO":  # another pickle begins
            memo = {}
        elif name in ("GLOBAL", "INST"):
            yield str(value).replace(" ", ".", 1)
        elif name == "STACK_GLOBAL" and len(texts) > 1:
            yield f"{texts[-2]}.{texts[-1]}"
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if value is None else int(value)] = text = pushed
        elif name in ("BINGET", "LONG_BINGET"):
            text = memo.get(int(value), "")
        elif isinstance(value, str):
            text = value
        if text and name not in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            texts.append(text)
        pushed = text
