"""The result cache: content, parameters, engine and weights decide; a hit is the result, a doubt is no hit."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import JobMaker, claim_next, dying, failing, in_child, seat

from inference.base import Cancelled
from inference.fake import Fake
from pool.job import Record
from pool.runfiles.heartbeat import Heartbeat
from pool.runfiles.launch import Launch
from pool.spool import fsops
from pool.spool.store import Spool
from pool.supervise.retention import sweep_tmp, trim_cache
from pool.work import cache as cache_module
from pool.work.attempt import Executor
from pool.work.cache import ResultCache, swap_paths
from pool.work.engine import Engine
from pool.work.keeper import Keeper
from pool.work.process_state import ProcessState


@pytest.fixture
def cache(spool: Spool) -> ResultCache:
    return ResultCache(spool, "inference.fake:Fake", "fake-1")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    path = tmp_path / "media"
    path.mkdir()
    (path / "a.wav").write_bytes(b"sound")
    return path


# ---- keys


def test_inputs_count_by_content_and_outputs_by_suffix(cache: ResultCache, media: Path) -> None:
    def key(audio: str, output: str = "out.mp4", **more: Any) -> str:
        params = {"audio": str(media / audio), "output": str(media / output), **more}
        return cache.key(params, [media / audio], [media / output])

    base = key("a.wav")
    (media / "copy.wav").write_bytes(b"sound")
    (media / "link.wav").symlink_to(media / "a.wav")
    (media / "other.wav").write_bytes(b"noise")
    assert base == key("copy.wav") == key("link.wav") == key("a.wav", "elsewhere.mp4")
    different = [key("other.wav"), key("a.wav", "out.mov"), key("a.wav", speakers=2), key("a.wav", speakers="2")]
    assert len({base, *different}) == 5
    (media / "a.wav").write_bytes(b"other sound")
    assert key("a.wav") != base


def test_the_place_of_an_input_counts(cache: ResultCache, media: Path) -> None:
    (media / "b.wav").write_bytes(b"noise")
    inputs = [media / "a.wav", media / "b.wav"]
    one = cache.key({"x": str(inputs[0]), "y": str(inputs[1])}, inputs, [])
    assert one != cache.key({"x": str(inputs[1]), "y": str(inputs[0])}, inputs, [])
    assert one != cache.key({"x": str(inputs[0]), "y": str(inputs[0])}, inputs[:1], [])


def test_an_output_that_is_also_the_input_counts_by_content(cache: ResultCache, media: Path) -> None:
    path = media / "a.wav"
    first = cache.key({"audio": str(path), "output": str(path)}, [path], [path])
    path.write_bytes(b"another sound")
    assert cache.key({"audio": str(path), "output": str(path)}, [path], [path]) != first


def test_engine_and_weights_count(spool: Spool) -> None:
    keys = {ResultCache(spool, *names).key({"a": 1}, [], []) for names in (("e", "1"), ("e", "2"), ("f", "1"))}
    assert len(keys) == 3


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "a", "1"]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["", "a", "1"]), v, max_size=3),
    max_leaves=6,
)


def _exact(value: Any) -> Any:
    """Equal only for what is the same to the last bit: True is not 1."""
    if isinstance(value, dict):
        return ("map", sorted((key, _exact(item)) for key, item in value.items()).__repr__())
    if isinstance(value, list):
        return ("list", [_exact(item) for item in value].__repr__())
    return (type(value).__name__, repr(value))


@given(PLAIN, PLAIN)
def test_other_parameters_another_key(spool: Spool, one: Any, two: Any) -> None:
    cache = ResultCache(spool, "e", "1")
    same = cache.key({"p": one}, [], []) == cache.key({"p": two}, [], [])
    assert same == (_exact(one) == _exact(two))


@pytest.mark.parametrize("text", ["a\0b", "x" * 100_000, "/" * 5000, "~", ".", "\n", "../../etc", "日本語" * 100])
def test_texts_that_are_no_paths_are_texts(cache: ResultCache, media: Path, text: str) -> None:
    key = cache.key({"text": text, "audio": str(media / "a.wav")}, [media / "a.wav"], [])
    assert key == cache.key({"text": text, "audio": str(media / "a.wav")}, [media / "a.wav"], [])
    assert key != cache.key({"text": text + "x", "audio": str(media / "a.wav")}, [media / "a.wav"], [])


def test_a_file_is_hashed_once_until_it_changes(
    cache: ResultCache, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def spy(path: Any, *more: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return open(path, *more, **kwargs)

    monkeypatch.setattr(cache_module, "open", spy, raising=False)
    path = media / "a.wav"
    keys = {cache.key({"audio": str(path)}, [path], []) for _ in range(5)}
    assert (len(keys), len(opened)) == (1, 1)
    path.write_bytes(b"SOUND")
    assert cache.key({"audio": str(path)}, [path], []) not in keys


# ---- entries


def test_a_value_comes_back_with_its_files(cache: ResultCache, media: Path) -> None:
    value = {"text": "ü", "array": np.arange(5), "output": str(media / "out.mp4")}
    for name in ("out.mp4", "out.srt"):
        (media / name).write_bytes(name.encode())
    cache.store("key", value, [media / "out.mp4", media / "out.srt"])
    for name in ("out.mp4", "out.srt"):
        (media / name).unlink()  # the cache has copies
    hit = cache.load("key")
    assert hit is not None
    assert hit[0]["text"] == "ü"
    assert list(hit[0]["array"]) == [0, 1, 2, 3, 4]
    assert [(original, copy.read_bytes()) for original, copy in hit[1]] == [
        (str(media / "out.mp4"), b"out.mp4"),
        (str(media / "out.srt"), b"out.srt"),
    ]
    assert cache.load("another") is None


def test_paths_in_a_value_become_those_of_the_new_call() -> None:
    value = {"output": "/old.mp4", "all": ["/old.mp4", "/older.mp4", {"x": "/old.mp4"}], "text": "see /old.mp4", "n": 1}
    assert swap_paths(value, {"/old.mp4": "/new.mp4"}) == {
        "output": "/new.mp4",
        "all": ["/new.mp4", "/older.mp4", {"x": "/new.mp4"}],
        "text": "see /old.mp4",
        "n": 1,
    }


@pytest.mark.parametrize("damage", ["empty", "cut", "another map", "no list", "a copy is gone", "its folder is gone"])
def test_a_damaged_entry_is_no_hit_and_is_made_anew(cache: ResultCache, spool: Spool, media: Path, damage: str) -> None:
    cache.store("key", {"n": 1}, [media / "a.wav"])
    entry = spool.root / "cache" / "results" / "key.msgpack"
    copies = spool.root / "cache" / "results" / "key"
    if damage == "a copy is gone":
        (copies / "0.wav").unlink()
    elif damage == "its folder is gone":
        fsops.remove_tree(str(copies))
    else:
        contents = {"empty": b"", "cut": entry.read_bytes()[:-2], "another map": b"\x80", "no list": b"\x92\x01\x02"}
        entry.write_bytes(contents[damage])
    assert cache.load("key") is None
    cache.store("key", {"n": 2}, [media / "a.wav"])
    hit = cache.load("key")
    assert hit is not None
    assert hit[0] == {"n": 2}
    assert hit[1][0][1].read_bytes() == b"sound"


def test_killed_anywhere_in_a_store_an_entry_is_whole_or_missing(root: Path, spool: Spool, media: Path) -> None:
    for number in range(1, 20):

        def store(number: int = number) -> None:
            theirs = ResultCache(Spool(root, durable=False), "e", "1")
            dying(number)
            theirs.store("key", {"n": number}, [media / "a.wav"])

        ended = in_child(store)
        cache = ResultCache(spool, "e", "1")
        hit = cache.load("key")
        assert hit is None or hit[1][0][1].read_bytes() == b"sound"
        sweep_tmp(spool)
        assert os.listdir(spool.root / "tmp") == []
        if ended == 0:
            assert number > 3
            return
    pytest.fail("it never came through")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_full_disk_is_no_error_and_leaves_nothing(cache: ResultCache, spool: Spool, media: Path, code: int) -> None:
    for number in range(1, 20):
        seen = failing(number, lambda path: OSError(code, os.strerror(code), path))
        cache.store(f"key-{number}", {"n": number}, [media / "a.wav"])
        fsops.hook = None
        assert os.listdir(spool.root / "tmp") == []
        if sum(seen.values()) < number:
            assert cache.load(f"key-{number}") is not None
            return
    pytest.fail("it never came through")


def test_what_cannot_be_stored_is_not(cache: ResultCache, media: Path) -> None:
    cache.store("key", {"a": object()}, [media / "a.wav"])
    cache.store("other", {"a": 1}, [media / "nowhere.mp4"])
    assert cache.load("key") is None
    assert cache.load("other") is None


def test_the_least_recently_used_goes_first(cache: ResultCache, spool: Spool, media: Path) -> None:
    (media / "big.mp4").write_bytes(b"x" * 10_000)
    for number in range(5):
        cache.store(f"key-{number}", {"n": number}, [media / "big.mp4"])
        os.utime(spool.root / "cache" / "results" / f"key-{number}.msgpack", (1000 + number, 1000 + number))
    assert cache.load("key-0") is not None  # used just now
    trim_cache(spool, 25_000)
    assert [number for number in range(5) if cache.load(f"key-{number}")] == [0, 4]
    assert sorted(os.listdir(spool.root / "cache" / "results")) == ["key-0", "key-0.msgpack", "key-4", "key-4.msgpack"]
    trim_cache(spool, 0)
    assert os.listdir(spool.root / "cache" / "results") == []


# ---- with an engine


class Counting(Fake):
    """Writes its outputs in another order than it announces them, and counts its runs."""

    runs = 0
    during: Callable[[], object] = staticmethod(lambda: None)

    def files(self, params: Any) -> Any:
        from inference.base import Files

        path = Path(params.output)
        return Files((Path(params.audio),), (path, path.with_suffix(".srt")))

    def run(self, params: Any, context: Any) -> dict[str, Any]:
        type(self).runs += 1
        path = Path(params.output)
        for final in (path.with_suffix(".srt"), path):
            context.output(final, final.name).write_bytes(f"{final.suffix} {type(self).runs}".encode())
        type(self).during()
        return {"output": str(path), "subtitles": str(path.with_suffix(".srt")), "run": type(self).runs}


@pytest.fixture
def run(spool: Spool, make_job: JobMaker, media: Path) -> Iterator[Callable[..., Record]]:
    """Runs one job on a Counting engine with the cache on; its record."""
    Counting.runs, Counting.during = 0, staticmethod(lambda: None)
    engine = Engine(f"{__name__}:Counting")
    engine.load("cpu", {})
    engine.ready()
    worker = seat(spool, 1, "fake")
    beat = Heartbeat(f"{spool.root}/run/heartbeats/{worker}")
    launch = Launch(str(spool.root), str(worker), "inference.fake:Fake", durable=False, cache_enabled=True)
    executor = Executor(
        spool,
        launch,
        engine,
        beat,
        keeper=Keeper(ProcessState()),
        cancelled_type=Cancelled,
        draining=lambda: False,
        siblings=lambda: False,
    )
    serial = itertools.count()

    def do(audio: str = "a.wav", **more: Any) -> Record:
        output = str(media / f"out-{next(serial)}.mp4")
        job = make_job("fake", params={"audio": str(media / audio), "output": output, **more})
        spool.submit(job)
        executor.run(claim_next(spool, worker))
        return spool.read_record(job.id)

    yield do
    beat.close()


def test_the_second_call_is_a_copy_with_its_own_paths(run: Callable[..., Record], media: Path) -> None:
    first, second = run(), run()
    assert (first.cached, second.cached, Counting.runs) == (False, True, 1)
    assert second.value == {
        "output": str(media / "out-1.mp4"),
        "subtitles": str(media / "out-1.srt"),
        "run": 1,
    }
    assert (media / "out-1.mp4").read_bytes() == b".mp4 1"  # whatever the order in which they were written
    assert (media / "out-1.srt").read_bytes() == b".srt 1"
    assert {file["path"] for file in second.files} == {str(media / "out-1.mp4"), str(media / "out-1.srt")}
    assert run(value=1).cached is False
    (media / "a.wav").write_bytes(b"another sound")
    assert run().cached is False


def test_an_input_that_changed_while_it_was_used_is_not_remembered(run: Callable[..., Record], media: Path) -> None:
    """Else the old content would be answered with a result of the new one, for ever."""
    Counting.during = staticmethod(lambda: (media / "a.wav").write_bytes(b"replaced"))
    run()
    Counting.during = staticmethod(lambda: None)
    (media / "a.wav").write_bytes(b"sound")
    assert run().cached is False
    assert run().cached is True


def test_an_input_that_is_gone_afterwards_is_no_error(run: Callable[..., Record], media: Path) -> None:
    Counting.during = staticmethod(lambda: (media / "a.wav").unlink())
    assert run().state.value == "completed"


def test_a_copy_that_was_trimmed_at_this_moment_means_work(
    run: Callable[..., Record], spool: Spool, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    real = ResultCache.load

    def load(self: ResultCache, key: str) -> Any:
        hit = real(self, key)
        trim_cache(spool, 0)
        return hit

    with monkeypatch.context() as patch:
        patch.setattr(ResultCache, "load", load)
        record = run()
    assert (record.state.value, record.cached, Counting.runs) == ("completed", False, 2)
    assert (media / "out-1.mp4").read_bytes() == b".mp4 2"
    assert not [name for name in os.listdir(media) if ".part" in name]
    assert run().cached is True
