"""Defaults for many submits: terms and, per engine, parameters that are filled in where a call does not say otherwise.

    with pool.session(priority=5, expires="2h", params={"transcribe": {"language": "en"}}) as session:
        futures = [session.submit("transcribe", audio=path) for path in paths]

A session knows the jobs that were submitted through it: the end of its block waits for them, `cancel()` stops them.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol

from pool.client.calls import params_of
from pool.client.future import JobFuture
from pool.client.mapping import Mapped
from pool.config.settings import Config
from pool.errors import JobRefused, UnknownEngine
from pool.job.references import Referable
from pool.job.terms import KEYS, Terms

Params = Mapping[str, Mapping[str, Any]]


class Defaults:
    """What a call says, completed. terms: of any job, and `consume`; params: engine -> its parameters."""

    def __init__(self, terms: Mapping[str, Any], params: Params, engines: Iterable[str]) -> None:
        known = (*KEYS, "consume")
        for key in terms:
            if key not in known:
                raise JobRefused(f"a session has no such default; there are: {', '.join(known)}, params", key)
        Terms.of(terms)
        names = list(engines)
        for engine, given in params.items():
            if engine not in names:
                raise UnknownEngine(f"no engine {engine!r} here; there are: {', '.join(names)}", "params")
            if not isinstance(given, Mapping):
                raise JobRefused("must be a map of parameters", f"params.{engine}")
        self.terms, self.params = dict(terms), {engine: dict(given) for engine, given in params.items()}

    def under(self, top: Defaults) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Terms and parameters of these defaults with others on top."""
        engines = {**self.params, **top.params}
        return {**self.terms, **top.terms}, {name: self.of(name, top.params.get(name, {})) for name in engines}

    def of(self, engine: str, call: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of one call."""
        return {**self.params.get(engine, {}), **call}

    def given(self, method: Callable[..., Any], said: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords for a method, as far as it has them."""
        takes = _keywords(method)
        return {**{key: value for key, value in self.terms.items() if key in takes}, **said}


def _keywords(method: Callable[..., Any]) -> frozenset[str]:
    return _keywords_of(getattr(method, "__func__", method))


@functools.cache
def _keywords_of(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


class Submitter(Protocol):
    """What a session needs of the pool behind it; a FilePool has it."""

    @property
    def config(self) -> Config:
        """Its configuration."""

    @property
    def submit(self) -> Callable[..., JobFuture]:
        """As FilePool.submit."""

    @property
    def submit_many(self) -> Callable[..., list[JobFuture]]:
        """As FilePool.submit_many."""

    @property
    def map(self) -> Callable[..., Mapped]:
        """As FilePool.map."""

    def cancel_many(self, jobs: Iterable[str | Referable]) -> list[str]:
        """As FilePool.cancel_many; the ids of those that were asked."""


class Session:
    """A FilePool with defaults. As a context manager it waits for its jobs at the end of the block; after an
    exception it leaves them alone, or cancels what is pending (cancel_on_error)."""

    def __init__(self, pool: Submitter, terms: Mapping[str, Any], params: Params, *, cancel_on_error: bool) -> None:
        self._pool, self._cancel_on_error = pool, cancel_on_error
        self._defaults = Defaults(terms, params, pool.config.engines)
        self._futures: weakref.WeakSet[JobFuture] = weakref.WeakSet()

    def session(self, *, cancel_on_error: bool = False, params: Params | None = None, **terms: Any) -> Session:
        """A session with these defaults on top of those of this one."""
        top = Defaults(terms, params or {}, self._pool.config.engines)
        return Session(self._pool, *self._defaults.under(top), cancel_on_error=cancel_on_error)

    def submit(self, engine: str, /, *, params: Mapping[str, Any] | None = None, **more: Any) -> JobFuture:
        """As FilePool.submit."""
        method = self._pool.submit
        said = {key: more.pop(key) for key in _keywords(method) & more.keys()}
        call = self._defaults.of(engine, params_of(params, more))
        future = self._pool.submit(engine, params=call, **self._defaults.given(method, said))
        self._futures.add(future)
        return future

    def submit_many(self, engine: str, calls: Iterable[Mapping[str, Any]], **how: Any) -> list[JobFuture]:
        """As FilePool.submit_many."""
        how = self._defaults.given(self._pool.submit_many, how)
        futures = self._pool.submit_many(engine, (self._defaults.of(engine, call) for call in calls), **how)
        self._futures.update(futures)
        return futures

    def map(self, engine: str, calls: Iterable[Mapping[str, Any]], **how: Any) -> Mapped:
        """As FilePool.map; its jobs are not among those that `pending` and `cancel` know."""
        how = self._defaults.given(self._pool.map, how)
        return self._pool.map(engine, (self._defaults.of(engine, call) for call in calls), **how)

    def pending(self) -> list[JobFuture]:
        """Futures of this session that are not done."""
        return [future for future in self._futures if not future.decided]

    def cancel(self) -> list[str]:
        """Ask all pending jobs of this session to stop; their ids."""
        return self._pool.cancel_many(self.pending())

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            from concurrent.futures import wait

            wait(self.pending())
        elif self._cancel_on_error:
            self.cancel()
