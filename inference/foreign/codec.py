"""Values as JSON between a host and its guest: what JSON holds, bytes, and arrays of numbers.

The same forms as in `guest/filepool_guest.py`, which has to say them once more for old interpreters.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def pack(value: Any) -> Any:
    """A value as JSON can hold it. Raises TypeError that names what cannot be carried."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": base64.b64encode(bytes(value)).decode("ascii")}
    if isinstance(value, Mapping):
        return {_key(key): pack(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        data = base64.b64encode(value.tobytes()).decode("ascii")
        return {"$array": data, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(f"a {type(value).__name__} cannot be carried: {value!r:.80}")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys are texts, not {type(key).__name__}: {key!r:.80}")
    return key


def unpack(value: Any) -> Any:
    """The value that `pack` took apart."""
    if isinstance(value, list):
        return [unpack(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$bytes" in value:
        return base64.b64decode(value["$bytes"])
    if "$array" in value:
        data = bytearray(base64.b64decode(value["$array"]))
        return np.frombuffer(data, dtype=value["dtype"]).reshape(value["shape"])
    return {key: unpack(each) for key, each in value.items()}
