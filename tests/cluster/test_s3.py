"""Shared files in a bucket: moto's server speaks S3 over HTTP, s3fs and botocore are real.

Runs where they are installed: `pip install s3fs "moto[server]"`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from scenarios.world import wait_until

from cluster.rig import free_ports
from pool.cluster.mediacache import Cache
from pool.cluster.sharedfiles import SharedError, fetched, send

LACKS = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(LACKS), reason=f"{', '.join(LACKS)} not installed: pip install s3fs 'moto[server]'"),
]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """A file system of fsspec with s3://bucket, and the server behind it."""
    (port,) = free_ports(1)
    with open(tmp_path / "moto.log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        try:
            wait_until(lambda: _listens(port), "a server that speaks S3")
            files.mkdir("bucket")
            yield files, server
        finally:
            server.kill()
            server.wait()
            fsspec.filesystem("s3").clear_instance_cache()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_file_in_a_bucket_is_read_written_and_missed(tmp_path: Path, bucket: tuple[Any, Any]) -> None:
    files, server = bucket
    url = "s3://bucket/in/talk 1.wav"

    async def read(url: str) -> bytes:
        async with fetched([url], Cache(tmp_path / "cache", 1 << 24)) as paths:
            return paths[url].read_bytes()

    for content in (b"one" * 1000, b"other" * 1000):  # what has changed is fetched again
        files.pipe("bucket/in/talk 1.wav", content)
        assert asyncio.run(read(url)) == content
    film = tmp_path / "film.mp4"
    film.write_bytes(os.urandom(12_000_000))  # in more parts than one
    asyncio.run(send(film, "s3://bucket/out/deep/film.mp4"))
    files.invalidate_cache()
    assert files.cat("bucket/out/deep/film.mp4") == film.read_bytes()
    for nowhere in ("s3://bucket/none.wav", "s3://nobucket/a.wav"):
        with pytest.raises(SharedError, match=r"cannot be read .* no such file") as caught:
            asyncio.run(read(nowhere))
        assert caught.value.missing
    with pytest.raises(SharedError, match=r"cannot be written .* no such bucket or folder"):
        asyncio.run(send(film, "s3://nobucket/film.mp4"))
    server.kill()
    server.wait()
    with pytest.raises(SharedError, match="Could not connect to the endpoint"):
        asyncio.run(read("s3://bucket/in/later.wav"))
