"""The command doctor: look at everything a pool needs before it is started, and say how to fix what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pool.cli.command import known_engine, load, print_json
from pool.cli.options import ConfigOption, JsonOption
from pool.errors import ConfigError, PoolError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pool.config.seats import SlotSpec
    from pool.config.settings import Config

NEEDED = ("msgpack", "watchdog", "filelock")  # by a worker
OLDEST = (3, 8)
VERSION_S, PROBE_S = 20.0, 600.0
_VERSION = 'import sys; print("%d.%d.%d" % sys.version_info[:3])'
_LAST_LINES = 400  # characters of what an interpreter said


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. subject: "pool", "cluster", or the name of an engine. hint: what fixes it."""

    subject: str
    check: str
    ok: bool
    message: str
    hint: str = ""


def doctor(
    engines: Annotated[
        list[str] | None, typer.Argument(metavar="ENGINE", help="Default: all of them.", show_default=False)
    ] = None,
    load_models: Annotated[
        bool, typer.Option("--load", help="Load each engine, too; takes as long as a start.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Check the configuration, the spool, the cluster, and the interpreter, packages and GPUs of each engine.

    Nothing is started and nothing is changed. Exit codes: 0 all right, 1 something must be fixed.
    """
    configured = load(config, engines=True)
    for name in engines or ():
        known_engine(configured, name)
        configured.engine(name)  # not one of a cluster: nothing of it is on this machine
    findings = [*_of_pool(configured)]
    if configured.cluster.servers and not engines:
        findings += _of_cluster(configured)
    for name in engines or configured.engines:
        findings += _of_engine(configured, name, load_models)
    raise typer.Exit(show(findings, as_json=as_json))


def show(findings: list[Finding], *, as_json: bool) -> int:
    """Print what was found; the exit code."""
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    else:
        from pool.cli.terminal import make_console

        make_console().print(_view(findings), soft_wrap=True)
    return 0 if ok else 1


# ---- the pool


def _of_pool(config: Config) -> Iterator[Finding]:
    yield Finding("pool", "configuration", True, str(config.file or "built in"))
    for note in config.notes:
        yield Finding("pool", "note", True, note)
    yield _spool(config)
    yield _space(config)
    yield _watching(config)


def _spool(config: Config) -> Finding:
    from pool.runfiles.server import supervisor_identity, unseen
    from pool.spool import layout

    root = config.spool
    if not (root / "run" / "spool.json").exists():
        near = _nearest(root)
        ok = os.access(near, os.W_OK | os.X_OK)
        hint = "" if ok else f"give the pool's user the right to write to {near}, or name another `spool`"
        return Finding("pool", "spool", ok, f"{root} is made at the first start", hint)
    try:
        layout.check(root)
    except PoolError as error:
        return Finding("pool", "spool", False, str(error))
    server = supervisor_identity(root / "run" / "supervisor.json")
    if server is not None and server.alive():
        return Finding("pool", "spool", True, f"{root}, served by pid {server.pid}")
    hidden = unseen(root)
    return Finding("pool", "spool", not hidden, str(root), hidden)


def _nearest(place: Path) -> Path:
    """The folder itself, or the one in which it will be made."""
    while not place.is_dir():
        place = place.parent
    return place


def _space(config: Config) -> Finding:
    place = _nearest(config.spool)
    about = os.statvfs(place)
    free = about.f_bavail * about.f_frsize >> 20
    ok = free >= config.min_free_mb
    hint = "" if ok else "make room, or lower `min_free_mb`"
    return Finding("pool", "disk", ok, f"{free} MiB free, {config.min_free_mb} needed", hint)


def _watching(config: Config) -> Finding:
    from pool.system.watch import Watcher

    with Watcher({"spool": _nearest(config.spool)}) as watcher:
        reason = watcher.reason
    message = f"by polling, which is slower: {reason}" if reason else "by events"
    hint = "a local file system for the spool, or a higher limit: see docs/OPERATIONS.md" if reason else ""
    return Finding("pool", "watching", not reason, message, hint)


# ---- the cluster


def _of_cluster(config: Config) -> Iterator[Finding]:
    """What `python -m pool.cluster doctor` finds: a program of its own, with packages of its own."""
    command = [sys.executable, "-m", "pool.cluster", "doctor", "--json", "--config", str(config.file)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, text=True)
    try:
        told = json.loads(done.stdout)
        yield from (Finding(**each) for each in told["findings"])
    except (ValueError, KeyError, TypeError):
        words = done.stderr.strip()[-_LAST_LINES:] or f"exit code {done.returncode}"
        hint = (
            "pip install 'filepool[cluster]'" if "No module named" in words else "see `python -m pool.cluster doctor`"
        )
        yield Finding("cluster", "doctor", False, words, hint)


# ---- an engine


def _of_engine(config: Config, name: str, load_models: bool) -> Iterator[Finding]:
    from pool.config.seats import slots

    try:
        spec = next(slot for slot in slots(config) if slot.engine.name == name)
    except ConfigError as error:
        yield Finding(name, "configuration", False, str(error))
        return
    found, hint = _version(spec)
    if hint:
        yield Finding(name, "python", False, found, hint)
        return
    yield from _probe(spec, load_models)


def _version(spec: SlotSpec) -> tuple[str, str]:
    """(its version, "") of an interpreter that a worker can run in, else (what is wrong, what fixes it)."""
    own = "name another interpreter in `python`"
    try:
        done = subprocess.run(
            [spec.python, "-c", _VERSION], stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_S, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{spec.python} cannot be run: {error}", own
    said = done.stdout.strip()
    parts = said.split(".")
    if done.returncode or len(parts) != 3 or not all(part.isdigit() for part in parts):
        words = (done.stderr.strip() or said or f"exit code {done.returncode}")[-_LAST_LINES:]
        return f"{spec.python} is no Python interpreter that works: {words}", own
    if (int(parts[0]), int(parts[1])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return (
            f"{spec.python} is Python {said}; a worker needs {oldest} or newer",
            f"for an older one, use the engine inference.foreign:Foreign, with this `python` in its options; or {own}",
        )
    return said, ""


def _probe(spec: SlotSpec, load_models: bool) -> Iterator[Finding]:
    from pool.config.seats import PROJECT

    engine = spec.engine
    about = {"spec": engine.engine, "device": spec.device, "options": dict(engine.options), "load": load_models}
    request = {"modules": [*NEEDED, engine.engine.partition(":")[0]], "engine": about}
    command = [spec.python, str(PROJECT / "worker_main.py"), "--probe", json.dumps(request)]
    try:
        done = subprocess.run(
            command, cwd=spec.cwd, env=dict(spec.env), stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S
        )
        out, code, said = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        out, code, said = error.stdout or b"", None, error.stderr or b""
    importing = ""
    for line in out.decode("utf-8", "replace").splitlines():
        event = json.loads(line)
        importing = event["module"] if event["event"] == "importing" else ""
        if event["event"] != "importing":
            yield _finding(engine.name, spec.device, event)
    if code != 0:
        where = f"import {importing}" if importing else "engine"
        words = said.decode("utf-8", "replace").strip()[-_LAST_LINES:]
        end = f"{_end(code)}{f': {words}' if words else ''}"
        yield Finding(engine.name, where, False, f"the interpreter ended with {end}", "")


def _finding(engine: str, device: str, event: dict[str, Any]) -> Finding:
    if event["event"] == "python":
        what = f"{event['implementation']} {event['version']} ({event['abi'] or event['machine']})"
        return Finding(engine, "python", True, f"{what}, {event['executable']}")
    if event["event"] == "imported":
        problem = event["problem"]
        check = f"import {event['module']}"
        if problem is None:
            return Finding(engine, check, True, event["version"])
        return Finding(engine, check, False, problem["message"], problem["hint"])
    if event["event"] == "gpus":
        names = ", ".join(f"{gpu['name']} ({gpu['mb']} MiB)" for gpu in event["gpus"])
        ok = bool(names) or not device.startswith("cuda")
        hint = "" if ok else f"the engine is to run on {device}: fix that, or set its `device` to cpu"
        return Finding(engine, "gpu", ok, names or f"none: {event['problem']}", hint)
    return Finding(engine, event["check"], event["ok"], event["message"], event["hint"])


def _end(code: int | None) -> str:
    if code is None:
        return f"no answer within {PROBE_S:g} s"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _view(findings: list[Finding]) -> RenderableType:
    from rich.text import Text

    from pool.cli.text import plain

    text = Text()
    subject = ""
    for finding in findings:
        if finding.subject != subject:
            text.append(f"{'' if not subject else chr(10)}{finding.subject}\n", style="bold")
            subject = finding.subject
        mark = ("  ok    ", "green") if finding.ok else ("  WRONG ", "bold red")
        text.append(*mark)
        text.append(plain(finding.check), style="" if finding.ok else "bold")
        message = plain(finding.message).replace("\n", "\n        ")
        text.append(f": {message}\n" if message else "\n")
        if finding.hint:
            text.append(f"        → {plain(finding.hint)}\n", style="yellow")
    wrong = sum(not finding.ok for finding in findings)
    text.append(f"\n{wrong} to fix" if wrong else "\nall right", style="bold red" if wrong else "bold green")
    return text
