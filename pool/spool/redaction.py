"""Which parameters of a job its record may keep: none that is secret, and not too much.

A parameter is secret when the engine's schema says so anywhere inside it: pydantic's SecretStr (JSON schema format
"password", writeOnly) or `json_schema_extra={"secret": True}`. In doubt it is secret: of an engine that has a secret,
a parameter that its schema does not name; of an engine that has not been described yet, every one.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import msgpack

from pool.format import codec
from pool.job.kept import Kept
from pool.job.terms import Terms
from pool.spool import fsops

MOST_BYTES = 64 * 1024  # of all parameters, encoded
VALUE_BYTES = 16 * 1024  # of one parameter, when all together are too large
SECRET = "secret"
UNDESCRIBED = "hidden: its engine has not said yet what is secret"
_NUMBERS = (int, float, bool, type(None))
_LEFT_OUT_MOST = 64  # named one by one; beyond, none is kept
_DESCRIPTION_BYTES = 4 * 1024 * 1024
_INSIDE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_BRANCHES = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "dependentSchemas")


class Redactor:
    """What may be kept of the jobs of one engine. schema: of its parameters, None when it has none.

    described: False when the schema is unknown.
    """

    def __init__(self, schema: Any, *, described: bool = True) -> None:
        schema = schema if isinstance(schema, dict) else {}
        self._described = described
        self._open: frozenset[str] | None = None  # names that are certainly no secret; None: all
        if _has_secret(schema, schema):
            known = _properties(schema, schema, set())
            named = {key for key, about in known.items() if any(_has_secret(one, schema) for one in about)}
            self._open = frozenset(known) - named if named else frozenset()

    @classmethod
    def of_engine(cls, engine: Any) -> Redactor:
        """Of an engine that is loaded here."""
        params: Any = getattr(engine, "Params", None)
        if not hasattr(params, "model_json_schema"):
            return cls(None)
        try:
            return cls(params.model_json_schema())
        except Exception:  # pydantic has many names for a model that it cannot describe
            return cls(None, described=False)

    @classmethod
    def of_spool(cls, root: object, engine: str) -> Redactor:
        """Of an engine as its workers described it."""
        path = f"{root}/run/engines/{engine}.json"
        try:
            info = os.stat(path)
        except OSError:
            return cls(None, described=False)
        return _described(path, info.st_ino, info.st_mtime_ns)

    def is_open(self, key: object) -> bool:
        """Whether a parameter may be shown."""
        return self._described and (self._open is None or key in self._open)

    def keep(self, job: Any) -> Kept:
        """What the record of a job (a pool.job.Job) keeps of it."""
        terms: Terms = job.terms
        how = terms.to_map()
        how.pop("tags", None)
        how.pop("note", None)
        if job.items is not None:
            return Kept(terms.tags, terms.note, how, items=len(job.items), rerun_of=job.rerun_of)
        params, left_out = self.bounded(job.params)
        return Kept(terms.tags, terms.note, how, params, left_out, rerun_of=job.rerun_of)

    def open_part(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Parameters that may be shown, and why the others may not."""
        if self._described and self._open is None:
            return dict(params), {}
        why = SECRET if self._described else UNDESCRIBED
        hidden = {str(key): why for key in params if not self.is_open(key)}
        return {key: value for key, value in params.items() if str(key) not in hidden}, hidden

    def bounded(self, params: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
        """As open_part, without what is too large to be kept."""
        if self._described and self._open is None and _is_small(params):
            return params, {}
        shown, left_out = self.open_part(params)
        if len(codec.encode(shown)) > MOST_BYTES:
            sizes = {key: len(codec.encode(value)) for key, value in shown.items()}
            total = sum(sizes.values()) + sum(len(str(key)) + 3 for key in sizes)
            for key in sorted(sizes, key=sizes.__getitem__, reverse=True):
                if total <= MOST_BYTES and sizes[key] <= VALUE_BYTES:
                    break
                total -= sizes[key]
                left_out[str(key)] = _describe(shown.pop(key), sizes[key])
        if len(left_out) > _LEFT_OUT_MOST:
            return {}, {"": f"{len(params)} parameters are too many to be kept"}
        return shown, left_out


@functools.lru_cache(maxsize=64)
def _described(path: str, inode: int, mtime_ns: int) -> Redactor:
    try:
        description = json.loads(fsops.read_bounded(path, _DESCRIPTION_BYTES))
    except (OSError, ValueError):
        return Redactor(None, described=False)
    known = isinstance(description, dict)
    return Redactor(description.get("schema") if known else None, described=known)


def _is_small(params: Mapping[str, Any]) -> bool:
    """Whether a look is enough to say so; most are."""
    return len(params) <= 16 and all(
        type(value) in _NUMBERS or (type(value) is str and len(value) <= 500) for value in params.values()
    )


def _has_secret(about: Any, schema: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> bool:
    """Whether a JSON schema marks anything in it as secret."""
    if isinstance(about, list):
        return any(_has_secret(one, schema, seen) for one in about)
    if not isinstance(about, dict):
        return False
    if about.get("format") == "password" or about.get("writeOnly") is True or about.get("secret") is True:
        return True
    name = _reference(about)
    if name and name not in seen and _has_secret(_definition(name, schema), schema, seen | {name}):
        return True
    within = [about[word] for word in (*_INSIDE, *_BRANCHES) if word in about]
    within += [one for word in _NAMED if isinstance(about.get(word), dict) for one in about[word].values()]
    return any(_has_secret(one, schema, seen) for one in within)


def _properties(about: Any, schema: Mapping[str, Any], seen: set[str]) -> dict[str, list[Any]]:
    """The parameters that a schema names, each with all that is said about it."""
    found: dict[str, list[Any]] = {}
    if not isinstance(about, dict):
        return found
    parts = [one for word in _BRANCHES[:3] for one in about.get(word, ())]
    name = _reference(about)
    if name and name not in seen:
        parts.append(_definition(name, schema))
    properties = about.get("properties")
    for key, one in (properties if isinstance(properties, dict) else {}).items():
        found.setdefault(key, []).append(one)
    for part in parts:
        for key, abouts in _properties(part, schema, seen | {name}).items():
            found.setdefault(key, []).extend(abouts)
    return found


def _reference(about: Mapping[str, Any]) -> str:
    return str(about.get("$ref", "")).rpartition("/")[2]


def _definition(name: str, schema: Mapping[str, Any]) -> Any:
    for word in ("$defs", "definitions"):
        if isinstance(schema.get(word), dict) and name in schema[word]:
            return schema[word][name]
    return None


def _describe(value: Any, size: int) -> str:
    """What a value is that is not kept."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(value, msgpack.ExtType) and value.code == codec.EXT_ARRAY:
        dtype, shape = msgpack.unpackb(value.data)[:2]
    if shape is not None:
        return f"an array of {' × '.join(map(str, shape)) or '1'} {dtype}, {size} bytes"
    kinds: dict[Any, str] = {str: "text", bytes: "bytes", list: "a list", dict: "a map"}
    return f"{kinds.get(type(value), type(value).__name__)} of {size} bytes"
