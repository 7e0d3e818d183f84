"""A disk that loses what was not synced: every state that a power loss may leave, made from a recorded run.

The run is recorded through the hook of `fsops`: before each operation, the tree as it is, and what clients had heard
by then. What an operation did is the difference between two such looks. The rules of the disk:

    names    a change of names is on disk for certain when one of its directories was synced afterwards; until then it
             may be there or not, whatever became of others before and after it. A rename is one change; a change that
             takes a name away is not there without the one that made that name.
    content  of a file is certain when the file was synced since it was written; until then it may be nothing, half of
             it, zeros, or all.

So a state is: the names that are certain, any others, and for each uncertain file one of its contents. There are too
many to try them all: each uncertain change is dropped alone and kept alone, all are, none is, and the rest is drawn.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgpack

#: What is worth dropping by itself; other places hold nothing that a job is lost with.
_TELLING = (
    "spool/ready",
    "spool/work",
    "spool/held",
    "spool/deferred",
    "spool/away",
    "spool/out",
    "spool/dead",
    "spool/in",
    "spool/run/ids",
    "spool/run/attempts",
    "media",
)
_FOLDERS = ("spool", "media")


class Entry(NamedTuple):
    """What a name stands for. digest: of the content, "" for a directory."""

    inode: int
    digest: str


Names = dict[str, Entry]


@dataclass(frozen=True)
class Moment:
    """Before an operation: what it will be, the tree, and the lines of the histories."""

    operation: str
    path: str
    names: Names
    said: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """One change of names: each with what it stood for before and stands for now. at: the moment after which it
    happened; until: the first moment at which it is on disk for certain."""

    names: dict[str, tuple[Entry | None, Entry | None]]
    at: int
    until: int

    def needs(self, other: Change) -> bool:
        """Whether it takes away a name that the other one, which came before, has made."""
        return any(
            old is not None and made is not None and made.inode == old.inode
            for name, (old, _) in self.names.items()
            for made in [other.names.get(name, (None, None))[1]]
        )

    def telling(self) -> bool:
        return any(name.startswith(_TELLING) for name in self.names)


class Recorder:
    """A hook for `fsops` that writes down each moment. Lives in the process that is recorded; `close` in ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._contents = folder / "contents"
        self._contents.mkdir()
        self._trace = folder / "trace"

    def __call__(self, operation: str, path: str) -> None:
        names = {name: list(entry) for name, entry in self._look()}
        said = [line for file in sorted((self.folder / "history").iterdir()) for line in file.read_text().splitlines()]
        with open(self._trace, "ab") as trace:
            trace.write(msgpack.packb([operation, os.path.relpath(path, self.folder), names, said]))

    def _look(self) -> Iterator[tuple[str, Entry]]:
        for top in _FOLDERS:
            for folder, folders, files in os.walk(self.folder / top):
                place = os.path.relpath(folder, self.folder)
                for name in folders:
                    yield f"{place}/{name}", Entry(os.stat(f"{folder}/{name}").st_ino, "")
                for name in files:
                    data = Path(folder, name).read_bytes()
                    digest = hashlib.sha256(data).hexdigest()
                    kept = self._contents / digest
                    if not kept.exists():
                        kept.write_bytes(data)
                    yield f"{place}/{name}", Entry(os.stat(f"{folder}/{name}").st_ino, digest)

    def close(self) -> Disk:
        self("end", str(self.folder))
        moments, numbers, serial = [], dict[int, int](), itertools.count(1)
        with open(self._trace, "rb") as trace:
            for operation, path, names, said in msgpack.Unpacker(trace, strict_map_key=False):
                # a file that is gone leaves its inode to another one, which is another file for us
                numbers = {inode: numbers.get(inode) or next(serial) for inode, _ in names.values()}
                entries = {name: Entry(numbers[inode], digest) for name, (inode, digest) in names.items()}
                moments.append(Moment(operation, path, entries, tuple(said)))
        return Disk(self.folder, moments)


@dataclass
class State:
    """A tree that a power loss may leave. said: what clients had heard; told: for the message of a failed test."""

    moment: Moment
    names: Names
    contents: dict[int, bytes]
    told: str = ""
    key: str = field(init=False)

    def __post_init__(self) -> None:
        digests = {inode: hashlib.sha256(data).hexdigest() for inode, data in self.contents.items()}
        shape = sorted((name, entry.inode, digests.get(entry.inode, "")) for name, entry in self.names.items())
        self.key = repr((shape, self.moment.said))


