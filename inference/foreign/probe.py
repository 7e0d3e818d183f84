"""What another interpreter is and what it can import, asked before anything is started in it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence

from inference.base import EngineError
from inference.finding import Finding
from inference.foreign.host import GUEST, Home, environment

OLDEST = (3, 6)  #: what a guest needs
VERSION_S, IMPORT_S = 20.0, 300.0
_VERSION = 'import sys; print("%d.%d.%d" % sys.version_info[:3])'


def version(python: str) -> str:
    """The version of an interpreter, such as "3.8.18". Raises :class:`EngineError` for one that is none, or too old."""
    try:
        done = subprocess.run(
            [python, "-c", _VERSION], stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_S, text=True
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"{python} did not say its version within {VERSION_S:g} s", hint="name a Python interpreter"
        ) from None
    except OSError as error:
        raise EngineError(
            f"{python} cannot be run: {error.strerror or error}", hint="name a Python interpreter of this machine"
        ) from error
    said = done.stdout.strip()
    parts = said.split(".")
    if done.returncode != 0 or len(parts) != 3 or not all(part.isdigit() for part in parts):
        words = (done.stderr.strip() or said or f"exit code {done.returncode}").splitlines()[-1][:200]
        raise EngineError(f"{python} is no Python interpreter that works: {words}", hint="name one that does")
    if (int(parts[0]), int(parts[1])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineError(f"{python} is Python {said}; an SDK needs {oldest} or newer", hint="name another `python`")
    return said


def examine(home: Home, modules: Sequence[str]) -> Iterator[Finding]:
    """Look at the interpreter of an SDK: its version, each module, the GPUs it sees."""
    try:
        version(home.python)
    except EngineError as error:
        yield Finding("sdk python", False, str(error), error.hint)
        return
    try:
        done = subprocess.run(
            [home.python, str(GUEST / "filepool_probe.py"), json.dumps({"modules": list(modules)})],
            cwd=home.folder,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=IMPORT_S,
        )
        out, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        out, code = error.stdout or b"", None
    importing = ""
    for line in out.decode("utf-8", "replace").splitlines():
        event = json.loads(line)
        if event["event"] == "python":
            what = f"{event['implementation']} {event['version']} ({event['abi'] or event['machine']})"
            yield Finding("sdk python", True, f"{what}, {event['executable']}")
        elif event["event"] == "importing":
            importing = event["module"]
        elif event["event"] == "imported":
            importing = ""
            yield _import_finding(event["module"], event["version"], event["problem"])
        else:
            yield _gpu_finding(event)
    if importing:
        end = f"did not end within {IMPORT_S:g} s" if code is None else f"ended the interpreter with {_end(code)}"
        yield Finding(
            f"sdk import {importing}", False, f"the import {end}", "it is built for another machine, driver or Python"
        )


def _import_finding(module: str, release: str, problem: dict[str, str] | None) -> Finding:
    if problem is None:
        return Finding(f"sdk import {module}", True, release or "can be imported")
    return Finding(f"sdk import {module}", False, problem["message"], problem["hint"])


def _gpu_finding(event: dict[str, object]) -> Finding:
    found = event["gpus"]
    assert isinstance(found, list)
    if found:
        return Finding("sdk gpu", True, ", ".join(f"{each['name']} ({each['mb']} MiB)" for each in found))
    return Finding("sdk gpu", True, f"none: {event['problem']}")


def _end(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
