"""OpenAI's client for Node, as many services have it: its retries meet their job, and one that dies leaves none behind.

`npm install --prefix ~/.cache/filepool-tests openai` brings the package; FILEPOOL_NODE_MODULES names another
node_modules.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scenarios.world import World, passing, wait_until

from gateways.engines import RESULT
from gateways.gateway import Gateway, configure, wav

pytestmark = pytest.mark.long

MODULES = Path(os.environ.get("FILEPOOL_NODE_MODULES") or "~/.cache/filepool-tests/node_modules").expanduser()
CLIENT = Path(__file__).parent / "openai_client.cjs"
Call = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if shutil.which("node") is None:
        pytest.skip("there is no node on the PATH")
    if not (MODULES / "openai").is_dir():
        pytest.skip(f"there is no openai in {MODULES}: npm install --prefix {MODULES.parent} openai")
    with passing(tmp_path_factory.mktemp("node")) as made:
        configure(made, "transcribe", return_s=2)
        made.serve(ready=1)
        yield made


@pytest.fixture
def gate(world: World) -> Iterator[Gateway]:
    with Gateway(world, "--no-start") as made:
        yield made.start()


@pytest.fixture
def call(gate: Gateway, tmp_path: Path) -> Iterator[Call]:
    """A client that transcribes with a prompt, in a process of its own; its requests end after a second."""
    (tmp_path / "talk.wav").write_bytes(wav())
    with ExitStack() as started:

        def start(prompt: str) -> subprocess.Popen[str]:
            argv = ["node", str(CLIENT), str(MODULES), gate.base, str(tmp_path / "talk.wav"), prompt, "1000"]
            process = started.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
            started.callback(process.kill)
            return process

        yield start


def jobs(world: World, state: str = "") -> set[str]:
    return {job.id for job in world.pool().jobs(state=state or (), limit=1000)}


def line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


def test_its_retries_meet_the_job_that_runs(world: World, gate: Gateway, call: Call, tmp_path: Path) -> None:
    before = jobs(world)
    client = call(f"until {tmp_path}/go")
    assert [line(client) for _ in range(3)] == ["request"] * 3
    (tmp_path / "go").touch()
    while (last := line(client)) == "request":
        pass
    (mine,) = jobs(world) - before
    assert json.loads(last) == {"job": mine, "text": RESULT["text"]}
    assert client.wait(60) == 0


def test_one_that_dies_cancels_what_it_alone_wanted(world: World, call: Call, tmp_path: Path) -> None:
    before = jobs(world)
    client = call(f"until {tmp_path}/go")
    wait_until(lambda: jobs(world, state="running") - before, "a job that runs")
    client.kill()
    (mine,) = jobs(world) - before
    wait_until(lambda: world.pool().state(mine).value == "cancelled", "its end", seconds=60)
