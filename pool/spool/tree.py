"""One spool tree: its root, its clock and its paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, TypeVar

from pool.format.names import SUFFIX, JobName, WorkerName, parse_job
from pool.spool import fsops, layout, owner
from pool.spool.ids import Ids
from pool.system.clock import boot_ns

T = TypeVar("T", bound="Tree")


class Claim(NamedTuple):
    """A job file in the directory of the worker that took it."""

    path: str
    name: JobName
    worker: WorkerName


class Tree:
    """Paths and time of one spool, and the rename into ready/ that several transitions end with."""

    def __init__(self, root: Path | str, *, durable: bool = True) -> None:
        self.root = Path(root)
        self.durable = durable
        self.id = layout.identity(self.root)
        self._at = str(self.root)
        self._offset = layout.clock_offset(self.root)
        self.ids = Ids(self.root)
        self._ours = (0, 0)  # the marker, when it last had our id

    @classmethod
    def create(cls: type[T], root: Path | str, *, durable: bool = True) -> T:
        """Make or complete the tree, check it, open it."""
        layout.prepare(Path(root))
        return cls(root, durable=durable)

    def lost(self) -> str:
        """Why this spool is not at its place any more, "" while it is. Costs a stat while nothing has changed."""
        try:
            info = os.stat(f"{self._at}/{layout.MARKER}")
            mark = info.st_ino, info.st_mtime_ns
        except OSError:
            return layout.lost(self.root, self.id)
        if mark != self._ours:
            if reason := layout.lost(self.root, self.id):
                return reason
            self._ours = mark
        return ""

    def missing(self) -> list[Path]:
        """Directories of the tree that somebody has removed."""
        return layout.missing(self.root)

    # ---- time and places

    def now(self) -> int:
        """µs of the spool clock."""
        return self._offset + boot_ns() // 1000

    def ready_dir(self, engine: str) -> str:
        """ready/<engine>/."""
        return f"{self._at}/ready/{engine}"

    def work_dir(self, worker: WorkerName) -> str:
        """work/<worker>/."""
        return f"{self._at}/work/{worker}"

    def record_path(self, job_id: str) -> str:
        """out/<id>.msgpack."""
        return f"{self._at}/out/{job_id}{SUFFIX}"

    def files_dir(self, job_id: str) -> Path:
        """out/<id>/: output files for which the caller gave no path."""
        return self.root / "out" / job_id

    def make_files_dir(self, job_id: str, *, sync: bool) -> None:
        """out/<id>/, in place before the record that names what is in it."""
        if fsops.make_dir(str(self.files_dir(job_id))) and sync:
            fsops.sync_dir(f"{self._at}/out")

    def note_path(self, job_id: str, attempt: int) -> str:
        """run/attempts/<id>.<attempt>.msgpack."""
        return f"{self._at}/run/attempts/{job_id}.{attempt:02d}{SUFFIX}"

    def temp(self) -> str:
        """A fresh path in tmp/ that names its owner, so that only files of dead owners are swept."""
        return f"{self._at}/tmp/{owner.fresh()}"

    def into_ready(self, source: str, engine: str, name: str) -> None:
        """The rename that makes a job wait. FileNotFoundError when `source` is gone."""
        directory = self.ready_dir(engine)
        while True:
            try:
                fsops.rename(source, f"{directory}/{name}")
                return
            except FileNotFoundError:
                if not os.path.lexists(source):
                    raise
                self.make_ready_dir(engine)

    def make_ready_dir(self, engine: str) -> None:
        """The directory of an engine; synced into its parent, or the jobs in it would not survive power loss."""
        if fsops.make_dir(self.ready_dir(engine)) and self.durable:
            fsops.sync_dir(f"{self._at}/ready")

    def list_ready(self, engine: str) -> list[str]:
        """Names waiting for an engine, in the order in which they run."""
        try:
            return sorted(name for name in os.listdir(self.ready_dir(engine)) if parse_job(name) is not None)
        except FileNotFoundError:
            return []

    def list_held(self) -> list[str]:
        """File names in held/."""
        return os.listdir(f"{self._at}/held")

    def list_away(self) -> list[str]:
        """File names in away/."""
        return layout.list_away(self.root)

    def progress_path(self, job_id: str) -> str:
        """progress/<id>."""
        return f"{self._at}/progress/{job_id}"

    def decided(self, job_id: str) -> bool:
        """Whether the job has its terminal record."""
        return os.path.lexists(self.record_path(job_id))
