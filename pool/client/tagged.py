"""Which of the jobs that wait or run carry some tags. Their files are read once each and remembered in the index.

A job file never changes, so what was read of it holds for as long as the job is there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable
from typing import Any

from pool.client.index import TAG, Index, tags_column
from pool.job.heads import Head

_SEPARATOR = "/"  # in no key


def tagged(index: Index, keys: Collection[str], tags: Iterable[str], read: Callable[[str], Head | None]) -> set[str]:
    """Those of `keys` whose jobs carry all of `tags`. read: the head of a job by its key, None when it is gone."""
    wanted = [f"{TAG}{tag}{TAG}" for tag in tags]
    query = f"select key from tagged where {' and '.join('instr(tags, ?)' for _ in wanted)}"
    there = set(keys)

    def found(db: sqlite3.Connection) -> set[str]:
        return {key for (key,) in db.execute(query, wanted)} & there

    def known(db: sqlite3.Connection) -> set[str]:
        row = db.execute("select value from meta where name = 'waiting'").fetchone()
        return set(str(row[0]).split(_SEPARATOR)) if row and row[0] else set()

    def enter(db: sqlite3.Connection) -> None:
        before = known(db)
        new, rows = there - before, []
        for key in list(new):
            head = read(key)
            if head is None:
                new.discard(key)
            elif head.tags:
                rows.append((key, tags_column(head.tags)))
        facts: list[tuple[str, Any]] = [("waiting", _SEPARATOR.join(before & there | new))]
        db.execute("begin immediate")
        db.executemany("delete from tagged where key = ?", [(key,) for key in before - there])
        db.executemany("insert or replace into tagged values (?, ?)", rows)
        db.executemany("insert or replace into meta values (?, ?)", facts)
        db.execute("commit")

    if there - index.ask(known):
        index.change(enter)
    return index.ask(found)
