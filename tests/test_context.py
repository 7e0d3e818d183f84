"""What an engine holds in its hands: places, progress, parts of a result, cancellation; and outputs, whole or not."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import JobMaker, claim_next, failing, seat

from pool.constants import PROGRESS_INTERVAL_S, STATUSES
from pool.errors import ProtocolError
from pool.runfiles import heartbeat
from pool.runfiles.heartbeat import Heartbeat
from pool.spool import fsops, lookup
from pool.spool.attempts import cancel_path, partial_path, read_partials, scratch_dir, sweep_attempt
from pool.spool.store import Spool
from pool.stages import STAGES_MOST
from pool.work.context import JobCancelled, JobContext, RefusedInput

ContextMaker = Callable[..., JobContext]


@pytest.fixture
def make_context(spool: Spool, make_job: JobMaker, beat: Heartbeat) -> ContextMaker:
    def make(id: str = "mine", **more: Any) -> JobContext:
        spool.submit(make_job(id=id))
        claim = claim_next(spool, seat(spool))
        return JobContext(spool, spool.read_claim(claim), claim.name, beat, **more)

    return make


@pytest.fixture
def context(make_context: ContextMaker) -> JobContext:
    return make_context()


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder of the caller's."""
    path = tmp_path / "media"
    path.mkdir()
    return path


# ---- places


def test_scratch_is_of_this_attempt_and_goes(context: JobContext, spool: Spool) -> None:
    (context.scratch / "deep" / "er").mkdir(parents=True)
    (context.scratch / "deep" / "file").touch()
    assert context.scratch == scratch_dir(spool, "mine", 1)
    context.close()
    assert os.listdir(spool.root / "run" / "scratch") == []


def test_the_cache_is_of_the_engine_and_stays(context: JobContext, spool: Spool) -> None:
    (context.cache / "template").touch()
    context.close()
    assert (spool.root / "cache" / "echo" / "template").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/passwd", "a/b", ".hidden"])
def test_names_of_outputs_are_plain(context: JobContext, name: str) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        context.output(None, name)


def test_an_output_goes_where_it_can(context: JobContext, media: Path) -> None:
    for path, word in ((media / "nowhere" / "out.mp4", "does not exist"), (media, "is a folder")):
        with pytest.raises(RefusedInput, match=word) as caught:
            context.output(path, "out.mp4")
        assert caught.value.kind == "input"
        assert str(path) in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize("name", ["a\0b.mp4", "a\0b/c.mp4", "x" * 300, "x" * 300 + "/c.mp4", "x/" * 3000, "\ud800"])
def test_what_no_file_can_be_called_is_the_callers_mistake(context: JobContext, media: Path, name: str) -> None:
    with pytest.raises(RefusedInput, match="no file can have this path") as caught:
        context.output(media / name, "out.mp4")
    assert len(str(caught.value)) < 500
    str(caught.value).encode()  # the record can hold it
    assert context.publish_outputs(sync=False) == ()


# ---- outputs


def test_outputs_appear_only_at_the_end_and_whole(context: JobContext, spool: Spool, media: Path) -> None:
    final = media / "out.mp4"
    final.write_bytes(b"what was there before")
    part, own = context.output(final, "out.mp4"), context.output(None, "subtitles.srt")
    assert part.parent == media
    assert part.name.startswith(".out.")
    assert part.suffix == ".mp4"  # a writer tells the format by it
    part.write_bytes(b"x" * 3_000_000)
    own.write_bytes(b"1")
    assert final.read_bytes() == b"what was there before"
    assert not spool.files_dir("mine").exists()
    files = context.publish_outputs(sync=True)
    context.close()
    assert files == (
        {"path": str(final), "size": 3_000_000, "sha256": hashlib.sha256(b"x" * 3_000_000).hexdigest()},
        {"path": str(spool.files_dir("mine") / "subtitles.srt"), "size": 1, "sha256": hashlib.sha256(b"1").hexdigest()},
    )
    assert os.listdir(media) == ["out.mp4"]
    assert final.read_bytes() == b"x" * 3_000_000
    assert os.listdir(spool.root / "run" / "scratch") == []


