"""How a job is to be run: everything but what it computes. One place that knows these words, their types and bounds.

Python, the command line, dropped files and the gateways all make `Terms` of what they were given, so that the same
mistake gets the same answer everywhere: JobRefused with the key. A term is one field with one check; to add a term
is to add a field here, and an argument where people may give it.

Whole numbers are whatever is exactly one (`operator.index`: int, numpy's integers), numbers whatever is real
(`numbers.Real`: int, float, numpy's, Fraction); a bool is neither. They are kept as plain int and float.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pool.errors import JobRefused, ProtocolError
from pool.format.names import MAX_ATTEMPTS, PRIORITY_HIGHEST, PRIORITY_LOWEST, check_id
from pool.format.trace_context import STATE_CHARS, TraceContext, is_state, parse
from pool.job.moments import Given, SpoolTime, fix, moment
from pool.policy.retries import KINDS

TIMEOUT_LEAST_S, TIMEOUT_MOST_S = 0.001, 1e9
TAGS_MOST, TAG_CHARS, NOTE_CHARS = 16, 64, 500
DEPENDENCIES_MOST = 256
LABELS_MOST = 8
LABEL_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
FIELDS_MOST, FIELDS_BYTES = 16, 1024

if TYPE_CHECKING:  # old interpreters
    Check = Callable[[Any, str], Any]  # (value, key) -> the value as it is kept; JobRefused


def _term(default: Any, check: Check) -> Any:
    """A field of Terms. check: of values that are given; None is none."""
    return dataclasses.field(default=default, metadata={"check": check})


def refused(value: object, key: str, wanted: str, hint: str = "") -> JobRefused:
    """JobRefused that shows what was given, of which type, and what is wanted."""
    return JobRefused(f"{shown(value)} is not {wanted}{f': {hint}' if hint else ''}", key)


def shown(value: object) -> str:
    """A value for people, short, with its type where that may be what is wrong."""
    try:
        text = ascii(value)[:60]
    except Exception:  # a repr that raises
        return f"a {type(value).__name__}"
    return text if type(value) in (int, float, bool, type(None)) else f"{text} ({type(value).__name__})"


def whole(low: int, high: int) -> Check:
    """A whole number from low to high."""

    def check(value: Any, key: str) -> int:
        truth_value = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
        try:
            number = None if truth_value else operator.index(value)
        except TypeError:
            number = None
        if number is None or not low <= number <= high:
            raise refused(value, key, f"a whole number between {low} and {high}")
        return number

    return check


def seconds(low: float, high: float) -> Check:
    """A number of seconds from low to high."""

    def check(value: Any, key: str) -> float:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        number = float(value) if real and abs(value) <= high else math.nan
        if not low <= number <= high:
            hint = "use .total_seconds()" if hasattr(value, "total_seconds") else ""
            raise refused(value, key, f"a number of seconds between {low:g} and {high:g}", hint)
        return number

    return check


def truth(value: Any, key: str) -> bool:
    """True or False, and nothing that only counts as one."""
    if not isinstance(value, bool):
        raise refused(value, key, "True or False")
    return value


def tag(value: Any, key: str) -> str:
    """One short word to find jobs by: 1 to 64 characters that can be printed, no space, no comma."""
    if not isinstance(value, str):
        raise refused(value, key, "text")
    if not 0 < len(value) <= TAG_CHARS or not value.isprintable() or " " in value or "," in value:
        raise refused(value, key, f"a tag: 1 to {TAG_CHARS} characters without spaces and commas")
    return value


def tags(value: Any, key: str) -> tuple[str, ...]:
    """At most 16 tags, each once, in the order given."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or isinstance(value, Mapping):
        hint = f"write [{value!r:.40}]" if isinstance(value, str) else ""
        raise refused(value, key, "a list of tags", hint)
    found = tuple(dict.fromkeys(tag(item, f"{key}.{at}") for at, item in enumerate(value)))
    if len(found) > TAGS_MOST:
        raise JobRefused(f"{len(found)} tags are more than {TAGS_MOST}", key)
    return found


