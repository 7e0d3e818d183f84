"""Turn whatever an engine raised into a Failure that says why. Never raises, whatever the exception does.

An exception runs code of the engine: its str and repr, `kind`, `hint`, `errors()` and even its class may raise, have
the wrong type, or be megabytes long. Each is read once, guarded, and cut to a length that fits a record.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pool.errors import ProtocolError
from pool.format.invalid import sentence
from pool.job import Failure, FailureKind
from pool.spool.store import NO_SPACE
from pool.work.missing import cure_of

T = TypeVar("T")

MESSAGE_CHARS = 4_000
HINT_CHARS = 1_000
TRACEBACK_CHARS = 16_000
MEMBERS = 20  # of an exception group are reported
_NO_FAULT = frozenset({FailureKind.CANCELLED.value})  # kinds that an exception may not name


def failure_of(
    error: BaseException, *, stage: str, attempt: int, stderr_tail: str = "", worker: str = "", at: int = 0
) -> Failure:
    """One attempt's Failure. stage: where the engine was. at: µs of the spool clock."""
    kind, hint = _try(lambda: _kind_and_hint(error, stage), (FailureKind.ENGINE.value, ""))
    return Failure(
        kind=kind,
        message=message_of(error),
        stage=stage,
        attempt=attempt,
        exception=name_of(error),
        traceback="" if kind == FailureKind.INPUT.value else traceback_of(error),
        stderr_tail=stderr_tail,
        hint=hint,
        worker=worker,
        at=at,
    )


def kind_of(error: BaseException, stage: str = "") -> str:
    """Who has to act: a value of FailureKind."""
    return _try(lambda: _kind_and_hint(error, stage)[0], FailureKind.ENGINE.value)


def message_of(error: BaseException) -> str:
    """What it says, each member of a group; never empty."""
    return bounded(_try(lambda: _message(error), "") or name_of(error), MESSAGE_CHARS)


def hint_of(error: BaseException) -> str:
    """What it advises, else what is missing on this machine; "" for none."""
    hint = _try(lambda: error.hint, "") or _try(lambda: cure_of(error), "")  # type: ignore[attr-defined]
    return bounded(_text(hint), HINT_CHARS) if hint else ""


def name_of(error: BaseException) -> str:
    """Module and class: "KeyError", "torch.cuda.OutOfMemoryError"."""
    kind = type(error)
    module, name = _try(lambda: (kind.__module__, kind.__qualname__), ("", ""))
    if type(name) is not str or not name:
        name = type.__dict__["__name__"].__get__(kind)  # read from the class itself, whatever its metaclass returns
    return name if type(module) is not str or module in ("", "builtins") else f"{module}.{name}"


def traceback_of(error: BaseException) -> str:
    """The end of its traceback: causes, contexts and members of a group included."""

    def whole() -> str:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))

    def frames() -> str:
        return "".join(traceback.format_tb(error.__traceback__))

    return (_try(whole, "") or _try(frames, ""))[-TRACEBACK_CHARS:]


