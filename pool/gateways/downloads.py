"""The names under which clients save what a job made: `talk.mp4` of `talk.wav`, not `output.mp4`."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from pool.job import Record
from pool.runfiles.schemas import path_keys

_MAX_BYTES = 200  # of a stem: file systems take 255 bytes for a name
_UNSAFE = frozenset('"\\%')  # in a quoted filename, clients disagree about them (RFC 6266, appendix D)


def names_of(record: Record, schema: Any, named: Callable[[str], str]) -> dict[str, str]:
    """The name of each file of a record, by its path.

    A file that the job wrote where its client said keeps its name. Any other one is called after the job's first input,
    with the suffix of the file; several with one suffix keep their own stem, too. schema: of the engine's parameters,
    in whose order inputs are looked for. named: returns the client's name of the file at a path.
    """
    paths = [str(file.get("path", "")) for file in record.files]
    stem = stem_of(record, schema, named)
    given = _texts(record)
    suffixes = [PurePosixPath(path).suffix for path in paths]
    found = {}
    for path, suffix in zip(paths, suffixes, strict=True):
        own = PurePosixPath(path).name
        if not stem or path in given:
            found[path] = own
        else:
            found[path] = f"{stem}{suffix}" if suffixes.count(suffix) == 1 else f"{stem}-{own}"
    return found


def stem_of(record: Record, schema: Any, named: Callable[[str], str]) -> str:
    """The name of the job's first input without its suffix, "" when none is known. The rest as for names_of."""
    written = [str(file.get("path", "")) for file in record.files]
    params, keys = record.kept.params or {}, path_keys(schema) if isinstance(schema, dict) else frozenset()
    for key in schema.get("properties", {}) if keys else ():
        path = params.get(key)
        if key in keys and isinstance(path, str) and path and path not in written:
            return _plain(PurePosixPath(named(path) or path).stem)
    return ""


def disposition(kind: str, name: str) -> str:
    """The header Content-Disposition (RFC 6266). kind: "inline" or "attachment".

    A name that is not plain ASCII is given twice: as it is (RFC 8187), and in ASCII for clients such as `curl -J`.
    """
    suffix = PurePosixPath(name).suffix
    plain = (_ascii(name.removesuffix(suffix)).strip(" .") or "download") + _ascii(suffix)
    if plain == name:
        return f'{kind}; filename="{name}"'
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return "".join("_" if char in _UNSAFE else char for char in plain)


def _texts(record: Record) -> frozenset[str]:
    params: Mapping[str, Any] = record.kept.params or {}
    return frozenset(value for value in params.values() if isinstance(value, str))


def _plain(stem: str) -> str:
    """Without characters that control a terminal or the direction of text, and not too long for a file name."""
    shown = "".join(char for char in stem if unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    return shown.encode("utf-8", "replace")[:_MAX_BYTES].decode("utf-8", "ignore").strip(" .")
