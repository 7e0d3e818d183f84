"""Files by id: input ids become paths that workers can read, result files get ids that clients can fetch.

An id is looked up in the store of the HTTP gateway on this machine first, then at BASE_URL. Results go to the same
place: when an input came from BASE_URL, the results are uploaded there.
"""

from __future__ import annotations

import json
import mimetypes
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from pool.client.filepool import FilePool
from pool.config.roots import Roots
from pool.errors import JobRefused
from pool.format import codec
from pool.gateways.downloads import names_of
from pool.gateways.kinds import HEAD_BYTES, kind_of
from pool.gateways.paths import PathFilter
from pool.gateways.redis.remote import LoginRefused, Remote, ServiceAway
from pool.gateways.redis.settings import Settings, fetched
from pool.gateways.redis.wire import FILE_ID, Order
from pool.gateways.tempfiles import Tempfiles, UnknownFile
from pool.job import Record
from pool.runfiles.schemas import Schemas, path_keys
from pool.spool import fsops, owner

_PAUSES_S = (0.3, 1.0, 2.0)  # between attempts while the service is unreachable
_FETCHED_LIFE = 2.0  # times the life of uploads, counted from their last use


@dataclass(frozen=True)
class Kept:
    """A file that a client can fetch."""

    file_id: str
    file_type: str
    original_name: str


class Files:
    """Safe to use from several threads. stopped: returns whether the gateway is shutting down."""

    def __init__(self, pool: FilePool, settings: Settings, stopped: Callable[[], bool]) -> None:
        spool = pool.spool
        self.paths = PathFilter(settings.roots, settings.tempfiles, spool.root, pool.config.root)
        self._schemas = Schemas(spool.root)
        self._local = Tempfiles(settings.tempfiles, spool.now, settings.tempfile_s, settings.names_s)
        self._remote = Remote(settings.base_url, settings.base_token, stopped)
        self._folder, self._life_s = fetched(settings), settings.tempfile_s * _FETCHED_LIFE
        self._max_bytes, self._where = settings.max_file_bytes, settings.base_url
        self._stopped, self._now = stopped, spool.now
        closed = (spool.root, settings.tempfiles)
        self._roots = Roots(settings.roots, closed=closed, tempfile=lambda file_id: self._path(file_id, "file")[0])

    # ---- inputs

    def params(self, order: Order, report: Callable[[str], None]) -> tuple[dict[str, object], bool]:
        """(parameters with paths in place of ids, whether a file came from BASE_URL). report: called before a download.

        Raises JobRefused with the key; ServiceAway when the gateway shuts down during a download.
        """
        about = self._schemas.describe(order.engine) or {}
        schema = about.get("schema")
        params = self._roots.params(order.params, path_keys(schema) if isinstance(schema, dict) else frozenset())
        remote = False
        for param, (key, file_id) in order.files.items():
            path, came = self._path(file_id, key, report)
            params[param] = str(path)
            remote |= came
        return params, remote

    def _path(self, file_id: str, key: str, report: Callable[[str], None] = lambda _: None) -> tuple[Path, bool]:
        with suppress(UnknownFile):
            return self._local.path(file_id), False
        if not FILE_ID.match(file_id):
            raise JobRefused("is not an id of the temporary-file service", key)
        path = self._folder / file_id
        with suppress(FileNotFoundError):
            for used in (self._name(path), path):
                os.utime(used, ns=(self._now() * 1000, self._now() * 1000))  # used again: kept for longer
            return path, True
        report(f"fetching {key}")
        for pause in (*_PAUSES_S, None):
            try:
                self._fetch(file_id, path)
                return path, True
            except LoginRefused as error:
                logger.error("{}", error)
                raise JobRefused(f"{file_id} cannot be fetched: {error}", key) from None
            except JobRefused as error:
                raise JobRefused(f"no file {file_id}: {error}", key) from None
            except ServiceAway as error:
                if self._stopped():
                    raise
                if pause is None:
                    raise JobRefused(f"no file {file_id} in {self._local.folder}, and {error}", key) from None
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _fetch(self, file_id: str, path: Path) -> None:
        part = f"{self._folder}/{owner.fresh()}.part"
        try:
            name = self._remote.download(file_id, part, self._max_bytes)
            fsops.put(
                f"{self._folder}/{owner.fresh()}.part",
                str(self._name(path)),
                [name.encode("utf-8", "replace")],
                sync=False,
            )
            fsops.replace(part, str(path))
        finally:
            fsops.unlink(part, missing_ok=True)

    @staticmethod
    def _name(path: Path) -> Path:
        """The file with the name that a fetched file has at its client; no file id begins with a dot."""
        return path.with_name(f".{path.name}")

    def _named(self, path: str) -> str:
        with suppress(OSError):
            if Path(path).parent == self._folder:
                return self._name(Path(path)).read_bytes().decode("utf-8", "replace")
        return self._local.name_of(path)

    # ---- results

    def keep(self, record: Record, *, remote: bool) -> list[Kept]:
        """Store the files of a job where its client can fetch them. Raises ServiceAway, OSError, JobRefused."""
        schema = (self._schemas.describe(record.engine) or {}).get("schema")
        names = names_of(record, schema, self._named)
        return [self._keep(Path(path), names[path], remote) for path in names]

    def keep_value(self, record: Record) -> Kept:
        """Store the value of a job as a JSON file, without the paths of this machine. Raises OSError."""
        part = self._local.part()
        value = self.paths.document(json.loads(codec.to_json(record.value)), meant=False)
        fsops.write_new(part, [codec.to_json(value).encode()], sync=False)
        kept = self._local.keep(part, "json", f"{record.id}.json")
        return Kept(kept.file_id, "json", kept.original_name)

    def _keep(self, path: Path, name: str, remote: bool) -> Kept:
        with open(path, "rb") as stream:
            kind = kind_of(stream.read(HEAD_BYTES), path.name) or "file"
        if remote:
            media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            return Kept(self._remote.upload(path, name, media_type), kind, name)
        part = self._local.part()
        try:
            try:
                fsops.link(str(path), part)  # a link is enough: results are never changed, only removed
            except OSError:
                shutil.copyfile(path, part)
            return Kept(self._local.keep(part, kind, name).file_id, kind, name)
        finally:
            fsops.unlink(part, missing_ok=True)

    # ---- tidying

    def sweep(self) -> None:
        """Remove expired files. Raises OSError."""
        self._local.sweep()
        for name in os.listdir(self._folder):
            path = self._folder / name
            half = name.endswith(".part") and not owner.alive(name.split(".", 1)[0])
            with suppress(FileNotFoundError):
                age_s = (self._now() * 1000 - path.stat().st_mtime_ns) / 1e9
                if half or (not name.endswith(".part") and age_s > self._life_s):
                    fsops.unlink(str(path), missing_ok=True)