def test_what_an_engine_did_not_write_is_no_output(context: JobContext, media: Path) -> None:
    context.output(media / "optional.srt", "optional.srt")
    assert context.publish_outputs(sync=False) == ()
    context.close()
    assert os.listdir(media) == []


def test_a_failed_attempt_leaves_what_was_there(context: JobContext, media: Path) -> None:
    final = media / "out.mp4"
    final.write_bytes(b"before")
    context.output(final, "out.mp4").write_bytes(b"half")
    context.close()
    assert os.listdir(media) == ["out.mp4"]
    assert final.read_bytes() == b"before"


@pytest.mark.invariant(12)
def test_media_are_on_disk_before_they_have_their_name(context: JobContext, media: Path, spool: Spool) -> None:
    context.output(media / "out.mp4", "out.mp4").write_bytes(b"x")
    context.output(None, "own.srt").write_bytes(b"x")
    trace: list[tuple[str, str]] = []
    fsops.hook = lambda operation, path: trace.append((operation, Path(path).name))
    context.publish_outputs(sync=True)
    fsops.hook = None
    assert trace[:2] == [("fsync", ".out.mine.part.mp4"), ("replace", "out.mp4")]
    assert trace[2:6] == [("fsync", "own.srt"), ("mkdir", "mine"), ("syncdir", "out"), ("replace", "own.srt")]
    assert sorted(trace[6:]) == [("syncdir", "media"), ("syncdir", "mine")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_publishing_goes_on_where_an_error_stopped_it(make_context: ContextMaker, media: Path, code: int) -> None:
    """The record must name every file, also those that had their name before the error."""
    for number in range(1, 20):
        context = make_context(f"job-{number}")
        for name in ("a.mp4", "b.mp4"):
            context.output(media / name, name).write_bytes(f"{number}".encode())
        context.output(None, "c.srt").write_bytes(b"c")
        failing(number, lambda path: OSError(code, os.strerror(code), path))
        try:
            files = context.publish_outputs(sync=True)
            failed = False
        except OSError:
            fsops.hook = None
            files = context.publish_outputs(sync=True)
            failed = True
        fsops.hook = None
        context.close()
        assert [Path(file["path"]).name for file in files] == ["a.mp4", "b.mp4", "c.srt"], number
        assert all(Path(file["path"]).stat().st_size == file["size"] for file in files)
        assert (media / "a.mp4").read_bytes() == f"{number}".encode()
        assert sorted(os.listdir(media)) == ["a.mp4", "b.mp4"]
        if not failed:
            assert number > 10
            return
    pytest.fail("it never came through")


NAMES = [
    "x" * 251 + ".mp4",
    "録" * 83 + ".mp4",
    "a" + "録" * 83 + ".srt",
    "x" * 255,
    "." + "x" * 250,
    "a." + "x" * 253,
    "a b.mp4",
    "new\nline.mp4",
    "-rf.mp4",
    "'q\".mp4",
    "no suffix",
    ".mp4",
    "x" * 100 + ".tar.gz",
    "\udcff\udcfe.mp4",
    "a\x1cb\u2028c.mp4",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_the_disk_takes_is_taken(make_context: ContextMaker, spool: Spool, media: Path, name: str) -> None:
    """Long and strange ones, with the longest id there is; and what a killed worker left of them is swept."""
    for number, ending in enumerate(("published", "swept")):
        context = make_context("i" * 99 + str(number))
        final = media / name
        part = context.output(final, "out")
        part.write_bytes(ending.encode())
        assert len(os.fsencode(part.name)) <= 255
        assert part.name.startswith(".")
        assert len(os.fsencode(final.suffix)) > 20 or part.suffix == final.suffix or not final.suffix
        if ending == "published":
            context.publish_outputs(sync=False)
            context.close()
        else:  # killed: the supervisor knows only the id and the attempt
            sweep_attempt(spool, context.job_id, 1)
        assert os.listdir(media) == [name]
        assert final.read_bytes() == b"published"


def test_sweeping_removes_nothing_but_parts_of_this_job(context: JobContext, spool: Spool, media: Path) -> None:
    keep = [media / "precious.mp4", media / ".x.other.part.mp4"]
    for path in keep:
        path.touch()
    context.scratch.joinpath("outputs.list").write_text(
        "\0".join([*map(str, keep), str(media), "", "/", str(media / "nowhere" / ".x.mine.part"), "relative.mine.part"])
    )
    sweep_attempt(spool, "mine", 1)
    assert sorted(media.iterdir()) == sorted(keep)
    sweep_attempt(spool, "mine", 1)  # and nothing there is nothing to do


# ---- progress


def test_progress_is_told_and_is_a_sign_of_life(context: JobContext, spool: Spool) -> None:
    context.progress("face_detecting", 12.5, "frame 3 of 24")
    word = lookup.progress(spool, "mine")
    assert word is not None
    assert (word.status, word.percent, word.message, word.attempt) == ("face_detecting", 12.5, "frame 3 of 24", 1)
    assert 0 <= spool.now() - word.at < 5_000_000
    read = heartbeat.read(f"{spool.root}/run/heartbeats/echo-0.1")
    assert read is not None
    assert read.stage == "face_detecting"
    assert read.progress == 1
    assert context.stage == "face_detecting"
    assert context.told


def test_it_may_be_told_as_often_as_one_likes(context: JobContext, spool: Spool) -> None:
    written: list[str] = []
    fsops.hook = lambda operation, path: written.append(path) if operation == "replace" else None
    begun = time.monotonic()
    for number in range(20_000):
        context.progress("inference", number / 200)
    spent = time.monotonic() - begun
    fsops.hook = None
    assert len(written) <= spent / PROGRESS_INTERVAL_S + 2
    read = heartbeat.read(f"{spool.root}/run/heartbeats/echo-0.1")
    assert read is not None
    assert read.progress <= spent / 0.05 + 2


def test_a_change_of_status_is_told_at_once(context: JobContext, spool: Spool) -> None:
    for status in STATUSES:
        context.progress(status, 1.0)
        word = lookup.progress(spool, "mine")
        assert word is not None
        assert word.status == status


def test_changes_of_status_are_kept_with_their_times_and_counted_beyond_a_limit(
    context: JobContext, spool: Spool
) -> None:
    assert not context.stages
    begun = spool.now()
    for status in ("downloading", "inference", "inference", "merging_audio"):
        context.progress(status, 1.0)
    word = lookup.progress(spool, "mine")
    assert word is not None
    assert word.stages == context.stages
    assert [one.status for one in word.stages.changes] == ["downloading", "inference", "merging_audio"]
    times = [begun, *(one.at for one in word.stages.changes), spool.now()]
    assert times == sorted(times)
    for number in range(STAGES_MOST):
        context.progress(("inference", "merging_audio")[number % 2], 1.0)
    assert (len(context.stages.changes), context.stages.left_out) == (STAGES_MOST, 3)
    word = lookup.progress(spool, "mine")
    assert word is not None
    assert word.stages == context.stages


@given(st.floats() | st.integers(-(10**6), 10**6), st.text(st.characters(), max_size=700))
def test_percent_and_message_are_bent_into_shape(make_job: JobMaker, spool: Spool, percent: float, text: str) -> None:
    spool.submit(make_job())
    claim = claim_next(spool, seat(spool))
    beat = Heartbeat(f"{spool.root}/run/heartbeats/echo-0.2")
    context = JobContext(spool, spool.read_claim(claim), claim.name, beat)
    context.progress("inference", percent, text)
    beat.close()
    word = lookup.progress(spool, context.job_id)
    assert word is not None
    assert 0.0 <= word.percent <= 100.0
    assert not math.isnan(word.percent)
    assert len(word.message) <= 500


@pytest.mark.parametrize("status", ["", "Inference", "done", "running"])
def test_a_status_is_one_of_ours(context: JobContext, status: str) -> None:
    with pytest.raises(ValueError, match="is not a status: queued, "):
        context.progress(status, 1.0)


def test_progress_costs_no_job_on_a_full_disk(context: JobContext, spool: Spool) -> None:
    for number in range(1, 4):
        failing(number, lambda path: OSError(errno.ENOSPC, "No space left", path))
        context.progress(STATUSES[number], 1.0)
        fsops.hook = None
    assert os.listdir(spool.root / "tmp") == []
    context.progress("merging_audio", 99.0)
    assert lookup.progress(spool, "mine") is not None


# ---- parts of a result


def test_parts_come_back_in_order_and_once(context: JobContext, spool: Spool) -> None:
    path, seen, offset = partial_path(spool, "mine", 1), [], 0
    assert read_partials(path, 0) == ([], 0)
    for number in range(50):
        context.partial({"n": number, "text": "ü" * number})
        if number % 7 == 0:
            records, offset = read_partials(path, offset)
            seen += records
    records, offset = read_partials(path, offset)
    assert [record["n"] for record in seen + records] == list(range(50))
    assert read_partials(path, offset) == ([], offset)
    context.partial({"array": np.arange(5)})
    ((record,), _) = read_partials(path, offset)
    assert list(record["array"]) == [0, 1, 2, 3, 4]
    context.close()


def test_a_part_that_is_being_written_is_read_later(context: JobContext, spool: Spool) -> None:
    context.partial({"n": 1})
    context.partial({"n": 2})
    path = Path(partial_path(spool, "mine", 1))
    whole = path.read_bytes()
    first = 4 + struct.unpack_from("<I", whole)[0]
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert read_partials(str(path), 0) == ([{"n": 1}], first)
    path.write_bytes(whole)
    assert read_partials(str(path), first) == ([{"n": 2}], len(whole))
    context.close()


def test_a_part_that_cannot_be_stored_is_the_engines_mistake(context: JobContext) -> None:
    with pytest.raises(ProtocolError, match="a: an object cannot be stored"):
        context.partial({"a": object()})
    context.close()


def test_parts_on_a_disk_that_fills_up_are_whole_or_missing(
    small_disk: Path, make_job: JobMaker, beat: Heartbeat
) -> None:
    spool = Spool.create(small_disk / "spool", durable=False)
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    context = JobContext(spool, spool.read_claim(claim), claim.name, beat)
    for number in range(30):
        context.partial({"n": number, "ballast": "x" * 15_000})
    path = partial_path(spool, "mine", 1)
    records, offset = read_partials(path, 0)
    assert 5 < len(records) < 30
    assert [record["n"] for record in records] == list(range(len(records)))
    assert offset == os.stat(path).st_size
    context.partial({"n": "after"})  # a short one still fits
    assert read_partials(path, offset)[0] == [{"n": "after"}]
    context.close()


def test_parts_cost_no_job_when_they_cannot_be_opened(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        context.partial({"n": 1})
    context.partial({"n": 2})
    context.close()


# ---- cancellation


class TheirOwn(BaseException):
    """As inference.base.Cancelled."""


@pytest.mark.parametrize("kind", [JobCancelled, TheirOwn])
def test_a_cancelled_job_notices(make_context: ContextMaker, spool: Spool, kind: type[BaseException]) -> None:
    context = make_context(cancelled_type=kind)
    context.check()
    assert context.cancelled is False
    Path(cancel_path(spool, "mine")).touch()
    deadline = time.monotonic() + 5
    while not context.cancelled:
        assert time.monotonic() < deadline
    with pytest.raises(kind):
        context.check()
    assert not issubclass(kind, Exception)  # `except Exception` in an engine must not swallow it
    os.unlink(cancel_path(spool, "mine"))
    assert context.cancelled  # it stays


def test_asking_often_costs_little(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    real = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: looks.append(path) or real(path))
    begun = time.monotonic()
    for _ in range(20_000):
        context.check()
    assert len(looks) <= (time.monotonic() - begun) / 0.05 + 2
