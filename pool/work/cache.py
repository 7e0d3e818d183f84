"""Result cache by content: inputs, parameters, engine and weights decide the key, never a path or a time.

cache/results/<key>.msgpack holds the value, cache/results/<key>/ copies of the files the job wrote. An entry is
written whole under a temporary name and renamed, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pool.constants import MAX_RESULT_BYTES
from pool.errors import ProtocolError
from pool.format import codec
from pool.spool import fsops
from pool.spool.store import Spool


class ResultCache:
    """Cache of one engine in one worker."""

    def __init__(self, spool: Spool, engine: str, fingerprint: str) -> None:
        self._spool = spool
        self._salt = [engine, fingerprint]
        self._root = spool.root / "cache" / "results"
        fsops.make_dir(str(self._root))
        self._hashes: dict[str, tuple[Any, str]] = {}

    def key(self, params: Mapping[str, Any], inputs: Sequence[Path], outputs: Sequence[Path]) -> str:
        """Key of a call: input paths count by content, output paths by their suffix alone."""
        names: dict[str, Any] = {}
        for path in inputs:
            names[os.path.realpath(path)] = "content:" + self._content(path)
        for path in outputs:
            real = os.path.realpath(path)  # which may be an input, too
            names[real] = names.get(real, "") + "suffix:" + path.suffix
        body = codec.encode([self._salt, _replace_paths(params, names)])
        return hashlib.sha256(body).hexdigest()

    def _content(self, path: Path) -> str:
        info = os.stat(path)
        stamp = (info.st_size, info.st_mtime_ns, info.st_ino)
        known = self._hashes.get(str(path))
        if known is not None and known[0] == stamp:
            return known[1]
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if len(self._hashes) > 1000:
            self._hashes.clear()
        self._hashes[str(path)] = (stamp, digest.hexdigest())
        return digest.hexdigest()

    def load(self, key: str) -> tuple[Any, list[tuple[str, Path]]] | None:
        """(value, [(path at the time, stored copy)]) or None."""
        entry = self._root / f"{key}.msgpack"
        try:
            value, stored = codec.decode(fsops.read_bounded(entry, MAX_RESULT_BYTES))
            files = [(str(original), self._root / key / os.path.basename(name)) for original, name in stored]
            os.utime(entry)
        except (OSError, ProtocolError, ValueError, TypeError):
            return None
        return (value, files) if all(copy.is_file() for _, copy in files) else None

    def store(self, key: str, value: Any, files: Sequence[Path]) -> None:
        """Keep a value and copies of the files it names, in the order of `files`; a full disk is no error here."""
        temp = Path(self._spool.temp())
        place = self._root / key
        stored = [[str(path), f"{number}{path.suffix}"] for number, path in enumerate(files)]
        try:
            body = codec.encode([value, stored])
            if files:
                fsops.make_dir(str(temp))
                for path, name in stored:
                    shutil.copyfile(path, temp / name)
                if not all((place / name).is_file() for _, name in stored):
                    fsops.remove_tree(str(place))  # what a crash left of an entry
                    fsops.rename(str(temp), str(place))
            fsops.put(self._spool.temp(), f"{place}.msgpack", [body], sync=False)
        except (OSError, ProtocolError):
            pass
        finally:
            if files:
                fsops.remove_tree(str(temp))


def swap_paths(value: Any, swaps: Mapping[str, str]) -> Any:
    """`value` with every text that equals an old path replaced by the new one."""
    if isinstance(value, str):
        return swaps.get(value, value)
    if isinstance(value, dict):
        return {key: swap_paths(item, swaps) for key, item in value.items()}
    if isinstance(value, list):
        return [swap_paths(item, swaps) for item in value]
    return value


def _replace_paths(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, (str, Path)):
        text = str(value)  # what holds a NUL is no path, and no question for the disk
        return names.get(os.path.realpath(text), text) if text and "\0" not in text else text
    if isinstance(value, Mapping):  # the only map there is afterwards, so that no list can pass for one
        return {"": [[key, _replace_paths(value[key], names)] for key in sorted(value, key=str)]}
    if isinstance(value, (list, tuple)):
        return [_replace_paths(item, names) for item in value]
    return value
