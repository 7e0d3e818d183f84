"""What pydantic complains of, as sentences that name the key as it was written, and the values that are allowed.

Its errors are read as plain maps (`ValidationError.errors()`), of any version 2: nothing of it is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 80  # characters of a value that is refused
_NUMBER, _WHOLE, _SWITCH, _TEXT = "is not a number", "is not a whole number", "is neither true nor false", "is not text"
_LIST, _MAP, _TIME = "is not a list", "is not an object", "is not a date and time"
_OF_VALUES = {  # said after the value
    "literal_error": "is not one of {expected}",
    "enum": "is not one of {expected}",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "is not a finite number",
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "string_type": _TEXT,
    "bytes_type": "is not bytes",
    "path_type": "is not a path",
    "list_type": _LIST,
    "tuple_type": _LIST,
    "set_type": _LIST,
    "dict_type": _MAP,
    "mapping_type": _MAP,
    "model_type": _MAP,
    "model_attributes_type": _MAP,
    "dataclass_type": _MAP,
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "none_required": "is not null",
    "greater_than": "is not more than {gt}",
    "greater_than_equal": "is less than {ge}",
    "less_than": "is not less than {lt}",
    "less_than_equal": "is more than {le}",
    "multiple_of": "is not a multiple of {multiple_of}",
    "string_pattern_mismatch": "does not match {pattern}",
}
_OF_KEYS = {
    "missing": "is required",
    "extra_forbidden": "is an unknown key",
    "int_parsing_size": "is too large a number",
    "string_unicode": "holds half a character (a lone surrogate)",
    "string_too_short": "has fewer than {min_length} characters",
    "string_too_long": "has more than {max_length} characters",
    "too_short": "has fewer than {min_length} entries",
    "too_long": "has more than {max_length} entries",
    "recursion_loop": "refers to itself",
}
_PREFIXES = ("Value error, ", "Assertion failed, ")


def complaint(errors: Sequence[Mapping[str, Any]], whole: Any, *, values: bool = True) -> tuple[str, str]:
    """(path, sentence) of the first thing that is wrong, both "" when nothing is.

    whole: the value that was checked; the path leads to a value in it, and leaves out what pydantic adds for the
    branches of a union. values: say the value that is refused; not where it may be a secret.
    """
    if not errors:
        return "", ""
    where = _place(errors[0], whole)
    same = [one for one in errors if _place(one, whole) == where]
    right = [one for one in same if not _of_kind(one)]  # of the right kind, so its own fault is the true one
    if right or len(same) == 1:
        said = sentence((right or same)[0], values=values)
    else:
        kinds = dict.fromkeys(_predicate(one).removeprefix("is not ") for one in same)
        said = _said(same[0], f"is not {' or '.join(kinds)}", values)
    return ".".join(map(str, where)), said


def sentence(error: Mapping[str, Any], *, values: bool = True) -> str:
    """What is wrong with one value. An error of a kind that is not known here keeps its words."""
    return _said(error, _predicate(error), values)


def _said(error: Mapping[str, Any], predicate: str, values: bool) -> str:
    return f"{_shown(error.get('input'))} {predicate}" if values and _kind(error) in _OF_VALUES else predicate


def _predicate(error: Mapping[str, Any]) -> str:
    kind, context = _kind(error), error.get("ctx") or {}
    words = _OF_VALUES.get(kind) or _OF_KEYS.get(kind)
    if words is not None:
        if kind in ("string_too_short", "too_short") and context.get("min_length") == 1:
            return "is empty"
        try:
            return words.format(**{**context, "expected": str(context.get("expected", "")).replace(" or ", ", ")})
        except KeyError:
            pass  # another version names its values otherwise
    said = str(error.get("msg", "is wrong"))
    for prefix in _PREFIXES:
        said = said.removeprefix(prefix)
    return said


def _kind(error: Mapping[str, Any]) -> str:
    return str(error.get("type", ""))


def _of_kind(error: Mapping[str, Any]) -> bool:
    """Whether the value is of another kind than the one that is wanted."""
    kind = _kind(error)
    return kind in _OF_VALUES and (kind.endswith(("_type", "_parsing")) or kind == "int_from_float")


def _shown(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"


def _place(error: Mapping[str, Any], whole: Any) -> tuple[Any, ...]:
    """The keys and indexes that lead to a value, from the outside; a missing one is named, too."""
    found: list[Any] = []
    parts = error.get("loc", ())
    for at, part in enumerate(parts):
        inside = isinstance(whole, Mapping) and part in whole
        if not inside and isinstance(whole, (list, tuple)):
            inside = isinstance(part, int) and part < len(whole)
        if inside:
            whole = whole[part]
        if inside or (_kind(error) == "missing" and at == len(parts) - 1):
            found.append(part)
    return tuple(found)
