"""Parameters checked before a job is accepted, by the JSON schema that the engine's workers left in run/engines/.

An engine without a schema accepts anything here and answers in its own check(). Messages name the key and the
nearest known one.
"""

from __future__ import annotations

import difflib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pool.errors import JobRefused
from pool.job import references

_BELIEVED_S = 0.1  # a description that was read is not looked at again for so long


class Schemas:
    """Reads and remembers the descriptions of the engines of one spool."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}/run/engines"
        self._believed: dict[str, float] = {}  # engine -> until when its description is not looked at again
        # engine -> (mtime ns, description, validator, keys that are paths)
        self._known: dict[str, tuple[int, Any, Any, frozenset[str]]] = {}

    def describe(self, engine: str) -> dict[str, Any] | None:
        """{"engine", "schema", "doc"} of an engine whose workers have booted once, else None."""
        entry = self._load(engine)
        return entry[1] if entry else None

    def fit(self, engine: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters with paths as they are meant here: a worker has another working directory. Raises as check."""
        entry = self._load(engine)
        keys: frozenset[str] = frozenset()
        if entry is not None:
            self._check(entry, params)
            keys = entry[3]
        if keys.isdisjoint(params) and references.are_plain(params):
            return params
        changed = {
            key: os.path.abspath(os.path.expanduser(value))
            for key, value in params.items()
            if (key in keys and value if isinstance(value, str) else isinstance(value, os.PathLike))
        }
        return {**params, **changed} if changed else params

    def check(self, engine: str, params: Mapping[str, Any]) -> None:
        """Raise JobRefused with the key's path when the engine would refuse these parameters."""
        entry = self._load(engine)
        if entry is not None:
            self._check(entry, params)

    @staticmethod
    def _check(entry: tuple[int, Any, Any, frozenset[str]], params: Mapping[str, Any]) -> None:
        if entry[2] is None:
            return
        try:
            plain = params if _is_plain(params) else json.loads(json.dumps(params, default=str))
        except (TypeError, ValueError, RecursionError) as wrong:
            raise JobRefused(f"cannot be stored: {wrong}", "params") from None
        try:
            wrong_ones = sorted(entry[2].iter_errors(plain), key=lambda e: list(map(str, e.path)))
            if wrong_ones:  # what stands for a result that is not there yet is checked when it is
                holes = references.paths(plain)
                wrong_ones = [one for one in wrong_ones if not any(_about(one, hole) for hole in holes)]
            error = wrong_ones[0] if wrong_ones else None
        except Exception:  # the schema itself is wrong, in ways jsonschema has many names for
            return
        if error is not None:
            raise _refusal(error, entry[1]["schema"])
        for key in sorted(entry[3] & params.keys()):
            path = str(params[key])
            if "\0" in path:
                raise JobRefused(f"{ascii(path)[:80]} holds a NUL: no file can have this path", f"params.{key}")

    def _load(self, engine: str) -> tuple[int, Any, Any, frozenset[str]] | None:
        known = self._known.get(engine)
        now = time.monotonic()
        if known is not None and now < self._believed[engine]:
            return known
        path = f"{self._root}/{engine}.json"
        try:
            stamp = os.stat(path).st_mtime_ns
            self._believed[engine] = now + _BELIEVED_S
            if known is not None and known[0] == stamp:
                return known
            description = json.loads(Path(path).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(description, dict):
            return None
        schema = description.get("schema")
        validator: Any = None
        paths: frozenset[str] = frozenset()
        if isinstance(schema, dict):
            from jsonschema import Draft202012Validator

            validator, paths = Draft202012Validator(schema), path_keys(schema)
        self._known[engine] = entry = (stamp, description, validator, paths)
        return entry


def _about(error: Any, hole: tuple[references.Key, ...]) -> bool:
    """Whether an error may come from a placeholder there."""
    path = tuple(error.path)
    if len(path) >= len(hole):
        return path[: len(hole)] == hole
    return hole[: len(path)] == path and error.validator not in ("required", "additionalProperties")


def path_keys(schema: Mapping[str, Any]) -> frozenset[str]:
    """The parameters that the engine takes for paths."""
    kinds = ("path", "file-path", "directory-path")
    found = set()
    for key, about in schema.get("properties", {}).items():
        options = [about, *about.get("anyOf", ())] if isinstance(about, dict) else []
        if any(isinstance(option, dict) and option.get("format") in kinds for option in options):
            found.add(key)
    return frozenset(found)


def _is_plain(value: Any) -> bool:
    """Whether JSON would give the same back, so that the round trip can be spared."""
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def _refusal(error: Any, schema: Mapping[str, Any]) -> JobRefused:
    known = list(schema.get("properties", {}))
    path = ".".join(["params", *(str(part) for part in error.absolute_path)])
    if error.validator == "additionalProperties":
        unknown = next((key for key in error.instance if key not in error.schema.get("properties", {})), "?")
        near = difflib.get_close_matches(str(unknown), known, 1)
        guess = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
        return JobRefused(f"unknown parameter{guess}", f"{path}.{str(unknown)[:80]}")
    if error.validator == "required":
        missing = next((key for key in error.validator_value if key not in error.instance), "?")
        return JobRefused("this parameter is required", f"{path}.{missing}")
    if error.validator == "anyOf":
        branches: dict[Any, list[Any]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0], []).append(inner)
        for inners in branches.values():  # of the right type, so its own fault is the true one
            if not any(inner.validator == "type" and not inner.path for inner in inners):
                return _refusal(inners[0], schema)
        kinds = [str(option.get("type", option)) for option in error.validator_value if option.get("type") != "null"]
        return JobRefused(f"{error.instance!r:.80} is not of type {' or '.join(kinds)}", path)
    return JobRefused(str(error.message)[:300], path)
