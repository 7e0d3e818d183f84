"""`key=value` words of a command line as parameters of an engine.

    key=value       the engine's schema decides: text where it wants text, else JSON where the value is JSON
    key=@file       the same, the value read from a file
    key=@@name      the text "@name"
    key:=json       JSON in any case
    key:=@file      JSON from a file

Paths that are typed here are meant from here: what the schema calls a path becomes absolute before it travels to
a worker, which has another working directory. An engine that no worker has described yet has no schema; then a
value that names an existing file, and anything under `output`, is taken for a path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pool.config.checks import nearest
from pool.errors import JobRefused

MAX_VALUE_BYTES = 4 * 1024 * 1024  # of one key=@file: media go by path, not by value
_WORD = re.compile(r"(?P<key>[^=:\s][^=\s]*?)(?P<how>:?=)(?P<value>.*)\Z", re.DOTALL)
_PATHS = frozenset({"path", "file-path", "directory-path"})
_JSON_TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_words(words: Iterable[str], schema: Mapping[str, Any] | None, base: Path | None = None) -> dict[str, Any]:
    """Parameters from `key=value` words. schema: of the engine, None when nobody described it yet. base: where
    relative paths begin, by default the working directory.

    Raises JobRefused naming the word or the key.
    """
    here = Path.cwd() if base is None else base
    known = (schema or {}).get("properties", {})
    params: dict[str, Any] = {}
    for word in words:
        match = _WORD.match(word)
        if match is None:
            raise JobRefused(f"{word!r} is no key=value: write for example audio=speech.wav{_one_key(known)}", "params")
        key = match["key"]
        if key in params:
            raise JobRefused("given twice; keep one of them", f"params.{key}")
        if schema is not None and key not in known and schema.get("additionalProperties") is False:
            near = nearest(key, list(known)) or f"; known: {', '.join(known) or 'none'}"
            raise JobRefused(f"unknown parameter{near}", f"params.{key}")
        text = _content(match["value"], key, here)
        if match["how"] == ":=":
            params[key] = _json(text, key)
        elif schema is None:
            params[key] = _guess(key, text, here)
        else:
            params[key] = _as_wanted(text, _options(known.get(key, {}), schema), here)
    return params


def parse_fields(words: Iterable[str]) -> dict[str, Any]:
    """`log_context` from `key=value` words; numbers, true and false are such, all else is text. JobRefused."""
    fields: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise JobRefused(f"{word!r} is no key=value: write for example request=r-17", "log_context")
        if key in fields:
            raise JobRefused("given twice; keep one of them", f"log_context.{key}")
        value, is_json = _try_json(text)
        fields[key] = value if is_json and isinstance(value, (bool, int, float)) else text
    return fields


def _as_wanted(text: str, options: list[Mapping[str, Any]], here: Path) -> Any:
    """The value in the first form that the schema allows; text when none fits, so that the schema says why."""
    types = {str(kind) for option in options for kind in _types(option)}
    value, is_json = _try_json(text)
    if is_json and not isinstance(value, str) and _fits(value, types):
        return value
    if "boolean" in types and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    if "string" in types:
        wants_path = any(option.get("format") in _PATHS for option in options)
        return absolute(text, here) if wants_path and text else text
    return value if is_json else text


def _fits(value: object, types: set[str]) -> bool:
    if not types:  # anything
        return True
    if isinstance(value, dict):
        return "object" in types
    if isinstance(value, list):
        return "array" in types
    kind = _JSON_TYPES[type(value)]
    return kind in types or (kind == "integer" and "number" in types)


def _types(option: Mapping[str, Any]) -> list[Any]:
    said = option.get("type", [])
    if said:
        return list(said) if isinstance(said, list) else [said]
    if "const" in option or "enum" in option:  # enumerations carry no type of their own
        return [_JSON_TYPES.get(type(item), "object") for item in option.get("enum", [option.get("const")])]
    return []


def _options(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives that a key may hold, references followed; an empty one means anything."""
    if "$ref" in entry:
        name = str(entry["$ref"]).rpartition("/")[2]
        return _options(schema.get("$defs", {}).get(name, {}), schema)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in entry:
            return [option for branch in entry[word] for option in _options(branch, schema)]
    return [entry]


def _guess(key: str, text: str, here: Path) -> Any:
    value, is_json = _try_json(text)
    if is_json:
        return value
    if text and (key == "output" or text.startswith(("./", "../", "~/")) or _exists(here / text)):
        return absolute(text, here)
    return text


def absolute(text: str, here: Path) -> str:
    """A path as typed by a person, `~` included, as an absolute one; links stay as they are."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # no home directory
        path = Path(text)
    return os.path.abspath(here / path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a NUL: no path at all
        return False


def _content(value: str, key: str, here: Path) -> str:
    if value.startswith("@@"):
        return value[1:]
    if not value.startswith("@") or value == "@":
        return value
    path = Path(absolute(value[1:], here))
    try:
        if path.stat().st_size > MAX_VALUE_BYTES:
            raise JobRefused(
                f"{path} is larger than {MAX_VALUE_BYTES >> 20} MB: pass its path, without @", f"params.{key}"
            )
        return path.read_text("utf-8-sig").rstrip("\n")
    except UnicodeDecodeError:
        raise JobRefused(f"{path} is no text: pass its path, without @", f"params.{key}") from None
    except OSError as error:
        hint = "; for a value that begins with @ write @@" if isinstance(error, FileNotFoundError) else ""
        raise JobRefused(f"{path} cannot be read: {error.strerror}{hint}", f"params.{key}") from None


def _json(text: str, key: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise JobRefused(f"{text[:60]!r} is not JSON ({error}); for text write {key}=…", f"params.{key}") from None


def _try_json(text: str) -> tuple[Any, bool]:
    try:
        return json.loads(text, parse_constant=_no_constant), True
    except (ValueError, RecursionError):
        return None, False


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number that JSON knows")


def _one_key(known: Mapping[str, Any]) -> str:
    return f" (parameters: {', '.join(known)})" if known else ""
