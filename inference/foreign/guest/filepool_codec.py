"""What a host and its guest write to each other: JSON in files that appear whole, with bytes and arrays in it.

Standard library only, and valid for Python 3.6; the host imports it, too. Arrays are what has `dtype`, `shape` and
`tobytes`, of numbers; to read them takes numpy.
"""

import base64
import json
import os
import threading
from typing import Any, Union

Place = Union[str, "os.PathLike[str]"]


def put(path: Place, body: Any) -> None:
    """Write JSON to a file that appears whole."""
    part = "%s.%d.%d.part" % (os.fspath(path), os.getpid(), threading.get_ident())
    with open(part, "w", encoding="utf-8") as stream:
        json.dump(body, stream)
    os.replace(part, path)


def get(path: Place) -> Any:
    """The JSON in a file; None when there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except OSError:
        return None


def pack(value: Any) -> Any:
    """A value as JSON can hold it. Raises TypeError that names what cannot be carried."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": base64.b64encode(bytes(value)).decode("ascii")}
    if isinstance(value, dict):
        return {_key(key): pack(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(each) for each in value]
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu().numpy()
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        if value.dtype.hasobject:
            raise TypeError("an array of objects cannot be carried")
        if not value.shape:
            return pack(value.item())
        data = base64.b64encode(value.tobytes()).decode("ascii")
        return {"$array": data, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError("a %s cannot be carried: %.80r" % (type(value).__name__, value))


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError("keys are texts, not %s: %.80r" % (type(key).__name__, key))
    return key


def unpack(value: Any) -> Any:
    """The value that `pack` took apart; arrays need numpy."""
    if isinstance(value, list):
        return [unpack(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$bytes" in value:
        return base64.b64decode(value["$bytes"])
    if "$array" in value:
        import numpy  # the only place that needs it

        data = bytearray(base64.b64decode(value["$array"]))
        return numpy.frombuffer(data, dtype=value["dtype"]).reshape(value["shape"])
    return {key: unpack(each) for key, each in value.items()}
