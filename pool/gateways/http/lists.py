"""Lists of jobs, as GET /jobs and the streams of the console give them."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pool.client import browse
from pool.errors import JobRefused
from pool.format.invalid import sentence
from pool.gateways.http import views
from pool.gateways.http.desk import Desk
from pool.gateways.http.shapes import JobList, JobWalk, State

TEXT_CHARS = 200
LIMIT_MOST = 1000


class Wanted(BaseModel):
    """Which jobs. The keys are those of GET /jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: list[State] = []
    engine: Annotated[str | None, Field(max_length=32)] = None
    tag: list[str] = []
    q: Annotated[str | None, Field(max_length=TEXT_CHARS)] = None
    since: Annotated[str | None, Field(max_length=20)] = None
    limit: Annotated[int, Field(ge=1, le=LIMIT_MOST)] = 100
    after: Annotated[str | None, Field(max_length=300)] = None

    @property
    def paged(self) -> bool:
        """Whether it is a walk through all jobs, newest first, rather than the overview."""
        return self.after is not None or self.q is not None or self.since is not None or bool(self.tag)


def parse(query: str, key: str) -> Wanted:
    """What a query string asks for. Raises JobRefused with `key` and the key in the query that is wrong."""
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in ("state", "tag"):
            found.setdefault(name, []).append(value)
        elif name in found:
            raise JobRefused("is given twice", f"{key}.{name}")
        else:
            found[name] = value
    try:
        return Wanted.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise JobRefused(sentence(first), f"{key}.{first['loc'][0]}") from None


def find(desk: Desk, wanted: Wanted) -> JobList | JobWalk:
    """The jobs. Raises JobRefused."""
    if not wanted.paged:
        spool, ledger = desk.pool.spool, desk.ledger
        return views.listed(spool, ledger, states=wanted.state, engine=wanted.engine, limit=wanted.limit)
    chosen = browse.Filter(wanted.engine or (), wanted.state, wanted.tag, wanted.since, wanted.q or "")
    page = browse.page(desk.pool.spool, chosen, limit=wanted.limit, after=wanted.after or "", within_s=views.PAGE_S)
    jobs = [views.of_info(desk.pool.spool, info) for info in page]
    return JobWalk(jobs=jobs, next=page.next, trouble=page.trouble, unread=page.unread)
