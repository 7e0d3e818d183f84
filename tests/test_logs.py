"""Logs that other processes write: turned over under their hands, quoted by generation."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pool.system import logs, procs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "echo-0.log"


def texts(log: Path) -> dict[str, str]:
    return {path.name[len("echo-0") :]: path.read_text() for path in sorted(log.parent.iterdir())}


def test_rotation_keeps_so_many(log: Path) -> None:
    for n in range(6):
        log.write_text(str(n))
        assert logs.rotate(log, keep=3)
    assert texts(log) == {".log.1": "5", ".log.2": "4", ".log.3": "3"}
    log.write_text("6")
    assert logs.rotate(log, keep=1)
    assert texts(log) == {".log.1": "6"}
    log.write_text("7")
    assert logs.rotate(log, keep=0)
    assert texts(log) == {}


def test_rotation_leaves_small_and_missing_logs(log: Path) -> None:
    assert not logs.rotate(log, keep=3)
    log.write_text("")
    assert not logs.rotate(log, keep=3)
    log.write_text("x" * 100)
    assert not logs.rotate(log, keep=3, over=100)
    assert logs.rotate(log, keep=3, over=99)


def test_trim_under_the_hands_of_a_writer(log: Path, tmp_path: Path) -> None:
    code = "import sys\nfor line in sys.stdin: print(line * 1000, end='', flush=True); "
    code += "open('done', 'a').write('.')"
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=output, cwd=tmp_path, text=True
    ) as writer:
        os.close(output)
        assert writer.stdin is not None
        for n, word in enumerate(["first", "second"], 1):
            print(word, file=writer.stdin, flush=True)
            while not ((tmp_path / "done").exists() and (tmp_path / "done").stat().st_size == n):
                time.sleep(0.002)
            assert not logs.trim(log, 10_000, keep=2)
            assert logs.trim(log, 1200, keep=2)
            assert log.stat().st_size == 0
        writer.stdin.close()
    older = log.with_name("echo-0.log.1").read_text()
    assert len(older) == 1200
    assert older.endswith("second\nsecond\n")
    assert set(log.with_name("echo-0.log.2").read_text().split()) <= {"first", "irst", "rst", "st", "t"}


def test_no_hole_after_a_cut(log: Path, tmp_path: Path) -> None:
    """A descriptor without O_APPEND would leave zeros where the old text was."""
    code = "import time; print('x' * 5000, flush=True); time.sleep(0.4); print('after', flush=True)"
    child = procs.spawn([sys.executable, "-S", "-c", code], env=dict(os.environ), cwd=tmp_path, log=log)
    while logs.mark(log) < 5001:
        time.sleep(0.002)
    assert logs.trim(log, 100, keep=0)
    child.wait()
    assert log.read_bytes() == b"after\n"
    assert list(tmp_path.glob("*.1")) == []


def test_trim_cuts_even_when_there_is_no_room_for_a_copy(log: Path) -> None:
    log.write_text("x" * 100_000)
    code = f"""
import resource
from pathlib import Path
from pool.system import logs
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
assert logs.trim(Path({str(log)!r}), 50_000, keep=2)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    assert texts(log) == {".log": ""}


def test_tail_quotes_only_one_generation(log: Path) -> None:
    log.write_text("of the first\n" * 100)
    begin = logs.mark(log)
    assert logs.tail(log, since=begin) == ""
    with log.open("a") as stream:
        stream.write("loading\nfailed: no such file\n\n")
    assert logs.tail(log, since=begin) == "loading\nfailed: no such file"
    assert logs.tail(log, 1, since=begin) == "failed: no such file"
    assert logs.tail(log, 0) == ""
    log.write_text("cut meanwhile\n")
    assert logs.tail(log, since=begin) == "cut meanwhile"


def test_tail_reads_little_and_whole_lines(log: Path) -> None:
    with log.open("wb") as stream:
        stream.truncate(1 << 40)  # a sparse terabyte
        stream.seek(0, os.SEEK_END)
        stream.write("\nä line\nlast".encode())
    assert logs.tail(log, max_bytes=100).splitlines()[-2:] == ["ä line", "last"]
    log.write_text("a" * 5000 + "\n" + "b" * 50 + "\n")
    assert logs.tail(log, max_bytes=100) == "b" * 50
    log.write_text("a" * 5000)
    assert logs.tail(log, max_bytes=100) == "a" * 100


def test_tail_of_what_terminals_show(log: Path, tmp_path: Path) -> None:
    log.write_bytes(b"\x1b[31mred\x1b[0m\xff\xfe\r\n 10%\r 50%\r100%\r\nend\r")
    assert logs.tail(log) == "red��\n100%\nend"
    assert logs.tail(tmp_path / "absent") == ""
    assert logs.tail(tmp_path) == ""
    assert logs.mark(tmp_path / "absent") == 0


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    from loguru import logger

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logger.remove()
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("_logging_restored")
def test_supervisor_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from loguru import logger

    file = tmp_path / "logs" / "supervisor.log"
    logs.setup_logging("INFO", file, max_bytes=2000, keep=2)
    logger.debug("too fine")
    logger.info("slot {} started", "echo-0")
    logging.getLogger("watchdog").warning("queue of %s {full}", "events")
    text = file.read_text()
    assert "INFO    slot echo-0 started" in text
    assert "watchdog: queue of events {full}" in text
    assert "too fine" not in text
    assert "slot echo-0 started" in capfd.readouterr().err
    assert file.stat().st_mode & 0o077 == 0
    for n in range(200):
        logger.info("line {} {}", n, "x" * 80)
    assert len(list(file.parent.iterdir())) <= 3
    assert sum(path.stat().st_size for path in file.parent.iterdir()) < 8000


def test_importing_logs_is_light() -> None:
    code = "import sys, pool.system.logs; sys.exit('loguru' in sys.modules or 'psutil' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


@pytest.mark.usefixtures("_logging_restored")
def test_a_log_that_is_stderr_gets_each_line_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from loguru import logger

    logs.setup_logging("INFO", tmp_path / "supervisor.log", console=False)
    logger.info("slot {} started", "echo-0")
    assert (tmp_path / "supervisor.log").read_text().count("slot echo-0 started") == 1
    assert capfd.readouterr().err == ""
