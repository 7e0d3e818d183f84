"""A stream in the spool: what its writer and its readers make of each other, dead or alive."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Any

import pytest
from steps import JobMaker, claim_next, seat

from pool.runfiles.heartbeat import Heartbeat
from pool.spool import attempts, growing
from pool.spool.attempts import partial_path, read_partials, scratch_dir
from pool.spool.growing import Growth, open_newest
from pool.spool.store import Spool
from pool.work.context import JobContext


@pytest.fixture
def context(spool: Spool, make_job: JobMaker, beat: Heartbeat) -> JobContext:
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    return JobContext(spool, spool.read_claim(claim), claim.name, beat)


def test_from_the_first_byte_to_the_last(context: JobContext, spool: Spool) -> None:
    assert open_newest(spool, "mine") is None
    stream = context.stream("film.mp4")
    assert open_newest(spool, "mine") is None  # nothing to read yet
    stream.write(b"one ")
    reader = open_newest(spool, "mine")
    assert reader is not None
    assert (reader.attempt, reader.media_type, reader.growth) == (1, "video/mp4", Growth.GOING)
    stream.write(b"two")
    told, _ = read_partials(partial_path(spool, "mine", 1), 0)
    assert told == [{"stream": {"path": str(stream.path), "media_type": "video/mp4", "attempt": 1}}]
    assert reader.read(0, 100) == b"one two"
    assert reader.read(4, 2) == b"tw"
    stream.finish()
    assert reader.growth is Growth.WHOLE
    context.close()
    assert os.listdir(spool.root / "run" / "scratch") == []
    assert (reader.growth, reader.read(0, 100), reader.size) == (Growth.WHOLE, b"one two", 7)
    reader.close()
    reader.close()
    assert open_newest(spool, "mine") is None


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda context, stream: stream.drop(), id="dropped"),
        pytest.param(lambda context, stream: context.close(), id="failed"),
        pytest.param(lambda context, stream: attempts.sweep_attempt(context._spool, "mine", 1), id="swept"),
    ],
)
def test_what_is_not_whole_is_told(context: JobContext, spool: Spool, end: Callable[[Any, Any], None]) -> None:
    stream = context.stream("film.mp4")
    stream.write(b"half")
    reader = open_newest(spool, "mine")
    assert reader is not None
    end(context, stream)
    assert reader.growth is Growth.BROKEN
    assert reader.read(0, 100) == b"half"
    assert open_newest(spool, "mine") is None
    reader.close()
    context.close()


def test_the_newest_attempt_counts(context: JobContext, spool: Spool) -> None:
    for attempt in (1, 2, 11):
        path = growing.stream_path(scratch_dir(spool, "mine", attempt), "film.mp4")
        os.makedirs(path.parent)
        path.write_bytes(b"%d" % attempt)
    os.makedirs(growing.stream_path(scratch_dir(spool, "mine", 12), "film.mp4").parent)  # which has not begun
    os.makedirs(growing.stream_path(scratch_dir(spool, "mine.13", 13), "film.mp4").parent)  # of another job
    for only, attempt in ((None, 11), (2, 2)):
        reader = open_newest(spool, "mine", only)
        assert reader is not None
        assert (reader.attempt, reader.read(0, 9)) == (attempt, b"%d" % attempt)
        reader.close()
    assert open_newest(spool, "mine", 3) is None
    assert open_newest(spool, "mine", 12) is None


def test_a_full_disk_is_an_error_of_the_stream_alone(context: JobContext) -> None:
    stream = context.stream("film.mp4")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # which a write meets half-way, as it does a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            stream.write(b"x" * 20)
        assert stream.path.stat().st_size == 10
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    stream.drop()
    assert not stream.path.exists()
    context.partial({"goes": "on"})
    context.close()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_its_name_is_plain(context: JobContext, name: str) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        context.stream(name)


def test_for_another_machine_its_path_means_nothing() -> None:
    told = growing.told(growing.stream_path(growing.Path("/spool"), "film.mp4"), 3)
    gone = growing.without_path(told, "it is on node b")
    assert gone == {"stream": {"media_type": "video/mp4", "attempt": 3, "not_here": "it is on node b"}}
    for other in ({"text": "x"}, {"stream": 5}, [1], None):
        assert growing.without_path(other, "anywhere") == other
