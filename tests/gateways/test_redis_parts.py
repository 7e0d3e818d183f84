"""Settings of the Redis gateway, its wire, and files that come from another machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateways.file_service import Service
from pool.config.settings import Config, parse_config
from pool.errors import ConfigError, JobRefused
from pool.format.names import is_id
from pool.gateways.redis import wire
from pool.gateways.redis.remote import Remote, ServiceAway
from pool.gateways.redis.settings import VARIABLES, read_settings
from pool.job import Progress

ROOT = Path(__file__).resolve().parents[2]


# ---- settings


def made(tmp_path: Path, **section: Any) -> Config:
    engines = {"portrait": {"engine": "inference.fake:Echo", "workers": 3}}
    return parse_config({"engines": engines, "redis": section}, tmp_path)


def test_the_defaults_are_the_contracts(tmp_path: Path) -> None:
    told = read_settings(made(tmp_path), {})
    assert (told.host, told.port, told.db, told.password) == ("localhost", 6379, 0, None)
    assert [(queue.name, queue.limit) for queue in told.queues] == [("task_queue_gpu_0", 6)]
    assert (told.channel, told.base_url) == ("task_progress", "http://localhost:3000")


def test_the_environment_wins(tmp_path: Path) -> None:
    environ = {
        "REDIS_HOST": "cache",
        "REDIS_PORT": "7000",
        "REDIS_DB": "3",
        "REDIS_USERNAME": "me",
        "REDIS_PASSWORD": "123",
        "TASK_QUEUE_NAME": "mine",
        "PROGRESS_CHANNEL": "news",
        "BASE_URL": "https://files.example:8443/sub/",
    }
    assert environ.keys() == VARIABLES.keys()
    told = read_settings(made(tmp_path, host="other", password_file="gone"), environ)
    assert (told.host, told.port, told.db, told.username, told.password) == ("cache", 7000, 3, "me", "123")
    assert (told.queues[0].name, told.channel) == ("mine", "news")
    assert told.base_url == "https://files.example:8443/sub"
    assert "123" not in repr(told)


def test_empty_variables_say_nothing(tmp_path: Path) -> None:
    assert read_settings(made(tmp_path, port=7001), dict.fromkeys(VARIABLES, "")).port == 7001


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"REDIS_PORT": "many"}, "REDIS_PORT"),
        ({"REDIS_PORT": "70000"}, "REDIS_PORT"),
        ({"REDIS_DB": "-1"}, "REDIS_DB"),
        ({"BASE_URL": "file:///etc"}, "BASE_URL"),
        ({"TASK_QUEUE_NAME": "a b"}, "TASK_QUEUE_NAME"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: "):
        read_settings(made(tmp_path), environ)


def test_several_queues(tmp_path: Path) -> None:
    told = read_settings(made(tmp_path, gpu_ids=[0, 2], max_in_flight=1), {})
    assert [(queue.gpu_id, queue.name, queue.limit) for queue in told.queues] == [
        (0, "task_queue_gpu_0", 1),
        (2, "task_queue_gpu_2", 1),
    ]
    assert [queue.gpu_id for queue in read_settings(made(tmp_path), {}, gpu_ids=[5]).queues] == [5]


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"gpu_ids": []}, "redis.gpu_ids"),
        ({"gpu_ids": [0, 1], "task_queue": "one"}, "redis.task_queue"),
        ({"engine": "nobody"}, "redis.engine"),
        ({"password_file": "missing"}, "redis.password_file"),
        ({"tls_ca": "missing"}, "redis.tls_ca"),
        ({"sentinels": ["one:70000"]}, "redis.sentinels[0]"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, section: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(named)}: "):
        read_settings(made(tmp_path, **section), {})


def test_a_password_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    assert read_settings(made(tmp_path, password_file="secret"), {}).password == "from a file"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"engines": {"portrait": {"engine": "inference.fake:Echo"}}}))
    return file


def run_it(config_file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pool.gateways.redis", "--config", str(config_file), *options]
    env = {"PATH": "", "REDIS_PORT": "1", "COLUMNS": "100"}
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_the_help_teaches(config_file: Path) -> None:
    text = run_it(config_file, "--help").stdout
    for word in ("rpush task_queue_gpu_0", "subscribe task_progress", *VARIABLES):
        assert word in text


def test_nobody_serves(config_file: Path) -> None:
    done = run_it(config_file, "--check")
    assert done.returncode == 1
    assert "Redis at localhost:1/0" in done.stderr


# ---- the wire


def test_ids_of_jobs() -> None:
    assert wire.job_id_of("0b6c-7") == "0b6c-7"
    for text in ("a/b", "任务", "x" * 500, "-x", "a.b"):
        assert is_id(wire.job_id_of(text))
        assert wire.job_id_of(text) == wire.job_id_of(text) != wire.job_id_of(text + "!")


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress("inference", 31.0, "19 of 62 s"), ("inference", 31.0, "19 of 62 s")),
        (Progress("queued", 0.0, "2 ahead in the queue"), ("processing", 0.0, "queued: 2 ahead in the queue")),
        (Progress("queued"), ("processing", 0.0, "queued")),
    ],
)
def test_progress_in_terms_of_the_protocol(progress: Progress, expected: tuple[str, float, str]) -> None:
    assert wire.describe(progress) == expected


def test_a_message_is_bounded() -> None:
    for given, shown in ((-3.0, 0.0), (250.0, 100.0), (33.3333, 33.3)):
        body = json.loads(wire.message("t", "s", "inference", given, "…"))
        assert body["progress"] == body["percentage"] == shown


# ---- files from another machine


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def test_a_file_there_and_back(service: Service, tmp_path: Path) -> None:
    remote = Remote(service.base, "a-token", lambda: False)
    content = bytes(range(256)) * 4096
    source = tmp_path / 'ein "zitierter"\r\nName 讲话.mp4'
    source.write_bytes(content)
    file_id = remote.upload(source, source.name, "video/mp4")
    assert service.files[file_id] == content
    assert service.names[file_id] == "ein %22zitierter%22%0D%0AName 讲话.mp4"  # as browsers write it
    assert remote.download(file_id, str(tmp_path / "back"), len(content)) == service.names[file_id]
    assert (tmp_path / "back").read_bytes() == content
    assert service.tokens == {"Bearer a-token"}


def test_a_file_that_is_not_there(service: Service, tmp_path: Path) -> None:
    with pytest.raises(JobRefused, match="404: File not found or expired"):
        Remote(service.base, None, lambda: False).download("nothing", str(tmp_path / "x"), 100)


def test_a_file_that_is_too_large(service: Service, tmp_path: Path) -> None:
    with pytest.raises(JobRefused, match="more than 99"):
        Remote(service.base, None, lambda: False).download(service.put(b"x" * 100), str(tmp_path / "x"), 99)


def test_a_service_in_trouble_may_do_better_later(service: Service, tmp_path: Path) -> None:
    service.trouble = 2
    source = tmp_path / "video.mp4"
    source.write_bytes(b"video")
    remote = Remote(service.base, None, lambda: False)
    with pytest.raises(ServiceAway, match="503"):
        remote.upload(source, "video.mp4", "video/mp4")
    with pytest.raises(ServiceAway, match="503"):
        remote.download("x", str(tmp_path / "x"), 100)
    assert remote.upload(source, "video.mp4", "video/mp4") in service.files


def test_nobody_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(ServiceAway, match="cannot be reached"):
        Remote("http://127.0.0.1:1", None, lambda: False).download("x", str(tmp_path / "x"), 100)


def test_a_transfer_is_given_up_at_the_end_of_the_gateway(service: Service, tmp_path: Path) -> None:
    over = threading.Event()
    over.set()
    with pytest.raises(ServiceAway, match="aborted"):
        Remote(service.base, None, over.is_set).download(service.put(b"x" * 100), str(tmp_path / "x"), 100)
