"""Ways to a Redis: an account of its ACL, TLS, and Sentinels that name another master when the first one dies."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from scenarios.world import wait_until

from gateways.proxy import program
from gateways.redis_rig import Rig, Server, rigs

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from rigs(tmp_path_factory.mktemp("links") / "rig")


@pytest.fixture(autouse=True)
def clean(pool: Rig) -> Iterator[None]:
    yield
    pool.reset()


def connect_by(rig: Rig, **section: Any) -> None:
    """Say in config.json how Redis is reached."""
    document = json.loads(rig.world.config.read_text())
    document["redis"] = {"lease_s": 60.0, **section}
    rig.world.config.write_text(json.dumps(document))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def speaks(rig: Rig, server: Server) -> None:
    """A task that is pushed into this server is done."""
    caller = rig.caller(server)
    assert caller.end(caller.push(rig.store.face, rig.store.words("hello")))["status"] == "completed"


def test_an_account_of_the_acl(pool: Rig, tmp_path: Path) -> None:
    account = ("--user", "worker", "on", ">its-own-word", "~*", "&*", "+@all")
    server = Server(tmp_path / "redis", *account).start()
    try:
        connect_by(pool, username="worker", password="its-own-word")
        pool.gateway(server).start()
        speaks(pool, server)
        ours = [each for each in server.client().client_list() if each["name"] == "filepool"]
        assert ours
        assert {each["user"] for each in ours} == {"worker"}
        wrong = pool.gateway(server, REDIS_USERNAME="nobody").start(wait=False)
        assert wrong.process is not None
        assert wrong.process.wait(60) == 4
        assert "redis.password: Redis at" in wrong.log()
    finally:
        server.kill()


TLS = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
stream {{ server {{
  listen 127.0.0.1:{port} ssl; proxy_pass 127.0.0.1:{server};
  ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
  ssl_client_certificate {folder}/cert.pem; ssl_verify_client on;
}} }}
"""


def certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1 that vouches for itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    name = ["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]
    subprocess.run(["openssl", "req", "-x509", *kind, *files, *name], check=True, capture_output=True)


def test_tls_with_certificates_on_both_sides(pool: Rig, tmp_path: Path) -> None:
    """Redis is often built without TLS, as here: nginx ends it in front of a real server."""
    certificate(tmp_path)
    port = free_port()
    (tmp_path / "nginx.conf").write_text(TLS.format(folder=tmp_path, port=port, server=pool.server.port))
    argv = [program(), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    with open(tmp_path / "log", "ab") as log, subprocess.Popen(argv, stdout=log, stderr=log) as front:
        try:
            mine = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
            wait_until(lambda: front.poll() is not None or listens(port), "nginx")
            assert front.poll() is None, (tmp_path / "log").read_text()
            connect_by(pool, tls_ca=str(tmp_path / "cert.pem"), **mine)
            pool.gateway(REDIS_PORT=str(port)).start()
            speaks(pool, pool.server)
            connect_by(pool, tls=True, **mine)  # nobody here vouches for that server
            assert "CERTIFICATE_VERIFY_FAILED" in pool.gateway(REDIS_PORT=str(port)).start().log()
        finally:
            front.kill()


def test_sentinels_name_another_master(pool: Rig, tmp_path: Path) -> None:
    first = Server(tmp_path / "first").start()
    second = Server(tmp_path / "second", "--replicaof", "127.0.0.1", str(first.port)).start()
    port = free_port()
    watch = f"sentinel monitor mine 127.0.0.1 {first.port} 1\nsentinel down-after-milliseconds mine 500\n"
    (tmp_path / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n{watch}")
    argv = [first.program, str(tmp_path / "sentinel.conf"), "--sentinel"]
    with open(tmp_path / "log", "ab") as log, subprocess.Popen(argv, stdout=log, stderr=log) as sentinel:
        try:
            with second.client() as client:
                wait_until(lambda: client.info("replication")["master_link_status"] == "up", "a replica")

                def knows() -> bool:
                    try:
                        with redis.Redis(port=port) as asked:
                            return len(asked.sentinel_slaves("mine")) == 1
                    except redis.RedisError:
                        return False

                wait_until(knows, "a Sentinel that knows the replica")
                connect_by(pool, sentinels=[f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}"], sentinel_service="mine")
                gateway = pool.gateway(first).start()
                speaks(pool, first)
                first.kill()
                wait_until(lambda: client.info("replication")["role"] == "master", "another master")
            speaks(pool, second)
            assert gateway.process is not None
            assert gateway.process.poll() is None
            assert "is unreachable" in gateway.log()
            wait_until(lambda: "is back after" in gateway.log(), "a word that it is back")
        finally:
            sentinel.kill()
            second.kill()
            first.kill()
