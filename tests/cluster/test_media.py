"""Media in the store of a real server: whole or not at all, kept while somebody needs them, never in memory whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from nats.js import JetStreamContext

from cluster.rig import Servers, keys
from pool.cluster import accounts, media, wire
from pool.cluster.media import MediaChanged, MediaError, MediaGone, MediaUnreachable, Store
from pool.cluster.nats_server import Passwords
from pool.cluster.objects import CHUNK, Entry, Objects
from pool.cluster.wire import Blob, JobKey

HOLDER, OTHER = str(JobKey("0" * 32, "job-1")), str(JobKey("f" * 32, "job-1", 3))
MB = 1 << 20
T = TypeVar("T")


@asynccontextmanager
async def connected(server: Servers, user: str = "") -> AsyncIterator[JetStreamContext]:
    async def quiet(_: Exception) -> None:
        pass

    options = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.1, "error_cb": quiet}
    with contextlib.suppress(ConnectionError):  # from close(), without a server
        async with server.connected(user, **options) as client:
            yield client.jetstream()


def run(server: Servers, body: Callable[[Store, JetStreamContext], Awaitable[None]], patience_s: float = 60.0) -> None:
    async def main() -> None:
        async with connected(server) as js:
            await body(await Store.open(js, patience_s=patience_s), js)

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
    return set(await keys(js, wire.REFS))


async def chunks(js: JetStreamContext) -> dict[str, int]:
    """Uploads that have chunks."""
    state = (await js.stream_info(accounts.MEDIA_STREAM, subjects_filter=f"$O.{wire.MEDIA}.C.>")).state
    return dict(state.subjects or {})


async def look(js: JetStreamContext, sha: str) -> Entry:
    entry = await Objects(js, wire.MEDIA, MB).look(sha)
    assert entry is not None
    return entry


# ---- in and out


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * MB])
def test_what_goes_in_comes_out(server: Servers, tmp_path: Path, size: int) -> None:
    source, target = made(tmp_path / "a film.mp4", size), tmp_path / "out.mp4"

    async def body(store: Store, js: JetStreamContext) -> None:
        blob = await store.put(source, holder=HOLDER)
        assert blob == Blob(of(source), size, "a film.mp4")
        await store.get(blob, target)
        assert await refs(js) == {f"{blob.sha256}.{HOLDER}"}

    run(server, body)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a film.mp4", "out.mp4"]


def test_other_clients_of_nats_read_it_and_theirs_is_read(server: Servers, tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", 3 * MB)

    async def body(store: Store, js: JetStreamContext) -> None:
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

    run(server, body)


@pytest.mark.parametrize("user", [accounts.CLIENT, accounts.NODE])
def test_the_users_of_a_cluster_may_do_all_this(tmp_path: Path, user: str) -> None:
    source = made(tmp_path / "a.bin", MB)

    async def main(server: Servers) -> None:
        await server.ensure()
        async with connected(server, user) as js:
            store = await Store.open(js, patience_s=5)
            blob = await store.put(source, holder=HOLDER)
            await store.get(blob, tmp_path / "out")
            await store.let_go(HOLDER)
            assert await store.sweep(0.0) == 1

    with Servers(tmp_path, passwords=Passwords("a" * 12, "c" * 12, "n" * 12)) as server:
        asyncio.run(main(server))


@pytest.mark.long
def test_three_replicas(three_servers: Servers, tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", 8 * MB)

    async def body(store: Store, js: JetStreamContext) -> None:
        blob = await store.put(source, holder=HOLDER)
        three_servers.kill(three_servers.leader(accounts.MEDIA_STREAM))
        await store.get(blob, tmp_path / "out")
        assert await store.put(source, holder=OTHER) == blob
        await store.let_go(HOLDER)
        assert await store.sweep(0.0) == 0
        await store.let_go(OTHER)
        assert await store.sweep(0.0) == 1

    run(three_servers, body)
    assert of(tmp_path / "out") == of(source)


def test_one_content_is_sent_once(server: Servers, tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", 2 * MB)
    twin = made(tmp_path / "b.bin", 2 * MB)

    async def body(store: Store, js: JetStreamContext) -> None:
        first, second = await store.put(source, holder=HOLDER), await store.put(twin, holder=OTHER)
        assert (first.sha256, first.name, second.name) == (second.sha256, "a.bin", "b.bin")
        assert len(await chunks(js)) == 1
        assert await refs(js) == {f"{first.sha256}.{HOLDER}", f"{first.sha256}.{OTHER}"}

    run(server, body)


def test_many_puts_of_one_content_at_once(server: Servers, tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", 3 * MB)

    async def main() -> None:
        async with connected(server) as one, connected(server) as two:
            stores = [await Store.open(one), await Store.open(two)] * 6
            found = await asyncio.gather(
                *(store.put(source, holder=f"job-{number}") for number, store in enumerate(stores))
            )
            assert set(found) == {Blob(of(source), 3 * MB, "a.bin")}
            assert len(await chunks(one)) == 1  # those who were late have removed theirs
            assert len(await refs(one)) == 12
            await stores[0].get(found[0], tmp_path / "out")

    asyncio.run(main())
    assert of(tmp_path / "out") == of(source)


def test_a_file_that_changes_while_it_is_sent_is_no_object(
    server: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made(tmp_path / "a.bin", 3 * MB)
    look_up = Objects.look

    async def change(self: Objects, name: str) -> Entry | None:
        with open(source, "ab") as file:  # after its digest is known, before it is sent
            file.write(b"more")
        return await look_up(self, name)

    async def body(store: Store, js: JetStreamContext) -> None:
        monkeypatch.setattr(Objects, "look", change)
        with pytest.raises(MediaChanged, match=r"a\.bin") as caught:
            await store.put(source, holder=HOLDER)
        assert caught.value.path == str(source)
        monkeypatch.undo()
        assert await chunks(js) == {}
        blob = await store.put(source, holder=HOLDER)
        await store.get(blob, tmp_path / "out")

    run(server, body)
    assert of(tmp_path / "out") == of(source)


def test_what_is_no_file_is_not_sent(server: Servers, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    async def body(store: Store, js: JetStreamContext) -> None:
        for path in (tmp_path / "fifo", tmp_path, tmp_path / "missing"):
            with pytest.raises(MediaError, match=path.name):
                await store.put(path, holder=HOLDER)
        for holder in ("", ".", "a.", "a b", "*", "a.>"):
            with pytest.raises(ValueError, match="holder"):
                await store.put(tmp_path / "missing", holder=holder)
        assert await refs(js) == set()

    run(server, body)


# ---- damage, and outages


def test_a_damaged_object_is_never_delivered_and_the_next_put_mends_it(server: Servers, tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", 3 * MB)

    async def body(store: Store, js: JetStreamContext) -> None:
        blob = await store.put(source, holder=HOLDER)
        # other bytes under this name, by a client that means no good
        await (await js.object_store(wire.MEDIA)).put(blob.sha256, made(tmp_path / "b", 3 * MB, 1).read_bytes())
        with pytest.raises(MediaGone, match="damaged"):
            await store.get(blob, tmp_path / "out")
        await store.put(source, holder=HOLDER)
        await store.get(blob, tmp_path / "out")

        await js.delete_msg(accounts.MEDIA_STREAM, await middle(js, blob.sha256))
        (tmp_path / "out").unlink()
        with pytest.raises(MediaGone, match="damaged"):
            await store.get(blob, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".*"))
        await store.put(source, holder=HOLDER)
        await js.delete_msg(accounts.MEDIA_STREAM, await middle(js, blob.sha256))
        await store.put(source, holder=HOLDER)  # nobody has noticed before
        await store.get(blob, tmp_path / "out")
        assert len(await chunks(js)) == 1

    run(server, body)
    assert of(tmp_path / "out") == of(source)


async def middle(js: JetStreamContext, sha: str) -> int:
    """The sequence of a chunk that is neither the first nor the last."""
    last = await js.get_last_msg(accounts.MEDIA_STREAM, f"$O.{wire.MEDIA}.C.{(await look(js, sha)).nuid}")
    assert last.seq
    return last.seq - 1


@pytest.mark.long
def test_the_server_may_be_killed_and_come_back_during_transfers(tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", 60 * MB)

    async def outage(transfer: Awaitable[T]) -> T:
        task = asyncio.ensure_future(transfer)
        await asyncio.sleep(0.1)
        server.kill()
        assert not task.done()
        await asyncio.to_thread(server.start)
        return await task

    async def body(store: Store, js: JetStreamContext) -> None:
        blob = await outage(store.put(source, holder=HOLDER))
        await outage(store.get(blob, tmp_path / "out"))

    with Servers(tmp_path) as server:
        run(server, body)
    assert of(tmp_path / "out") == of(source)


@pytest.mark.long
def test_servers_that_stay_away_are_an_error_that_says_so(tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", MB)

    async def body(store: Store, js: JetStreamContext) -> None:
        blob = await store.put(source, holder=HOLDER)
        server.kill()
        with pytest.raises(MediaUnreachable, match="do not answer"):
            await store.get(blob, tmp_path / "out")
        with pytest.raises(MediaUnreachable, match="do not answer"):
            await store.put(source, holder=OTHER)

    with Servers(tmp_path) as server:
        run(server, body, patience_s=1.0)
    assert not (tmp_path / "out").exists()


def test_servers_without_room_say_so_and_keep_nothing(tmp_path: Path) -> None:
    large, small = made(tmp_path / "large", 12 * MB), made(tmp_path / "small", MB)

    async def body(store: Store, js: JetStreamContext) -> None:
        with pytest.raises(MediaUnreachable, match=r"large.*refuse.*(resource|storage|maximum)"):
            await store.put(large, holder=HOLDER)
        assert await chunks(js) == {}
        await store.put(small, holder=HOLDER)

    server = Servers(tmp_path)
    server.settings[0] = replace(server.settings[0], max_store_mb=8)
    with server:
        run(server, body, patience_s=1.0)


PUT = """
import asyncio, sys, nats
from pathlib import Path
from pool.cluster.media import Store
async def main():
    client = await nats.connect(sys.argv[1])
    print("open", flush=True)
    await (await Store.open(client.jetstream())).put(Path(sys.argv[2]), holder="killed")
