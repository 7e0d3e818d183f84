"""Files of a result: they land where the caller wants them, or the record says where they are and why."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pool.cluster import parcels
from pool.cluster.landing import land, landing, outgoing
from pool.cluster.media import MediaGone
from pool.cluster.wire import Blob
from pool.errors import ProtocolError
from pool.failure import Failure
from pool.job import JobState, Record

EMPTY = Record("job-g1", "fake", JobState.COMPLETED, 1, 0, 0, 0)


class Shelf:
    """A store in memory."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.gets: list[Path] = []

    def add(self, content: bytes, name: str) -> Blob:
        sha = hashlib.sha256(content).hexdigest()
        self.contents[sha] = content
        return Blob(sha, len(content), name)

    async def get(self, blob: Blob, path: Path) -> None:
        self.gets.append(path)
        if blob.sha256 not in self.contents:
            raise MediaGone("gone")
        path.write_bytes(self.contents[blob.sha256])


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "job"


def entry(blob: Blob, path: str) -> dict[str, Any]:
    return {"path": path, "size": blob.size, "sha256": blob.sha256}


def landed(record: Record, blobs: list[Blob], shelf: Shelf, folder: Path, **more: Any) -> Record:
    return asyncio.run(land(record, blobs, shelf, **{"wishes": {}, "folder": folder, **more}))


def test_an_output_lands_where_the_caller_wants_it(tmp_path: Path, folder: Path, shelf: Shelf) -> None:
    film, log = shelf.add(b"film", "talk.mp4"), shelf.add(b"log", "log.txt")
    value = {
        "path": "/node/7/talk.mp4",
        "parts": ["/node/7/talk.mp4", "see /node/7/talk.mp4"],
        "log": "/node/out/log.txt",
    }
    record = replace(EMPTY, value=value, files=(entry(film, "/node/7/talk.mp4"), entry(log, "/node/out/log.txt")))
    wish = tmp_path / "Talk of Ann.mp4"
    done = landed(record, [log, film], shelf, folder, wishes={"talk.mp4": wish})
    assert (wish.read_bytes(), (folder / "log.txt").read_bytes()) == (b"film", b"log")
    assert done.files == (entry(film, str(wish)), entry(log, str(folder / "log.txt")))
    assert done.value == {
        "path": str(wish),
        "parts": [str(wish), "see /node/7/talk.mp4"],
        "log": str(folder / "log.txt"),
    }
    assert landed(record, [log, film], shelf, folder, wishes={"talk.mp4": wish}) == done
    assert len(shelf.gets) == 2  # what has landed is not fetched again


@pytest.mark.parametrize("way", ["gone", "folder", "file", "readonly"])
def test_a_place_that_is_gone_is_said_in_the_record(tmp_path: Path, folder: Path, shelf: Shelf, way: str) -> None:
    film, wish = shelf.add(b"film", "talk.mp4"), tmp_path / "there" / "talk.mp4"
    if way == "folder":
        wish.mkdir(parents=True)
    elif way == "file":
        wish.parent.write_text("no folder")
    elif way == "readonly":
        wish.parent.mkdir()
        get = shelf.get

        async def refused(blob: Blob, path: Path) -> None:
            if path == wish:
                raise PermissionError(13, os.strerror(13), str(path))
            await get(blob, path)

        shelf.get = refused  # type: ignore[method-assign]
    record = replace(
        EMPTY, value={"output": "/node/talk.mp4", "warnings": ["dark"]}, files=(entry(film, "/node/talk.mp4"),)
    )
    done = landed(record, [film], shelf, folder, wishes={"talk.mp4": wish})
    place = folder / "talk.mp4"
    assert place.read_bytes() == b"film"
    assert done.value["output"] == str(place)
    assert done.value["warnings"][0] == "dark"
    assert str(wish) in done.value["warnings"][1]
    assert str(place) in done.value["warnings"][1]
    assert done.files[0]["path"] == str(place)
    assert done.files[0]["why"] in done.value["warnings"][1]


def test_a_file_that_its_node_lost_is_said_in_the_record(folder: Path, shelf: Shelf) -> None:
    film = shelf.add(b"film", "talk.mp4")
    done = landed(replace(EMPTY, value={}, files=(entry(film, "/node/talk.mp4"),)), [], shelf, folder)
    assert "did not have it" in done.files[0]["why"]
    assert "talk.mp4 was not written" in done.value["warnings"][0]


def test_a_file_that_the_store_lost_is_an_error(folder: Path, shelf: Shelf) -> None:
    film = shelf.add(b"film", "talk.mp4")
    shelf.contents.clear()
    with pytest.raises(MediaGone):
        landed(replace(EMPTY, files=(entry(film, "/node/talk.mp4"),)), [film], shelf, folder)


