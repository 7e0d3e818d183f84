"""Media on the disk of a node: fetched once, there as long as somebody uses them, within bounds otherwise."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.rig import Servers
from pool.cluster.media import MediaGone, Store
from pool.cluster.mediacache import Cache, CacheFull, safe_name
from pool.cluster.wire import Blob
from pool.errors import SpoolFull

KB = 1024


class Shelf:
    """A store in memory that counts. pause: each get waits for it. full: how many gets find no room on the disk."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.gets: list[str] = []
        self.pause: asyncio.Event | None = None
        self.full = 0

    def add(self, size: int, name: str = "a.wav", seed: bytes = b"") -> Blob:
        content = (hashlib.sha256(seed + name.encode()).digest() * (size // 32 + 1))[:size]
        sha = hashlib.sha256(content).hexdigest()
        self.contents[sha] = content
        return Blob(sha, size, name)

    async def get(self, blob: Blob, path: Path, *, mode: int = 0o666, temp: Path | None = None) -> None:
        self.gets.append(blob.sha256)
        if self.pause is not None:
            await self.pause.wait()
        if blob.sha256 not in self.contents:
            raise MediaGone(f"{blob.sha256} is gone")
        if self.full:
            self.full -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        part = temp or path
        part.write_bytes(self.contents[blob.sha256])
        part.chmod(mode)
        part.rename(path)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def contents(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


def test_a_content_is_fetched_once_and_has_all_its_names(tmp_path: Path, shelf: Shelf) -> None:
    blob = shelf.add(KB, "talk.m4a")
    other = Blob(blob.sha256, blob.size, "talk.mov")

    async def main() -> None:
        cache = Cache(tmp_path / "deep" / "cache", 100 * KB)
        for _ in range(2):
            async with cache.have(shelf, [blob, other, blob]) as paths:
                assert paths == {
                    blob: cache.folder / blob.sha256 / "talk.m4a",
                    other: cache.folder / blob.sha256 / "talk.mov",
                }
                assert os.path.samefile(*paths.values())
                for path in paths.values():
                    assert path.read_bytes() == shelf.contents[blob.sha256]
                    path.unlink()  # as an engine does with `delete_after_transcription`
        assert shelf.gets == [blob.sha256]

    asyncio.run(main())


def test_a_file_that_is_used_again_is_the_same_to_an_engine(tmp_path: Path, shelf: Shelf) -> None:
    """They remember what they found out about a file by its number and times."""
    blob = shelf.add(KB)

    async def main() -> None:
        cache, found = Cache(tmp_path, 100 * KB), set()
        for _ in range(3):
            async with cache.have(shelf, [blob]) as paths:
                about = paths[blob].stat()
                found.add((about.st_ino, about.st_mtime_ns, about.st_ctime_ns))
            time.sleep(0.02)
        assert len(found) == 1

    asyncio.run(main())


def test_users_at_once_share_one_fetch(tmp_path: Path, shelf: Shelf) -> None:
    blob = shelf.add(KB)

    async def main() -> None:
        cache, shelf.pause = Cache(tmp_path, 100 * KB), asyncio.Event()

        async def use() -> bytes:
            async with cache.have(shelf, [blob]) as paths:
                return paths[blob].read_bytes()

        users = [asyncio.ensure_future(use()) for _ in range(10)]
        while not shelf.gets:
            await asyncio.sleep(0)
        users[0].cancel()  # the one that fetches
        shelf.pause.set()
        assert await asyncio.gather(*users[1:]) == [shelf.contents[blob.sha256]] * 9
        assert len(shelf.gets) == 2
        assert contents(cache) == {blob.sha256}

    asyncio.run(main())


def test_the_least_recently_used_goes_and_none_that_is_used(tmp_path: Path, shelf: Shelf) -> None:
    a, b, c, d = (shelf.add(10 * KB, name) for name in ("a", "b", "c", "d"))

    async def main() -> None:
        cache = Cache(tmp_path, 30 * KB)
        for blob in (a, b, c):
            async with cache.have(shelf, [blob]):
                pass
        async with cache.have(shelf, [a]):
            pass
        async with cache.have(shelf, [d]):
            assert contents(cache) == {a.sha256, c.sha256, d.sha256}
            async with cache.have(shelf, [c, a]) as paths:
                async with cache.have(shelf, [b]):  # nothing can go
                    assert contents(cache) == {blob.sha256 for blob in (a, b, c, d)}
                    assert all(path.exists() for path in paths.values())
                assert contents(cache) == {a.sha256, c.sha256, d.sha256}
        assert len(shelf.gets) == 5

    asyncio.run(main())


def test_a_content_larger_than_the_cache_works_and_goes(tmp_path: Path, shelf: Shelf) -> None:
    small, large = shelf.add(KB, "small"), shelf.add(50 * KB, "large")

    async def main() -> None:
        cache = Cache(tmp_path, 30 * KB)
        async with cache.have(shelf, [small]):
            pass
        async with cache.have(shelf, [large]) as paths:
            assert paths[large].stat().st_size == 50 * KB
            assert contents(cache) == {large.sha256}
        assert contents(cache) == set()

    asyncio.run(main())


def test_a_content_that_lost_its_end_is_fetched_again(tmp_path: Path, shelf: Shelf) -> None:
    blob = shelf.add(KB)

    async def main() -> None:
        cache = Cache(tmp_path, 100 * KB)
        async with cache.have(shelf, [blob]) as paths:
            damaged = paths[blob]
        damaged.chmod(0o600)
        os.truncate(damaged, 10)
        async with cache.have(shelf, [blob]) as paths:
            assert paths[blob].read_bytes() == shelf.contents[blob.sha256]

    asyncio.run(main())


def test_what_is_not_in_the_store_leaves_nothing(tmp_path: Path, shelf: Shelf) -> None:
    blob, gone = shelf.add(KB), Blob("0" * 64, 5, "x")

    async def main() -> None:
        cache = Cache(tmp_path, 0)
        with pytest.raises(MediaGone):
            async with cache.have(shelf, [blob, gone]):
                pytest.fail("not all of them are there")
        assert contents(cache) == set()

    asyncio.run(main())


def test_a_full_disk_takes_what_nobody_uses_and_is_then_an_error(tmp_path: Path, shelf: Shelf) -> None:
    a, b, c = (shelf.add(10 * KB, name) for name in ("a", "b", "c"))

    async def main() -> None:
        cache = Cache(tmp_path, 1000 * KB)
        async with cache.have(shelf, [a]):
            pass
        async with cache.have(shelf, [b]):
            shelf.full = 1
            async with cache.have(shelf, [c]):
                assert contents(cache) == {b.sha256, c.sha256}
            shelf.full = 2
            with pytest.raises(CacheFull, match=str(tmp_path)) as caught:
                async with cache.have(shelf, [a]):
                    pytest.fail("there was no room")
            assert isinstance(caught.value, SpoolFull)
            assert contents(cache) == {b.sha256}

    asyncio.run(main())


def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path, server: Servers) -> None:
    async def main() -> None:
        async with server.connected() as client:
            store, cache = await Store.open(client.jetstream()), Cache(small_disk / "cache", 1 << 30)
            blobs = []
            for name, size in (("a", 150 * KB), ("b", 150 * KB), ("c", 400 * KB)):
                (tmp_path / name).write_bytes(name.encode() * size)
                blobs.append(await store.put(tmp_path / name, holder="test"))
            async with cache.have(store, blobs[:1]):
                with pytest.raises(CacheFull, match="no room"):
                    async with cache.have(store, blobs[1:2]):
                        pytest.fail("there was no room")
                assert contents(cache) == {blobs[0].sha256}
            async with cache.have(store, blobs[1:2]):
                assert contents(cache) == {blobs[1].sha256}
            with pytest.raises(CacheFull, match="no room"):
                async with cache.have(store, blobs[2:]):
                    pytest.fail("there was no room")
            assert contents(cache) == set()

    asyncio.run(main())


HOLD = """
import asyncio, sys
from pathlib import Path
from pool.cluster.mediacache import Cache
from pool.cluster.wire import Blob
class Shelf:
    async def get(self, blob, path, *, mode, temp):
        temp.write_bytes(b"x" * blob.size)
        if "half" in sys.argv:
            print("half", flush=True)
            await asyncio.sleep(600)
        temp.rename(path)
async def main():
    cache = Cache(Path(sys.argv[1]), 1000)
    async with cache.have(Shelf(), [Blob("a" * 64, 900, "held.wav")]) as paths:
        print("held", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def start(folder: Path, env: dict[str, str], *more: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", textwrap.dedent(HOLD), str(folder), *more]
    child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == (more[0] if more else "held")
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate()


def test_what_another_process_uses_stays_until_it_ends(tmp_path: Path, shelf: Shelf, child_env: dict[str, str]) -> None:
    blob = shelf.add(900, "other")

    async def main() -> None:
        async with cache.have(shelf, [blob]):
            found.append(contents(cache))

    cache, found = Cache(tmp_path, 1000), list[set[str]]()
    child = start(tmp_path, child_env)
    try:
        asyncio.run(main())
        assert found[-1] == {"a" * 64, blob.sha256}
    finally:
        end(child)
    asyncio.run(main())
    assert found[-1] == {blob.sha256}


def test_a_killed_process_leaves_what_the_next_start_sweeps(tmp_path: Path, child_env: dict[str, str]) -> None:
    child = start(tmp_path, child_env, "half")
    try:
        assert [name.startswith(".in-") for name in contents(Cache(tmp_path, 1000))] == [True]  # it lives
    finally:
        end(child)
    assert contents(Cache(tmp_path, 1000)) == set()


FIGHT = """
import asyncio, hashlib, random, sys
from pathlib import Path
from pool.cluster.mediacache import Cache
from pool.cluster.wire import Blob
class Shelf:
    async def get(self, blob, path, *, mode, temp):
        temp.write_bytes(bytes([int(blob.name)]) * blob.size)
        temp.rename(path)
async def main():
    cache = Cache(Path(sys.argv[1]), 2500)
    async def use():
        for _ in range(100):
            n = random.randrange(6)
            blob = Blob(hashlib.sha256(bytes([n])).hexdigest(), 1000, str(n))
            async with cache.have(Shelf(), [blob]) as paths:
                await asyncio.sleep(0)
                assert paths[blob].read_bytes() == bytes([n]) * 1000
    await asyncio.gather(*(use() for _ in range(4)))
asyncio.run(main())
"""


def test_processes_that_evict_each_others_contents_never_miss_their_own(
    tmp_path: Path, child_env: dict[str, str]
) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(FIGHT), str(tmp_path)]
    children = [subprocess.Popen(argv, env=child_env, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], said


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("talk.m4a", "talk.m4a"),
        ("My talk (2).MP4", "My talk (2).MP4"),
        ("Gespräch 会议.wav", "Gespräch 会议.wav"),
        ("../../etc/passwd", "passwd"),
        ("frame%03d.png", "frame_03d.png"),
        ("-i.mp4", "i.mp4"),
        (".hidden", "hidden"),
        (".mp4", "mp4"),
        ("a\0b\n.wav", "a_b_.wav"),
        ("concat:a|b.ts", "concat_a_b.ts"),
        ("", "media"),
        ("..", "media"),
        ("x" * 300 + ".mp4", "x" * 116 + ".mp4"),
    ],
)
def test_names_are_made_safe_and_keep_their_suffix(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text())
def test_any_name_is_made_safe(name: str) -> None:
    safe = safe_name(name)
    assert safe_name(safe) == safe
    assert 0 < len(safe.encode()) <= 120
    assert os.path.basename(safe) == safe
    assert not safe.startswith((".", "-"))
    assert not set(safe) & set("\0\n%:'\"|*?<>\\$`")