asyncio.run(main())
"""


@pytest.mark.long
def test_kill_9_amid_a_put_leaves_nothing_that_stays(
    server: Servers, tmp_path: Path, child_env: dict[str, str]
) -> None:
    source = made(tmp_path / "a.bin", 200 * MB)
    argv = [sys.executable, "-c", textwrap.dedent(PUT), server.url, str(source)]

    async def body(store: Store, js: JetStreamContext) -> None:
        with subprocess.Popen(argv, env=child_env, stdout=subprocess.PIPE) as child:
            while not await chunks(js):
                assert child.poll() is None
                await asyncio.sleep(0.01)
            child.kill()
        cut_off = await chunks(js)
        assert len(cut_off) == 1
        assert await Objects(js, wire.MEDIA, MB).look(of(source)) is None
        blob = await store.put(source, holder=HOLDER)
        assert await store.sweep(3600) == 0
        assert len(await chunks(js)) == 2  # it might be an upload that goes on
        assert await store.sweep(0.0) == 0
        assert len(await chunks(js)) == 1
        await store.get(blob, tmp_path / "out")
        await store.let_go("killed", [blob.sha256])

    run(server, body)
    assert of(tmp_path / "out") == of(source)


GET = """
import asyncio, sys, nats
from pathlib import Path
from pool.cluster.media import Store
from pool.cluster.wire import Blob
async def main():
    client = await nats.connect(sys.argv[1])
    store = await Store.open(client.jetstream())
    await store.get(Blob(sys.argv[2], int(sys.argv[3]), "a.bin"), Path(sys.argv[4]))