def test_equal_files_keep_their_names(folder: Path, shelf: Shelf) -> None:
    a, b, c = (shelf.add(b"same", name) for name in ("a.txt", "b.txt", "a.txt"))
    record = replace(EMPTY, files=tuple(entry(a, path) for path in ("/1/b.txt", "/1/a.txt", "/2/a.txt")))
    done = landed(record, [a, b, c], shelf, folder)
    assert [file["path"] for file in done.files] == [str(folder / name) for name in ("b.txt", "a.txt", "a-2.txt")]


def test_hostile_results_write_nowhere_else(tmp_path: Path, folder: Path, shelf: Shelf) -> None:
    bad = shelf.add(b"bad", "../../evil"), shelf.add(b"worse", ".."), shelf.add(b"array", "../array-01-0.npy")
    record = replace(EMPTY, files=tuple(entry(blob, "/etc/passwd") for blob in bad))
    landed(record, list(bad), shelf, folder, arrays=bad)
    assert all(path.parent == folder for path in shelf.gets)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    for files in ((3,), ("x",), (None,)):
        with pytest.raises(ProtocolError):
            landed(replace(EMPTY, files=files), [], shelf, folder)  # type: ignore[arg-type]


def test_inputs_are_called_as_the_caller_calls_them(tmp_path: Path, folder: Path, shelf: Shelf) -> None:
    params = {"audio": str(tmp_path / "my talk.wav"), "more": ["/a/x.png", "/b/x.png"]}
    there = f"/node/cache/{'a' * 64}/my talk.wav"
    failure = Failure("input", f"audio {there}: silent", hint=f"see {there}", attempts=(Failure("input", there),))
    value = {"audio": there, "other": f"/node/{'b' * 64}/x.png", "short": "/node/my talk.wav"}
    done = landed(replace(EMPTY, value=value, failure=failure), [], shelf, folder, params=params)
    assert done.value == {**value, "audio": params["audio"]}
    assert done.failure is not None
    assert done.failure.message == f"audio {params['audio']}: silent"
    assert done.failure.hint == f"see {params['audio']}"
    assert done.failure.attempts[0].message == params["audio"]


def test_what_goes_from_a_node(tmp_path: Path) -> None:
    files_dir, outputs = tmp_path / "files", tmp_path / "outputs"
    files_dir.mkdir()
    outputs.mkdir()
    for path in (files_dir / "array-01-1.npy", files_dir / "array-01-0.npy", files_dir / "made.bin", outputs / "a.mp4"):
        path.write_bytes(b"x")
    paths = [str(outputs / "a.mp4"), str(files_dir / "made.bin"), str(tmp_path / "gone"), "/shared/x.mp4"]
    record = replace(EMPTY, files=tuple({"path": path, "size": 1, "sha256": ""} for path in paths))
    produced = outgoing(record, files_dir, shared=["/shared"])
    assert [path.name for path in produced.arrays] == ["array-01-0.npy", "array-01-1.npy"]
    assert produced.files == (outputs / "a.mp4", files_dir / "made.bin")
    assert produced.missing == (str(tmp_path / "gone"),)
    assert outgoing(EMPTY, tmp_path / "none") == parcels.Produced((), ())


def steps_of(files: int, *, names: int, contents: int) -> int:
    """How many lines of Python run to place so many files."""
    blobs = [
        Blob(hashlib.sha256(b"%d" % (n % contents)).hexdigest(), n % contents, f"{n % names}.bin") for n in range(files)
    ]
    record = replace(EMPTY, files=tuple(entry(blob, f"/node/{n}/{blob.name}") for n, blob in enumerate(blobs)))
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        plan = landing(record, reversed(blobs), wishes={}, folder=Path("/here"))
    finally:
        sys.settrace(before)
    assert len({one.path for one in plan}) == files
    assert all(one.blob is not None for one in plan)
    return count


@pytest.mark.parametrize(("names", "contents"), [(1 << 20, 1 << 20), (1, 1 << 20), (1 << 20, 1), (1, 1)])
def test_many_files_are_placed_in_a_time_that_grows_with_their_number(names: int, contents: int) -> None:
    few, many = (steps_of(files, names=names, contents=contents) for files in (100, 800))
    assert many < 10 * few


def test_twenty_thousand_files(folder: Path) -> None:
    blobs = [Blob(hashlib.sha256(b"%d" % n).hexdigest(), n, "frame.png") for n in range(20_000)]
    record = replace(EMPTY, files=tuple(entry(blob, "/node/frame.png") for blob in blobs))
    plan = landing(record, blobs, wishes={}, folder=folder)
    assert [plan[at].path for at in (0, 1, 19_999)] == [
        str(folder / f"frame{tail}.png") for tail in ("", "-2", "-20000")
    ]
