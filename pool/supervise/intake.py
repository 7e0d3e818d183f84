"""The drop box: a file in spool/in becomes a job, or goes to quarantine with a reason. Nothing is trusted.

A drop stays in in/ until its job is accepted, then it is removed. A crash in between brings the same file again;
its id is reserved together with a digest that names this very file, so the job is not accepted twice.

Accepted: regular files named *.json or *.msgpack, one link, at most 1 MB, complete. A file is taken when its writer
closed it or renamed it here, or when it was still for 2 s; one that does not decode yet is given those 2 s too.
Hidden files and other names are left alone for a minute: they may be half-written.

What the file is to blame for sends it to quarantine; what the spool is to blame for (no room, too many waiting
jobs, no descriptors left) leaves it where it is, and `paused` says why.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pool.config import checks
from pool.config.settings import Config
from pool.constants import DROP_STILL_S, MAX_DROP_BYTES, TURN_S
from pool.errors import ClusterAway, JobConflict, JobRefused, ProtocolError, SpoolFull, UnknownJob
from pool.format import codec
from pool.format.names import base32, check_engine, check_id, id_from_stem
from pool.job import Job, digest_of, references
from pool.job.terms import OUTSIDE, Terms, expect_labels
from pool.runfiles.nodes import described, offered
from pool.runfiles.nodes import read as read_nodes
from pool.runfiles.schemas import Schemas
from pool.spool import dependencies, elsewhere, fsops, owner, quarantine
from pool.spool.store import NO_SPACE, Spool

_BATCH, _LOOKS = 64, 2000  # drops taken, looked at per turn: supervision goes on meanwhile
_BREATH_S = 0.05  # between two turns that looked at much and took nothing
_COUNT_S, _COUNT_SHARE = 1.0, 20  # how long a count of waiting jobs is believed, also in units of what it cost
_FOREIGN_STILL_S = 60.0
_PAUSE_S = 1.0
_KEYS = ("engine", "params", "id", *OUTSIDE)


_ASIDE = re.compile(r"\.(.+)\.([0-9]+-[^.]+)\.[^.]+\.taken\Z", re.DOTALL)
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})  # no fault of the file that cannot be opened


class _NotYet(Exception):
    """The file may still be growing, or is gone."""


class _Waits(Exception):
    """The job is good and the spool cannot take it now."""


@dataclass
class _Seen:
    """A file that was there at the last look. since: monotonic time since when it has not changed."""

    stamp: tuple[int, int, int]
    since: float
    closed: bool = False


class Intake:
    """Turns drops into jobs; one per spool, in the supervisor. turn_s: seconds after which a turn leaves the rest to
    the next one."""

    def __init__(self, spool: Spool, config: Config, *, turn_s: float = TURN_S) -> None:
        self._spool, self.config, self._turn_s = spool, config, turn_s
        self._schemas = Schemas(spool.root)
        self._in = f"{spool.root}/in"
        self._seen: dict[str, _Seen] = {}
        self._closed: set[str] = set()
        self._stuck: dict[str, int] = {}  # name -> inode of what is refused and cannot be moved
        self._counts: dict[str, tuple[float, int]] = {}
        self._last = ""
        self.paused = ""
        self.accepted = self.refused = 0

    def arrived(self, names: list[str]) -> None:
        """Names that were closed or renamed into in/."""
        self._closed.update(names)

    def turn(self) -> float | None:
        """Look at the drop box once; seconds until it wants to look again, None when it is empty."""
        try:
            names = sorted(os.listdir(self._in))
        except FileNotFoundError:
            fsops.make_dir(self._in)
            names = []
        names = sorted({*names, *self._repair(names)})
        self._forget_all_but(set(names))
        self.paused = self._no_room() if names else ""
        if self.paused:
            return _PAUSE_S
        begin, until, taken = bisect.bisect_right(names, self._last), time.monotonic() + self._turn_s, 0
        for looks, name in enumerate(names[begin:]):
            if taken >= _BATCH or looks >= _LOOKS or time.monotonic() > until:
                return 0.0 if taken else _BREATH_S
            count = self._take(name)
            if count is None:
                return _PAUSE_S
            taken += count
            self._last = name
        self._last = ""
        if self.paused:
            return _PAUSE_S
        if self._closed:  # they came behind us
            return _BREATH_S
        return min((max(_BREATH_S, self._patience(name) - self._still(name)) for name in self._seen), default=None)

    def _forget_all_but(self, there: set[str]) -> None:
        self._closed &= there
        self._seen = {name: seen for name, seen in self._seen.items() if name in there}
        self._stuck = {name: inode for name, inode in self._stuck.items() if name in there}

    def _take(self, name: str) -> int | None:
        """How many entries left the drop box, None when no other one can be taken either; `paused` says why."""
        try:
            return self._consider(name)
        except _Waits as reason:
            self.paused = str(reason)
        except SpoolFull as reason:
            self.paused = str(reason)
            return None
        except OSError as error:
            self.paused = f"the spool cannot take it: {error}; drops wait in in/"
            if error.errno in NO_SPACE:
                return None
        return 0

    def _no_room(self) -> str:
        info = os.statvfs(self._spool.root)
        free = info.f_bavail * info.f_frsize
        if free < self.config.min_free_mb << 20:
            return f"{free >> 20} MB free, less than min_free_mb ({self.config.min_free_mb}); drops wait in in/"
        return self._cluster_waits() if self.config.is_branch else ""

    def _cluster_waits(self) -> str:
        """Why a branch takes no drops yet: the cluster is full, or not known well enough to say what is no engine."""
        nodes = read_nodes(self._spool.root)
        if nodes is not None and nodes.full:
            return f"the cluster takes no more jobs now: {nodes.full}; drops wait in in/"
        if nodes is None or not nodes.connected:
            return f"the cluster does not answer{f': {nodes.trouble}' if nodes else ''}; drops wait in in/"
        return ""

    def _engines(self) -> list[str]:
        if self.config.is_branch:
            root = self._spool.root
            return list(offered(read_nodes(root), described(root)))
        return list(self.config.engines)

    def _consider(self, name: str) -> int:
        """1 when the entry left the drop box."""
        path, closed = f"{self._in}/{name}", name in self._closed
        self._closed.discard(name)
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            return 0
        if self._stuck.get(name) == info.st_ino:
            return 0
        if not stat.S_ISREG(info.st_mode):
            return self._refuse(name, f"it is {_kind(info.st_mode)}, not a regular file")
        seen = self._look(name, info, closed)
        still = self._still(name) >= self._patience(name)
        if not _is_job(name):
            return self._refuse(name, "jobs are named *.json or *.msgpack") if still else 0
        return self._read_job(name, path, seen, still) if seen.closed or still else 0

    def _look(self, name: str, info: os.stat_result, closed: bool) -> _Seen:
        """What is known of a file; anew when it has changed. closed: its writer has closed it."""
        stamp = (info.st_size, info.st_mtime_ns, info.st_ino)
        seen = self._seen.get(name)
        if seen is None or seen.stamp != stamp:
            seen = self._seen[name] = _Seen(stamp, time.monotonic())
        seen.closed = seen.closed or closed
        return seen

    def _may_come(self, job_id: str) -> bool:
        """Whether a job is here now, because another machine has it; or nobody can say yet."""
        try:
            return elsewhere.ask(self._spool, job_id)
        except ClusterAway:
            return True

    def _read_job(self, name: str, path: str, seen: _Seen, still: bool) -> int:
        """Accept or refuse a job file; 0 when it may not be complete yet. still: it has not changed for a while."""
        try:
            self._accept(name, path, *_read(path))
        except _NotYet:
            seen.closed = False
            return 0
        except (JobRefused, JobConflict, UnknownJob, ProtocolError) as error:
            if isinstance(error, UnknownJob) and (not still or self._may_come(error.job_id)):
                return 0  # it may be dropped beside this one
            if isinstance(error, ProtocolError) and not still:
                seen.closed = False  # closed between two writes, perhaps: the end may still come
                return 0
            return self._refuse(name, str(error))
        self.accepted += 1
        self._seen.pop(name, None)
        return 1

    def _patience(self, name: str) -> float:
        return DROP_STILL_S if _is_job(name) else _FOREIGN_STILL_S

    def _still(self, name: str) -> float:
        seen = self._seen.get(name)
        return 0.0 if seen is None else time.monotonic() - seen.since

    # ---- one drop

    def _accept(self, name: str, path: str, data: bytes, mark: tuple[int, int, int]) -> None:
        value = codec.decode(data, strict=True) if name.endswith(".msgpack") else codec.decode_json(data)
        reply = "json" if name.endswith(".json") else ""
        fields = self._fields(value)
        stem = id_from_stem(os.path.splitext(name)[0])
        source = f"in/{ascii(name)[1:-1]}"[:200]
        if "id" in fields:
            job = self._job(fields, check_id(fields["id"]), "", source, reply)
            self._submit(job)
        else:
            # The same physical file must give the same job after a crash, another file of that name another job.
            unique = base32(int.from_bytes(hashlib.sha256(repr(mark).encode() + data).digest()[:5], "big"), 8)
            try:
                self._submit(self._job(fields, stem or f"drop-{unique}", unique, source, reply))
            except JobConflict:
                self._submit(self._job(fields, f"{stem or 'drop'}-{unique}", unique, source, reply))
        self._remove(name, path, mark)

    def _remove(self, name: str, path: str, mark: tuple[int, int, int]) -> None:
        """Remove a drop whose job is accepted. RACE: another one of that name may come at any moment, also as new
        content of the same file; so it is moved aside first, where nobody finds it, and looked at there."""
        aside = f"{self._in}/.{name}.{owner.fresh()}.taken"
        if _mark_at(path) != mark:
            return
        try:
            fsops.rename(path, aside)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            fsops.unlink(path, missing_ok=True)
            return
        try:
            if _mark_at(aside) == mark:
                fsops.unlink(aside, missing_ok=True)
                return
        except OSError:
            self._put_back(aside, name)
            raise
        self._put_back(aside, name)

    def _put_back(self, aside: str, name: str) -> str:
        """Give what was moved aside its name again, or one like it when another drop has that; that name."""
        stem, suffix = os.path.splitext(name)
        for place in (name, f"{stem[:200]}-{base32(os.lstat(aside).st_ino & 0xFFFFFFFFFF, 8)}{suffix}"):
            try:
                fsops.rename_noreplace(aside, f"{self._in}/{place}")
            except FileExistsError:
                continue
            self._closed.add(place)
            return place
        raise FileExistsError(aside)

    def _repair(self, names: Iterable[str]) -> Iterator[str]:
        """Names of what a killed supervisor had moved aside: it is looked at again, and found to be the same job."""
        for entry in names:
            match = _ASIDE.match(entry)
            if match is not None and not owner.alive(match[2]):
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    yield self._put_back(f"{self._in}/{entry}", match[1])

    def _submit(self, job: Job) -> None:
        now = time.monotonic()
        until, waiting = self._counts.get(job.engine, (0.0, 0))
        if now >= until:
            waiting = len(self._spool.list_ready(job.engine))
            until = now + max(_COUNT_S, _COUNT_SHARE * (time.monotonic() - now))
        self._counts[job.engine] = (until, waiting + 1)
        if waiting >= self.config.max_ready:
            self._counts[job.engine] = (until, waiting)
            raise _Waits(f"{waiting} jobs wait for {job.engine} (max_ready); drops wait in in/")
        if job.depends_on:
            dependencies.check(self._spool, job.depends_on, local=True)
        self._spool.submit(job)

    def _fields(self, value: Any) -> dict[str, Any]:
        """The job's fields. Parameters may stand under "params" or beside "engine"."""
        if not isinstance(value, dict):
            raise JobRefused(f'a job is a map with "engine" and "params", not a {type(value).__name__}')
        if "engine" not in value:
            raise JobRefused("missing; which engine shall do it?", "engine")
        extra = {key: item for key, item in value.items() if key not in _KEYS}
        if "params" in value and extra:
            key = next(iter(extra))
            raise JobRefused(f"unknown key{checks.nearest(str(key), _KEYS)}; known: {', '.join(_KEYS)}", str(key)[:80])
        params = value.get("params", extra)
        if not isinstance(params, dict) or not all(isinstance(key, str) for key in params):
            raise JobRefused("must be a map with text keys", "params")
        return {**{key: value[key] for key in _KEYS if key in value}, "params": params}

    def _job(self, fields: dict[str, Any], job_id: str, unique: str, source: str, reply: str) -> Job:
        engine = check_engine(fields["engine"])
        there = self._engines()
        if engine not in there:
            raise JobRefused(
                f"no engine {engine!r}{checks.nearest(engine, there)}; there are: {', '.join(there)}", "engine"
            )
        params, others = references.pack(fields["params"])
        self._schemas.check(engine, params)
        terms = Terms.of(fields, OUTSIDE)
        if not self.config.is_branch:
            expect_labels(terms.labels, self.config.cluster.labels)
        born = self._spool.now()
        return Job(
            id=job_id,
            engine=engine,
            params=params,
            created=born,
            terms=replace(terms, durable=self.config.durable).after(others).fixed(born),
            source=source,
            reply=reply,
            digest=digest_of(engine, params, unique or None),
        )

    def _refuse(self, name: str, reason: str) -> int:
        """Move it to quarantine with a reason that a person can act on; 1 when it is gone from in/."""
        path = f"{self._in}/{name}"
        try:
            if not quarantine.keep(self._spool, path, name, self._letter(name, reason)):
                return 0
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            self._stuck[name] = os.lstat(path).st_ino
            stays = f"{reason}; it cannot be moved here and stays there: {error.strerror}"
            quarantine.complain(self._spool, name, self._letter(name, stays))
        self.refused += 1
        self._seen.pop(name, None)
        return 1

    def _letter(self, name: str, reason: str) -> str:
        return f"{ascii(name)[1:-1]} was dropped into {self._in} and is not accepted:\n\n    {reason}\n\n{_HELP}"


