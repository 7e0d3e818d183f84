"""What a process died of, in words a person can act on."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pool.constants import EXIT_MEANING

SIGNAL_MEANING = {
    "SIGABRT": "aborted: by itself, or ended by the supervisor because it hung",
    "SIGBUS": "bus error: a mapped file was cut short, or memory ran out",
    "SIGFPE": "arithmetic error in native code",
    "SIGHUP": "hang-up",
    "SIGILL": "illegal instruction: a library was built for another processor",
    "SIGINT": "interrupted",
    "SIGPIPE": "broken pipe",
    "SIGSEGV": "segmentation fault",
    "SIGSYS": "forbidden system call: a sandbox refused it",
    "SIGTERM": "asked to end",
    "SIGTRAP": "trap",
    "SIGXCPU": "processor time limit reached",
    "SIGXFSZ": "file size limit reached",
}


@dataclass(frozen=True)
class Death:
    """How a process ended. Both None: it was not our child, so its exit status is unknown."""

    exit_code: int | None
    signal: str | None  # "SIGSEGV"
    sentence: str  # "killed by SIGSEGV (segmentation fault)"
    out_of_memory: bool = False  # proven by the kernel's counter, not guessed

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Ended:
    """How and why a worker ended, in facts that programs read; sentences are made from them where people look.

    cause: the supervisor's (`judge.Cause`), or "died" when no one asked for it. limit: the one that was met: key,
    value, measured. stage: what it was doing; job: what it held, "" when idle. at: µs of the spool clock.
    """

    cause: str
    exit_code: int | None = None
    signal: str = ""
    out_of_memory: bool = False
    limit: Mapping[str, Any] | None = None
    stage: str = ""
    job: str = ""
    at: int = 0

    def to_map(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)

    @classmethod
    def from_map(cls, value: object) -> Ended | None:
        """None when it is none: a status file of another version, or not one of ours."""
        if not isinstance(value, dict) or not isinstance(value.get("cause"), str):
            return None
        try:
            return cls(**{key: value[key] for key in cls.__dataclass_fields__ if key in value})
        except TypeError:
            return None


DIED = "died"  # the cause of an end that was not asked for


def signal_name(number: int) -> str:
    """The name of a signal: "SIGKILL", "SIGRTMIN+3", or "signal 77" for one this platform does not know."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first = getattr(signal, "SIGRTMIN", None)
        if first is not None and first < number <= signal.SIGRTMAX:
            return f"SIGRTMIN+{number - first}"
        return f"signal {number}"


def death_of(
    returncode: int | None,
    *,
    sent: int | None = None,
    oom_before: int | None = None,
    oom_now: int | None = None,
) -> Death:
    """Put `Popen.returncode` (negative: a signal; None: not our child) into words.

    `sent` is the signal that we ourselves sent, if any: then it needs no other explanation. `oom_before` and
    `oom_now` are readings of `host.oom_kills()`, taken while the process lived and after its death.
    """
    if returncode is None:
        return Death(None, None, "ended, exit status unknown: it was not a child of this supervisor")
    if returncode >= 0:
        return Death(returncode, None, _exit_sentence(returncode))
    number = -returncode
    name = signal_name(number)
    if name != "SIGKILL" or sent == number:
        meaning = "by the supervisor" if sent == number else SIGNAL_MEANING.get(name)
        return Death(None, name, f"killed by {name}" + (f" ({meaning})" if meaning else ""))
    if oom_before is None or oom_now is None:
        return Death(None, name, "killed by SIGKILL, probably out of memory")
    if oom_now > oom_before:
        return Death(None, name, "killed by SIGKILL: out of memory (the kernel's OOM killer ended it)", True)
    return Death(
        None,
        name,
        "killed by SIGKILL, sent by a person or another program: the kernel counts no out-of-memory kill",
    )


def _exit_sentence(code: int) -> str:
    meaning = EXIT_MEANING.get(code)
    if meaning is None and 128 < code < 160:
        # A shell or launcher between us and the interpreter reports a signal in this way.
        meaning = f"a wrapper reports {signal_name(code - 128)}"
    return f"exit code {code}" + (f" ({meaning})" if meaning else "")
