"""What msgpack does not know by itself: what each such value travels as, or what to do so that it can travel.

docs/PROTOCOL.md holds the table, and a test walks it. No framework is imported here: a value is known by the names of
its classes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgpack

from pool.constants import MAX_DEPTH
from pool.errors import ProtocolError

LEAVES = frozenset({str, int, float, bool, bytes, type(None)})  # what holds nothing else


class Unstorable(TypeError):
    """A value that cannot be stored. what: "a set"; hint: what to do instead."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what} cannot be stored{f': {hint}' if hint else ''}")
        self.what, self.hint = what, hint


_LIST, _DICT, _ARRAY, _TEXT = "use list(…)", "use dict(…)", "use numpy.asarray(…)", "use str(…)"
_EXACT = "use str(…), which keeps every digit, or float(…)"
#: Class, anywhere among the bases of a value's class -> what to do.
_HINTS = {
    "builtins.set": "use sorted(…) or list(…)",
    "builtins.frozenset": "use sorted(…) or list(…)",
    "builtins.complex": "use [….real, ….imag]",
    "builtins.int": "more than 64 bits: use str(…)",
    "builtins.BaseException": _TEXT,
    "datetime.timedelta": "use .total_seconds()",
    "datetime.date": "use .isoformat()",
    "datetime.time": "use .isoformat()",
    "datetime.tzinfo": _TEXT,
    "decimal.Decimal": _EXACT,
    "fractions.Fraction": _EXACT,
    "uuid.UUID": _TEXT,
    "enum.Enum": "use .value or .name",
    "array.array": _ARRAY,
    "_io._IOBase": "pass its path",
    "numpy.datetime64": _TEXT,
    "numpy.timedelta64": "use .astype('timedelta64[us]').item().total_seconds()",
    "numpy.longdouble": "use float(…), or an array, which keeps every digit",
    "numpy.clongdouble": "use an array, which keeps every digit",
    "numpy.complexfloating": "use [….real, ….imag]",
    "numpy.void": "use .tolist()",
    "numpy.dtype": _TEXT,
    "pandas.DataFrame": "use .to_dict('list')",
    "pandas.Series": "use .to_numpy()",
    "pydantic.main.BaseModel": "use .model_dump()",
    "torch.dtype": _TEXT,
    "torch.device": _TEXT,
}
_ARRAY_HINTS = {
    "O": "an array of objects: use .tolist()",
    "U": "an array of text: use .tolist()",
    "S": "an array of bytes: use .tolist()",
    "T": "an array of text: use .tolist()",
    "M": "an array of times: use .astype(str).tolist()",
    "m": "an array of durations: use .astype('timedelta64[us]').astype('int64'), or another unit",
    "V": "an array of records: one array for each field",
}


def path_text(path: os.PathLike[Any]) -> str:
    """An absolute path: its reader has another working directory. A pure path is kept as it is."""
    if isinstance(path, (Path, os.DirEntry)):
        return os.path.abspath(os.path.expanduser(os.fsdecode(path)))
    return os.fsdecode(path)


def is_tensor(value: object) -> bool:
    """Whether this is a torch tensor; torch is not imported for the question."""
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__)


def tensor_array(tensor: Any) -> tuple[Any, str]:
    """The numpy array of a torch tensor on any device, and the name of its type: "torch.bfloat16".

    Types that numpy does not know (bfloat16, the float8 ones) become float32, which holds each of their values.
    """
    name = str(tensor.dtype)
    if getattr(tensor, "is_nested", False):
        raise Unstorable("a nested tensor", "use [t.numpy() for t in ….unbind()]")
    if str(tensor.layout) != "torch.strided":
        raise Unstorable("a sparse tensor", "use .to_dense(), or its indices and values")
    if tensor.is_quantized:
        raise Unstorable("a quantized tensor", "use .dequantize()")
    if tensor.device.type == "meta":
        raise Unstorable("a tensor on the device meta", "it holds no numbers")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    try:
        return plain.numpy(), name
    except TypeError:
        if not plain.is_floating_point():
            raise Unstorable(f"a tensor of {name}", "use .to(…) with a type that numpy knows") from None
        return plain.float().numpy(), name


