"""Guests: an SDK in another interpreter, from Python 3.6 on, and in our own; how it works and each way it can fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import old_python
import psutil
import pytest

from inference.base import Cancelled, EngineError, InputError, LocalContext, ResourceError
from inference.foreign import Foreign
from inference.foreign import host as hosting
from inference.foreign.host import PREFIX, GuestError

SDKS = Path(__file__).with_name("sdks")
ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("own", "3.6", "3.7", "3.8", "3.9")
PATIENCE_S = 30.0

Make = Callable[..., Foreign]


def interpreter(version: str) -> str:
    return sys.executable if version == "own" else old_python.bare(version)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def options(python: str = sys.executable, **more: Any) -> dict[str, Any]:
    return {"python": python, "sdk": str(SDKS), "guest": "sample:Sample", **more}


@pytest.fixture
def make() -> Iterator[Make]:
    """A loaded engine, closed at the end."""
    made: list[Foreign] = []

    def load(python: str = sys.executable, **more: Any) -> Foreign:
        engine = Foreign()
        made.append(engine)
        engine.load("cpu", options(python, **more))
        return engine

    yield load
    for engine in made:
        engine.close()
    assert not [child for child in psutil.Process().children() if "filepool_guest" in " ".join(child.cmdline())]


def run(engine: Foreign, do: str, context: LocalContext | None = None, **more: Any) -> Any:
    if context is not None:
        return engine.run(engine.check({"do": do, **more}), context)
    with LocalContext() as own:
        return engine.run(engine.check({"do": do, **more}), own)


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_loaded_once_and_serves_job_after_job(version: str, make: Make) -> None:
    engine = make(interpreter(version), options={"model": "small"})
    first, second = (run(engine, "echo", value=[1, {"deep": b"\x00\xff"}, None, "ü"]) for _ in range(2))
    assert first["got"] == [1, {"deep": b"\x00\xff"}, None, "ü"]
    assert first["options"] == {"device": "cpu", "model": "small"}
    assert first["cwd"] == str(SDKS)
    assert (first["pid"], first["jobs"], second["jobs"]) == (second["pid"], 1, 2)
    if version != "own":
        assert ".".join(map(str, first["version"])) == version


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS)
def test_what_it_tells_arrives_while_it_works(version: str, make: Make) -> None:
    engine = make(interpreter(version))
    with LocalContext() as context:
        run(engine, "tell", context)
        assert context.partials == [{"at": at, "data": b"\x00\xff"} for at in (10, 50, 90)]
        assert context.updates[-1] == ("inference", 90.0, "step 90")
        assert [percent for _, percent, _ in context.updates] == sorted(percent for _, percent, _ in context.updates)


def test_no_file_of_a_job_stays(make: Make) -> None:
    engine = make(cancel_s=20)
    assert engine._guest is not None
    run(engine, "tell")
    with pytest.raises(InputError):
        run(engine, "input")
    with LocalContext(is_cancelled=lambda: True) as context, pytest.raises(Cancelled):
        run(engine, "wait", context)
    run(engine, "echo")
    assert {path.name for path in engine._guest.folder.iterdir()} == {
        "guest.json",
        "host",
        "output.log",
        "ready.json",
        "signs.json",
    }


def test_arrays_go_there_and_back(make: Make) -> None:
    result = run(make(), "sum", array=np.arange(6, dtype=np.float32).reshape(2, 3))
    assert result["type"] == "float32"
    assert result["nothing"] == 1.5
    np.testing.assert_array_equal(result["sum"], np.array([3, 5, 7], np.float32))


def test_what_cannot_be_carried_there_is_refused(make: Make) -> None:
    engine = make()
    with pytest.raises(InputError, match="a set cannot be carried"):
        run(engine, "echo", value={1, 2})
    with pytest.raises(InputError, match="keys are texts, not int: 1"):
        run(engine, "echo", value={1: 2})
    assert run(engine, "echo")["jobs"] == 1


def test_files_of_the_result(make: Make, tmp_path: Path) -> None:
    """One file goes where `output` says; several go to the job's own folder."""
    engine, target = make(), tmp_path / "speech.txt"
    with LocalContext(folder=tmp_path) as context:
        run(engine, "write", context, names=["a.txt"], output=str(target))
    with LocalContext(folder=tmp_path) as context:
        run(engine, "write", context, names=["b.txt", "c.txt"])
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {
        "speech.txt": "a.txt",
        "b.txt": "b.txt",
        "c.txt": "c.txt",
    }


