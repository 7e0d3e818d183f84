"""The engine as its worker calls it: one wrapper around every method of the engine's class.

A method may return, raise, or return *twice*: in this process, and in a child that it forked and did not end. The
child shares our claim, our heartbeat and our spool, so this module ends it before it can use any of them.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pool.constants import EXIT_FORK
from pool.errors import ConfigError
from pool.work.joblog import say

T = TypeVar("T")


class Files(NamedTuple):
    """What one job reads and writes, as far as its engine can tell."""

    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]


class Engine:
    """One engine object. Raises whatever its methods raise; ConfigError when the class is not one of an engine."""

    def __init__(self, spec: str) -> None:
        self._pid = os.getpid()
        self.spec = spec
        self.factory = self._call("import", lambda: find(spec))
        self._engine = self._call("__init__", self.factory)
        self._files = self._memory = None

    def load(self, device: str, options: Mapping[str, Any]) -> None:
        """Load the model on a device. Raises what the engine raises."""
        self._call("load", lambda: self._engine.load(device, dict(options)))

    def warmup(self) -> None:
        """Run the engine's warmup(), when it has one."""
        method = self._method("warmup")
        if method is not None:
            self._call("warmup", method)

    def ready(self) -> None:
        """Look up, after the load, the optional methods that every job uses."""
        self._files, self._memory = self._method("files"), self._method("memory")

    def check(self, params: Mapping[str, Any]) -> Any:
        """Check parameters; the engine's own form of them. Raises what the engine raises."""
        try:
            return self._engine.check(params)
        finally:
            self._stay_one("check")

    def files(self, params: Any) -> Files | None:
        """The files of a job; None when the engine does not tell them."""
        method = self._files
        if method is None:
            return None

        def ask() -> Files:
            files = method(params)
            return Files(tuple(files.inputs), tuple(files.outputs))

        return self._call("files", ask)

    def fingerprint(self) -> str | None:
        """What identifies engine and weights in the result cache, None when results are not cached."""
        method = self._method("fingerprint")
        return None if method is None else self._call("fingerprint", lambda: str(method()))

    def identity(self) -> list[str | None]:
        """What another version of the engine does not share: its fingerprint(), and a digest of its source.

        Of an engine in a package, of all files in the folder of its module.
        """
        module = sys.modules.get(self.factory.__module__)
        path = Path(getattr(module, "__file__", None) or "")
        files = sorted(path.parent.glob("*.py")) if getattr(module, "__package__", "") else [path]
        source = hashlib.sha256()
        for file in files:
            if file.is_file():
                source.update(hashlib.sha256(file.read_bytes()).digest())
        return [self.spec, source.hexdigest(), self.fingerprint()]

    def run(self, params: Any, context: Any) -> Mapping[str, Any]:
        """Run one job. TypeError when the engine returned no map."""
        try:
            return as_map(self._engine.run(params, context))
        finally:
            self._stay_one("run")

    def run_batch(self, params: Sequence[Any], contexts: Sequence[Any]) -> list[Any]:
        """A map or an exception for each."""

        def ask() -> list[Any]:
            values = list(self._engine.run_batch(params, contexts))
            if len(values) != len(params):
                raise ValueError(f"run_batch() returned {len(values)} results for {len(params)} jobs")
            return values

        return self._call("run_batch", ask)

    @property
    def counts_memory(self) -> bool:
        """Whether the engine reports its device memory."""
        return self._memory is not None

    def gpu_bytes(self) -> int:
        """Device memory it holds; 0 when it does not say."""
        method = self._memory
        return 0 if method is None else self._call("memory", lambda: max(0, int(method().get("gpu_bytes", 0))))

    def close(self) -> None:
        """Run the engine's close(), when it has one."""
        method = self._method("close")
        if method is not None:
            self._call("close", method)

    def has(self, name: str) -> bool:
        """Whether the engine has an optional method."""
        return self._method(name) is not None

    # ---- the wrapper

    def _method(self, name: str) -> Any:
        """An optional method; the lookup may run code of the engine, too."""
        return self._call(name, lambda: getattr(self._engine, name, None))

    def _call(self, name: str, method: Callable[[], T]) -> T:
        try:
            return method()
        finally:
            self._stay_one(name)

    def _stay_one(self, name: str) -> None:
        """After every call: end this process if it is a child that the call forked."""
        if os.getpid() != self._pid:  # checked after each call: native code forks without Python's hooks
            say(
                f"pid {os.getpid()} is a fork of this worker that came back from {name}(): ended. "
                "A child must end itself with os._exit()"
            )
            os._exit(EXIT_FORK)


def find(spec: str) -> Any:
    """The class that "package.module:Class" names. ImportError, ConfigError."""
    module_name, _, class_name = spec.partition(":")
    module = importlib.import_module(module_name)
    factory = getattr(module, class_name, None)
    if factory is None:
        raise ConfigError(f"{module_name} ({module.__file__}) has no class {class_name!r}", "engine")
    for method in ("load", "check", "run"):
        if not callable(getattr(factory, method, None)):
            raise ConfigError(f"{spec} has no method {method}(): an engine needs load, check and run", "engine")
    return factory


def as_map(value: Any) -> Mapping[str, Any]:
    """What run() returned; TypeError with what to do about it."""
    if isinstance(value, (dict, Mapping)):
        return value
    advice = ""
    if isinstance(value, types.GeneratorType):
        value.close()
        advice = ": it has a `yield` in it. Return one map; parts of a result go through context.partial()"
    elif isinstance(value, types.CoroutineType):
        value.close()
        advice = ": it is an `async def`. Call asyncio.run() in it and return a map"
    raise TypeError(f"run() returned a {type(value).__name__}, not a map{advice}")
