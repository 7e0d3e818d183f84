"""Uploaded files: each has a random id, is kept for a limited time, and is removed by the next sweep after that.

    <file id><suffix>         the content
    <file id>.json            its metadata; written last, so content without it does not count as a file yet; kept for
                              longer, because what jobs made of the content is named after it
    <owner>.<number>.part     partly written; swept when its owner process is dead

The ids are random, so that one client cannot guess the files of another.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pool.errors import JobRefused
from pool.gateways.kinds import suffix_of
from pool.spool import fsops, owner

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_MAX_NAME = 255
_MAX_METADATA_BYTES = 65536


class UnknownFile(JobRefused):
    """No uploaded file has this id, or it has expired."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"no uploaded file {ascii(file_id)[:60]}: it never existed, or has expired")


@dataclass(frozen=True)
class Tempfile:
    """One uploaded file. size: bytes; created: µs of the spool clock."""

    file_id: str
    file_type: str
    original_name: str
    size: int
    created: int
    suffix: str


class Tempfiles:
    """The uploaded files in one folder. now: the spool clock in µs. life_s: seconds for which each file is kept;
    names_s: for which its name is kept after that."""

    def __init__(self, folder: Path, now: Callable[[], int], life_s: float, names_s: float = 0.0) -> None:
        self.folder = folder
        self._now, self._life_us, self._names_us = now, int(life_s * 1e6), int(names_s * 1e6)

    def part(self) -> str:
        """An unused path in the folder for a file that is being received."""
        return f"{self.folder}/{owner.fresh()}.part"

    def keep(self, part: str, file_type: str, name: str) -> Tempfile:
        """Store the file at `part` under a new id. file_type: its kind. name: its name on the client.

        Raises OSError.
        """
        shown = os.path.basename(name.replace("\\", "/")).encode("utf-8", "replace").decode()[-_MAX_NAME:]
        file_id, suffix = str(uuid.uuid4()), suffix_of(shown)
        if suffix in (".json", ".part"):
            suffix = ""
        about = Tempfile(file_id, file_type, shown, os.stat(part).st_size, self._now(), suffix)
        fsops.replace(part, str(self._content(about)))
        metadata = json.dumps(asdict(about)).encode()
        fsops.put(self.part(), f"{self.folder}/{file_id}.json", [metadata], sync=False)
        return about

    def discard(self, part: str) -> None:
        """Remove a file that was being received; a missing one is no error."""
        fsops.unlink(part, missing_ok=True)

    def find(self, file_id: str) -> tuple[Tempfile, Path]:
        """The metadata and the path of a file. Raises UnknownFile."""
        about = self._read(file_id) if _ID.match(file_id) else None
        if about is None or self._expired(about) or not self._content(about).is_file():
            raise UnknownFile(file_id)
        return about, self._content(about)

    def path(self, file_id: str) -> Path:
        """The path of a file. Raises UnknownFile."""
        return self.find(file_id)[1]

    def name_of(self, path: str) -> str:
        """The client's name of the uploaded file at a path, also of one that has expired; "" of any other path."""
        name = os.path.basename(path)
        if os.path.dirname(path) not in (str(self.folder), os.path.realpath(self.folder)) or not _ID.match(name[:36]):
            return ""
        about = self._read(name[:36])
        return about.original_name if about is not None else ""

    def remove(self, file_id: str) -> None:
        """Remove a file and its metadata; a missing file is no error."""
        about = self._read(file_id)
        fsops.unlink(f"{self.folder}/{file_id}.json", missing_ok=True)
        if about is not None:
            fsops.unlink(str(self._content(about)), missing_ok=True)

    def sweep(self) -> int:
        """Remove expired files and those that dead processes left behind; returns how many."""
        there = set(os.listdir(self.folder))
        names = set(there)
        swept = 0
        for about in list(self._all(names)):
            names.discard(about.file_id + about.suffix)
            if self._expired(about, self._names_us):
                self.remove(about.file_id)
                swept += 1
            elif self._expired(about) and about.file_id + about.suffix in there:
                fsops.unlink(str(self._content(about)), missing_ok=True)
                swept += 1
        for name in names:
            orphan = name.endswith(".part") and not owner.alive(name.split(".", 1)[0])
            if orphan or (_ID.match(name[:36]) and not name.endswith(".json") and self._abandoned(name)):
                fsops.unlink(f"{self.folder}/{name}", missing_ok=True)
                swept += 1
        return swept

    def _all(self, names: set[str]) -> Iterator[Tempfile]:
        for name in names:
            about = self._read(name[:36]) if name.endswith(".json") and _ID.match(name[:-5]) else None
            if about is not None:
                yield about

    def _abandoned(self, name: str) -> bool:
        """Whether content without metadata is past its time: its writer died before it wrote the metadata."""
        try:
            return self._now() - os.stat(self.folder / name).st_mtime_ns // 1000 > self._life_us
        except OSError:
            return False

    def _expired(self, about: Tempfile, more_us: int = 0) -> bool:
        return self._now() - about.created > self._life_us + more_us

    def _content(self, about: Tempfile) -> Path:
        return self.folder / f"{about.file_id}{about.suffix}"

    def _read(self, file_id: str) -> Tempfile | None:
        try:
            about = Tempfile(**json.loads(fsops.read_bounded(self.folder / f"{file_id}.json", _MAX_METADATA_BYTES)))
        except (OSError, ValueError, TypeError):
            return None
        return about if about.file_id == file_id and suffix_of(f"x{about.suffix}") == about.suffix else None
