"""Engines without a model, to try the pool: one that only echoes, and one that fails in every way there is.

    Echo     returns its parameters; nothing is checked, so it measures the pool and nothing else
    Fake     {"do": "echo" | "sleep" | "crash" | "hang" | "leak" | …}: see `FakeParams`

Options of Fake: load_s (a slow load), fail_load ("error", "exit", "segfault", "config"), warmup_s, witness (a
folder where every run holds an exclusive lock and logs its start and end, to prove that no job runs twice at once).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, cast

import pydantic

from inference.base import Context, EngineError, Files, InputError, ResourceError


class Echo:
    """Returns its parameters."""

    def load(self, device: str, options: Mapping[str, Any]) -> None:
        """Nothing to load."""

    def check(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Anything goes."""
        return params

    def run(self, params: Mapping[str, Any], context: Context) -> Mapping[str, Any]:
        """The parameters; or, with ``array_mb``, an array of so many MiB."""
        if "array_mb" in params:
            import numpy as np

            return {"array": np.full(int(params["array_mb"]) << 17, 1.0)}
        return params

    def run_batch(self, batch: Sequence[Mapping[str, Any]], contexts: Sequence[Context]) -> list[Mapping[str, Any]]:
        """The parameters of each job, with the number of jobs in the batch."""
        return [{**params, "batch": len(batch)} for params in batch]

    def close(self) -> None:
        """Nothing to close."""


