"""What a shell does with the streams of a command: nobody reads, the disk is full, closed. Real processes only."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from steps import claim_next, record_of, seat

from pool import __version__
from pool.job import Job
from pool.spool.store import Spool

pytestmark = pytest.mark.long

PROJECT = Path(__file__).resolve().parent.parent
NO_SPACE = os.strerror(errno.ENOSPC)
#: Commands that print, and how they end when somebody reads.
COMMANDS: dict[str, int] = {
    "pool --help": 0,
    "pool status": 0,
    "pool status --json": 0,
    "pool result mine": 0,
    "pool result nobody --json": 2,
    "pool.submit fake --no-wait": 0,
    "pool.gateways.http --version": 0,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.json and a spool that nobody serves, with one job done."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "config.json").write_text('{"min_free_mb": 0, "engines": {"fake": {"engine": "inference.fake:Fake"}}}')
    spool = Spool.create(folder / "spool", durable=False)
    spool.submit(Job("mine", "fake", created=spool.now()))
    spool.finish(claim := claim_next(spool, seat(spool, engine="fake")), record_of(claim, value={"text": "x" * 5000}))
    return folder


@pytest.fixture
def start(place: Path, child_env: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a command with its streams as a shell would have made them: a descriptor, or "closed"."""
    made: list[subprocess.Popen[bytes]] = []

    def run(words: str, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
        shut = [number for number, stream in ((1, stdout), (2, stderr)) if stream == "closed"]
        given = [None if stream == "closed" else stream for stream in (stdout, stderr)]
        line = "exec " + " ".join([sys.executable, "-m", words, *(f"{number}>&-" for number in shut)])
        out, err = given
        argv = ["/bin/sh", "-c", line]
        process = subprocess.Popen(argv, cwd=place, env=child_env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        made.append(process)
        return process

    yield run
    for process in made:
        process.kill()
        process.communicate()


def stream_that_is(how: str) -> Any:
    """A descriptor of a full disk, or of a pipe that nobody reads; "closed" for none."""
    if how == "full":
        return os.open("/dev/full", os.O_WRONLY)
    if how == "unread":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    return how


@pytest.mark.parametrize("how", ["full", "unread", "closed"])
def test_stdout(start: Callable[..., subprocess.Popen[bytes]], how: str) -> None:
    stream = stream_that_is(how)
    processes = {words: start(words, stdout=stream) for words in COMMANDS}
    if how != "closed":
        os.close(stream)
    for words, process in processes.items():
        said = process.communicate(timeout=60)[1].decode()
        assert "Traceback" not in said, words
        assert "Exception ignored" not in said, words
        if how == "closed":
            assert process.returncode == COMMANDS[words], (words, said)
        elif how == "unread":
            assert process.returncode == 141, (words, said)
            assert "error: stdout" not in said
        else:
            assert process.returncode == 1, (words, said)
            assert said.splitlines()[-1] == f"error: stdout: {NO_SPACE}", words


@pytest.mark.parametrize("how", ["full", "unread", "closed"])
def test_stderr_is_a_courtesy(start: Callable[..., subprocess.Popen[bytes]], how: str) -> None:
    stream = stream_that_is(how)
    words = ("pool result mine", "pool result nobody", "pool nonsense")
    processes = {line: start(line, stderr=stream) for line in words}
    if how != "closed":
        os.close(stream)
    for line, process in processes.items():
        shown = process.communicate(timeout=60)[0].decode()
        assert process.returncode == (0 if "mine" in line else 2), line
        assert ("xxxxx" in shown) == ("mine" in line)


def test_all_of_them_closed_while_a_job_runs(place: Path, child_env: dict[str, str]) -> None:
    """The command does its work, and what is printed goes into none of its files."""
    record = place / "record.json"
    line = f"exec {sys.executable} -m pool.submit fake value=7 --output-record {record} <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", line], cwd=place, env=child_env, timeout=60).returncode == 0
    assert '"value": 7' in record.read_text()


@pytest.mark.parametrize("words", ["status --watch --json --interval 0.1", "status --watch --interval 0.1"])
def test_a_watch_ends_when_its_reader_goes(start: Callable[..., subprocess.Popen[bytes]], words: str) -> None:
    process = start(f"pool {words}")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


def test_a_pipe_that_does_not_block_gets_everything(start: Callable[..., subprocess.Popen[bytes]], place: Path) -> None:
    """As a terminal that another program has left non-blocking; the reader is slow, the pipe small."""
    spool = Spool(place / "spool", durable=False)
    spool.submit(Job("large", "unserved", created=spool.now()))
    worker = seat(spool, 2, engine="unserved")
    spool.finish(claim := claim_next(spool, worker), record_of(claim, value={"text": "y" * 300_000}))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = start("pool result large", stdout=writer)
    os.close(writer)
    parts: list[bytes] = []

    def read() -> None:
        while part := os.read(reader, 20_000):
            parts.append(part)
            time.sleep(0.002)

    thread = threading.Thread(target=read)
    thread.start()
    _, said = process.communicate(timeout=60)
    thread.join(60)
    os.close(reader)
    assert process.returncode == 0, said
    assert b"".join(parts).count(b"y") == 300_000


@pytest.mark.parametrize("program", ["pool", "pool.submit", "pool.gateways.http", "pool.gateways.redis"])
def test_version(start: Callable[..., subprocess.Popen[bytes]], program: str) -> None:
    process = start(f"{program} --version")
    assert process.communicate(timeout=60) == (f"filepool {__version__}\n".encode(), b"")
    assert process.returncode == 0


def test_there_is_one_version() -> None:
    project = (PROJECT / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"\n' in project