class Disk:
    """A recorded run, and the states it may have left."""

    def __init__(self, folder: Path, moments: list[Moment]) -> None:
        self.folder, self.moments = folder, moments
        self._changes = [change for number in range(len(moments) - 1) for change in self._changes_of(number)]

    def _changes_of(self, number: int) -> Iterator[Change]:
        """What happened between a moment and the next, by inode: both sides of a rename are one."""
        before, after = self.moments[number].names, self.moments[number + 1].names
        groups: dict[int, dict[str, tuple[Entry | None, Entry | None]]] = {}
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            if old is None or new is None or old.inode != new.inode:
                one = new or old
                assert one is not None
                groups.setdefault(one.inode, {})[name] = (old, new)
        for names in groups.values():
            folders = {os.path.dirname(name) for name in names}
            syncs = (
                later + 1
                for later in range(number + 1, len(self.moments))
                if self.moments[later].operation == "syncdir" and self.moments[later].path in folders
            )
            yield Change(names, number, next(syncs, len(self.moments)))

    def states(self, rng: random.Random, per_moment: int) -> Iterator[State]:
        """Distinct states, in order of time."""
        seen = set()
        for number in range(len(self.moments)):
            for state in self._states_at(number, rng, per_moment):
                if state.key not in seen:
                    seen.add(state.key)
                    yield state

    def _states_at(self, number: int, rng: random.Random, count: int) -> Iterator[State]:
        happened = [change for change in self._changes if change.at < number]
        uncertain = [change for change in happened if change.until > number]
        telling = [change for change in uncertain if change.telling()]
        losses: list[list[Change]] = [[], uncertain]
        losses += [[lost] for lost in telling]
        losses += [[one for one in uncertain if one is not kept] for kept in telling]
        while len(losses) < count and uncertain:
            losses.append([one for one in uncertain if rng.random() < 0.5])
        rng.shuffle(losses)
        for lost in losses[:count]:
            trifles = [one for one in uncertain if not one.telling() and rng.random() < 0.5]
            yield self._state(number, _possible(happened, {id(one) for one in (*lost, *trifles)}, number), rng)

    def _state(self, number: int, changes: list[Change], rng: random.Random) -> State:
        names = dict(self.moments[0].names)
        for change in changes:
            for name, (old, new) in change.names.items():
                if new is not None:
                    names[name] = new
                elif old is not None and name in names and names[name].inode == old.inode:  # noqa: SIM102
                    # a directory goes only when what was in it has gone from the disk, too
                    if old.digest or not any(other.startswith(f"{name}/") for other in names):
                        del names[name]
        for name in sorted(names):  # what lies in a directory that was lost, or that another one replaced
            folder = os.path.dirname(name)
            if folder not in _FOLDERS and (folder not in names or names[folder].digest):
                del names[name]
        contents = {entry.inode: self._content(entry.inode, number, rng) for entry in names.values() if entry.digest}
        kept = {id(change) for change in changes}
        lost = [" ".join(change.names) for change in self._changes if change.at < number and id(change) not in kept]
        return State(self.moments[number], names, contents, f"before operation {number}, without {lost}")

    def _content(self, inode: int, number: int, rng: random.Random) -> bytes:
        """Of a file at a moment: what is certain, or one of what may be."""
        now, certain = "", ""
        for at in range(number + 1):
            moment = self.moments[at]
            here = next((entry.digest for entry in moment.names.values() if entry.inode == inode), now)
            now = here
            if at < number and moment.operation == "fsync":
                target = moment.names.get(moment.path)
                if target is not None and target.inode == inode:
                    certain = here
        data = (self.folder / "contents" / now).read_bytes() if now else b""
        if now == certain or at_start(self.moments[0], inode, now):
            return data
        old = (self.folder / "contents" / certain).read_bytes() if certain else b""
        return rng.choice([old, data[: len(data) // 2], bytes(len(data)), data])

    def lay(self, state: State) -> None:
        """Make the tree that way."""
        for top in _FOLDERS:
            shutil.rmtree(self.folder / top, ignore_errors=True)
            (self.folder / top).mkdir(mode=0o700)
        first: dict[int, Path] = {}
        for name in sorted(state.names):
            path, entry = self.folder / name, state.names[name]
            if not entry.digest:
                path.mkdir(mode=0o700)
            elif entry.inode in first:
                os.link(first[entry.inode], path)
            else:
                path.write_bytes(state.contents[entry.inode])
                path.chmod(0o600)
                os.utime(path, ns=(0, 0))
                first[entry.inode] = path


def _possible(happened: list[Change], lost: set[int], number: int) -> list[Change]:
    """The changes that are on disk when those of these identities are lost, as far as they can be: what builds on a
    lost one is lost, too, and what a certain one builds on is not."""
    for place, change in enumerate(happened):
        if change.until > number and any(id(other) in lost and change.needs(other) for other in happened[:place]):
            lost.add(id(change))
    for place in range(len(happened) - 1, -1, -1):
        if id(happened[place]) not in lost or happened[place].until <= number:
            lost.discard(id(happened[place]))
            lost -= {id(other) for other in happened[:place] if happened[place].needs(other)}
    return [change for change in happened if id(change) not in lost]


def at_start(moment: Moment, inode: int, digest: str) -> bool:
    """Whether a file was there, as it is, before the run."""
    return Entry(inode, digest) in moment.names.values()