FAILURES: dict[str, tuple[type[Exception], str]] = {
    "input": (InputError, r"^no such voice: anna$"),
    "memory": (ResourceError, r"^out of memory: 3 MiB asked, 1 MiB free$"),
    "malloc": (ResourceError, r"no message, raised at .*sample\.py:\d+ in do_malloc"),
    "raise": (GuestError, r"failed: ValueError: no message, raised at .*sample\.py:\d+ in do_raise"),
    "quit": (GuestError, r"failed: SystemExit: 3"),
    "none": (GuestError, r"run\(\) of sample:Sample returned NoneType instead of a dict"),
    "object": (GuestError, r"a Sample cannot be carried"),
    "exit": (GuestError, r"(?s)ended with exit code 7 during a job; last it .*the last words"),
    "crash": (GuestError, r"(?s)ended with SIGSEGV \(signal 11\).*Fatal Python error: Segmentation fault"),
    "child": (GuestError, r"waits for a process that is dead: frames \(pid \d+\) with exit code 9; last it .*reading"),
    "hang": (GuestError, r"hangs: no sign of life for \d s, last it was at: .*; its processes: helper \(pid \d+\)"),
}


@pytest.mark.parametrize("do", sorted(FAILURES))
def test_each_end_has_its_reason_and_the_next_job_runs(do: str, make: Make) -> None:
    kind, pattern = FAILURES[do]
    engine = make(stall_s=3, child_s=0.5)
    before = run(engine, "echo")["pid"]
    with pytest.raises(kind, match=pattern) as caught:
        run(engine, do, now="reading the sound")
    assert isinstance(caught.value, EngineError)
    after = run(engine, "echo")["pid"]
    assert (after == before) is (kind is InputError), "only a wrong input leaves an SDK as it was"