_HELP = """A job looks like this; write it under another name and rename it into in/, or copy it there:

    {"engine": "transcribe", "params": {"audio": "/data/speech.wav"}}

Optional beside "engine": "id", "priority" (-100 … 100), "timeout_s", "retry_times", "retry_on", "not_before" and
"expires" (seconds from now, "2h", or a date and time with a time zone), "depends_on" (a list of ids), "labels" (of the
machine that may run it), "tags", "note", "log_context" (a flat map), "traceparent", "tracestate".
"""


def _read(path: str) -> tuple[bytes, tuple[int, int, int]]:
    """Content of a drop and the mark of this very file; re-checked on the open descriptor."""
    fd = _open(path)
    try:
        before = os.fstat(fd)
        _check_file(before)
        data = _content(fd, before.st_size)
        after = os.fstat(fd)
        if (len(data), after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
            raise _NotYet
        if not data:
            raise ProtocolError("it is empty")
        return data, (after.st_ino, after.st_mtime_ns, after.st_size)
    finally:
        os.close(fd)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise _NotYet from None
    except OSError as error:
        if error.errno in _OURS:
            raise
        if error.errno == errno.ELOOP:
            raise JobRefused("it is a symbolic link") from None
        raise JobRefused(f"it cannot be read ({error.strerror}): give the user of the pool the right to") from None


def _check_file(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise JobRefused(f"it is {_kind(info.st_mode)}, not a regular file")
    if info.st_nlink != 1:
        raise JobRefused(f"it has {info.st_nlink} hard links: copy it instead of linking")
    if info.st_size > MAX_DROP_BYTES:
        raise JobRefused(f"{info.st_size} bytes, more than {MAX_DROP_BYTES}: a job names media by path")


def _content(fd: int, size: int) -> bytes:
    """At most one byte more than `size`: a file that grows has no end."""
    data = b""
    while len(data) <= size:
        try:
            part = os.read(fd, size + 1 - len(data))
        except OSError as error:
            raise JobRefused(f"it cannot be read: {error.strerror}") from None
        if not part:
            break
        data += part
    return data


def _mark_at(path: str) -> tuple[int, int, int] | None:
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


def _is_job(name: str) -> bool:
    return name.endswith((".json", ".msgpack")) and not name.startswith(".")


def _kind(mode: int) -> str:
    names = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    )
    return next((name for test, name in names if test(mode)), "a special file")
