"""Files that a job wrote on a node: which of them go to the store, where each one lands at the client, and what the
record says then."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pool.cluster.mediacache import safe_name
from pool.cluster.shared import is_shared
from pool.cluster.wire import Blob
from pool.constants import MAX_DEPTH
from pool.errors import ProtocolError
from pool.failure import Failure
from pool.job import Record
from pool.spool import fsops
from pool.system import limits

_ARRAY = re.compile(r"array-[0-9A-Za-z_.-]{1,80}\.npy\Z")
_CACHED = r"(?:/[^\s'\":]+)*/[0-9a-f]{64}/"  # a path in the cache of a node, without the name


class Source(Protocol):
    """Where files come from: `pool.cluster.media.Store`."""

    async def get(self, blob: Blob, path: Path) -> None:
        """Write the content to a file."""


@dataclass(frozen=True)
class Produced:
    """What a job left on its node. arrays: files beside the record. files: those that the engine wrote; the last part
    of a path is the name in the parcel. missing: those of the record that are not there any more."""

    arrays: tuple[Path, ...]
    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()


def outgoing(record: Record, files_dir: Path, *, shared: Collection[str] = ()) -> Produced:
    """The files that have to go to the client. files_dir: out/<id> of the spool in which the job ran."""
    arrays: list[Path] = []
    if files_dir.is_dir():
        arrays = sorted(path for path in files_dir.iterdir() if _ARRAY.match(path.name))
    files, missing = [], []
    for file in record.files:
        path = str(file["path"])
        if is_shared(path, shared):
            continue
        if os.path.isfile(path):
            files.append(Path(path))
        else:
            missing.append(path)
    return Produced(tuple(arrays), tuple(files), tuple(missing))


@dataclass(frozen=True)
class Landed:
    """A file of a record, and where it is now. wish: where the caller wanted it; why: the reason if it is not there."""

    file: Mapping[str, Any]
    blob: Blob | None
    path: str
    wish: Path | None = None
    why: str = ""


async def land(
    record: Record,
    outputs: Iterable[Blob],
    store: Source,
    *,
    wishes: Mapping[str, Path],
    folder: Path,
    arrays: Iterable[Blob] = (),
    shared: Collection[str] = (),
    params: Any = None,
) -> Record:
    """Bring the files of a job where its caller wants them; the record with the paths of this machine.

    wishes: name in the parcel -> the caller's path; a file without one, or whose folder cannot be written, lands in
    `folder` (out/<id> of this spool), and the record says so. params: as the caller gave them: what the record says
    about the node's copy of an input is then said about the input. May be repeated. Raises what `Store.get` does.
    """
    for blob in arrays:
        if _ARRAY.match(blob.name):
            await _bring(store, blob, folder / blob.name, folder)
    plan = landing(record, outputs, wishes=wishes, folder=folder, shared=shared)
    landed = [await _landed(one, store, folder) for one in plan]
    return told(record, landed, params)


def landing(
    record: Record,
    outputs: Iterable[Blob],
    *,
    wishes: Mapping[str, Path],
    folder: Path,
    shared: Collection[str] = (),
) -> list[Landed]:
    """Where each file of a record should land. Raises ProtocolError."""
    left, places, taken, found = _Unplaced(outputs), _Places(), set[str](), list[Landed]()
    for file in record.files:
        if not isinstance(file, Mapping):
            raise ProtocolError("not a file of a record")
        there = str(file.get("path", ""))
        if is_shared(there, shared):
            found.append(Landed(file, None, places.take(there)))
            continue
        blob = left.take(file)
        if blob is None:
            found.append(Landed(file, None, places.take(there), None, "its node did not have it any more"))
            continue
        name = safe_name(blob.name)
        wish = wishes.get(name) if name not in taken else None
        taken.add(name)
        found.append(Landed(file, blob, places.take(str(wish)) if wish else places.free(folder / name), wish))
    return found


class _Unplaced:
    """The files that came and that no file of the record is yet."""

    def __init__(self, blobs: Iterable[Blob]) -> None:
        self._same: dict[tuple[str, int], dict[str, list[Blob]]] = {}  # content -> name -> files, the first one last
        for blob in reversed(list(blobs)):
            self._same.setdefault((blob.sha256, blob.size), {}).setdefault(blob.name, []).append(blob)

    def take(self, file: Mapping[str, Any]) -> Blob | None:
        """One with the content of a file of the record: of several that with its name, else the first one."""
        sha, size = file.get("sha256"), file.get("size")
        named = self._same.get((sha, size)) if isinstance(sha, str) and isinstance(size, int) else None
        if not named:
            return None
        name = safe_name(os.path.basename(str(file.get("path", ""))))
        name, blobs = (name, named.pop(name)) if name in named else named.popitem()
        blob = blobs.pop()
        if blobs:
            named[name] = blobs
        return blob


class _Places:
    """Paths at the client, each given to one file."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}  # path -> the last number that was put to it

    def take(self, path: str) -> str:
        """The path itself, whoever else has it."""
        self._taken.add(path)
        return path

    def free(self, path: Path) -> str:
        """The path, or one like it that nobody has."""
        wanted = found = str(path)
        while found in self._taken:
            number = self._numbers[wanted] = self._numbers.get(wanted, 1) + 1
            found = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        return self.take(found)