asyncio.run(main())
"""


@pytest.mark.long
def test_kill_9_amid_a_get_leaves_what_the_next_one_replaces(
    server: Servers, tmp_path: Path, child_env: dict[str, str]
) -> None:
    source, folder = made(tmp_path / "a.bin", 100 * MB), tmp_path / "to"
    folder.mkdir()

    async def body(store: Store, js: JetStreamContext) -> None:
        blob = await store.put(source, holder=HOLDER)
        argv = [sys.executable, "-c", textwrap.dedent(GET), server.url, blob.sha256, str(blob.size), f"{folder}/out"]
        with subprocess.Popen(argv, env=child_env) as child:
            while not list(folder.iterdir()):
                assert child.poll() is None
                await asyncio.sleep(0.01)
            child.kill()
        assert [path.name.endswith(".part") for path in folder.iterdir()] == [True]
        await store.get(blob, folder / "out")

    run(server, body)
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert of(folder / "out") == of(source)


# ---- kept, and swept


def test_an_object_stays_as_long_as_anybody_needs_it(server: Servers, tmp_path: Path) -> None:
    source, other = made(tmp_path / "a.bin", MB), made(tmp_path / "b.bin", MB, 1)

    async def body(store: Store, js: JetStreamContext) -> None:
        blob = await store.put(source, holder=HOLDER)
        await store.put(source, holder=OTHER)
        await store.put(other, holder=OTHER)
        assert await store.sweep(0.0) == 0
        await store.let_go(HOLDER, [blob.sha256])
        assert await store.sweep(0.0) == 0
        assert set(await store.held(OTHER)) == {of(source), of(other)}
        assert await store.held(OTHER.rpartition(".")[0]) == []  # no beginning of a name is that name
        await store.let_go(OTHER)
        await store.let_go(OTHER)
        assert await store.sweep(3600.0) == 0  # too young
        assert await store.sweep(0.0) == 2
        assert await store.sweep(0.0) == 0
        assert await chunks(js) == {}
        assert (await js.stream_info(accounts.MEDIA_STREAM)).state.messages == 0
        with pytest.raises(MediaGone):
            await store.get(blob, tmp_path / "out")
        assert await store.put(source, holder=HOLDER) == blob
        await store.get(blob, tmp_path / "out")

    run(server, body)


def test_refs_that_were_dropped_leave_nothing(server: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made(tmp_path / "a.bin", 10)
    monkeypatch.setattr(media, "MARK_S", 1)

    async def body(store: Store, js: JetStreamContext) -> None:
        stream = accounts.stream_of(wire.REFS)
        for number in range(20):
            await store.put(source, holder=f"job-{number}")
            await store.let_go(f"job-{number}")
        assert await store.sweep(0.0) == 1
        while (await js.stream_info(stream)).state.messages:
            await asyncio.sleep(0.1)

    run(server, body)


def test_a_bucket_without_times_of_its_keys_will_do(server: Servers, tmp_path: Path) -> None:
    source = made(tmp_path / "a.bin", 10)

    async def main() -> None:
        async with connected(server) as js:
            await js.delete_stream(accounts.stream_of(wire.REFS))
            await js.add_stream(
                name=accounts.stream_of(wire.REFS),
                subjects=[f"$KV.{wire.REFS}.>"],
                max_msgs_per_subject=1,
                allow_rollup_hdrs=True,
            )
            store = await Store.open(js)
            await store.put(source, holder=HOLDER)
            await store.let_go(HOLDER)
            assert await refs(js) == set()
            assert await store.sweep(0.0) == 1

    asyncio.run(main())


def test_a_sweeper_that_has_looked_is_late_when_the_object_is_put_again(server: Servers, tmp_path: Path) -> None:
    """Between the look at the refs and the deletion."""
    source = made(tmp_path / "a.bin", MB)

    async def body(store: Store, js: JetStreamContext) -> None:
        blob = await store.put(source, holder=HOLDER)
        await store.let_go(HOLDER)
        sweeper = await Store.open(js)
        looked, go_on = asyncio.Event(), asyncio.Event()
        referred = sweeper._referred

        async def slowly() -> object:
            found = await referred()
            looked.set()
            await go_on.wait()
            return found

        sweeper._referred = slowly  # type: ignore[assignment, method-assign]
        sweep = asyncio.ensure_future(sweeper.sweep(0.0))
        await looked.wait()
        await store.put(source, holder=OTHER)
        go_on.set()
        assert await sweep == 0
        await store.get(blob, tmp_path / "out")

    run(server, body)


def test_the_ref_is_there_before_anybody_looks_for_the_object(
    server: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made(tmp_path / "a.bin", MB)
    look_up, seen = Objects.look, list[set[str]]()

    async def body(store: Store, js: JetStreamContext) -> None:
        async def watched(self: Objects, name: str) -> Entry | None:
            seen.append(await refs(js))
            return await look_up(self, name)

        monkeypatch.setattr(Objects, "look", watched)
        await store.put(source, holder=HOLDER)
        assert seen[0] == {f"{of(source)}.{HOLDER}"}

    run(server, body)


@pytest.mark.long
def test_sweepers_and_puts_race(server: Servers, tmp_path: Path) -> None:
    """Whoever has put a file and holds it finds it there, however many sweepers without mercy are at work."""
    sources = [made(tmp_path / f"{number}.bin", 40_000, number) for number in range(3)]

    async def main() -> None:
        stop = asyncio.Event()

        async def sweeping(js: JetStreamContext) -> int:
            store, count = await Store.open(js), 0
            while not stop.is_set():
                count += await store.sweep(0.0)
            return count

        async def putting(js: JetStreamContext, name: str) -> None:
            store = await Store.open(js)
            for turn in range(25):
                blob = await store.put(sources[turn % 3], holder=name)
                await store.get(blob, tmp_path / f"out-{name}")
                assert of(tmp_path / f"out-{name}") == blob.sha256
                await store.let_go(name, [blob.sha256])

        async with connected(server) as a, connected(server) as b, connected(server) as c, connected(server) as d:
            sweepers = [asyncio.ensure_future(sweeping(js)) for js in (a, b)]
            await asyncio.gather(*(putting(js, name) for js, name in ((c, "c1"), (c, "c2"), (d, "d1"))))
            stop.set()
            assert sum(await asyncio.gather(*sweepers)) > 0
            await (await Store.open(a)).sweep(0.0)
            await (await Store.open(a)).sweep(0.0)
            assert await chunks(a) == {}

    asyncio.run(main())


# ---- memory

BIG = """
import asyncio, resource, sys, nats
from pathlib import Path
from pool.cluster.media import Store
async def main():
    client = await nats.connect(sys.argv[1])
    store, path = await Store.open(client.jetstream()), Path(sys.argv[2])
    (path.parent / "small").write_bytes(b"x" * 3_000_000)
    await store.get(await store.put(path.parent / "small", holder="a"), path.parent / "out")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await store.get(await store.put(path, holder="a"), path.parent / "out")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_gigabyte_passes_through_little_memory(server: Servers, tmp_path: Path, child_env: dict[str, str]) -> None:
    source = made(tmp_path / "a.bin", 1000 * MB)
    argv = [sys.executable, "-c", textwrap.dedent(BIG), server.url, str(source)]
    done = subprocess.run(argv, env=child_env, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60_000  # KiB
    assert (tmp_path / "out").stat().st_size == 1000 * MB
