"""From the arguments of a call to a job that the spool can accept: is its engine there, does it take these parameters,
are the jobs there that it waits for, is there room."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pool.client.asking import answered
from pool.client.attendant import Attendant
from pool.client.calls import calls_of
from pool.client.gate import Gate
from pool.client.offers import Offers
from pool.config.settings import Config
from pool.errors import ClusterAway, JobRefused, UnknownEngine, UnknownJob
from pool.format import trace_context
from pool.format.names import check_id, new_id
from pool.job import Job, digest_of, references
from pool.job.terms import Terms, expect_labels
from pool.runfiles.schemas import Schemas
from pool.runfiles.server import running
from pool.spool import dependencies, lookup
from pool.spool.store import Spool

_DESCRIBE_S = 5.0  # how long a first submit waits for a fresh pool to say what an engine accepts
_BELIEVED_S = 1.0  # how long an engine that was there is believed to be still there


class Admission:
    """Of one FilePool. attendant: None when the pool starts no supervisor."""

    def __init__(self, config: Config, spool: Spool, attendant: Attendant | None) -> None:
        self._config, self._spool, self._attendant = config, spool, attendant
        self._schemas = Schemas(spool.root)
        self.offers = Offers(config, spool)
        self._gate = Gate(config, spool, self.offers.full)
        self._served: dict[str, float] = {}  # engine -> until when it is believed to be there

    def known(self, engine: str) -> None:
        """Raises UnknownEngine when no worker of this pool, or of the cluster behind it, can ever do it. What runs
        counts, not what we read: the supervisor may have read it again since."""
        if isinstance(engine, str) and self._served.get(engine, 0.0) > time.monotonic():
            return
        if self.offers.branch:
            self.offers.known(engine)
            self._served[engine] = time.monotonic() + _BELIEVED_S
            return
        here = isinstance(engine, str) and engine in self._config.engines
        if here and self._attendant is None:
            return  # the job may wait for a supervisor that has it
        serves = running(self._spool.root)
        served = serves.engines if serves else ()
        if not here and engine not in served:
            there = ", ".join(dict.fromkeys((*self._config.engines, *served)))
            raise UnknownEngine(f"no engine {engine!r} in the configuration; there are: {there}", "engine")
        if serves and engine not in served:
            raise UnknownEngine(
                f"the supervisor of {self._spool.root} runs what it read from {serves.config}, without an engine "
                f"{engine!r}, only {', '.join(served)}: add it there, then `python -m pool reload`",
                "engine",
            )
        self._served[engine] = time.monotonic() + _BELIEVED_S

    def each(self, engine: str, calls: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The checked parameters of many calls, one after another."""
        for number, params in enumerate(calls_of(calls)):
            try:
                yield self.fit(engine, params)
            except JobRefused as error:
                raise JobRefused(error.reason, error.path.replace("params", f"calls[{number}]", 1)) from None

    def job(
        self,
        engine: str,
        params: Mapping[str, Any],
        terms: Terms,
        *,
        job_id: str | None = None,
        items: tuple[Mapping[str, Any], ...] | None = None,
    ) -> Job:
        """The job of one call. job_id: given by the caller. items: of many calls that travel as one. Raises JobRefused,
        UnknownJob, ClusterAway."""
        if items is None:
            terms = terms.after(references.pack(params)[1])
        elif any(references.pack(item)[1] for item in items):
            raise JobRefused("a map hands no results of other jobs on: use submit_many", "calls")
        if terms.labels and not self.offers.branch:
            expect_labels(terms.labels, self._config.cluster.labels)
        if terms.depends_on:
            self._look_for(terms.depends_on, job_id)
        if terms.durable is None:
            terms = replace(terms, durable=self._config.durable)
        born = self._spool.now()
        return Job(
            id=new_id(born) if job_id is None else check_id(job_id),
            engine=engine,
            params=dict(params),
            items=items,
            created=born,
            terms=terms.within(trace_context.current()).fixed(born),
            digest="" if job_id is None else digest_of(engine, params, items),
        )

    def _look_for(self, others: Sequence[str], job_id: str | None) -> None:
        """Raise UnknownJob, ClusterAway when one of these is not there, unless the job itself was accepted before."""
        try:
            answered(lambda: dependencies.check(self._spool, others), self._spool, self._attendant)
        except (UnknownJob, ClusterAway) as unknown:
            if job_id is None:
                raise
            try:
                lookup.find(self._spool, check_id(job_id))
            except (UnknownJob, ClusterAway):
                raise unknown from None

    def fit(self, engine: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters as the engine's schema wants them. Raises JobRefused."""
        if self._schemas.describe(engine) is None:
            if self.offers.branch:
                self.offers.await_description(engine)
            elif self._attendant is not None:
                self._attendant.await_description(engine, _DESCRIBE_S)
        params, _ = references.pack(params)
        return self._schemas.fit(engine, params)

    def make_room(self, engine: str, jobs: Sequence[Job]) -> None:
        """Raises SpoolFull when the queue or the disk has no room for these."""
        self._gate.admit(engine, len(jobs), later=any(job.waits_first for job in jobs))