def test_a_process_that_died_is_named_however_late_the_host_looks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest goes on to tell what its processes are, and forgets those of a job that is over."""
    engine = make()
    monkeypatch.setattr(hosting, "POLL_S", 1.0)  # four looks of the guest
    named = r"no frames came \(of its processes, frames \(pid \d+\) with exit code 9 ended\)"
    with pytest.raises(GuestError, match=named):
        run(engine, "orphan")


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS[1:])
def test_old_interpreters_say_why_they_ended(version: str, make: Make) -> None:
    engine = make(interpreter(version), stall_s=3, child_s=0.5)
    for do in ("crash", "child", "exit", "raise"):
        with pytest.raises(FAILURES[do][0], match=FAILURES[do][1]):
            run(engine, do, now="reading the sound")
    assert run(engine, "echo")["got"] is None


def test_a_job_lives_while_its_sdk_is_loaded_again(make: Make) -> None:
    """However long that takes; and it may be cancelled meanwhile."""
    engine = make(options={"load": 1.6})
    with pytest.raises(GuestError):
        run(engine, "exit")
    with LocalContext() as context:
        run(engine, "echo", context)
        assert context.updates.count(("processing", 0.0, "loading the SDK")) >= 2
    with pytest.raises(GuestError):
        run(engine, "exit")
    flag = threading.Event()
    with LocalContext(lambda *_: flag.set(), is_cancelled=flag.is_set) as context, pytest.raises(Cancelled):
        run(engine, "echo", context)


def test_a_cancelled_job_ends_by_itself(make: Make) -> None:
    """Where the SDK looks, its process stays loaded."""
    engine = make(cancel_s=20)
    before = run(engine, "echo")["pid"]
    flag = threading.Event()
    with LocalContext(is_cancelled=flag.is_set) as context:
        threading.Timer(0.2, flag.set).start()
        with pytest.raises(Cancelled):
            run(engine, "wait", context)
    assert run(engine, "echo")["pid"] == before


def test_a_cancelled_job_that_is_deaf_is_killed_with_all_it_started(make: Make) -> None:
    engine = make(cancel_s=0)
    flag = threading.Event()
    with LocalContext(lambda *_: flag.set(), is_cancelled=flag.is_set) as context:
        with pytest.raises(Cancelled):
            run(engine, "deaf", context)
        grandchild = int(context.updates[0][2])
    wait_until(lambda: not psutil.pid_exists(grandchild), "a process of another session is killed too")
    assert run(engine, "echo")["jobs"] == 1


@pytest.mark.parametrize("end", ["close", "exit"])
def test_what_fled_its_group_and_environment_ends_with_it(end: str, make: Make) -> None:
    """In order, and when the SDK ends by itself."""
    engine = make()
    (child,) = psutil.Process(run(engine, "fork")["pid"]).children()
    if end == "close":
        engine.close()
    else:
        with pytest.raises(GuestError):
            run(engine, "exit")
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child is gone")


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        ({"options": {"do": "raise"}}, r"cannot load: RuntimeError: the licence has expired"),
        ({"options": {"do": "exit"}}, r"cannot load: SystemExit: no display"),
        ({"options": {"do": "hang"}, "load_s": 1}, r"has not loaded its SDK within 1 s"),
        ({"options": {"do": "import nowhere_else"}}, r"No module named 'nowhere_else'"),
        ({"guest": "sample:Other"}, r"has no attribute 'Other'"),
        ({"guest": "absent:Sample"}, r"No module named 'absent'"),
        ({"python": "/bin/false"}, r"^/bin/false is no Python interpreter that works: exit code 1$"),
        ({"python": "/bin/echo"}, r"^/bin/echo is no Python interpreter that works: "),
        ({"python": "/nowhere/python"}, r"^options.python: there is no interpreter '/nowhere/python'$"),
        ({"sdk": "/nowhere"}, r"^options.sdk: /nowhere is no folder$"),
        ({"pythonpath": ["/nowhere"]}, r"^options.pythonpath: /nowhere does not exist$"),
        ({"guest": "no colon"}, r"^options.guest: "),
        ({"pyton": "x"}, r"^options.pyton: "),
    ],
)
def test_what_cannot_be_loaded_says_why(more: dict[str, Any], pattern: str) -> None:
    engine = Foreign()
    with pytest.raises(EngineError, match=pattern):
        engine.load("cpu", {**options(), **more})
    engine.close()


@pytest.mark.long
def test_an_interpreter_that_is_too_old_is_refused() -> None:
    python = old_python.find("2.7")
    if python is None:
        pytest.skip("no Python 2.7 here")
    with pytest.raises(EngineError, match=r"is Python 2\.7\.\d+; an SDK needs 3\.6 or newer"):
        Foreign().load("cpu", options(python))


def test_a_host_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """Neither a process nor, once another host starts, a folder."""
    code = (
        "import sys, time\n"
        "from inference.base import LocalContext\n"
        "from inference.foreign import Foreign\n"
        f"engine = Foreign(); engine.load('cpu', {options()!r})\n"
        "context = LocalContext(on_progress=lambda *update: print(update[2], flush=True))\n"
        "engine.run(engine.check({'do': 'hang'}), context)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == "the second half\n"
        wait_until(lambda: len(psutil.Process(host.pid).children(recursive=True)) >= 2, "its helper runs")
        family = psutil.Process(host.pid).children(recursive=True)
        host.send_signal(signal.SIGKILL)
    gone = lambda each: not each.is_running() or each.status() == psutil.STATUS_ZOMBIE  # noqa: E731
    wait_until(lambda: all(map(gone, family)), "the guest and its helper end with their host")
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
    again = f"from inference.foreign import Foreign\ne = Foreign(); e.load('cpu', {options()!r}); e.close()"
    subprocess.run([sys.executable, "-c", again], env=env, check=True)
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_what_it_prints_is_in_our_log_and_does_not_fill_the_disk(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make()
    assert engine._guest is not None
    for _ in range(3):
        run(engine, "print", lines=3000)
    run(engine, "echo")
    assert engine._guest.folder.joinpath("output.log").stat().st_size < 8 << 20
    said = capsys.readouterr().err
    assert "the sample is loaded" in said
    assert len(re.findall(r"x{1000}", said)) == 9000


def test_what_a_guest_starts_as_it_is_ended_leaves_no_zombie() -> None:
    """Started after the last look at its family, killed with its group, and inherited by the worker."""
    script = """
import ctypes, subprocess, time, psutil
from inference.foreign.family import Family
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # as a worker: it inherits orphans
guest = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
while len(psutil.Process(guest.pid).children()) < 2:
    time.sleep(0.01)
family = Family()
family.count = lambda *_: None  # the look came before they were started
family.end(guest)
print([child.status() for child in psutil.Process().children(recursive=True)])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
