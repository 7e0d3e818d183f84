"""Deployment files fit the program: what they name exists, what they wait for is long enough, linters that are here
have nothing to say."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from pool.config.settings import Config, load_config

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(ROOT / "deploy" / "config.json")


def unit(path: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser["Service"]


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s?", text)[1])  # type: ignore[index]


def test_the_configuration_is_valid_and_has_the_engines_of_the_default_one(config: Config) -> None:
    assert config.notes == ()
    assert list(config.engines) == list(load_config(ROOT / "config.json").engines)
    data = Path("/var/lib/filepool")
    assert config.spool.parent == data
    assert config.media_roots == (data / "media",)
    assert {engine.cwd for engine in config.engines.values()} == {data}


def test_the_image_is_built_from_what_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_holds_the_extras_of_its_programs() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r'"\.\[([a-z,]+)\]"', DOCKERFILE)[0].split(","):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE)


def test_the_steps_without_containers_install_the_libraries_of_the_image() -> None:
    steps = (ROOT / "docs" / "DEPLOY.md").read_text().split("## With systemd")[1].split("```")[1]
    for name in re.findall(r"install -y --no-install-recommends (.+) \\", DOCKERFILE)[0].split():
        if name != "tini":  # systemd reaps
            assert re.search(rf"^apt-get install .*\b{re.escape(name)}\b", steps, re.MULTILINE), name


def programs() -> list[str]:
    texts = [DOCKERFILE, *(path.read_text() for path in UNITS), json.dumps(COMPOSE)]
    return sorted({name for text in texts for name in re.findall(r'-m"?,? "?([a-z_.]*[a-z_])', text) if name != "venv"})


def test_every_program_exists() -> None:
    assert set(programs()) >= {"pool", "pool.gateways.http", "pool.gateways.redis", "inference.weights"}
    for name in programs():
        assert find_spec(name) is not None, name


def test_a_drain_has_the_time_that_it_takes(config: Config) -> None:
    assert seconds(COMPOSE["services"]["pool"]["stop_grace_period"]) > config.drain_grace_s + 10
    assert seconds(unit(ROOT / "deploy/systemd/filepool.service")["TimeoutStopSec"]) > config.drain_grace_s + 10


def test_the_three_programs_share_their_process_numbers() -> None:
    ours = {name: service for name, service in COMPOSE["services"].items() if "FILEPOOL_IMAGE" in service["image"]}
    assert {name: service.get("pid") for name, service in ours.items()} == {
        "pids": None,
        "pool": "service:pids",
        "http": "service:pids",
        "redis-gateway": "service:pids",
    }
    assert all("shm_size" not in service for service in COMPOSE["services"].values())


def test_no_secret_has_a_default() -> None:
    for name in ("redis-gateway", "redis"):
        assert "${REDIS_PASSWORD:?" in COMPOSE["services"][name]["environment"]["REDIS_PASSWORD"]
    assert COMPOSE["services"]["http"]["environment"]["FILEPOOL_HTTP_TOKEN"] == "${FILEPOOL_HTTP_TOKEN:-}"
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_units_say_what_the_program_does() -> None:
    told = {path.stem: unit(path) for path in UNITS}
    assert told["filepool"]["Type"] == told["filepool-redis"]["Type"] == "notify"
    assert seconds(told["filepool"]["WatchdogSec"]) >= 10
    assert told["filepool"]["KillMode"] == "process"
    assert told["filepool"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    for service in told.values():
        assert service["Restart"] == "on-failure"
        assert service["RestartPreventExitStatus"].split()[0] == "4"


LINTERS = {
    "hadolint": ["hadolint", "Dockerfile"],
    "docker-compose": ["docker-compose", "config", "-q"],
    "docker-compose with a GPU": [
        "docker-compose",
        "-f",
        "compose.yaml",
        "-f",
        "deploy/compose.cuda.yaml",
        "config",
        "-q",
    ],
}


@pytest.mark.parametrize("name", LINTERS)
def test_linters(name: str) -> None:
    argv = LINTERS[name]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which(argv[0], path=path)
    if program is None:
        pytest.skip(f"{argv[0]} is not installed")
    env = {"PATH": path, "REDIS_PASSWORD": "x" * 24}
    done = subprocess.run([program, *argv[1:]], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
