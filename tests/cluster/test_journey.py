"""A job's files there and back, with a real engine at the other end: parcel, store, cache, spool, store, landing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scenarios.world import World

from cluster.rig import Servers
from inference.fake import FakeParams
from pool.cluster import parcels
from pool.cluster.media import Cache, Store
from pool.cluster.wire import Blob
from pool.errors import JobFailed
from pool.format import codec
from pool.job import Record

SCHEMA = FakeParams.model_json_schema()


async def journey(
    server: Servers, world: World, params: Mapping[str, Any], folder: Path, *, holder: str = "origin.job.0"
) -> Record:
    """The record at the client of a job that a node has run. folder: out/<id> of the client."""
    async with server.connected() as client:
        store = await Store.open(client.jetstream())
        keys = parcels.output_keys(SCHEMA)
        files = parcels.find(params, output_keys=keys)
        blobs = {path: await store.put(path, holder=holder) for path in files}
        packed = parcels.pack(params, output_keys=keys, describe=blobs.get)
        sent = codec.encode(packed.params)

        # the node
        arrived, pool = codec.decode(sent, strict=True), world.pool()
        cache, outputs = Cache(world.folder / "cache", 1 << 30), world.folder / "outputs"
        outputs.mkdir()
        async with cache.have(store, parcels.blobs(arrived)) as have:
            future = pool.submit("fake", **parcels.unpack(arrived, have, outputs))
            try:
                await asyncio.to_thread(future.result, 60)
            except JobFailed:
                pass
        raw = (world.spool / "out" / f"{future.id}.msgpack").read_bytes()
        produced = parcels.outgoing(Record.from_map(codec.decode(raw, arrays=False)), world.spool / "out" / future.id)
        assert produced.missing == ()
        arrays: list[Blob] = [await store.put(path, holder=holder) for path in produced.arrays]
        outs: list[Blob] = [await store.put(path, holder=holder) for path in produced.files]

        # the client again
        record = await parcels.land(
            Record.from_map(codec.decode(raw, arrays=False)),
            outs,
            store,
            wishes=parcels.outputs_of(params, schema=SCHEMA),
            folder=folder,
            arrays=arrays,
            params=params,
        )
        await store.let_go(holder)
        assert await store.sweep(0.0) == len({blob.sha256 for blob in (*blobs.values(), *arrays, *outs)})
        return record


@pytest.mark.long
def test_files_there_and_back(server: Servers, tmp_path: Path) -> None:
    folder, audio = tmp_path / "client" / "job", tmp_path / "my talk.wav"
    folder.parent.mkdir()
    audio.write_bytes(b"sound" * 1000)
    (tmp_path / "node").mkdir()
    with closing(World(tmp_path / "node")) as world:
        world.configure().serve(ready=1)
        wish = tmp_path / "made.bin"
        params = {"do": "write", "mb": 3, "audio": str(audio), "output": str(wish), "value": str(audio)}
        record = asyncio.run(journey(server, world, params, folder))
        assert wish.read_bytes() == b"x" * (3 << 20)
        assert record.value["output"] == str(wish)
        assert record.value["value"] == str(audio)
        assert [file["path"] for file in record.files] == [str(wish)]
        assert not folder.exists()


@pytest.mark.long
def test_a_file_without_a_wish_and_a_failure(server: Servers, tmp_path: Path) -> None:
    folder = tmp_path / "client" / "job"
    folder.parent.mkdir()
    (tmp_path / "node").mkdir()
    with closing(World(tmp_path / "node")) as world:
        world.configure().serve(ready=1)
        record = asyncio.run(journey(server, world, {"do": "write"}, folder))
        assert (folder / "written.bin").read_bytes() == b"x" * 11
        assert record.files[0]["path"] == str(folder / "written.bin")
        (world.folder / "outputs").rmdir()
        record = asyncio.run(journey(server, world, {"do": "raise", "value": "broken"}, folder))
        assert record.failure is not None
        assert record.failure.message == "broken"
