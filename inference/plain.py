"""Numbers, texts, containers and numpy arrays out of a pickle, worked out step by step; nothing in it is run.

For files that others have pickled where arrays would have done. What names anything but numpy's arrays is refused.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

_NUMPY = [f"numpy{core}" for core in ("", ".core.multiarray", "._core.multiarray")]
NAMES = {f"{place}.{name}" for place in _NUMPY for name in ("ndarray", "dtype", "_reconstruct", "scalar")}
NAMES |= {"_codecs.encode", "__builtin__.bytes"}  # bytes, in old protocols
PUSHES = (  #: steps whose argument is the value
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IDLE = ("PROTO", "FRAME", "STOP")
_MARK = object()
_DTYPE = re.compile(r"[?biufcOSUV][0-9]{0,6}")  # numpy parses anything else as a little language


class _Name(str):
    """What a pickle would look up."""


class _Made:
    """What numpy would make and then fill: a dtype or an array."""

    value: Any = None


def read(stream: IO[bytes]) -> Any:
    """The content of one pickle. ValueError for what is none, or holds anything but numbers."""
    reader = _Reader()
    try:
        for code, argument, _ in pickletools.genops(stream):
            reader.step(code.name, argument)
        return _finished(reader.stack.pop())
    except (IndexError, KeyError, TypeError, AttributeError, StopIteration, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no pickle of numbers: {type(error).__name__}: {error}") from error


class _Reader:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Do one step of unpickling."""
        if name in PUSHES:
            self.stack.append(argument)
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            self.stack[-TUPLES[name] :] = [tuple(self.stack[-TUPLES[name] :])]
        elif name.endswith("GET"):
            self.stack.append(self.memory[int(argument)])
        elif name.endswith("PUT") or name == "MEMOIZE":
            self.memory[len(self.memory) if argument is None else int(argument)] = self.stack[-1]
        elif name not in IDLE:
            self._other(name, argument)

    def _other(self, name: str, argument: Any) -> None:
        steps: dict[str, Callable[[], None]] = {
            "MARK": lambda: self.stack.append(_MARK),
            "TUPLE": lambda: self.stack.append(tuple(self._marked())),
            "LIST": lambda: self.stack.append(self._marked()),
            "DICT": lambda: self.stack.append(_paired(self._marked())),
            "APPEND": lambda: self._fill([self.stack.pop()]),
            "APPENDS": lambda: self._fill(self._marked()),
            "SETITEM": lambda: self._fill([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda: self._fill(self._marked()),
            "GLOBAL": lambda: self.stack.append(_named(str(argument).replace(" ", "."))),
            "STACK_GLOBAL": lambda: self.stack.append(_named(f"{self.stack.pop(-2)}.{self.stack.pop()}")),
            "REDUCE": lambda: self.stack.append(_called(self.stack.pop(-2), self.stack.pop())),
            "BUILD": lambda: _built(self.stack[-2], self.stack.pop()),
        }
        if name not in steps:
            raise ValueError(f"it holds a step that makes no number: {name}")
        steps[name]()

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark, taken off."""
        at = len(self.stack) - 1 - next(k for k, each in enumerate(reversed(self.stack)) if each is _MARK)
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken

    def _fill(self, items: list[Any]) -> None:
        holder = self.stack[-1]
        if isinstance(holder, dict):
            holder.update(_paired(items))
        else:
            holder.extend(items)


def _paired(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _named(name: str) -> _Name:
    if name not in NAMES:
        raise ValueError(f"it holds {name}, which is no number")
    return _Name(name)


def _called(name: Any, arguments: tuple[Any, ...]) -> Any:
    """What calling one of NAMES gives."""
    short = name.rpartition(".")[2] if isinstance(name, _Name) else ""
    if short == "encode":
        return str(arguments[0]).encode("latin-1")
    if short == "bytes" and not arguments:
        return b""
    if short == "scalar":
        return np.frombuffer(arguments[1], _finished(arguments[0]))[0].item()
    made = _Made()
    if short == "dtype":
        if not _DTYPE.fullmatch(str(arguments[0])):
            raise ValueError(f"it names {arguments[0]!r:.40}, which is no kind of number")
        made.value = np.dtype(str(arguments[0]))
    elif short != "_reconstruct":
        raise ValueError(f"it calls {name!r}, which makes no number")
    return made


def _built(made: Any, state: tuple[Any, ...]) -> None:
    """Give a dtype its order of bytes, or an array its shape, dtype and content."""
    if isinstance(made.value, np.dtype):
        made.value = made.value.newbyteorder(state[1]) if state[1] in ("<", ">") else made.value
        return
    _, shape, dtype, fortran, content = state
    kind = _finished(dtype)
    if kind.hasobject:
        made.value = np.empty(len(content), object)
        made.value[:] = [_finished(each) for each in content]
    else:
        made.value = np.frombuffer(content, kind)
    made.value = made.value.reshape(shape, order="F" if fortran else "C")


def _finished(value: Any) -> Any:
    """A value with what stood for arrays and dtypes in it replaced by them."""
    if isinstance(value, _Made):
        return value.value
    if isinstance(value, dict):
        return {_finished(key): _finished(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_finished(each) for each in value)
    return value
