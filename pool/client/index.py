"""An index of the records in out/, so that a list of jobs need not read them all. The spool stays the truth.

run/jobs.sqlite can be removed at any time. Whoever asks brings it up to date first: the names in out/ are compared with
those of the last time, and only new records are read; when the directory has not changed for a while, not even that.
A record that may come again under its old name is marked in run/jobs.again (pool.again).

One writer at a time holds run/jobs.lock; readers need no lock but SQLite's. Nothing is synced: an index of another
boot, spool or version, or a damaged one, is made anew. A writer that is killed leaves a journal, which the next one
rolls back. No connection outlives its call, so threads and forked processes need no care. Where no index can be
written (a full disk, a mount without locks) it is made in memory for one call, and `trouble` says why.

The newest records are read first. Whoever cannot wait gives a time: when it is over, the index answers with what it
has, `unread` says how many records it lacks, and the next call goes on. Filters and texts are looked for in `facts`,
a narrow copy: 100,000 rows of it are compared in 13 ms, of `jobs` in 80 ms, and a text of one character is found, too.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import string
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from pool.format.names import SUFFIX, parse_record
from pool.job import JobState, heads
from pool.job.heads import Head
from pool.spool import fsops, owner, reuse
from pool.spool.store import Spool
from pool.system.clock import boot_ns
from pool.system.watch import network_mount

T = TypeVar("T")
TAG = "\x1f"  # around every tag in a column; in no tag
_VERSION = 2
_LOCK_S = 60.0  # a writer that holds the lock for longer is stopped, or builds for millions
_BUSY_S = 10.0
_BATCH = 500  # records per commit: what a killed writer loses, and read between two looks at the clock
_ADDED = 2000  # names kept beside the others before all are written again
_STILL_NS = 2_500_000_000  # a directory whose time is older is known to the last name; FAT counts in 2 s
_RETURNED_NS = 600_000_000_000  # how long it is remembered that a record went
_MARKS_BYTES = 1 << 20  # more marks than that are dropped together with the index
_SEPARATOR = b"/"  # in no file name
_LARGE = 1 << 20  # bytes of a directory
_SOME = 500  # values in one statement

_COLUMNS = {field.name: str if isinstance(field.default, str) else int for field in fields(Head)}
_COLUMNS.update(id=str, engine=str, state=str, tags=str)
_SCHEMA = f"""
    create table meta (name text primary key, value) without rowid;
    create table jobs (key text primary key, {", ".join(_COLUMNS)}) without rowid;
    create unique index by_id on jobs (id);
    create table facts (key text primary key, engine text, state text, tags text, words text) without rowid;
    create table returned (id text primary key, at integer) without rowid;
    create table listings (path text primary key, time text, seen integer, names text) without rowid;
    create table tagged (key text primary key, tags text, words text) without rowid;
