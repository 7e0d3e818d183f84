"""Who may come in: tokens, limits, foreign pages; and what the gateway refuses to start with."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from scenarios.world import ROOT, World, passing

from gateways.gateway import Gateway, configure
from pool.config.settings import parse_config
from pool.constants import EXIT_CONFIG
from pool.errors import ConfigError, JobRefused
from pool.gateways.http.guard import Buckets
from pool.gateways.http.settings import is_loopback, read_settings
from pool.gateways.redis.files import Files
from pool.gateways.redis.settings import prepare
from pool.gateways.redis.settings import read_settings as read_redis_settings

TOKEN = "correct-horse-battery-staple"
ENGINES = {"echo": {"engine": "inference.fake:Echo"}}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for others than this machine, with a token and small limits; nobody serves the spool, in which one job
    waits."""
    options, env = ("--no-start", "--host", "0.0.0.0"), {"FILEPOOL_HTTP_TOKEN": TOKEN}
    with passing(tmp_path_factory.mktemp("locked")) as world, Gateway(world, *options, env=env) as gate:
        configure(world, rate_per_minute=6000, concurrent_requests=4)
        world.pool().submit("echo", id="waits")
        gate.start()
        gate.base = gate.base.replace("0.0.0.0", "127.0.0.1")
        yield gate


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        bearer(""),
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": "filepool_token=wrong"},
        {"Cookie": "=;;\x01"},
        {"Authorization": "Bearer \xff\xfe"},
    ],
    ids=range(10),
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs"),
        ("POST", "/human/generate"),
        ("POST", "/api/tempfile/upload"),
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("POST", "/v1/audio/transcriptions"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/nowhere"),
    ],
)
def test_without_the_token_nothing_is_told(locked: Gateway, method: str, path: str, headers: dict[str, str]) -> None:
    answer = locked.call(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "token" in answer.text


def test_with_the_token(locked: Gateway) -> None:
    assert [job["id"] for job in locked.get("/jobs", headers=bearer(TOKEN)).json()["jobs"]] == ["waits"]
    assert locked.get("/jobs", headers={"Cookie": f"filepool_token={TOKEN}"}).status_code == 200
    written = locked.post("/jobs/echo", json={}, headers={"Cookie": f"filepool_token={TOKEN}"})
    assert written.status_code == 401  # a browser sends cookies for pages of others, too
    refused = locked.post("/jobs/echo", json={"params": {"a": 1}}, headers=bearer(TOKEN))
    assert refused.status_code == 503
    assert "no supervisor serves this spool" in refused.json()["error"]["message"]
    document = locked.get("/openapi.json", headers=bearer(TOKEN)).json()
    assert document["security"] == [{"token": []}]


def test_health_needs_none_and_tells_that_nobody_works(locked: Gateway) -> None:
    answer = locked.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "down")
    assert answer.json()["service"] == "digital-human-service"


def test_at_most_so_many_at_a_time(locked: Gateway) -> None:
    path = f"{locked.base}/jobs/waits/result?wait_s=4"

    def wait() -> None:
        while (
            requests.get(path, headers=bearer(TOKEN), timeout=60).status_code == 429
        ):  # one of our looks was in the way
            time.sleep(0.05)

    clients = [threading.Thread(target=wait, daemon=True) for _ in range(4)]
    for client in clients:
        client.start()

    def look() -> requests.Response:
        return locked.get("/jobs", headers=bearer(TOKEN))

    refused = look()
    while refused.status_code != 429 and any(client.is_alive() for client in clients):
        time.sleep(0.05)
        refused = look()
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert "4 requests of one address may run at a time" in refused.json()["error"]["message"]
    assert locked.get("/health").status_code == 503  # is asked by those who watch, and never limited
    for client in clients:
        client.join()
    assert look().status_code == 200


def test_a_foreign_page_may_not_use_a_browser_on_this_machine(gateway: Gateway) -> None:
    assert gateway.get("/jobs", headers={"Host": "evil.example"}).status_code == 403
    assert gateway.get("/jobs", headers={"Host": "localhost:1"}).status_code == 200
    assert gateway.get("/jobs", headers={"Host": "[::1]:8308"}).status_code == 200
    crossed = gateway.post("/jobs/echo", json={}, headers={"Origin": "http://evil.example"})
    assert crossed.status_code == 403
    own = gateway.post("/jobs/echo", json={}, headers={"Origin": gateway.base})
    assert own.status_code == 202