class FakeParams(pydantic.BaseModel):
    """What a Fake job does."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    do: Literal[
        "echo",
        "sleep",
        "work",
        "raise",
        "input",
        "resource",
        "exit",
        "sys_exit",
        "segfault",
        "kill",
        "abort",
        "overflow",
        "hang",
        "hang_c",
        "hang_fifo",
        "stop",
        "leak",
        "unencodable",
        "not_a_map",
        "children",
        "write",
        "partials",
        "stream",
        "deaf",
        "noisy",
    ] = "echo"
    value: Any = None
    seconds: float = pydantic.Field(0.0, ge=0, description="how long sleep and children take; processor time of work")
    code: int = pydantic.Field(0, ge=0, le=255, description="exit code")
    mb: int = pydantic.Field(0, ge=0, description="megabytes to leak or to write")
    until_attempt: int = pydantic.Field(
        0,
        ge=0,
        description="misbehave only up to this attempt; 0: every time. How to know: the context's attempt",
    )
    slot: str = pydantic.Field("", description="misbehave only in this worker slot")
    audio: Optional[str] = pydantic.Field(None, description="an input file")  # noqa: UP045
    output: Optional[str] = pydantic.Field(  # noqa: UP045
        None, description="an output file", json_schema_extra={"output": True}
    )


class Fake:
    """Does what it is told, also the worst."""

    Params: ClassVar[type[FakeParams]] = FakeParams

    def load(self, device: str, options: Mapping[str, Any]) -> None:
        """Load as slowly, or fail, as the options say."""
        self.device = device
        self._witness = Path(options["witness"]) if "witness" in options else None
        self._warmup_s = float(options.get("warmup_s", 0.0))
        self._fingerprint = str(options.get("fingerprint", "fake-1"))
        self._leaks: list[bytearray] = []
        self._runs = 0
        if "loads" in options:  # one line per load, so that a test can count them
            with open(options["loads"], "a", encoding="utf-8") as log:
                log.write(f"{os.getpid()}\n")
        time.sleep(float(options.get("load_s", 0.0)))
        failure = options.get("fail_load")
        if options.get("fail_slot") not in (None, _slot()):
            failure = None
        if failure == "error":
            raise EngineError("the model file is damaged", "install it again")
        if failure == "config":
            raise InputError("option model: no such model", "correct config.json")
        if failure == "exit":
            os._exit(1)
        if failure == "segfault":
            _segfault()

    def warmup(self) -> None:
        """Sleep ``warmup_s`` seconds."""
        time.sleep(self._warmup_s)

    def check(self, params: Mapping[str, Any]) -> FakeParams:
        """Types, and whether the input file exists. Raises :class:`InputError`."""
        checked = FakeParams.model_validate(dict(params))
        if checked.audio is not None and not Path(checked.audio).is_file():
            raise InputError(f"audio {checked.audio}: no such file", "give the path of an existing file")
        return checked

    def files(self, params: FakeParams) -> Files:
        """The input and the output that the job names."""
        return Files((Path(params.audio),) if params.audio else (), (Path(params.output),) if params.output else ())

    def fingerprint(self) -> str:
        """What the option says."""
        return self._fingerprint

    def run(self, params: FakeParams, context: Context) -> Mapping[str, Any]:
        """Do what the job says; with a ``witness``, note start and end under an exclusive lock."""
        self._runs += 1
        if self._witness is None:
            return self._act(params, context)
        lock = self._witness / f"{context.job_id}.lock"
        fd = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600) if not lock.exists() else -1
        self._log(f"start {context.job_id} {context.attempt} {'overlap' if fd < 0 and _held(lock) else 'ok'}")
        lock.write_text(str(os.getpid()))
        if fd >= 0:
            os.close(fd)
        try:
            return self._act(params, context)
        finally:
            lock.unlink(missing_ok=True)
            self._log(f"end {context.job_id} {context.attempt}")

    def _log(self, line: str) -> None:
        assert self._witness is not None
        with open(self._witness / f"{os.getpid()}.log", "a", encoding="utf-8") as log:
            log.write(f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME)} {line}\n")

    def _act(self, params: FakeParams, context: Context) -> Mapping[str, Any]:
        calm = bool(params.until_attempt) and context.attempt > params.until_attempt
        calm = calm or (params.slot not in ("", _slot()))
        do = "echo" if calm and params.do not in ("sleep", "work", "partials", "write", "stream") else params.do
        result: dict[str, Any] = {
            "value": params.value,
            "pid": os.getpid(),
            "attempt": context.attempt,
            "run": self._runs,
        }
        if do in _DEEDS:
            _DEEDS[do](params, context, result)
        elif do in _MISDEEDS:
            _misbehave(do, params)
        elif do == "leak":
            self._leaks.append(bytearray(os.urandom(1 << 20) * params.mb))
            _sleep(params, context, result)
        elif do == "not_a_map":
            wrong: Any = [1, 2, 3]
            return cast(Mapping[str, Any], wrong)
        return result

    def close(self) -> None:
        """Free the leaked memory."""
        self._leaks.clear()


def _sleep(params: FakeParams, context: Context, result: dict[str, Any]) -> None:
    begun = time.monotonic()
    while (spent := time.monotonic() - begun) < params.seconds:
        context.check()
        context.progress("inference", 100.0 * spent / params.seconds, f"{spent:.1f} of {params.seconds:.1f} s")
        time.sleep(min(0.02, params.seconds - spent))


def _work(params: FakeParams, context: Context, result: dict[str, Any]) -> None:
    begun = time.thread_time()
    while (spent := time.thread_time() - begun) < params.seconds:
        context.progress("inference", 100 * spent / params.seconds)


def _children(params: FakeParams, context: Context, result: dict[str, Any]) -> None:
    child = [
        sys.executable,
        "-c",
        "import signal,time;signal.signal(signal.SIGTERM,signal.SIG_IGN);time.sleep(600)",
    ]
    result["children"] = [
        subprocess.Popen(child).pid,
        subprocess.Popen(child, start_new_session=True).pid,
    ]
    context.partial({"children": result["children"]})
    _sleep(params, context, result)


def _partials(params: FakeParams, context: Context, result: dict[str, Any]) -> None:
    for number in range(5):
        context.partial({"number": number})
        context.progress("inference", 20.0 * (number + 1), f"part {number}")
        time.sleep(params.seconds)


def _stream(params: FakeParams, context: Context, result: dict[str, Any]) -> None:
    """The input file in pieces over ``seconds``, as a stream; half-way it waits for a file that ``value`` names."""
    assert params.audio is not None
    whole = Path(params.audio)
    data, name = whole.read_bytes(), whole.name
    stream = context.stream(name)
    for number in range(20):
        while number == 10 and params.value and not Path(params.value).exists():
            context.check()
            context.progress("inference", 50.0)
            time.sleep(0.02)
        stream.write(data[len(data) * number // 20 : len(data) * (number + 1) // 20])
        context.progress("inference", 5.0 * number)
        time.sleep(params.seconds / 20)
    stream.finish()
    output = context.output(Path(params.output) if params.output else None, name)
    output.write_bytes(data)
    result["output"] = params.output or name


def _write(params: FakeParams, context: Context, result: dict[str, Any]) -> None:
    path = context.output(Path(params.output) if params.output else None, "written.bin")
    path.write_bytes(b"x" * (params.mb << 20 or 11))
    result["output"] = params.output or path.name


def _unencodable(params: FakeParams, context: Context, result: dict[str, Any]) -> None:
    result["inner"] = {"thing": object()}


#: what ends in a result
_DEEDS: Mapping[str, Callable[[FakeParams, Context, dict[str, Any]], None]] = {
    "sleep": _sleep,
    "work": _work,
    "children": _children,
    "partials": _partials,
    "stream": _stream,
    "write": _write,
    "unencodable": _unencodable,
}


def _raise(params: FakeParams) -> None:
    raise RuntimeError(params.value or "")


def _refuse(params: FakeParams) -> None:
    raise InputError("this input cannot be used", "give another one")


def _run_out(params: FakeParams) -> None:
    raise ResourceError("not enough memory on the device")


def _noisy(params: FakeParams) -> None:
    print("a line on stdout")
    print("a line on stderr", file=sys.stderr)
    raise RuntimeError("noisy end")


def _overflow(params: FakeParams) -> None:
    sys.setrecursionlimit(1_000_000)
    threading.stack_size(0)
    resource.setrlimit(resource.RLIMIT_STACK, (512 << 10, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    _dive(0)


def _hang(params: FakeParams) -> None:
    while True:
        pass


def _hang_on_a_fifo(params: FakeParams) -> None:
    path = f"/tmp/filepool-fifo-{os.getpid()}"
    os.mkfifo(path)
    os.open(path, os.O_RDONLY)


#: what ends in an error, in the end of the process, or never
_MISDEEDS: Mapping[str, Callable[[FakeParams], object]] = {
    "raise": _raise,
    "input": _refuse,
    "resource": _run_out,
    "noisy": _noisy,
    "exit": lambda params: os._exit(params.code),
    "sys_exit": lambda params: sys.exit(params.code),
    "segfault": lambda params: _segfault(),
    "kill": lambda params: os.kill(os.getpid(), signal.SIGKILL),
    "abort": lambda params: os.abort(),
    "overflow": _overflow,
    "hang": _hang,
    "hang_c": lambda params: time.sleep(3600),
    "hang_fifo": _hang_on_a_fifo,
    "stop": lambda params: os.kill(os.getpid(), signal.SIGSTOP),
    "deaf": lambda params: time.sleep(params.seconds),  # although it was cancelled, while its heart beats
}


def _misbehave(do: str, params: FakeParams) -> None:
    _MISDEEDS[do](params)


def _dive(depth: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(_dive)(depth + 1))


def _segfault() -> None:
    ctypes.string_at(8)


def _slot() -> str:
    return os.environ.get("FILEPOOL_WORKER", "").rpartition(".")[0]


def _held(lock: Path) -> bool:
    """Whether the process that holds a witness lock still lives: only then two run at once."""
    try:
        pid = int(lock.read_text() or "0")
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except (OSError, ValueError):
        return False
    return pid != os.getpid() and not stat.startswith(("Z", "X"))
