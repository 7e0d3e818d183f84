"""What a job was submitted with, as far as a client of the gateway may see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pool.config.roots import TEMPFILE, OutsideRoots
from pool.errors import JobRefused
from pool.gateways.http.desk import Desk
from pool.gateways.http.inputs import inputs_of
from pool.gateways.http.shapes import Origin, Uploaded
from pool.gateways.tempfiles import UnknownFile


def origin(desk: Desk, job_id: str, prefix: str) -> Origin:
    """The parameters and terms of a job. prefix: of all paths of the gateway.

    Raises UnknownJob, JobRefused for a record that cannot be read.
    """
    old = desk.pool.origin(job_id)
    whole = old.to_map()
    params: dict[str, Any] = {}
    left_out: dict[str, str] = dict(old.left_out)
    uploads: dict[str, Uploaded] = {}
    for key, value in whole["params"].items():
        shown = desk.uploaded(value)
        if why := _closed(desk, old.engine, key, value):
            left_out[key] = why
            continue
        params[key] = shown
        if isinstance(shown, str) and shown.startswith(TEMPFILE):
            try:
                about, _ = desk.tempfiles.find(shown.removeprefix(TEMPFILE))
                kind: Any = about.file_type
                uploads[key] = Uploaded(file_id=about.file_id, file_type=kind, original_name=about.original_name)
            except UnknownFile:
                left_out[key] = "its upload is no longer kept"
                del params[key]
    return Origin(
        id=old.id,
        engine=old.engine,
        params=params,
        left_out=left_out,
        uploads=uploads,
        inputs=inputs_of(desk, old.id, old.engine, old.params, prefix),
        terms=whole["terms"],
        items=old.items_count,
        rerun_of=old.rerun_of,
    )


def _closed(desk: Desk, engine: str, key: str, value: Any) -> str:
    """Why a parameter is not shown, "" when it is: it names files that clients of the gateway may not name."""
    given: Mapping[str, Any] = {key: desk.uploaded(value)}
    try:
        desk.inside(engine, given)
    except OutsideRoots:
        return "it names a file outside of the folders that the gateway may use"
    except JobRefused:
        return ""
    return ""
