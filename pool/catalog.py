"""The part of FilePool that looks through jobs: lists of them, one in detail, and running one again with changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from pool.calls import params_of
from pool.future import JobFuture
from pool.job import Job, JobState
from pool.limits import clear
from pool.names import check_id
from pool.spool import Spool
from pool.terms import Terms, truth

if TYPE_CHECKING:
    from pool.browse import JobPage
    from pool.rerun import Origin


class Submitter(Protocol):
    """What a FilePool has besides."""

    spool: Spool

    def _open(self) -> None: ...
    def _known(self, engine: str) -> None: ...
    def _checked(self, engine: str, params: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def _job(
        self,
        engine: str,
        params: Mapping[str, Any],
        terms: Terms,
        job_id: str | None = None,
        items: tuple[Mapping[str, Any], ...] | None = None,
    ) -> Job: ...
    def _accept(self, job: Job, consume: bool) -> JobFuture: ...
    def origin(self, job_id: str) -> Origin: ...


class Catalog:
    """Mixed into FilePool."""

    @clear
    def jobs(
        self: Submitter,
        *,
        engine: str | Iterable[str] = (),
        state: str | JobState | Iterable[str | JobState] = (),
        tag: str | Iterable[str] = (),
        since: float | str | timedelta | None = None,
        limit: int = 50,
        after: str = "",
    ) -> JobPage:
        """A page of jobs, newest first: those that wait, that run, and that ended and are kept.

        engine, state: any of these. tag: all of these. since: submitted within so many seconds, or "2h". limit: 1 …
        1000. after: `next` of the page before; a walk lists a job that exists throughout exactly once. Raises
        JobRefused.
        """
        from pool import browse

        self._open()
        return browse.page(self.spool, engine=engine, state=state, tag=tag, since=since, limit=limit, after=after)

    def origin(self: Submitter, job_id: str) -> Origin:
        """Parameters, terms, tags and note of a job, secrets excepted. Raises UnknownJob, JobRefused."""
        from pool import rerun

        self._open()
        return rerun.origin(self.spool, check_id(job_id))

    @clear
    def rerun(
        self: Submitter,
        job_id: str,
        /,
        *,
        id: str | None = None,
        consume: bool = False,
        without: Iterable[str] = (),
        params: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> JobFuture:
        """Submit a new job like an old one, in whatever state that is, with changes.

        changes: terms (priority, timeout_s, retry_times, durable, tags, note …), every other name is a parameter;
        None leaves a term as it was. without: parameters that the new job shall not have. params: for parameters
        whose names collide. id, consume: as in submit. The record of the new job names the old one in `rerun_of`.

        Raises UnknownJob, JobRefused (also for a parameter that must be given again, because it is secret or was too
        large to be kept), and what submit raises.
        """
        from pool import rerun

        consume = truth(consume, "consume")
        old = self.origin(job_id)
        how, what = rerun.split(changes)
        self._known(old.engine)
        changed = self._checked(old.engine, old.changed(params_of(params, what), without))
        job = self._job(old.engine, changed, rerun.renewed(old.terms, how), id, old.items)
        return self._accept(replace(job, rerun_of=old.id), consume)
