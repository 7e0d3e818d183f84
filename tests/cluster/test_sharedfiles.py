"""Files at shared URLs: fetched once as long as they stay the same, sent whole, and no URL leads elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pool.cluster import parcels, sharedfiles
from pool.cluster.mediacache import Cache
from pool.cluster.shared import is_shared
from pool.cluster.sharedfiles import SharedError, fetched, send, sent
from pool.errors import JobRefused, ProtocolError
from pool.job import JobState, Record

SHARED = ["memory://bucket"]


@pytest.fixture
def memory() -> Iterator[Any]:
    """A file system of fsspec that counts how often a file is opened."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    opened: list[str] = []
    files.opened = opened
    real = type(files)._open

    def counted(self: Any, path: str, *args: Any, **more: Any) -> Any:
        opened.append(path)
        return real(self, path, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(files), "_open", counted)
        yield files
    files.store.clear()


def test_a_file_at_a_url_is_fetched_while_it_stays_the_same(tmp_path: Path, memory: Any) -> None:
    url = "memory://bucket/in/talk 1.wav"
    memory.pipe("/bucket/in/talk 1.wav", b"one")
    memory.opened.clear()

    async def main() -> None:
        for _ in range(2):
            cache = Cache(tmp_path, 1 << 20)
            async with fetched([url], cache) as paths:
                assert paths[url].read_bytes() == b"one"
                assert paths[url].name == "talk 1.wav"
        assert len(memory.opened) == 1
        time.sleep(0.01)
        memory.pipe("/bucket/in/talk 1.wav", b"other")
        async with fetched([url, url], cache) as paths:
            assert paths[url].read_bytes() == b"other"
        memory.rm("/bucket/in/talk 1.wav")
        with pytest.raises(SharedError, match="no such file") as caught:
            async with fetched([url], cache):
                pytest.fail("it is gone")
        assert caught.value.missing
        with pytest.raises(SharedError, match="nosuch"):
            async with fetched(["nosuch://bucket/x"], cache):
                pytest.fail("there is no such protocol")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    asyncio.run(main())


def test_a_copy_that_was_removed_is_fetched_again(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/bucket/a.wav", b"one")

    async def main() -> None:
        cache = Cache(tmp_path, 0)  # keeps nothing
        for _ in range(2):
            async with fetched(["memory://bucket/a.wav"], cache) as paths:
                assert paths["memory://bucket/a.wav"].read_bytes() == b"one"

    asyncio.run(main())


def test_notes_of_urls_have_a_bound(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharedfiles, "_NOTES", 3)

    async def main() -> None:
        cache = Cache(tmp_path, 1 << 20)
        for number in range(8):
            memory.pipe(f"/bucket/{number}", b"%d" % number)
            async with fetched([f"memory://bucket/{number}"], cache) as paths:
                assert paths[f"memory://bucket/{number}"].read_bytes() == b"%d" % number
            assert len(list((tmp_path / "urls").iterdir())) <= 3

    asyncio.run(main())


def test_an_output_is_sent_whole(tmp_path: Path, memory: Any) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"film")
    asyncio.run(send(path, "memory://bucket/out/a.mp4"))
    assert memory.cat("/bucket/out/a.mp4") == b"film"
    other = f"file://{tmp_path}/there.mp4"  # stands for a file system with renames
    asyncio.run(send(path, other))
    assert (tmp_path / "there.mp4").read_bytes() == b"film"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.mp4", "there.mp4"]
    with pytest.raises(SharedError, match="written"):
        asyncio.run(send(path, f"file://{tmp_path}/none/there.mp4"))
    record = Record("a", "fake", JobState.COMPLETED, 1, 0, 0, 0, value={"output": str(path)})
    record = replace(record, files=({"path": str(path), "size": 4, "sha256": "x"},))
    done = sent(record, {path: "memory://bucket/out/a.mp4"})
    assert done.value == {"output": "memory://bucket/out/a.mp4"}
    assert done.files[0]["path"] == "memory://bucket/out/a.mp4"
    assert parcels.outgoing(done, tmp_path, shared=SHARED) == parcels.Produced((), ())


def test_urls_where_an_engine_wants_paths(tmp_path: Path) -> None:
    calls = [
        {"audio": "memory://bucket/a.wav", "text": "memory://bucket/text", "output": "memory://bucket/x/a.mp4"},
        {"audio": {"$output": "a.mp4"}, "output": "memory://bucket/y/a.mp4"},
        {"audio": "memory://other/a.wav", "output": None},
    ]
    found = parcels.shared_urls(calls, path_keys={"audio", "output"}, shared=SHARED)
    assert found.inputs == ("memory://bucket/a.wav",)
    assert found.outputs == {"memory://bucket/x/a.mp4": "a-2.mp4", "memory://bucket/y/a.mp4": "a-3.mp4"}
    urls = {url: tmp_path / name for url, name in found.outputs.items()}
    urls["memory://bucket/a.wav"] = Path("/cache/a.wav")
    keys = {"audio", "output"}
    assert parcels.unpack(calls[0], {}, tmp_path, shared=SHARED, path_keys=keys, urls=urls) == {
        "audio": "/cache/a.wav",
        "text": "memory://bucket/text",
        "output": f"{tmp_path}/a-2.mp4",
    }
    same = "memory://bucket/a.wav"
    for params in ([{"audio": same, "output": same}], [{"output": same}, {"output": same}]):
        with pytest.raises(JobRefused):
            parcels.shared_urls(params, path_keys={"audio"}, shared=SHARED)
    with pytest.raises(ProtocolError):
        parcels.shared_urls([{"output": {"$output": "../x"}}], shared=SHARED)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("s3://bucket/a", True),
        ("s3://bucket/a..b/c", True),
        ("s3://bucket/../secret", False),
        ("s3://bucket/%2e%2E/secret", False),
        ("s3://bucket/a%2f..%2fsecret", False),
        ("s3://bucket/./a", False),
        ("s3://bucket/a/..", False),
        ("s3://bucketeer/a", False),
        ("s3://bucket/a::file:///etc/passwd", False),
        ("simplecache::s3://bucket/a", False),
        ("file:///mnt/share/a", False),
        ("/mnt/share/a", True),
        ("/mnt/share", True),
        ("/mnt/share/../a", False),
        ("/mnt/shared", False),
        ("mnt/share/a", False),
        ("", False),
    ],
)
def test_what_is_shared(text: str, good: bool) -> None:
    assert is_shared(text, ["s3://bucket/", "/mnt/share/", "file:///mnt/share"]) is good
    assert not is_shared(text, [])
    assert not is_shared(text, ["/"])
