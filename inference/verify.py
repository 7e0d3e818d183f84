"""Whether a file of weights is the one expected, and who says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inference import digests, manifest, pickled
from inference.digests import FIRST_USE, HUB, MANIFEST
from inference.download import Promise
from inference.fetch import WeightError
from inference.manifest import Model, Weight


class Unvouched(WeightError):
    """The file exists, and nobody has published its digest."""


def verify(weight: Weight, place: Path, trust_memory: bool, model: str = "") -> str:
    """Who vouches for the file in the weights folder ``place``; raise unless it is the one expected.

    ``model`` is the one that somebody wants it for, by default the first that has it.
    """
    path = place / weight.name
    command = f"python -m inference.weights install {model or manifest.owner(weight.name).name}"
    if not path.is_file():
        raise WeightError(f"weights missing: {path}", hint=f"{command}, or set FILEPOOL_WEIGHTS")
    known = digests.recorded(place / weight.model, weight.path)
    expected = weight.sha256 or (known.sha256 if known is not None else None)
    if expected is None:
        raise Unvouched(f"{path} was not installed by this program, and nobody published its digest", hint=command)
    compare_size(path, weight.size if weight.exact else known.size if known is not None else None)
    compare(path, expected, lambda path: digests.digest(path, trust_memory), f"remove it and run: {command}")
    return MANIFEST if weight.sha256 else known.vouched if known is not None else FIRST_USE


def judge(weight: Weight, part: Path, promise: Promise) -> tuple[str, str]:
    """Who vouches for a file that has come, and its SHA-256; raise unless it is the one expected."""
    compare_size(part, weight.size if weight.exact else promise.size)
    value = digests.sha256_of(part)
    if weight.sha256:
        compare(part, weight.sha256, lambda _: value)
        return MANIFEST, value
    if promise.sha256:
        compare(part, promise.sha256, lambda _: value)
    elif promise.blob:
        compare(part, promise.blob, digests.git_blob_of)
    check_code(weight, part)
    return (HUB if promise.sha256 or promise.blob else FIRST_USE), value


def check_code(weight: Weight, path: Path) -> None:
    """Raise when a pickle would call more than what makes tensors."""
    if not weight.name.endswith(pickled.SUFFIXES):
        return
    try:
        called = pickled.calls(path)
    except ValueError as error:
        raise WeightError(str(error)) from error
    if called:
        raise WeightError(
            f"{path} holds code: reading it would call {', '.join(called[:3])}; refused", hint="do not load that file"
        )


def compare_size(path: Path, size: int | None) -> None:
    """Raise unless the file has so many bytes; None is any number."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        raise WeightError(f"{path} has {actual} bytes instead of {size}: another file", hint="remove it, install again")


def compare(path: Path, expected: str, compute: Callable[[Path], str], hint: str = "") -> None:
    """Raise unless the file has that digest: 64 digits SHA-256, 40 digits git's SHA-1."""
    value, kind = compute(path), "SHA-256" if len(expected) == 64 else "SHA-1"
    if value != expected:
        raise WeightError(
            f"{path} has {kind} {value[:12]}… instead of {expected[:12]}…: damaged, or another version", hint=hint
        )


def vouching(weight: Weight, place: Path) -> str:
    """Who vouches for the file, as noted at the install; the file is not read."""
    known = digests.recorded(place / weight.model, weight.path)
    return MANIFEST if weight.sha256 else known.vouched if known is not None else "nobody yet"


def is_there(weight: Weight, place: Path) -> bool:
    """Whether the file is there with its size: cheap, no hashing."""
    path = place / weight.name
    return path.is_file() and (not weight.exact or path.stat().st_size == weight.size)


def is_installed(model: Model, place: Path) -> bool:
    """Whether all files are there with their sizes."""
    return all(is_there(weight, place) for weight in model.files)
