"""Whether a job whose attempt failed is tried again: after what, how often, and in words why not. Pure.

    kind of failure             not said               retry_times=n          retry_on=[kinds]
    infrastructure, resource    twice                  n times                named: retry_times (or 2), else never
    engine                      once                   n times                the same
    timeout                     never                  never                  the same
    input, cancelled            never                  never                  cannot be named

A time limit that was met once is met again more often than not, so a timeout is retried only for those who ask.
Kinds are counted one by one; all attempts together are never more than retry_times + 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pool.format.names import MAX_ATTEMPTS

KINDS = ("infrastructure", "resource", "engine", "timeout")  # what may be named in retry_on
NEVER = frozenset({"input", "cancelled"})
USUAL_TIMES, ENGINE_TIMES = 2, 1  # by default

_WORDS = {
    "input": "the same input is refused again",
    "cancelled": "it was cancelled",
    "timeout": "a timeout is retried only when retry_on names it",
    "engine": "an error of the engine is retried once; retry_times or retry_on allow more",
}


@dataclass(frozen=True)
class Retries:
    """What was said about further attempts. times: how many; on: after which kinds; None: nothing was said."""

    times: int | None = None
    on: tuple[str, ...] | None = None

    def under(self, times: int | None, on: Collection[str] | None) -> Retries:
        """What holds for a job that says `times` and `on` itself."""
        return Retries(self.times if times is None else times, self.on if on is None else tuple(on))

    @property
    def most(self) -> int:
        """Further attempts that there may be at all."""
        return USUAL_TIMES if self.times is None else self.times

    def after(self, kind: str) -> int:
        """How many failures of this kind are followed by another attempt."""
        if kind in NEVER:
            return 0
        if self.on is not None:
            return self.most if kind in self.on else 0
        if kind == "timeout":
            return 0
        return ENGINE_TIMES if kind == "engine" and self.times is None else self.most


def why_not(kind: str, attempt: int, earlier: Sequence[str], retries: Retries, spare: int = 0) -> str:
    """Why there is no further attempt after `attempt` (from 1) failed; "" when there is one.

    earlier: kinds of the failures before it. spare: attempts beyond what was said, for a job that may not have been
    the one that failed.
    """
    if kind in NEVER:
        return _WORDS[kind]
    before = sum(1 for other in earlier if other == kind)
    if attempt < MAX_ATTEMPTS and attempt < retries.most + 1 + spare and before < retries.after(kind) + spare:
        return ""
    if retries.on is not None and kind not in retries.on:
        return f"retry_on names {', '.join(retries.on) or 'nothing'}"
    if kind in _WORDS and before >= retries.after(kind) and retries.after(kind) < retries.most:
        return _WORDS[kind]
    return f"retry_times is {retries.most}"


def left(attempts: int, kinds: Sequence[str], retries: Retries) -> int:
    """Attempts that are left, if they end as the last one. kinds: of the failures so far; 0 and less: none."""
    if not kinds:
        return retries.most + 1 - attempts
    return min(retries.most + 1 - attempts, retries.after(kinds[-1]) + 1 - sum(kind == kinds[-1] for kind in kinds))
