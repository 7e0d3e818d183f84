"""Media in the store of a real server: whole or not at all, kept while somebody needs them, never in memory whole."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.js import JetStreamContext

from pool.cluster import wire
from pool.cluster.media import MediaGone, Store
from pool.cluster.objects import CHUNK
from pool.cluster.wire import Blob, JobKey

HOLDER = str(JobKey("0" * 32, "job-1"))
MB = 1 << 20


class Server:
    """A nats-server of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        program = Path(sys.executable).with_name("nats-server")
        argv = [str(program), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self._folder)]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "nats")
    yield running
    running.kill()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[JetStreamContext]:
    async def quiet(_: Exception) -> None:
        pass

    client = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=quiet)
    try:
        yield client.jetstream()
    finally:
        await client.close()


@asynccontextmanager
async def opened(server: Server, patience_s: float = 60.0) -> AsyncIterator[Store]:
    async with connected(server) as js:
        yield await Store.open(js, patience_s=patience_s)


def run(server: Server, body: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(server) as store:
            await body(store)

    asyncio.run(main())


def made(path: Path, size: int, seed: int = 0) -> Path:
    """A file of bytes that no compression makes smaller."""
    with open(path, "wb") as file:
        state = hashlib.sha512(str(seed).encode()).digest()
        while size > 0:
            block = b"".join(hashlib.sha512(state + bytes([n])).digest() for n in range(64)) * 64
            file.write(block[:size])
            state = hashlib.sha512(block[:64]).digest()
            size -= len(block)
    return path


def of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def refs(js: JetStreamContext) -> set[str]:
    try:
        return set(await (await js.key_value(wire.REFS)).keys())
    except nats.js.errors.NoKeysError:
        return set()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * MB])
def test_what_goes_in_comes_out(server: Server, tmp_path: Path, size: int) -> None:
    source, target = made(tmp_path / "a film.mp4", size), tmp_path / "out.mp4"

    async def body(store: Store) -> None:
        blob = await store.put(source, holder=HOLDER)
        assert blob == Blob(of(source), size, "a film.mp4")
        await store.get(blob, target)

    run(server, body)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a film.mp4", "nats", "out.mp4"]


def test_other_clients_of_nats_read_it_and_theirs_is_read(server: Server, tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", 3 * MB)

    async def main() -> None:
        async with connected(server) as js:
            store = await Store.open(js)
            blob = await store.put(source, holder=HOLDER)
            theirs = await js.object_store(wire.MEDIA)
            assert (await theirs.get(blob.sha256)).data == source.read_bytes()
            assert [info.name for info in await theirs.list()] == [blob.sha256]
            await theirs.delete(blob.sha256)
            with pytest.raises(MediaGone, match=blob.sha256):
                await store.get(blob, tmp_path / "out")
            await theirs.put(blob.sha256, source.read_bytes())
            await store.get(blob, tmp_path / "out")
            assert of(tmp_path / "out") == blob.sha256

    asyncio.run(main())
