"""Reading a JSON document into frozen dataclasses: every key, type and range checked, errors with their path.

A dataclass field made by `key(default, check)` is one key of the document; the check turns what JSON gave
into the value of the field, or raises ConfigError with the path. `At` carries the path and the directory
where relative names begin. A key that no field names is refused with the nearest one that exists.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pool.errors import ConfigError

T = TypeVar("T")
MAX_BYTES = 1024 * 1024
ENGINE_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class At:
    """A place in the document."""

    path: str  # "engines.transcribe.device"
    root: Path  # directory of the file: where relative paths begin

    def down(self, key: str) -> At:
        """The place of a key below this one."""
        return At(f"{self.path}.{key}" if self.path else key, self.root)

    def error(self, message: str) -> ConfigError:
        """A ConfigError about this place."""
        return ConfigError(message, self.path)


Check = Callable[[Any, At], Any]


def key(default: Any, check: Check, *, factory: Callable[[], Any] | None = None) -> Any:
    """A field of a dataclass that is a key of the document; MISSING as default makes it required."""
    metadata = {"check": check}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read(kind: type[T], value: object, at: At, *, also: Iterable[str] = (), **given: object) -> T:
    """One object of the document as a dataclass. given: fields that are no keys. also: keys to suggest."""
    data = table(value, at)
    fields = {f.name: f for f in dataclasses.fields(kind) if "check" in f.metadata}  # type: ignore[arg-type]
    unknown(data, fields, at, also)
    for name, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise at.down(name).error("is missing")
    return kind(**given, **{name: fields[name].metadata["check"](data[name], at.down(name)) for name in data})


def unknown(data: Mapping[str, object], known: Iterable[str], at: At, also: Iterable[str] = ()) -> None:
    """Refuse the first key that is not known, with the nearest one, or else with all of them."""
    names = list(known)
    for name in data:
        if name not in names:
            hint = nearest(name, [*names, *also]) or f"; known: {', '.join(names)}"
            raise at.down(name).error(f"unknown key{hint}")


def nearest(name: str, known: Sequence[str]) -> str:
    """`, did you mean "engines"?`, or nothing when none is near."""
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f', did you mean "{close[0]}"?' if close else ""


# --- checks


def table(value: object, at: At) -> dict[str, Any]:
    """A JSON object. Raises ConfigError."""
    if not isinstance(value, dict):
        raise at.error(f"must be an object {{…}}, not {_shown(value)}")
    return value


def plain(value: object, at: At) -> dict[str, Any]:
    """An object of anything that JSON can hold; becomes a copy."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(table(value, at), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise at.error(f"must hold what JSON can hold: {error}") from None
    return copy


def section(kind: type[T]) -> Check:
    """A nested dataclass."""
    return lambda value, at: read(kind, value, at)


def boolean(value: object, at: At) -> bool:
    """true or false. Raises ConfigError."""
    if not isinstance(value, bool):
        raise at.error(f"must be true or false, not {_shown(value)}")
    return value


def integer(low: int, high: int) -> Check:
    """A whole number from low to high; true is none."""

    def check(value: object, at: At) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise at.error(f"must be a whole number from {low} to {high}, not {_shown(value)}")
        return value

    return check


def number(low: float, high: float) -> Check:
    """A number from low to high; whole ones become floats."""

    def check(value: object, at: At) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise at.error(f"must be a number from {low:g} to {high:g}, not {_shown(value)}")
        return float(value)

    return check


def text(value: object, at: At) -> str:
    """A string without NUL. Raises ConfigError."""
    if not isinstance(value, str) or "\0" in value:
        raise at.error(f"must be a string, not {_shown(value)}")
    return value


def choice(*allowed: str) -> Check:
    """A check for one of these strings; it names the nearest one when it refuses."""

    def check(value: object, at: At) -> str:
        if value not in allowed:
            near = nearest(value, allowed) if isinstance(value, str) else ""
            raise at.error(f"must be one of {', '.join(allowed)}, not {_shown(value)}{near}")
        return str(value)

    return check


def matching(pattern: re.Pattern[str], what: str) -> Check:
    """A check for a string of this form; `what` describes the form."""

    def check(value: object, at: At) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise at.error(f"must be {what}, not {_shown(value)}")
        return value

    return check


def path(value: object, at: At) -> Path:
    """A path, relative ones from the directory of the file; "~" is the home directory."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise at.error(f"must be a path, not {_shown(value)}")
    return resolved(value, at.root)


def resolved(value: str, root: Path) -> Path:
    """An absolute path; relative ones count from `root`, ~ is the home directory."""
    try:
        return (root / Path(value).expanduser()).resolve()
    except RuntimeError:  # no home directory
        return (root / value).resolve()


def nullable(check: Check) -> Check:
    """A check that also accepts null, as None."""
    return lambda value, at: None if value is None else check(value, at)


def items(check: Check) -> Check:
    """A list; becomes a tuple."""

    def checked(value: object, at: At) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise at.error(f"must be a list […], not {_shown(value)}")
        return tuple(check(item, At(f"{at.path}[{n}]", at.root)) for n, item in enumerate(value))

    return checked


def environment(value: object, at: At) -> dict[str, str]:
    """Names of variables and their values; numbers are taken as they are written."""
    result = {}
    for name, content in table(value, at).items():
        if not name or "=" in name or "\0" in name:
            raise at.down(name).error("is no name for an environment variable")
        if isinstance(content, bool) or not isinstance(content, (str, int)):
            raise at.down(name).error(f"must be a string, not {_shown(content)}")
        result[name] = text(str(content), at.down(name))
    return result


def _shown(value: object) -> str:
    """A value as it stands in the document, cut short."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "…"


# --- the document


class _Object(dict[str, Any]):
    """A JSON object that remembers a key that was given twice."""

    twice: str | None = None


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        result.twice = next(name for name in names if names.count(name) > 1)
    return result


def parse(data: bytes, file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError with line and column, or the path of a doubled key."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file} is {len(data)} bytes long: a configuration has at most {MAX_BYTES}")
    try:
        source = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    try:
        document = json.loads(source, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        hint = _hint(source, error.pos)
        raise ConfigError(f"{file}, line {error.lineno}, column {error.colno}: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{file} must hold one JSON object {{…}}, not {_shown(document)}")
    _refuse_twice(document, At("", file.parent), file)
    return document


def _refuse_twice(value: object, at: At, file: Path) -> None:
    if isinstance(value, _Object):
        if value.twice is not None:
            raise at.down(value.twice).error(f"stands twice in {file}; keep one of them")
        for name, content in value.items():
            _refuse_twice(content, at.down(name), file)
    elif isinstance(value, list):
        for n, content in enumerate(value):
            _refuse_twice(content, At(f"{at.path}[{n}]", at.root), file)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _float(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise ValueError(f"{literal} is too large for a number")
    return value


def _hint(source: str, position: int) -> str:
    rest = source[position:].lstrip()
    before = source[:position].rstrip()
    if rest.startswith(("//", "/*", "#")):
        return " (comments are not allowed in JSON)"
    if rest[:1] in ("}", "]", '"') and before.endswith(","):
        return " (no comma after the last entry)"
    if rest.startswith("'"):
        return ' (strings stand in double quotes: "…")'
    return ""