@pytest.mark.long
@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["new", "kept alive"])
def test_headers_that_come_drop_by_drop_are_cut_off(gateway: Gateway, first: bytes) -> None:
    host, port = gateway.base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        heard = b""
        if first:
            line.sendall(first)
            while b"digital-human-service" not in heard:
                heard += line.recv(4096)
        line.sendall(b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n")
        line.settimeout(0.3)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while b"408" not in answer:
                line.sendall(b"X: y\r\n")  # never the empty line
                with contextlib.suppress(TimeoutError):
                    answer += line.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.long
def test_a_client_that_asks_every_few_seconds_keeps_its_connection(gateway: Gateway) -> None:
    """Closed by the server just when it sends, its request would be cut off."""
    host, port = gateway.base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        heard = b""
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while b"digital-human-service" not in heard:
            heard += line.recv(4096)
        line.settimeout(12)  # more than the ten seconds of headers, which must not begin before there are any
        with pytest.raises(TimeoutError):
            assert line.recv(4096) == b"never closed"
        line.settimeout(60)
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 ")


@pytest.mark.long
def test_a_slow_answer_is_not_cut_off(gateway: Gateway) -> None:
    """Longer than the headers of a request may take."""
    job_id = gateway.submit("fake", do="sleep", seconds=12.0)
    assert gateway.result(job_id).status_code == 200


def test_a_websocket_is_turned_away(gateway: Gateway) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    assert gateway.get("/jobs", headers=headers).status_code in (200, 400, 403, 426)


def test_the_limit_that_was_met_is_named_and_scripts_do_not_count(world: World) -> None:
    configure(world, "echo", rate_per_minute=60)
    with Gateway(world, "--no-start") as gate:
        gate.start()
        assert {gate.get("/static/main.js").status_code for _ in range(30)} == {200}
        assert gate.get("/").status_code == 200
        answers = [gate.get("/jobs") for _ in range(20)]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "60 requests a minute, 6 at once" in refused.json()["error"]["message"]
    assert "http.rate_per_minute" in refused.json()["error"]["message"]
    assert answers.index(refused) >= 6


def test_buckets_fill_with_time() -> None:
    now = [0.0]
    buckets = Buckets(60, lambda: now[0])
    assert [buckets.take("a") for _ in range(6)] == [0.0] * 6
    assert buckets.take("a") == pytest.approx(1.0)
    assert buckets.take("b") == 0.0
    now[0] = 1.0
    assert buckets.take("a") == 0.0
    assert buckets.take("a") > 0
    for number in range(30_000):
        buckets.take(str(number))
    assert len(buckets._levels) <= 10_001


# ---- in a container


@pytest.fixture(scope="module", params=["", TOKEN], ids=["no token", "token"])
def contained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway as compose.yaml starts it, with and without a token in .env; the folder has an engine that echoes."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["http"]
    options = service["command"][3:]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    with passing(tmp_path_factory.mktemp("contained")) as world:
        env = {"FILEPOOL_HTTP_TOKEN": request.param}
        with Gateway(world, *(word for word in options if word != "--no-start"), env=env) as gate:
            configure(world, "echo")
            world.serve(ready=1)
            gate.start()
            gate.base = gate.base.replace("0.0.0.0", "127.0.0.1")
            gate.session.headers.update(bearer(request.param) if request.param else {})
            yield gate


def test_the_clients_of_a_container_need_a_token_only_where_one_is_set(contained: Gateway) -> None:
    assert contained.result(contained.submit("echo", n=1)).json()["value"] == {"n": 1}
    bare = requests.get(f"{contained.base}/jobs", timeout=60)
    assert bare.status_code == (401 if contained.session.headers.get("Authorization") else 200)


def test_many_clients_of_one_machine_are_one_address_in_a_container(contained: Gateway) -> None:
    assert {contained.get("/engines").status_code for _ in range(100)} == {200}


def test_foreign_pages_stay_outside_of_a_container(contained: Gateway) -> None:
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert requests.post(f"{contained.base}/jobs/echo", json={}, headers=headers, timeout=60).status_code in (401, 403)


def test_a_file_service_that_wants_a_token_is_not_one_without_the_file(locked: Gateway, tmp_path: Path) -> None:
    pool = locked.world.pool()
    config = parse_config({"spool": str(pool.spool.root), "engines": ENGINES, "redis": {"engine": "echo"}}, tmp_path)
    found: dict[str, str] = {}
    for token in ("", "wrong", TOKEN):
        environ = {"BASE_URL": locked.base, "BASE_URL_TOKEN": token, "BASE_PATH": str(tmp_path / "media")}
        own = read_redis_settings(config, environ)
        prepare(own)
        with pytest.raises(JobRefused) as caught:
            Files(pool, own, lambda: False)._path("0" * 32, "audio_id")
        found[token] = str(caught.value)
    assert "BASE_URL_TOKEN" in found[""]
    assert "BASE_URL_TOKEN" in found["wrong"]
    assert "no file" not in found[""] + found["wrong"]
    assert "no file" in found[TOKEN]


# ---- settings


def settings(http: dict[str, Any], environ: Mapping[str, str], tmp_path: Path, **more: Any) -> Any:
    top = {key: more.pop(key) for key in list(more) if key == "media_roots"}
    config = parse_config({"engines": ENGINES, "http": http, **top}, tmp_path)
    return read_settings(config, environ, **more)


def test_the_last_word_wins(tmp_path: Path) -> None:
    environ = {"BASE_PATH": "/env/a:/env/b", "FILEPOOL_HTTP_TOKEN": "from-the-environment"}
    http = {"port": 1, "base_path": ["rel"], "token": "from-the-configuration"}
    assert settings(http, {}, tmp_path).roots == (tmp_path / "rel",)
    assert settings(http, {}, tmp_path).token == "from-the-configuration"
    found = settings(http, environ, tmp_path)
    assert (found.roots, found.token, found.port) == (
        (Path("/env/a"), Path("/env/b")),
        "from-the-environment",
        1,
    )
    file = tmp_path / "token"
    file.write_text("from-the-command-line\n")
    found = settings(http, environ, tmp_path, roots=[Path("/option")], port=0, token_file=file)
    assert (found.roots, found.token, found.port) == ((Path("/option"),), "from-the-command-line", 0)
    assert settings({}, {}, tmp_path).roots == (tmp_path / "media",)
    assert settings({}, {}, tmp_path, media_roots=["m"]).roots == (tmp_path / "m",)
    assert settings({"base_path": ["/"]}, {}, tmp_path).tempfiles == tmp_path / "media" / ".tempfiles"


def test_limits_are_off_on_loopback_only(tmp_path: Path) -> None:
    here = settings({}, {}, tmp_path)
    assert (here.rate_per_minute, here.concurrent) == (None, None)
    there = settings({"host": "0.0.0.0", "token": "x" * 16}, {}, tmp_path)
    assert (there.rate_per_minute, there.concurrent) == (600, 32)
    assert [is_loopback(host) for host in ("localhost", "127.1.2.3", "::1", "0.0.0.0", "::", "example.org", "")] == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("token", ["short", "has a space in the middle", "nicht-nur-ascii-ü-zeichen", ""])
def test_a_token_that_is_none(tmp_path: Path, token: str) -> None:
    with pytest.raises(ConfigError):
        settings({"host": "0.0.0.0", "token": token}, {}, tmp_path)


def run(world: World, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pool.gateways.http", "--config", str(world.config), *options]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.long
def test_bound_for_others_without_a_token_it_does_not_start(world: World) -> None:
    configure(world)
    done = run(world, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == EXIT_CONFIG
    assert "is reachable from other machines" in done.stderr
    assert "--token-file" in done.stderr
    assert "Traceback" not in done.stderr
    absent = run(world, "--token-file", str(world.folder / "absent"))
    assert absent.returncode == EXIT_CONFIG
    assert "absent" in absent.stderr
    world.config.write_text(json.dumps({"engines": ENGINES, "http": {"prot": 1}}))
    slip = run(world)
    assert slip.returncode == EXIT_CONFIG
    assert 'http.prot: unknown key, did you mean "port"' in slip.stderr


def test_the_help_teaches(world: World) -> None:
    done = run(world, "--help")
    assert done.returncode == 0
    for word in ("--base-path", "--token-file", "--no-start", "BASE_PATH", "FILEPOOL_HTTP_TOKEN", "curl"):
        assert word in done.stdout, word


@pytest.mark.long
def test_a_taken_address_is_told(gateway: Gateway, world: World) -> None:
    configure(world)
    done = run(world, "--no-start", "--port", gateway.base.rsplit(":", 1)[1], "--base-path", str(world.folder / "m"))
    assert done.returncode == 1
    assert "address already in use" in done.stderr
