"""From the configuration to seats: what each slot runs, on which device, in which environment.

Everything that a worker inherits is decided here, before its interpreter starts: afterwards is too late for
PYTHONPATH, for the devices that CUDA sees and for the number of threads of a numeric library.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import site
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pool.config import checks
from pool.config.settings import Config, EngineConfig
from pool.constants import ENV_SPOOL, ENV_WORKER, HEARTBEAT_MAGIC
from pool.errors import ConfigError
from pool.format.trace_context import VARIABLES
from pool.system.host import cpu_count

PROJECT = Path(__file__).resolve().parents[2]  # where worker_main.py, pool/ and inference/ are
#: What children need on PYTHONPATH to find us. Nothing when we are where Python installs packages: first on the path,
#: that folder would hide modules of the standard library, and those of another interpreter.
_INSTALLED = any(Path(place).resolve() == PROJECT for place in (*site.getsitepackages(), site.getusersitepackages()))
FOUND_BY = () if _INSTALLED else (str(PROJECT),)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_NOT_INHERITED = (ENV_SPOOL, ENV_WORKER, *VARIABLES)  # a trace is that of a job, not of who started the pool
_CUDA = "CUDA_VISIBLE_DEVICES"
_OURS_ONLY = ("PYTHONHOME", "__PYVENV_LAUNCHER__")  # mislead another interpreter
_SHAPES_A_WORKER = (
    "engine",
    "options",
    "env",
    "pythonpath",
    "retry_times",
    "retry_on",
    "cache_enabled",
    "delete_after_transcription",
    "max_batch",
    "batch_wait_ms",
)


@dataclass(frozen=True)
class SlotSpec:
    """One seat. `env` is the whole environment of its process but for the FILEPOOL_ tags of a generation."""

    name: str  # "transcribe-0"
    engine: EngineConfig
    index: int
    spare: bool  # started as one that waits, loaded, for another to fail
    device: str  # as the engine gets it: "cuda:0" is the first of those it can see
    python: str  # path of the interpreter
    cwd: Path
    threads: int
    env: Mapping[str, str]
    fingerprint: str  # changes when a process that runs already no longer fits this configuration


def slots(
    config: Config, *, environ: Mapping[str, str] | None = None, cores: int | None = None
) -> tuple[SlotSpec, ...]:
    """Every slot of every engine: its workers first, then its spares.

    `environ` and `cores` default to those of this process. Raises ConfigError when an interpreter, directory
    or device that the configuration names does not exist here.
    """
    inherited = dict(os.environ if environ is None else environ)
    total = sum(engine.workers for engine in config.engines.values())
    share = max(1, (cpu_count() if cores is None else cores) // max(1, total))
    return tuple(
        _slot(config, engine, index, inherited, share)
        for engine in config.engines.values()
        for index in range(engine.slots)
    )


def _slot(config: Config, engine: EngineConfig, index: int, inherited: Mapping[str, str], share: int) -> SlotSpec:
    wanted = engine.devices[index % len(engine.devices)] if engine.devices else engine.device
    python, own = _interpreter(config, engine)
    cwd = engine.cwd or config.root
    if not cwd.is_dir():
        raise ConfigError(f"{cwd} is no directory", f"engines.{engine.name}.cwd")
    device, visible = _device(engine, wanted, inherited)
    threads = _threads(engine, inherited, share)
    env = {name: value for name, value in inherited.items() if name not in _NOT_INHERITED}
    if not own:
        env = {name: value for name, value in env.items() if name not in _OURS_ONLY}
    env.setdefault("PYTHONIOENCODING", "utf-8:backslashreplace")  # a log line must not end a job
    env.update(PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1")
    if engine.threads is not None:
        env.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    for name in THREAD_VARIABLES:
        env.setdefault(name, str(threads))
    if visible is not None:
        env[_CUDA] = visible
    env.update(engine.env)
    env["PYTHONPATH"] = _pythonpath(engine, env)
    return SlotSpec(
        name=f"{engine.name}-{index}",
        engine=engine,
        index=index,
        spare=index >= engine.workers,
        device=device,
        python=python,
        cwd=cwd,
        threads=threads,
        env=env,
        fingerprint=_fingerprint(config, engine, [python, cwd, wanted, threads]),
    )


def _interpreter(config: Config, engine: EngineConfig) -> tuple[str, bool]:
    """Path of the interpreter, and whether it is the one we run under."""
    if engine.python is None:
        return sys.executable, True
    at = checks.At(f"engines.{engine.name}.python", config.root)
    if "/" in engine.python or os.sep in engine.python:
        # Not resolved: an interpreter of a virtual environment is a link, and knows its packages by the link.
        path = os.path.normpath(config.root / Path(engine.python).expanduser())
    else:
        path = shutil.which(engine.python) or ""
    if not (path and os.path.isfile(path) and os.access(path, os.X_OK)):
        raise at.error(f"no interpreter {engine.python!r} on this machine; give its path, or null for our own")
    return path, path == sys.executable


def _device(engine: EngineConfig, wanted: str, inherited: Mapping[str, str]) -> tuple[str, str | None]:
    """The device that the engine gets, and what CUDA_VISIBLE_DEVICES becomes (None: stays).

    Naming the device to the library is not enough: it still opens a context on the first one. So a worker
    sees only its own, as number 0. An environment that the user wrote for this engine is left alone.
    """
    kind, _, number = wanted.partition(":")
    if kind != "cuda" or not number or _CUDA in engine.env:
        return wanted, None
    if _CUDA not in inherited:
        return "cuda:0", number
    names = [name.strip() for name in inherited[_CUDA].split(",")]
    # What follows an invalid name ("-1") is hidden too.
    listed = list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))
    if int(number) >= len(listed):
        raise ConfigError(
            f"{wanted} is not there: {_CUDA}={inherited[_CUDA]!r} leaves {len(listed)} device(s) to us",
            f"engines.{engine.name}.{'devices' if engine.devices else 'device'}",
        )
    return "cuda:0", listed[int(number)]


def _threads(engine: EngineConfig, inherited: Mapping[str, str], share: int) -> int:
    """`threads`, else what the environments say, else the cores shared out among all workers."""
    for source in (engine.env, {} if engine.threads is not None else inherited):
        said = source.get("OMP_NUM_THREADS", "")
        if said.isascii() and said.isdigit() and int(said) > 0:
            return int(said)
    return engine.threads or share


def _pythonpath(engine: EngineConfig, env: Mapping[str, str]) -> str:
    # Relative entries meant our directory; the worker has its own.
    inherited = [os.path.abspath(entry) for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    wanted = [*FOUND_BY, *(str(path) for path in engine.pythonpath), *inherited]
    return os.pathsep.join(dict.fromkeys(wanted))


def _fingerprint(config: Config, engine: EngineConfig, place: list[object]) -> str:
    """Of all that shapes a worker: another one means another process. place: what is its own beside its engine's."""
    shapes = {name: value for name, value in asdict(engine).items() if name in _SHAPES_A_WORKER}
    pool = [config.spool, config.durable, config.orphan_grace_s, config.rescan_s, config.media_roots, config.otel]
    everything = [HEARTBEAT_MAGIC.decode(), shapes, pool, *place]
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:16]
