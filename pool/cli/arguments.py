"""`key=value` arguments of a command line as parameters of an engine.

    key=value       a string where the engine's schema allows one, else JSON if the value is valid JSON
    key=@file       the same, with the value read from a file
    key=@@name      the string "@name"
    key:=json       always JSON
    key:=@file      JSON from a file

Relative paths start at the caller's working directory. A value that the schema declares as a path becomes absolute,
because workers have another working directory. Without a schema (no worker of the engine has started yet), the name
of an existing file and the value of `output` are treated as paths.
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

MAX_VALUE_BYTES = 4 * 1024 * 1024  # of one key=@file; media files are passed by path
_WORD = re.compile(r"(?P<key>[^=:\s][^=\s]*?)(?P<how>:?=)(?P<value>.*)\Z", re.DOTALL)
_PATHS = frozenset({"path", "file-path", "directory-path"})
_JSON_TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_words(words: Iterable[str], schema: Mapping[str, Any] | None, base: Path | None = None) -> dict[str, Any]:
    """Parameters from `key=value` arguments. schema: JSON schema of the engine, None while it is unknown. base: where
    relative paths start; default: the working directory.

    Raises JobRefused with the argument or the key.
    """
    here = Path.cwd() if base is None else base
    known = (schema or {}).get("properties", {})
    params: dict[str, Any] = {}
    for word in words:
        match = _WORD.match(word)
        if match is None:
            raise JobRefused(
                f"{word!r} is not key=value: write for example audio=speech.wav{_known_keys(known)}", "params"
            )
        key = match["key"]
        if key in params:
            raise JobRefused("is given twice: remove one of them", f"params.{key}")
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
    """`log_context` from `key=value` arguments: numbers and booleans where the value is one, else strings.

    Raises JobRefused.
    """
    fields: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise JobRefused(f"{word!r} is not key=value: write for example request=r-17", "log_context")
        if key in fields:
            raise JobRefused("is given twice: remove one of them", f"log_context.{key}")
        value, is_json = _try_json(text)
        fields[key] = value if is_json and isinstance(value, (bool, int, float)) else text
    return fields


def _as_wanted(text: str, options: list[Mapping[str, Any]], here: Path) -> Any:
    """The value as a type that the schema allows; a string when none fits, so that validation reports the mismatch."""
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
    if "const" in option or "enum" in option:  # an enumeration needs no type in the schema
        return [_JSON_TYPES.get(type(item), "object") for item in option.get("enum", [option.get("const")])]
    return []


def _options(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternative schemas of a key, with references resolved; an empty schema allows anything."""
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
    """The absolute path of `text` relative to `here`, with `~` expanded; links are not resolved."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # no home directory
        path = Path(text)
    return os.path.abspath(here / path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # not a path: too long, or with a NUL
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
                f"{path} is larger than {MAX_VALUE_BYTES >> 20} MB: pass its path, without the @", f"params.{key}"
            )
        return path.read_text("utf-8-sig").rstrip("\n")
    except UnicodeDecodeError:
        raise JobRefused(f"{path} is not UTF-8 text: pass its path, without the @", f"params.{key}") from None
    except OSError as error:
        hint = "; write @@ for a value that starts with @" if isinstance(error, FileNotFoundError) else ""
        raise JobRefused(f"{path} cannot be read: {error.strerror}{hint}", f"params.{key}") from None


def _json(text: str, key: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise JobRefused(f"{text[:60]!r} is not JSON ({error}); for a string write {key}=…", f"params.{key}") from None


def _try_json(text: str) -> tuple[Any, bool]:
    try:
        return json.loads(text, parse_constant=_no_constant), True
    except (ValueError, RecursionError):
        return None, False


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _known_keys(known: Mapping[str, Any]) -> str:
    return f" (parameters: {', '.join(known)})" if known else ""
