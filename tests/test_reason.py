"""Whatever an exception is made of, there is a Failure that says why, and a record can hold it."""

from __future__ import annotations

import asyncio
import builtins
import errno
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.format import codec
from pool.job import FailureKind, decode_failure
from pool.work.reason import HINT_CHARS, MESSAGE_CHARS, TRACEBACK_CHARS, failure_of, members_of


def no(*_: Any) -> Any:
    raise KeyboardInterrupt("no")


class Mute(Exception):
    """Its words are bombs."""

    __str__ = __repr__ = no


class Bomb(BaseException):
    """Everything one could ask it is."""

    __str__ = __repr__ = __getattr__ = no
    kind = hint = errors = exceptions = errno = property(no)
    __traceback__ = property(no)  # type: ignore[assignment]
    __cause__ = property(no)  # type: ignore[assignment]
    __class__ = property(no)  # type: ignore[assignment]


class Meta(type):
    """A class that does not even tell its name."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__module__", "__name__"):
            raise KeyboardInterrupt("no")
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=Meta):
    pass


class Liar(Exception):
    """Attributes of the wrong type."""

    kind = 5
    hint = object()
    exceptions = 7
    errors = "none"


class Text(str):
    __str__ = __repr__ = strip = __len__ = no  # type: ignore[assignment]


class ValidationError(Exception):
    def __init__(self, errors: Callable[[], Any]) -> None:
        super().__init__("its own words")
        self.errors = errors


def claiming(kind: object, hint: object = "") -> Exception:
    error = Exception("x")
    error.kind, error.hint = kind, hint  # type: ignore[attr-defined]
    return error


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def dive() -> None:
    dive()


def recursion() -> BaseException:
    try:
        dive()
    except RecursionError as error:
        return error
    raise AssertionError


STRANGE: dict[str, Callable[[], BaseException]] = {
    "mute": Mute,
    "bomb": Bomb,
    "nameless": Nameless,
    "liar": lambda: Liar("words"),
    "empty": lambda: Exception(""),
    "blank": lambda: Exception(" \n\t"),
    "huge": lambda: ValueError("x" * 10_000_000),
    "surrogate": lambda: ValueError("bad \ud800 \0"),
    "text": lambda: ValueError(Text("text")),
    "bomb inside": lambda: ValueError(Mute(), [Bomb()]),
    "kind that raises": lambda: claiming(Text("input"), Text("hint")),
    "huge hint": lambda: claiming("input", "y" * 1_000_000),
    "recursion": recursion,
    "exit": lambda: SystemExit(Mute()),
    "errors() raises": lambda: ValidationError(no),
    "errors() is nonsense": lambda: ValidationError(lambda: [1, None]),
    "errors() never ends": lambda: ValidationError(lambda: 5),
    "generator exit": GeneratorExit,
    "interrupt": KeyboardInterrupt,
    "stop": StopIteration,
    "cancelled": asyncio.CancelledError,
    "memory": MemoryError,
}


@pytest.mark.parametrize("name", STRANGE)
def test_there_is_always_a_reason_that_a_record_can_hold(name: str) -> None:
    failure = failure_of(raised(STRANGE[name]()), stage="run", attempt=2, worker="echo-0.1", at=5)
    assert failure.message.strip()
    assert len(failure.message) < MESSAGE_CHARS + 100
    assert len(failure.hint) < HINT_CHARS + 100
    assert len(failure.traceback) <= TRACEBACK_CHARS
    assert failure.exception
    assert (failure.stage, failure.attempt, failure.worker, failure.at) == ("run", 2, "echo-0.1", 5)
    assert FailureKind(failure.kind) is not FailureKind.CANCELLED
    again = decode_failure(codec.decode(codec.encode(failure.to_map())))
    assert again.message.strip()


def test_what_it_says() -> None:
    said = {name: failure_of(raised(make()), stage="run", attempt=1) for name, make in STRANGE.items()}
    assert said["mute"].exception == f"{__name__}.Mute"
    assert "its str() raises" in said["mute"].message
    assert said["bomb"].exception == f"{__name__}.Bomb"
    assert said["nameless"].exception == "Nameless"
    assert said["empty"].message == "Exception"
    assert "10,000,000 characters" in said["huge"].message
    assert said["cancelled"].exception == "asyncio.exceptions.CancelledError"
    assert said["errors() raises"].message == "its own words"
    assert said["recursion"].kind == "engine"
    assert "in dive" in said["recursion"].traceback
    assert said["memory"].kind == "resource"
    assert "in raised" in said["mute"].traceback


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (claiming("input"), "input"),
        (claiming("resource"), "resource"),
        (claiming("nonsense"), "engine"),
        (claiming("cancelled"), "engine"),  # only the caller cancels
        (OSError(errno.ENOSPC, "full"), "resource"),
        (OSError(errno.ENAMETOOLONG, "long"), "input"),
        (OSError(errno.ENOENT, "none"), "engine"),
        (type("OutOfMemoryError", (RuntimeError,), {})("device"), "resource"),
    ],
)
def test_who_must_act(error: BaseException, kind: str) -> None:
    assert failure_of(error, stage="run", attempt=1).kind == kind


def test_a_real_validation_error_names_each_key() -> None:
    model = pydantic.create_model("Params", speakers=(int, ...), audio=(str, ...))
    with pytest.raises(pydantic.ValidationError) as caught:
        model.model_validate({"speakers": "many"})
    failure = failure_of(caught.value, stage="check", attempt=1)
    assert failure.kind == "input"
    assert "params.speakers: " in failure.message
    assert "params.audio: is required" in failure.message
    assert failure.traceback == ""


class Group(Exception):
    """As anyio and older libraries have it, and ExceptionGroup since Python 3.11."""

    def __init__(self, message: str, exceptions: list[BaseException]) -> None:
        super().__init__(message)
        self.message, self.exceptions = message, tuple(exceptions)


GROUPS: list[Any] = [group for group in (Group, getattr(builtins, "BaseExceptionGroup", None)) if group]


@pytest.mark.parametrize("group", GROUPS)
def test_each_member_of_a_group_is_told(group: Any) -> None:
    inner = group("inner", [Mute(), KeyboardInterrupt("stop")])
    failure = failure_of(raised(group("two tasks failed", [KeyError("left"), inner])), stage="run", attempt=1)
    assert failure.message.startswith("two tasks failed: KeyError: 'left'; ")
    assert "Mute" in failure.message
    assert "KeyboardInterrupt: stop" in failure.message
    assert failure.kind == "engine"
    many = failure_of(group("many", [ValueError(str(n)) for n in range(50)]), stage="run", attempt=1)
    assert "ValueError: 19; and 30 more" in many.message


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_of_a_kind_when_its_members_are(group: Any) -> None:
    both = group("all", [claiming("input", "a"), claiming("input", "b")])
    failure = failure_of(both, stage="run", attempt=1)
    assert (failure.kind, failure.hint) == ("input", "a; b")
    mixed = group("mixed", [claiming("input"), MemoryError()])
    assert failure_of(mixed, stage="run", attempt=1).kind == "engine"


def test_groups_in_groups_without_end_are_no_danger() -> None:
    loop = Group("loop", [])
    loop.exceptions = (loop, loop)
    few = Group("deep", [ValueError("bottom")])
    for _ in range(500):
        few = Group("deep", [few])
    assert failure_of(few, stage="run", attempt=1).message
    assert list(members_of(loop)) == []
    assert failure_of(loop, stage="run", attempt=1).message.startswith("loop")


@given(st.text(), st.text(), st.sampled_from(["engine", "input", "resource", "timeout"]))
def test_words_survive(words: str, hint: str, kind: str) -> None:
    error = claiming(kind, hint)
    error.args = (words,)
    failure = failure_of(error, stage="run", attempt=1)
    assert failure.message == (words.strip() or "Exception")
    assert failure.kind == kind


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (
            ImportError("libGL.so.1: cannot open shared object file: No such file or directory"),
            "library libGL.so.1 is missing on this machine: apt-get install libgl1",
        ),
        (
            OSError("libcudart.so.12: cannot open shared object file: No such file or directory"),
            "pip install nvidia-cuda-runtime-cu12",
        ),
        (ImportError("libcudnn.so.9: cannot open shared object file"), "nvidia-cudnn-cu12"),
        (ImportError("Error loading shared library libgomp.so.1: No such file"), "apt-get install libgomp1"),
        (OSError("libnobody.so.3: cannot open shared object file"), "`apt-file search libnobody.so.3`"),
        (OSError("sndfile library not found using ctypes.util.find_library"), "apt-get install libsndfile1"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "the Python module torch is missing"),
        (ImportError("/x/y.so: undefined symbol: _ZN2at"), "built for another system"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "ffprobe"), "apt-get install ffmpeg"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/ffmpeg"), ""),
        (OSError(errno.EACCES, "Permission denied", "ffmpeg"), ""),
        (ValueError("libGL.so.1: cannot open shared object file"), ""),
    ],
)
def test_what_is_missing_on_the_machine_is_named_with_what_brings_it(error: BaseException, cure: str) -> None:
    hint = failure_of(error, stage="run", attempt=1).hint
    assert cure in hint
    assert bool(hint) == bool(cure)
    wrapped = RuntimeError("the model cannot be loaded")
    wrapped.__cause__ = error
    assert failure_of(wrapped, stage="load", attempt=1).hint == hint
