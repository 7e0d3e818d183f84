"""Which of the jobs that wait or run carry some tags or a text. Their files are read once each, and what can be looked
for in them is remembered in the index.

A job file never changes, so what was read of it holds for as long as the job is there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable

from pool.client.index import TAG, Index, fold, tags_column, words_of
from pool.job.heads import Head

_SEPARATOR = "/"  # in no key
_BATCH = 500  # job files between two looks at the clock
_IN_KEY = 17  # before the id


def marked(
    index: Index, keys: Collection[str], tags: Iterable[str], text: str, read: Callable[[str], Head | None]
) -> set[str]:
    """Those of `keys` whose jobs carry all of `tags`, and the text in the id, a tag or the note. read: the head of a
    job by its key, None when it is gone. index.unseen: for how many the time did not suffice."""
    conditions = ["instr(tags, ?)" for _ in tags]
    values = [f"{TAG}{tag}{TAG}" for tag in tags]
    there, folded = set(keys), fold(text)
    if folded:
        conditions.append("instr(words, ?)")
        values.append(folded)

    def found(db: sqlite3.Connection) -> set[str]:
        return {key for (key,) in db.execute(f"select key from tagged where {' and '.join(conditions)}", values)}

    if there - index.ask(_known):
        index.change(lambda db: _enter(db, index, there, read))
    fit = index.ask(found) & there
    if len(conditions) == 1 and folded:  # no tags
        fit.update(key for key in there if folded in fold(key[_IN_KEY:-1]))
    return fit


def _known(db: sqlite3.Connection) -> set[str]:
    row = db.execute("select value from meta where name = 'waiting'").fetchone()
    return set(str(row[0]).split(_SEPARATOR)) if row and row[0] else set()


def _enter(db: sqlite3.Connection, index: Index, there: set[str], read: Callable[[str], Head | None]) -> None:
    """Read the jobs that are not known yet, the newest first, until the time is over."""
    before = _known(db)
    new = sorted(there - before, reverse=True)
    seen, rows = before & there, list[tuple[str, str, str]]()
    for at in range(0, len(new), _BATCH):
        if at and index.is_late():
            break
        index.unseen = max(0, len(new) - at - _BATCH)
        for key in new[at : at + _BATCH]:
            head = read(key)
            if head is not None:
                seen.add(key)
                if head.tags or head.note or head.reason:
                    rows.append((key, tags_column(head.tags), words_of(head)))
    db.execute("begin immediate")
    db.executemany("delete from tagged where key = ?", [(key,) for key in before - there])
    db.executemany("insert or replace into tagged values (?, ?, ?)", rows)
    db.execute("insert or replace into meta values ('waiting', ?)", (_SEPARATOR.join(seen),))
    db.execute("commit")