def labels(value: Any, key: str) -> tuple[str, ...]:
    """At most 8 words that a machine must have to run the job, each once, in the order given."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or isinstance(value, Mapping):
        hint = f"write [{value!r:.40}]" if isinstance(value, str) else ""
        raise refused(value, key, "a list of labels", hint)
    found: dict[str, None] = {}
    for at, item in enumerate(value):
        if not isinstance(item, str) or _LABEL.match(item) is None:
            raise refused(item, f"{key}.{at}", "a label", "at most 64 letters, digits, _ and -")
        found[item] = None
    if len(found) > LABELS_MOST:
        raise JobRefused(f"{len(found)} labels are more than {LABELS_MOST}", key)
    return tuple(found)


def expect_labels(wanted: Iterable[str], here: Collection[str]) -> None:
    """Raise JobRefused unless this machine, on which alone the job can run, has all labels."""
    for label in wanted:
        if label not in here:
            has = f"this one has: {', '.join(here)}" if here else "this one has no labels (`cluster.labels`)"
            raise JobRefused(f"no machine here has {label!r}; {has}", "labels")


def note(value: Any, key: str) -> str:
    """A few words for people, at most 500 characters."""
    if not isinstance(value, str):
        raise refused(value, key, "text")
    if len(value) > NOTE_CHARS:
        raise JobRefused(f"{len(value)} characters are more than {NOTE_CHARS}", key)
    if not value.replace("\n", "").replace("\t", "").isprintable():
        raise refused(value, key, "plain text", "it holds control characters")
    return value


def fields(value: Any, key: str) -> dict[str, Any] | None:
    """A flat map that goes into log lines: at most 16 names and 1 KiB; text, whole numbers of 64 bits, finite numbers,
    True and False."""
    if not isinstance(value, Mapping):
        raise refused(value, key, "a map of names and values")
    if len(value) > FIELDS_MOST:
        raise JobRefused(f"{len(value)} fields are more than {FIELDS_MOST}", key)
    found = {}
    for name, one in value.items():
        if not isinstance(name, str) or not name.isascii() or not name.isidentifier():
            raise refused(name, key, "the name of a field", "letters, digits and _, not beginning with a digit")
        found[name] = _field(one, f"{key}.{name}"[:200])
    size = sum(len(name) + len(str(one).encode()) + 2 for name, one in found.items())
    if size > FIELDS_BYTES:
        raise JobRefused(f"{size} bytes are more than {FIELDS_BYTES}", key)
    return found or None


def _field(value: Any, key: str) -> Any:
    if isinstance(value, str):
        if not value.isprintable():
            raise refused(value, key, "plain text", "it holds control characters")
        return str(value)
    if isinstance(value, bool):
        return value
    if hasattr(value, "__index__"):
        return _number64(value, key)
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise refused(value, key, "text, a number, True or False")
    return float(value)


def traceparent(value: Any, key: str) -> str:
    """Where in which trace the job belongs, as W3C writes it."""
    parent = parse(value) if isinstance(value, str) else None
    if parent is None:
        form = "00-<32 hexadecimal digits>-<16>-<2>, small letters, neither id all zeros"
        raise refused(value, key, "a W3C traceparent", form)
    return str(parent)


def tracestate(value: Any, key: str) -> str:
    """What vendors say beside a traceparent."""
    if not isinstance(value, str) or not is_state(value):
        form = f"key=value,key=value …, at most 32 of them and {STATE_CHARS} characters, no key twice"
        raise refused(value, key, "a W3C tracestate", form)
    return str(value)


def jobs(value: Any, key: str, *, most: int | None = DEPENDENCIES_MOST) -> tuple[str, ...]:
    """Ids of jobs, given as ids or futures, each once; at most so many."""
    one = value is None or isinstance(value, (str, bytes, Mapping)) or hasattr(value, "id")
    if one or not isinstance(value, Iterable):
        raise refused(value, key, "a list of jobs", "write [job]" if one else "")
    found = []
    for at, item in enumerate(value):
        try:
            found.append(check_id(getattr(item, "id", item)))
        except JobRefused:
            raise refused(item, f"{key}.{at}", "the id of a job, or its future") from None
    if most is not None and len(found) > most:
        raise JobRefused(f"{len(found)} jobs are more than {most}", key)
    return tuple(dict.fromkeys(found))


MOMENTS = ("not_before", "expires")

_LABEL = re.compile(LABEL_PATTERN + r"\Z")
_attempts = whole(1, MAX_ATTEMPTS)
_time = whole(0, 10**16 - 1)  # µs, 16 digits in a name
_number64 = whole(-(2**63), 2**64 - 1)


def kinds(value: Any, key: str) -> tuple[str, ...]:
    """Kinds of failure, in their usual order, each once."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
        raise refused(value, key, "a list of kinds", f'for example ["{KINDS[0]}", "timeout"]')
    for item in value:
        if not isinstance(item, str) or item not in KINDS:
            raise refused(item, key, f"one of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in value)


@dataclass(frozen=True)
class Terms:
    """How one job is to be run. Always valid: a wrong value raises JobRefused with the key. None: not said.

    priority: -100 … 100, higher runs first. timeout_s: how long one attempt may take, 0.001 … 1e9; None: as the
    engine's configuration says. retry_times: further attempts after the first, 0 … 98; None: the engine's.
    retry_on: after which kinds of failure; None: as the engine's configuration says (see `pool.policy.retries`).
    durable: sync to the disk before it counts as accepted or finished; None: the pool's configuration.
    tags: words to find it by; note: a few words for people. Neither changes what is done.
    not_before: it waits until then. expires: a job that was not begun by then ends as failed, kind "expired". Both as
    `pool.job.moments` says; `fixed` brings them on the spool clock. depends_on: ids or futures of jobs that must have
    completed before. labels: words that a machine must have to run it. log_context: names and values that stand in each
    line that its engine logs. traceparent, tracestate: the trace that it belongs to.
    """

    priority: int = _term(0, whole(PRIORITY_LOWEST, PRIORITY_HIGHEST))
    timeout_s: float | None = _term(None, seconds(TIMEOUT_LEAST_S, TIMEOUT_MOST_S))
    retry_times: int | None = _term(None, whole(0, MAX_ATTEMPTS - 1))
    retry_on: Collection[str] | None = _term(None, kinds)
    durable: bool | None = _term(None, truth)
    tags: tuple[str, ...] = _term((), tags)
    note: str = _term("", note)
    not_before: Given | None = _term(None, moment)  # noqa: RUF009 - a field
    expires: Given | None = _term(None, moment)  # noqa: RUF009
    depends_on: Any = _term((), jobs)  # noqa: RUF009 - ids, in the end
    labels: tuple[str, ...] = _term((), labels)
    log_context: Mapping[str, Any] | None = _term(None, fields)
    traceparent: str = _term("", traceparent)
    tracestate: str = _term("", tracestate)

    def __post_init__(self) -> None:
        for name, default, check in _FIELDS:
            value = getattr(self, name)
            if value is not default:
                object.__setattr__(self, name, default if value is None else check(value, name))
        if self.tracestate and not self.traceparent:
            raise JobRefused("it says nothing without a traceparent", "tracestate")

    @classmethod
    def of(cls, given: Mapping[str, Any], allowed: Iterable[str] | None = None) -> Terms:
        """Terms of those keys of a mapping that are terms; allowed: only these."""
        names = KEYS if allowed is None else allowed
        said = {name: given[name] for name in names if name in given and given[name] is not _DEFAULTS[name]}
        if said.keys() == {"durable"} and type(said["durable"]) is bool:
            return _DURABLE[said["durable"]]
        return cls(**said)

    def after(self, ids: Iterable[str]) -> Terms:
        """With more jobs that must have completed before."""
        more = tuple(dict.fromkeys((*self.depends_on, *ids)))
        return self if more == self.depends_on else replace(self, depends_on=more)

    @property
    def trace(self) -> TraceContext | None:
        """The trace that it belongs to; None for none."""
        return TraceContext(self.traceparent, self.tracestate) if self.traceparent else None

    def within(self, trace: TraceContext | None) -> Terms:
        """As part of a trace, unless it belongs to one."""
        if trace is None or self.traceparent:
            return self
        return replace(self, traceparent=trace.traceparent, tracestate=trace.tracestate)

    def fixed(self, now: int) -> Terms:
        """With its moments on the spool clock, of which it is `now`. Raises JobRefused."""
        if self.not_before is None and self.expires is None:
            return self
        begin = None if self.not_before is None else fix(self.not_before, now, "not_before")
        end = None if self.expires is None else fix(self.expires, now, "expires")
        if begin is not None and end is not None and end <= begin:
            raise JobRefused("this is not after not_before: it would never be begun", "expires")
        return replace(self, not_before=begin, expires=end)

    # ---- in a job file

    def to_map(self) -> dict[str, Any]:
        """What is said, under the names that it has in a job file."""
        return dict(self._said)

    @functools.cached_property
    def _said(self) -> Mapping[str, Any]:
        said = {}
        for name, default, _ in _FIELDS:
            value = getattr(self, name)
            if value is not default and value != default:
                said[name] = value
        for name in MOMENTS:
            if name in said:
                said[name] = int(said[name])
        if "retry_times" in said:
            said["max_attempts"] = said.pop("retry_times") + 1
        return said

    @classmethod
    def from_map(cls, value: Mapping[str, Any]) -> Terms:
        """Terms of a job file. Raises ProtocolError when they are not ours."""
        said = {name: value[name] for name, _, _ in _FIELDS if name in value}
        if said.keys() == {"durable"} and "max_attempts" not in value and type(said["durable"]) is bool:
            return _DURABLE[said["durable"]]  # most jobs: a third of the time to read one
        try:
            if value.get("max_attempts") is not None:
                said["retry_times"] = _attempts(value["max_attempts"], "max_attempts") - 1
            if said.get("timeout_s") is not None:  # earlier versions took any number above 0
                said["timeout_s"] = min(max(said["timeout_s"], TIMEOUT_LEAST_S), TIMEOUT_MOST_S)
            for name in MOMENTS:
                if name in said:
                    said[name] = SpoolTime(_time(said[name], name))
            return cls(**said)
        except (TypeError, JobRefused) as error:
            raise ProtocolError(f"a term of the job is wrong: {error}") from None


_FIELDS = tuple((entry.name, entry.default, entry.metadata["check"]) for entry in dataclasses.fields(Terms))
_DEFAULTS = {name: default for name, default, _ in _FIELDS}
KEYS = tuple(_DEFAULTS)
_DURABLE = {durable: Terms(durable=durable) for durable in (False, True)}  # most jobs: a third of the time of one
#: What a job may say that comes from outside: a dropped file, a request.
OUTSIDE = tuple(name for name in KEYS if name != "durable")