async def _landed(one: Landed, store: Source, folder: Path) -> Landed:
    if one.blob is None:
        return one
    if one.wish is None:
        await _bring(store, one.blob, Path(one.path), folder)
        return one
    why = ""
    try:
        if one.wish.is_dir():
            why = "it is a folder now"
        elif not one.wish.parent.is_dir():
            why = f"the folder {one.wish.parent} does not exist any more"
        else:
            await _bring(store, one.blob, one.wish, folder)
    except ConnectionError:
        raise
    except OSError as error:
        why = limits.sentence(error)
    if not why:
        return one
    path = folder / safe_name(one.blob.name)
    await _bring(store, one.blob, path, folder)
    return replace(one, path=str(path), why=why)


async def _bring(store: Source, blob: Blob, path: Path, folder: Path) -> None:
    if await asyncio.to_thread(_holds, path, blob):
        return  # it landed before the record did
    if path.parent == folder:
        fsops.make_dir(str(folder))
    await store.get(blob, path)


def _holds(path: Path, blob: Blob) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != blob.size:
                return False
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == blob.sha256


# ---- what the record says


def told(record: Record, landed: Iterable[Landed], params: Any = None) -> Record:
    """The record with the paths of this machine in place of those of the node."""
    exact, files, warnings = {}, [], []
    for one in landed:
        there, file = str(one.file.get("path", "")), {**one.file, "path": one.path}
        if one.why:
            wanted = str(one.wish) if one.wish else os.path.basename(there)
            place = f"the file is {one.path}" if one.blob else "there is no copy of it"
            warnings.append(f"{wanted} was not written: {one.why}; {place}")
            file["why"] = one.why
        files.append(file)
        exact[there] = one.path
    names = _Names(exact, params)
    value = names.value(record.value)
    if warnings and isinstance(value, dict) and isinstance(value.get("warnings", []), list):
        value = {**value, "warnings": [*value.get("warnings", []), *warnings]}
    failure = record.failure
    return replace(
        record,
        value=value,
        files=tuple(files),
        failure=None if failure is None else names.failure(failure),
        attempts=tuple(map(names.failure, record.attempts)),
    )


class _Names:
    """Paths of a node, and what they are called here."""

    def __init__(self, exact: Mapping[str, str], params: Any) -> None:
        self._exact = exact
        inputs: dict[str, set[str]] = {}
        _collect(params, inputs, 0)
        self._inputs = {name: next(iter(paths)) for name, paths in inputs.items() if len(paths) == 1}
        names = "|".join(re.escape(name) for name in sorted(self._inputs, key=len, reverse=True))
        self._pattern = re.compile(f"{_CACHED}({names})") if names else None

    def value(self, value: Any, depth: int = 0) -> Any:
        """The same with paths of here, wherever they are all of a string."""
        if isinstance(value, str):
            if value in self._exact:
                return self._exact[value]
            match = self._pattern.fullmatch(value) if self._pattern else None
            return self._inputs[match[1]] if match else value
        if depth > MAX_DEPTH:
            return value
        if isinstance(value, dict):
            return {key: self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        return value

    def failure(self, failure: Failure) -> Failure:
        """The same with paths of here, also within what it says."""
        return replace(
            failure,
            message=self._text(failure.message),
            hint=self._text(failure.hint),
            stderr_tail=self._text(failure.stderr_tail),
            traceback=self._text(failure.traceback),
            attempts=tuple(map(self.failure, failure.attempts)),
        )

    def _text(self, text: str) -> str:
        for there, here in self._exact.items():
            text = text.replace(there, here) if there else text
        if self._pattern is None:
            return text
        named: Callable[[re.Match[str]], str] = lambda match: self._inputs[match[1]]  # noqa: E731
        return self._pattern.sub(named, text)


def _collect(value: Any, found: dict[str, set[str]], depth: int) -> None:
    """The absolute paths in parameters, by the name that a node gives them."""
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if isinstance(text, str) and os.path.isabs(text):
            found.setdefault(safe_name(os.path.basename(text)), set()).add(text)
    elif depth <= MAX_DEPTH and isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            _collect(item, found, depth + 1)