def refusal(value: Any) -> Unstorable:
    """Why a value does not travel."""
    kind = type(value)
    names = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
    shown = names[0].replace("builtins.", "")
    what = f"{'an' if shown[0] in 'aeio' else 'a'} {shown}"
    if any(name.startswith("numpy.ma") and name.endswith(".MaskedArray") for name in names):
        return Unstorable("a masked array", "use .filled(…), or its data and mask")
    if names[0].startswith("numpy.") and hasattr(value, "dtype") and value.dtype.kind in _ARRAY_HINTS and value.shape:
        return Unstorable(what, _ARRAY_HINTS[value.dtype.kind])
    for name in names:
        if name in _HINTS:
            return Unstorable(what, _HINTS[name])
    return Unstorable(what, _guess(value))


def _guess(value: Any) -> str:
    if isinstance(value, type) or callable(value):
        return "only data travel: use its name"
    if dataclasses.is_dataclass(value):
        return "use dataclasses.asdict(…)"
    if isinstance(value, Mapping):
        return _DICT
    if hasattr(value, "__array__"):
        return _ARRAY
    if isinstance(value, Iterable):
        return _LIST
    return "use a map of its fields" if getattr(value, "__dict__", None) else "use text, numbers, lists and maps"


# ---- the place of it


def _may_be_key(key: Any) -> bool:
    """Whether it comes back as the key that it was: a tuple comes back as a list, a path as a text."""
    return isinstance(key, (str, int, float, bytes, type(None))) or type(key).__module__ == "numpy"


def keys_return(value: Any) -> bool:
    """Whether all keys in it come back."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if not LEAVES.issuperset(map(type, item)) and not all(map(_may_be_key, item)):
                return False
            if not LEAVES.issuperset(map(type, item.values())):
                stack.extend([child for child in item.values() if type(child) not in LEAVES])
        elif isinstance(item, (list, tuple)):
            stack.extend([child for child in item if type(child) not in LEAVES])
    return True


def unencodable(value: Any, default: Callable[[Any], Any], otherwise: str) -> ProtocolError:
    """The error with the path of what cannot be stored: the engine's author looks for it otherwise for a long time.

    default: what msgpack asks about values that it does not know. otherwise: the reason when none is found.
    """
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    while stack:
        path, item, depth = stack.pop()
        if depth > MAX_DEPTH:
            return ProtocolError(f"nested deeper than {MAX_DEPTH}", f"{path[:80]}…")
        if isinstance(item, dict):
            for key in item:
                if not _may_be_key(key) or _unpackable(key, default):
                    what = f"the key {ascii(key)[:80]} cannot be stored"
                    return ProtocolError(what, path, "use text or a number of 64 bits")
            stack.extend((f"{path}.{key}" if path else str(key), v, depth + 1) for key, v in item.items())
        elif isinstance(item, (list, tuple)):
            stack.extend((f"{path}[{index}]", v, depth + 1) for index, v in enumerate(item))
        elif reason := _unpackable(item, default):
            return ProtocolError(f"{reason.what} cannot be stored", path, reason.hint)
    return ProtocolError(f"cannot be stored: {otherwise}")


def _unpackable(value: Any, default: Callable[[Any], Any]) -> Unstorable | None:
    """Why msgpack does not take a single value; None when it does."""
    try:
        msgpack.packb(value, default=default)
    except Unstorable as reason:
        return reason
    except UnicodeEncodeError:
        return Unstorable("text with half a surrogate pair", "use .encode('utf-8', 'replace').decode()")
    except OverflowError:
        return refusal(value)
    except Exception as reason:
        return Unstorable(f"a {type(value).__qualname__} ({reason or type(reason).__name__})")
    return None