def members_of(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, of groups in it too; of one that is no group itself."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:  # a group may hold itself
            continue
        seen.add(id(current))
        inner = _members(current)
        if inner:
            waiting.extend(reversed(inner))
        else:
            yield current


def bounded(text: str, limit: int) -> str:
    """At most about `limit` characters: the begin, and how many there were."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text):,} characters)"


# ---- guarded reads


def _try(question: Callable[[], T], otherwise: T) -> T:
    try:
        return question()
    except BaseException:  # an engine's str() may raise anything, KeyboardInterrupt too
        return otherwise


def _built_in(owner: type, name: str, error: BaseException) -> Any:
    """An attribute as the interpreter keeps it, whatever a subclass made of it."""
    return vars(owner)[name].__get__(error)


def _text(value: object) -> str:
    """str(value), else repr of it, else ""; a subclass of str becomes a plain one."""
    for convert in (str, repr):
        text = _try(lambda convert=convert: str.strip(str.__str__(convert(value))), "")  # type: ignore[misc]
        if text:
            return text
    return ""


def _members(error: BaseException) -> tuple[BaseException, ...]:
    """Of ExceptionGroup (Python 3.11) and of those of older libraries that are shaped like it."""
    inner: Any = _try(lambda: error.exceptions, None)  # type: ignore[attr-defined]
    if not isinstance(inner, (tuple, list)):
        return ()
    return tuple(one for one in inner if issubclass(type(one), BaseException))


def _message(error: BaseException) -> str:
    if issubclass(type(error), SystemExit):
        return f"the engine called sys.exit({_try(lambda: repr(error.code), '?')}) in the middle of a job"  # type: ignore[attr-defined]
    if _members(error):
        return _of_group(error)
    if _is_validation(error):
        said = _try(lambda: "; ".join(_sentence(item) for item in error.errors()), "")  # type: ignore[attr-defined]
        if said:
            return said
    return _said(error)


def _said(error: BaseException) -> str:
    said = _try(lambda: str.strip(str.__str__(str(error))), None)
    if said is not None:
        return said
    words = ", ".join(filter(None, map(_text, _try(lambda: _built_in(BaseException, "args", error), ()))))
    return f"{name_of(error)}({words}); its str() raises"


def _of_group(error: BaseException) -> str:
    told: list[str] = []
    more = 0
    for member in members_of(error):
        if len(told) < MEMBERS:
            said = _message(member)
            told.append(bounded(f"{name_of(member)}: {said}" if said else name_of(member), HINT_CHARS))
        else:
            more += 1
    title = _try(lambda: str(error.message), "").strip() or name_of(error)  # type: ignore[attr-defined]
    return f"{title}: " + "; ".join(told) + (f"; and {more} more" if more else "")


def _kind_and_hint(error: BaseException, stage: str) -> tuple[str, str]:
    members = list(members_of(error))
    if members != [error]:
        answers = [_try(lambda m=m: _own_kind(m, stage), (FailureKind.ENGINE.value, "")) for m in members]  # type: ignore[misc]
        kinds = {kind for kind, _ in answers}
        hints = dict.fromkeys(hint for _, hint in answers if hint)
        kind = kinds.pop() if len(kinds) == 1 else FailureKind.ENGINE.value
        return kind, bounded("; ".join(hints), HINT_CHARS)
    return _own_kind(error, stage)


def _own_kind(error: BaseException, stage: str) -> tuple[str, str]:
    hint, cls = hint_of(error), type(error)
    claimed = _try(lambda: error.kind, None)  # type: ignore[attr-defined]
    if isinstance(claimed, str):
        kind = FailureKind.of(str.__str__(claimed)).value
        return FailureKind.ENGINE.value if kind in _NO_FAULT else kind, hint
    if _is_validation(error):
        return FailureKind.INPUT.value, hint
    if issubclass(cls, MemoryError) or "OutOfMemory" in name_of(error):
        return FailureKind.RESOURCE.value, hint or "less work at once, or a device with more memory"
    if issubclass(cls, OSError):
        number = _try(lambda: _built_in(OSError, "errno", error), None)
        if number in {*NO_SPACE, errno.EFBIG, errno.ENOMEM, errno.EMFILE}:
            return FailureKind.RESOURCE.value, hint
        if number == errno.ENAMETOOLONG:
            return FailureKind.INPUT.value, hint or "give a shorter path"
    if issubclass(cls, ProtocolError) and stage == "publish":
        return FailureKind.ENGINE.value, hint or "return plain values, lists, maps and arrays"
    return FailureKind.ENGINE.value, hint


def _is_validation(error: BaseException) -> bool:
    """Whether it is pydantic's ValidationError, of whichever version."""
    return name_of(error).rpartition(".")[2] == "ValidationError" and _try(lambda: callable(error.errors), False)  # type: ignore[attr-defined]


def _sentence(item: Mapping[str, Any]) -> str:
    path, said = ".".join(str(part) for part in item.get("loc", ())), sentence(item, values=False)  # maybe a secret
    return f"params.{path}: {said}" if path else said
