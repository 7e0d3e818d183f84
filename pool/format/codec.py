"""Bounded encoding: msgpack for everything in the spool, JSON for what people drop. No pickle anywhere.

Extension types
    1  small numpy array   msgpack [dtype, shape, bytes]
    2  array file          msgpack [file name, dtype, shape]: a .npy beside the record, opened with mmap_mode="r"
       either may end with the type of the torch tensor that it was: "torch.bfloat16"

Decoding checks the size first, then hands the decoder limits that follow from it, then checks the nesting, so
lying length headers cannot reserve memory. Whatever is wrong ends as ProtocolError with a reason for people.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgpack

from pool.constants import ARRAY_FILE_BYTES, MAX_DEPTH
from pool.errors import ProtocolError
from pool.format import values

if TYPE_CHECKING:
    import numpy

    ArraySink = Callable[[numpy.ndarray[Any, Any]], str]

EXT_ARRAY = 1
EXT_ARRAY_FILE = 2
_PLAIN_KINDS = "biufc"  # bool, int, uint, float, complex: no objects, no strings
_DTYPE = re.compile(r"[<>|=][biufc]([0-9]{1,2})\Z")  # never hand foreign text to numpy's parser
_INT64 = range(-(1 << 63), 1 << 64)


def encode(value: object, sink: ArraySink | None = None) -> bytes:
    """msgpack bytes of `value`: None, bool, int (64 bit), float, str, bytes, list, tuple, map, path, numpy array or
    number, torch tensor.

    sink: stores an array of ARRAY_FILE_BYTES and more as a file and returns its name; without one every array
    travels inside. Raises ProtocolError with the path of what cannot be encoded, or could not be decoded again.
    """
    try:
        packed = msgpack.packb(value, use_bin_type=True, default=_Default(sink))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise values.unencodable(value, _Default(None), str(error)) from None
    if not values.keys_return(value):
        raise values.unencodable(value, _Default(None), "a key in it")
    return bytes(packed)


class _Default:
    """What msgpack does not know. sink: as of encode()."""

    def __init__(self, sink: ArraySink | None) -> None:
        self.sink = sink

    def __call__(self, value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return values.path_text(value)
        if type(value).__module__ == "numpy":
            import numpy as np

            if isinstance(value, np.generic) and value.dtype.kind in "biuf":
                plain = value.item()
                if type(plain) in values.LEAVES:  # else a long double: no float holds it
                    return plain
            if isinstance(value, np.ndarray) and value.dtype.kind in _PLAIN_KINDS:
                return self._array(value)
        elif values.is_tensor(value):
            try:
                _numpy()
            except ProtocolError:
                raise values.Unstorable("a torch tensor", "pip install numpy: it travels as an array") from None
            return self._array(*values.tensor_array(value))
        raise values.refusal(value)

    def _array(self, array: Any, *tensor: str) -> msgpack.ExtType:
        import numpy as np

        if self.sink is not None and array.nbytes >= ARRAY_FILE_BYTES:
            body = [self.sink(array), array.dtype.str, list(array.shape), *tensor]
            return msgpack.ExtType(EXT_ARRAY_FILE, msgpack.packb(body))
        body = [array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes(), *tensor]
        return msgpack.ExtType(EXT_ARRAY, msgpack.packb(body))


def decode(data: bytes, *, directory: Path | None = None, arrays: bool = True, strict: bool = False) -> Any:
    """The value of msgpack bytes that were read under a size cap.

    directory: where array files lie (out/<id>/). arrays=False leaves extension types as they are, so that the
    supervisor never imports numpy. strict: for untrusted bytes: text keys only, no duplicate keys, bounded
    nesting, and of the extension types only small arrays of numbers.
    """
    limit = len(data)
    options: dict[str, Any] = {
        "raw": False,
        "strict_map_key": strict,
        "max_str_len": limit,
        "max_bin_len": limit,
        "max_array_len": limit,
        "max_map_len": limit,
        "max_ext_len": limit,
    }
    if strict:
        options["object_pairs_hook"] = _text_pairs
        options["ext_hook"] = _refuse_foreign
    elif arrays:
        options["ext_hook"] = _Arrays(directory)
    try:
        with _no_collection() if strict else contextlib.nullcontext():
            value = msgpack.unpackb(data, **options)
    except ProtocolError:
        raise
    except RecursionError:
        raise ProtocolError("nested too deeply") from None
    except (ValueError, TypeError, OverflowError, MemoryError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not valid msgpack: {str(error) or type(error).__name__}") from None
    if strict:
        _check_tree(value)
    return value


def decode_json(data: bytes) -> Any:
    """The value of untrusted JSON: UTF-8, no duplicate keys, no NaN, numbers of 64 bits, bounded nesting."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"not UTF-8: byte {error.start} cannot be decoded") from None
    try:
        with _no_collection():
            value = json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ProtocolError(f"not valid JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ProtocolError("nested too deeply") from None
    except ValueError as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(f"not valid JSON: {error}") from None
    _check_tree(value, numbers=True)
    return value


def to_json(value: Any) -> str:
    """JSON text for people and other languages; arrays become {"array": shape, "dtype": …}, bytes their length.

    What JSON does not know is bent into it: NaN and infinities become null, keys become text.
    """
    try:
        return json.dumps(value, ensure_ascii=False, indent=2, default=_describe, allow_nan=False)
    except (ValueError, TypeError):
        return json.dumps(_bend(value), ensure_ascii=False, indent=2, default=_describe)


def _bend(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else repr(key) if isinstance(key, bytes) else str(key): _bend(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_bend(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A megabyte of empty lists costs 70 ms to decode, and 400 ms of collections that find no garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_tree(value: Any, *, numbers: bool = False) -> None:
    """Refuse deep nesting and msgpack's timestamps; `numbers`: those that msgpack, or JSON, cannot hold, too.

    Iterative: cannot overflow itself.
    """
    layer, depth = [[value]], 0
    while layer:
        if depth > MAX_DEPTH + 1:
            raise ProtocolError(f"nested deeper than {MAX_DEPTH}")
        below: list[Any] = []
        for item in layer:
            for child in item.values() if isinstance(item, dict) else item:
                kind = type(child)
                if kind is dict or kind is list:
                    below.append(child)
                elif kind is msgpack.Timestamp:
                    raise ProtocolError("extension type -1 (timestamp) is not allowed in a job")
                elif numbers and kind is int and child not in _INT64:
                    raise ProtocolError(f"a number of {child.bit_length()} bits does not fit into 64")
                elif numbers and kind is float and not math.isfinite(child):
                    raise ProtocolError("a number is too large for a float")
        layer, depth = below, depth + 1


class _Arrays:
    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def __call__(self, code: int, body: bytes) -> Any:
        if code == EXT_ARRAY:
            np = _numpy()
            dtype, shape, raw, *_ = msgpack.unpackb(body)
            return np.frombuffer(raw, dtype=_plain_dtype(dtype)).reshape(shape)
        if code == EXT_ARRAY_FILE:
            np = _numpy()
            name, dtype, shape, *_ = msgpack.unpackb(body)
            plain = isinstance(name, str) and name and "/" not in name and not name.startswith(".")
            if self.directory is None or not plain:
                raise ProtocolError(f"array file {name!r} has no place here")
            path = self.directory / name
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # numpy raises half a dozen kinds for a damaged file
                raise ProtocolError(f"array file {path} cannot be opened: {error}") from None
            if not isinstance(array, np.ndarray) or list(array.shape) != shape or array.dtype.str != dtype:
                raise ProtocolError(f"array file {path} is not the one its record names")
            return array
        return msgpack.ExtType(code, body)


def _numpy() -> ModuleType:
    """numpy, not before an array is met. ProtocolError when it is not installed."""
    try:
        import numpy
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise ProtocolError("it holds an array, and numpy is not installed here: pip install numpy") from None
    return numpy


def _plain_dtype(text: object) -> Any:
    import numpy as np

    if not isinstance(text, str) or _DTYPE.match(text) is None:
        raise ProtocolError(f"array type {ascii(text)[:80]} is not allowed")
    return np.dtype(text)


def _unique_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[Any] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ProtocolError(f"the key {ascii(twice)[:80]} is given twice")
    return result


def _text_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    for key, _ in pairs:
        if type(key) is not str:
            raise ProtocolError(f"the key {ascii(key)[:80]} is not text")
    return _unique_pairs(pairs) if pairs else {}


def _refuse_foreign(code: int, body: bytes) -> Any:
    if code != EXT_ARRAY:
        raise ProtocolError(f"extension type {code} is not allowed in a job")
    dtype, shape, raw, *tensor = msgpack.unpackb(body)
    match = _DTYPE.match(dtype)
    if match is None or not all(type(name) is str for name in tensor):
        raise ProtocolError("an array in it is damaged")
    if type(raw) is not bytes or any(type(size) is not int or size < 0 for size in shape):
        raise ProtocolError("an array in it is damaged")
    if math.prod(shape) * int(match[1]) != len(raw):
        raise ProtocolError(f"an array in it has {len(raw)} bytes for shape {ascii(shape)[:80]} of {dtype}")
    return msgpack.ExtType(code, body)


def _refuse_constant(text: str) -> Any:
    raise ProtocolError(f"{text} is not a JSON number")


def _describe(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        if value.shape == () and isinstance(value.item(), (bool, int, float)):
            return value.item()
        return {"array": list(value.shape), "dtype": str(value.dtype)}
    return str(value)