"""
_INSERT = f"insert or replace into jobs values ({', '.join('?' * (1 + len(_COLUMNS)))})"
_INSERT_FACTS = "insert or replace into facts values (?, ?, ?, ?, ?)"
_SMALL_LETTERS = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_SET = "insert or replace into meta values (?, ?)"
_STATES = frozenset(state.value for state in JobState)


class Unusable(Exception):
    """The file is no index, or not one of this spool, version and boot."""


class Incomplete(Unusable):
    """There is none, or it is being made at this moment."""


_WRONG = (sqlite3.Error, Unusable, OSError, ValueError, TypeError)  # the last two: damaged facts


@dataclass(frozen=True)
class Wanted:
    """What a page may hold. before: only keys below, "" for all; since: created at or after (µs).

    tags: all of them. text: in the id, a tag, the note or the reason, in any case of its Latin letters. Empty states or
    engines: any.
    """

    engines: Collection[str] = ()
    states: Collection[str] = ()
    tags: Collection[str] = ()
    since: int = 0
    before: str = ""
    text: str = ""

    def mentioned(self, head: Head) -> bool:
        """Whether a job has the text."""
        return not self.text or fold(self.text) in words_of(head)


def fold(text: str) -> str:
    """The text with small Latin letters, as SQLite does it."""
    return text.translate(_SMALL_LETTERS)


def words_of(head: Head) -> str:
    """Where a text is looked for."""
    return fold(TAG.join((head.id, *head.tags, head.note, head.reason)))


class Index:
    """The records of one spool, brought up to date by `refresh`; for one call of one thread. Close it.

    within_s: reading records and waiting for a writer end after about so long, once some were read; None: when all is
    read. unread: how many records are not in the answers, or 1 when that is not known; unseen: jobs that wait or run.
    """

    def __init__(self, spool: Spool, within_s: float | None = None) -> None:
        self.spool = spool
        self.unread = 0
        self.unseen = 0
        self._until = math.inf if within_s is None else time.monotonic() + within_s
        self._out = f"{spool.root}/out"
        self._path = f"{spool.root}/run/jobs.sqlite"
        self._memory: sqlite3.Connection | None = None
        self._begun = boot_ns()
        self.trouble = ""

    def close(self) -> None:
        """Close the connection to the index."""
        if self._memory is not None:
            self._memory.close()

    # ---- questions

    def page(self, wanted: Wanted, limit: int) -> list[Head]:
        """The newest records that fit, newest first."""
        conditions, values = list[str](), list[object]()
        for column, choices in (("engine", wanted.engines), ("state", wanted.states)):
            if choices:
                conditions.append(f"{column} in {_places(choices)}")
                values.extend(choices)
        for tag in wanted.tags:
            conditions.append("instr(tags, ?)")
            values.append(f"{TAG}{tag}{TAG}")
        if wanted.text:
            conditions.append("instr(words, ?)")
            values.append(fold(wanted.text))
        place = "facts" if conditions else "jobs"
        if wanted.before:
            conditions.append("key < ?")
            values.append(wanted.before)
        if wanted.since:
            conditions.append("key >= ?")
            values.append(heads.key_of(wanted.since, ""))
        found = f"select key from {place} where {' and '.join(conditions or '1')} order by key desc limit ?"
        query = f"select * from jobs where key in ({found}) order by key desc"
        return self.ask(lambda db: [_head(row) for row in db.execute(query, (*values, limit))])

    def among(self, ids: Sequence[str]) -> set[str]:
        """Which of these jobs have a record here."""
        query = "select id from jobs where id in "
        return self.ask(lambda db: {row[0] for part in _parts(ids) for row in db.execute(query + _places(part), part)})

    def returned(self) -> set[str]:
        """Ids of jobs whose records have gone since this object was made: they may wait again."""
        query = "select id from returned where at >= ? and id not in (select id from jobs)"
        return self.ask(lambda db: {row[0] for row in db.execute(query, (self._begun,))})

    def names(self, folder: str) -> list[str]:
        """Names in a folder of the spool. Of a large one that has not changed for a while, as they were then, which
        costs a quarter. FileNotFoundError, NotADirectoryError."""
        path = f"{self.spool.root}/{folder}"
        if os.stat(path).st_size < _LARGE or self._memory is not None or network_mount(path):
            return os.listdir(path)
        changed, now = _time_of(path), boot_ns()
        query = "select time, seen, names from listings where path = ?"
        before, seen, text = self.ask(lambda db: db.execute(query, (folder,)).fetchone()) or ("", now, None)
        if before == changed and text is not None:
            return str(text).split("/")
        names = os.listdir(path)
        still = before == changed and now - seen >= _STILL_NS and all(name.isascii() for name in names)
        if still or before != changed:
            row = (folder, changed, seen if still else now, "/".join(names) if still else None)
            self.change(lambda db: db.execute("insert or replace into listings values (?, ?, ?, ?)", row))
        return names

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """An answer from the index; a damaged index is repaired first."""
        for _ in range(2):
            if self._memory is not None:
                break
            try:
                with contextlib.closing(self._connect(complete=not self.unread)) as db:
                    return question(db)
            except _WRONG as error:
                self._rebuild(error)
        return self.change(question)

    def change(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """The same with the right to write."""
        if self._memory is None:
            try:
                return self._locked(action)
            except _WRONG as error:
                self._into_memory(error)
        assert self._memory is not None
        return action(self._memory)

    # ---- keeping it

    def refresh(self, suspects: Collection[str] = ()) -> None:
        """Bring it up to date. suspects: ids whose records are to be read again."""
        if self._memory is not None:
            self._update(self._memory, suspects)
        elif suspects or not self._is_current():
            try:
                self._locked(lambda db: self._update(db, suspects))
            except _WRONG as error:
                self._rebuild(error)

    def is_late(self) -> bool:
        """Whether the time is over that the caller gave."""
        return time.monotonic() >= self._until

    def _rebuild(self, error: Exception) -> None:
        """Make it anew in its place, or in memory when that fails, too. While another writer is at it and the time is
        over, what it has written serves."""
        try:
            if _is_busy(error):
                raise error
            self._locked(lambda db: self._update(db), drop=not isinstance(error, Incomplete))
        except _WRONG as still:
            if not (_is_busy(still) and self.is_late() and self._as_it_is()):
                self._into_memory(still)

    def _as_it_is(self) -> bool:
        """Whether there is an index to answer from, be it incomplete."""
        try:
            with contextlib.closing(self._connect()) as db:
                said = db.execute("select value from meta where name = 'unread'").fetchone()
        except _WRONG:
            return False
        self.unread = max(1, int(said[0]) if said else 0)
        return True

    def _into_memory(self, error: Exception) -> None:
        self.trouble = f"the index of jobs cannot be kept ({error}): every record is read for each look"
        self._memory = sqlite3.connect(":memory:", isolation_level=None)
        self._memory.executescript(_SCHEMA)
        self._update(self._memory)

    def _locked(self, action: Callable[[sqlite3.Connection], T], *, drop: bool = False) -> T:
        from filelock import FileLock  # a twentieth of the import of FilePool, and not always needed

        patience = min(_LOCK_S, max(0.0, self._until - time.monotonic()))
        with FileLock(f"{self.spool.root}/run/jobs.lock", mode=0o600, timeout=patience):
            if drop:
                for suffix in ("", "-journal", "-wal", "-shm"):
                    fsops.unlink(self._path + suffix, missing_ok=True)
            if not os.path.lexists(self._path):
                self._make()
            with contextlib.closing(self._connect()) as db:
                return action(db)

    def _make(self) -> None:
        """An empty index. RACE: it has its name only when it is whole; readers find it incomplete, and wait."""
        temp = self.spool.temp()
        fsops.write_new(temp, [b""], sync=False)
        try:
            with contextlib.closing(sqlite3.connect(temp, isolation_level=None)) as db:
                db.execute("pragma journal_mode = memory")
                db.execute("pragma synchronous = off")
                db.executescript(f"begin; {_SCHEMA} commit;")
                db.executemany(_SET, self._identity().items())
            fsops.unlink(f"{self._path}-journal", missing_ok=True)  # of another file that had this name
            fsops.replace(temp, self._path)
        except BaseException:
            fsops.unlink(temp, missing_ok=True)
            raise

    def _connect(self, *, complete: bool = False) -> sqlite3.Connection:
        """A connection to an index that is ours; complete: that was up to date once. Raises _WRONG."""
        if not os.path.lexists(self._path):
            raise Incomplete("there is none")
        if os.path.islink(self._path) or not os.path.isfile(self._path):
            raise Unusable("no regular file")
        uri = f"file:{urllib.parse.quote(self._path)}?mode=rw"
        db = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None)
        try:
            db.execute("pragma synchronous = off")
            db.execute("pragma cache_size = -65536")  # nothing is spilled before a commit: readers need not wait
            wanted = self._identity()
            query = f"select name, value from meta where name in {_places([*wanted, 'complete'])}"
            said = dict(db.execute(query, (*wanted, "complete")))
            if not said.pop("complete", 0) and complete:
                raise Incomplete("it is not complete")
            if said != wanted:
                raise Unusable("it is of another version, spool or boot")
        except BaseException:
            db.close()
            raise
        return db

    def _identity(self) -> dict[str, object]:
        return {"version": _VERSION, "spool": self.spool.id, "boot": owner.boot_tag()}

    def _is_current(self) -> bool:
        """Whether nothing has changed since it was brought up to date, as far as times can tell."""
        try:
            with contextlib.closing(self._connect(complete=True)) as db:
                said = dict(db.execute("select name, value from meta where name in ('out', 'still', 'marks')"))
            marks, _ = reuse.marked(self.spool.root, int(said.get("marks", 0)))
            return bool(said.get("still")) and said.get("out") == _time_of(self._out) and not marks
        except _WRONG:
            return False

    def _update(self, db: sqlite3.Connection, suspects: Iterable[str] = ()) -> None:
        """Compare with out/ and read what is new, the newest first. Needs the lock, or a connection of our own."""
        said = dict(db.execute("select name, value from meta"))
        marked, marks = reuse.marked(self.spool.root, int(said.get("marks", 0)))
        known = set(bytes(said["names"]).split(_SEPARATOR)) if said.get("names") else set()
        added = bytes(said["added"]).split(_SEPARATOR) if said.get("added") else []  # since all were written last
        known.update(added)
        if marks > _MARKS_BYTES and self._memory is None:
            fsops.unlink(reuse.place(self.spool.root), missing_ok=True)
            raise Unusable("there are too many marks")
        changed, now = _time_of(self._out), boot_ns()  # before the names: what comes meanwhile is for the next time
        seen = said.get("seen", now) if changed == said.get("out") else now
        still = now - seen >= _STILL_NS and not network_mount(self._out)
        names = os.listdir(os.fsencode(self._out))
        back = {*marked, *reuse.marked(self.spool.root, marks)[0]}  # RACE: run again while we read the names
        doubted = {os.fsencode(job_id + SUFFIX) for job_id in (*suspects, *marked)} & known
        new = sorted((name for name in names if name not in known), reverse=True)  # ids begin with the time
        gone: list[str] = []
        fewer = bool(doubted) or len(names) - len(new) < len(known)
        if fewer:
            there = set(names)
            gone = [job_id for name in doubted | known - there if (job_id := _id_of(name))]
            known &= there
            known -= doubted
            new = [*(doubted & there), *new]  # in the commit that forgets their old records
        for at in range(0, max(1, len(new)), _BATCH):
            batch = new[at : at + _BATCH]
            found = [head for head in map(self._head_at, reversed(batch)) if head is not None]
            self.unread = max(0, len(new) - at - _BATCH)
            last = not self.unread
            facts: dict[str, Any] = {"out": changed, "seen": seen, "still": still and last, "marks": marks}
            facts["unread"] = self.unread
            if last:
                facts["complete"] = 1
            known.update(batch)
            added += batch
            if fewer or len(added) > _ADDED:
                facts.update(names=_SEPARATOR.join(names if last else known), added=b"")
                added = []
            elif new:
                facts["added"] = _SEPARATOR.join(added)
            db.execute("begin immediate")
            if at == 0:
                _forget(db, gone, back, now)
            db.executemany(_INSERT, map(_row, found))
            db.executemany(_INSERT_FACTS, map(_facts, found))
            db.executemany(_SET, facts.items())
            db.execute("commit")
            if self.is_late():
                break

    def _head_at(self, name: bytes) -> Head | None:
        job_id = _id_of(name)
        if job_id is not None:
            with contextlib.suppress(FileNotFoundError):  # RACE: consumed, or run again
                return heads.read_record(self.spool.record_path(job_id), job_id)
        return None


def _forget(db: sqlite3.Connection, ids: Sequence[str], marked: Iterable[str], now: int) -> None:
    """Remove jobs. Remember which may wait again: failed ones that are gone, and those that run again."""
    db.executemany("insert or replace into returned values (?, ?)", [(job_id, now) for job_id in marked])
    for part in _parts(ids):
        within = f"id in {_places(part)}"
        failed = f"select id, {now} from jobs where state = 'failed' and {within}"
        db.execute(f"insert or replace into returned {failed}", part)
        db.execute(f"delete from facts where key in (select key from jobs where {within})", part)
        db.execute(f"delete from jobs where {within}", part)
    db.execute("delete from returned where at < ?", (now - _RETURNED_NS,))


def _parts(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[at : at + _SOME] for at in range(0, len(values), _SOME)]


def _places(values: Collection[str]) -> str:
    return f"({', '.join('?' * len(values))})"


def _time_of(path: str) -> str:
    info = os.stat(path)
    return f"{info.st_ino}:{info.st_mtime_ns}"


def _id_of(name: bytes) -> str | None:
    return parse_record(os.fsdecode(name))


def tags_column(tags: Collection[str]) -> str:
    """Tags as the index stores them: each behind a separator, so that one can be searched for."""
    return "".join(f"{TAG}{tag}" for tag in tags) + TAG if tags else ""


def _row(head: Head) -> tuple[object, ...]:
    return (head.key, *{**vars(head), "tags": tags_column(head.tags)}.values())


def _facts(head: Head) -> tuple[str, ...]:
    return (head.key, head.engine, head.state, tags_column(head.tags), words_of(head))


def _is_busy(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or "locked" in str(error)


def _head(row: Sequence[Any]) -> Head:
    values = dict(zip(_COLUMNS, row[1:], strict=True))
    if any(type(values[name]) is not kind for name, kind in _COLUMNS.items()) or values["state"] not in _STATES:
        raise Unusable("a row is damaged")
    text = values["tags"]
    return Head(**{**values, "tags": tuple(text.strip(TAG).split(TAG)) if text else ()})
