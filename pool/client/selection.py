"""Which jobs are meant: by name, by engine, by state, by tag; of those that are not over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from pool.errors import JobRefused, ProtocolError, UnknownJob
from pool.format.names import check_engine
from pool.job import TERMINAL, JobState, heads
from pool.job.references import Referable
from pool.job.terms import jobs as check_jobs
from pool.job.terms import tag as check_tag
from pool.spool import lookup
from pool.spool.store import Spool

Find = Callable[[str], lookup.Location]
_TRIES = 5
LIVE = tuple(state.value for state in JobState if state not in TERMINAL)


def chosen_jobs(
    spool: Spool,
    jobs: Iterable[str | Referable] | None,
    *,
    engine: str | None = None,
    state: str | None = None,
    tag: str | None = None,
    find: Find | None = None,
) -> list[str]:
    """Ids of jobs that are not over and fit all that is said, those that wait before those that run: who stops them in
    this order gives no worker another one meanwhile. find: how a job is found that is not here. Raises UnknownJob,
    JobRefused."""
    find = find or partial(lookup.find, spool)
    if jobs is None and engine is None and state is None and tag is None:
        raise JobRefused("name jobs, an engine, a state or a tag: this would be every job", "jobs")
    if state is not None and state not in LIVE:
        raise JobRefused(f"{state!r} is no state of a job that is not over: {', '.join(LIVE)}", "state")
    if engine is not None:
        check_engine(engine)
    if tag is not None:
        check_tag(tag, "tag")
    wanted = None if jobs is None else check_jobs(jobs, "jobs", most=None)
    places = {place.name.id: place for place in lookup.undecided(spool) if place.name}
    found = []
    for job_id in places if wanted is None else wanted:
        place = places.get(job_id) or find(job_id)
        fits = engine in (None, place.engine) and state in (None, place.state.value)
        if fits and not place.state.terminal and not spool.decided(job_id) and _has(spool, job_id, place, tag):
            found.append((place.state is JobState.RUNNING, job_id))
    return [job_id for _, job_id in sorted(found, key=lambda one: one[0])]


def _has(spool: Spool, job_id: str, place: lookup.Location, tag: str | None) -> bool:
    if tag is None:
        return True
    for _ in range(_TRIES):
        try:
            return tag in heads.read_job(place.path, place.state, 0).tags
        except ProtocolError:
            return False
        except FileNotFoundError:  # RACE: it has moved on meanwhile
            try:
                place = lookup.find(spool, job_id)
            except UnknownJob:
                return False
            if place.state.terminal:
                return False
    return False
