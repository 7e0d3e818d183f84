"""Identity, signals and families, on real processes: zombies, stopped ones, strays, reused pids."""

from __future__ import annotations

import ast
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pool.constants import ENV_SPOOL, ENV_WORKER
from pool.policy import death
from pool.system import host, portable, procfs, procs
from pool.system.procs import Identity, Status

PYTHON = sys.executable
ROOT = Path(__file__).resolve().parent.parent
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")

pytestmark = pytest.mark.skipif(not host.LINUX, reason="proved on Linux")


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"not within {seconds} s: {condition}")


class Yard:
    """Starts workers of one made-up spool and leaves none behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool_id = str(uuid.uuid4())
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, code: str, worker: str = "echo-0.1") -> subprocess.Popen[bytes]:
        env = {**os.environ, ENV_SPOOL: self.spool_id, ENV_WORKER: worker}
        child = procs.spawn(
            [PYTHON, "-S", "-c", textwrap.dedent(code)], env=env, cwd=self.folder, log=self.folder / "log"
        )
        self.children.append(child)
        return child

    def worker(self, code: str = "", worker: str = "echo-0.1") -> tuple[subprocess.Popen[bytes], Identity]:
        """A worker that has run `code` and then sleeps."""
        ready = self.folder / f"ready-{len(self.children)}"
        body = f"{textwrap.dedent(code)}\nimport time\nopen({str(ready)!r}, 'w').close()\ntime.sleep(600)"
        child = self.start(body, worker)
        until(ready.exists)
        identity = procs.identity_of(child.pid)
        assert identity is not None
        return child, identity

    def close(self) -> None:
        for member in procs.members(self.spool_id):
            procs.signal_process(member.identity, signal.SIGKILL)
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=[procfs, portable], ids=["procfs", "psutil"])
def facts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both sources of facts must lead to the same judgements."""
    monkeypatch.setattr(procs, "_facts", request.param)
    return request.param


# --- identity


def test_identity_round_trip_and_own_life(facts: Any) -> None:
    me = procs.identity_of(os.getpid())
    assert me is not None
    assert me.alive()
    assert Identity.from_map(me.to_map()) == me
    assert me.boot == host.boot_id() != ""


@pytest.mark.parametrize(
    "data", [{}, {"pid": True, "start": "1", "boot": "b"}, {"pid": -1, "start": "1", "boot": "b"}, {"pid": 5}]
)
def test_identity_from_nonsense(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="identity"):
        Identity.from_map(data)


def test_other_boot_and_other_start_are_dead(facts: Any) -> None:
    me = procs.identity_of(os.getpid())
    assert me is not None
    assert procs.proved_dead(replace(me, boot="another"))
    assert procs.proved_dead(replace(me, start="1"))
    assert procs.proved_dead(replace(me, pid=2**22 + 5))
    assert not procs.signal_process(replace(me, start="1"), signal.SIGKILL)  # or this test ends here


@pytest.mark.invariant(28)
def test_zombie_is_dead(yard: Yard, facts: Any) -> None:
    child, identity = yard.worker()
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: procs.sample(identity).status is Status.ZOMBIE)
    assert not identity.alive()
    assert child.returncode is None  # nobody reaped it: the zombie itself was judged
    assert not procs.signal_process(identity, 0)
    child.wait()
    assert procs.sample(identity).status is Status.GONE


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of the system call differs")
def test_a_process_whose_first_thread_ended_is_alive(yard: Yard) -> None:
    child = yard.start(
        """
        import ctypes, threading, time
        threading.Thread(target=time.sleep, args=(600,)).start()
        ctypes.CDLL(None).syscall(60, 0)  # exit of this thread only
        """
    )
    until(lambda: b") Z " in Path(f"/proc/{child.pid}/stat").read_bytes())
    identity = procs.identity_of(child.pid)
    assert identity is not None
    assert identity.alive()
    assert procs.signal_process(identity, signal.SIGKILL)
    child.wait()
    assert not identity.alive()


def test_what_cannot_be_read_counts_as_alive(monkeypatch: pytest.MonkeyPatch, facts: Any) -> None:
    me = procs.identity_of(os.getpid())
    assert me is not None

    def refuse(pid: int) -> Any:
        raise PermissionError(13, "hidden")

    monkeypatch.setattr(facts, "read_stat", refuse)
    assert not procs.proved_dead(me)


@pytest.mark.invariant(28)
def test_reused_pid_is_a_stranger(yard: Yard) -> None:
    """The real thing: the kernel is told to hand the dead worker's pid out again."""
    if not os.access(LAST_PID, os.W_OK):
        pytest.skip("choosing the next pid is not permitted here; a wrong start tick stands in for it above")
    child, identity = yard.worker()
    child.kill()
    child.wait()
    for _ in range(200):
        try:
            LAST_PID.write_text(str(identity.pid - 1))
        except OSError:
            pytest.skip("choosing the next pid is not permitted here")
        stranger, _ = yard.worker(worker="other-0.1")
        if stranger.pid == identity.pid:
            break
    assert stranger.pid == identity.pid
    assert not identity.alive()
    assert procs.sample(identity).status is Status.GONE
    assert procs.pidfd(identity) is None
    assert not procs.signal_process(identity, signal.SIGKILL)
    assert procs.kill_group(identity, signal.SIGKILL, spool_id=yard.spool_id, worker="echo-0.1") == []
    assert stranger.poll() is None


# --- starting


def test_spawn_session_log_and_descriptors(yard: Yard) -> None:
    (yard.folder / "log").write_text("before\n")
    kept = os.open(yard.folder, os.O_RDONLY)
    os.set_inheritable(kept, True)
    child = yard.start(
        f"""
        import os, sys
        print(os.getsid(0) == os.getpgid(0) == os.getpid(), os.getcwd(), sys.stdin.read() == "")
        print(os.path.exists("/proc/self/fd/{kept}"), flush=True)
        print("to stderr", file=sys.stderr)
        """
    )
    assert child.wait(10) == 0
    os.close(kept)
    text = (yard.folder / "log").read_text().splitlines()
    assert text == ["before", f"True {yard.folder} True", "False", "to stderr"]
    assert (yard.folder / "log").stat().st_mode & 0o777 in (0o600, 0o644)


def test_spawn_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(procs.SpawnError, match=r"no-such-python.*`python`"):
        procs.spawn(["no-such-python"], env={}, cwd=tmp_path, log=tmp_path / "log")
    with pytest.raises(procs.SpawnError, match=r"its directory .*absent"):
        procs.spawn([PYTHON], env={}, cwd=tmp_path / "absent", log=tmp_path / "log")
    with pytest.raises(procs.SpawnError, match="cannot open the log"):
        procs.spawn([PYTHON], env={}, cwd=tmp_path, log=tmp_path / "absent" / "log")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(procs.SpawnError, match="cannot open the log"):
        procs.spawn([PYTHON], env={}, cwd=tmp_path, log=tmp_path / "link")


def test_spawn_and_parent_death_only_from_the_main_thread(tmp_path: Path) -> None:
    caught: list[str] = []

    def attempt() -> None:
        with pytest.raises(RuntimeError) as error:
            procs.spawn([PYTHON, "-V"], env={}, cwd=tmp_path, log=tmp_path / "log")
        caught.append(str(error.value))
        with pytest.raises(RuntimeError) as error:
            procs.set_parent_death_signal(signal.SIGTERM)
        caught.append(str(error.value))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert ["main thread" in text for text in caught] == [True, True]


# --- signals


def test_pidfd_tells_of_a_death_that_is_not_our_childs(yard: Yard) -> None:
    child, _ = yard.worker(
        """
        import subprocess, sys
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
        """
    )
    grandchild = procs.identity_of(int((yard.folder / "log").read_text()))
    assert grandchild is not None
    descriptor = procs.pidfd(grandchild)
    assert descriptor is not None
    assert select.select([descriptor], [], [], 0)[0] == []
    assert procs.signal_process(grandchild, signal.SIGKILL)
    assert select.select([descriptor], [], [], 5)[0] == [descriptor]
    os.close(descriptor)
    assert procs.proved_dead(grandchild)  # a zombie: its parent sleeps
    child.kill()
    assert procs.pidfd(2**22 + 5) is None


def test_stopped_is_seen_and_killed(yard: Yard, facts: Any) -> None:
    child, identity = yard.worker("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert procs.signal_process(identity, signal.SIGSTOP)
    until(lambda: procs.sample(identity).status is Status.STOPPED)
    assert identity.alive()
    assert procs.signal_process(identity, signal.SIGTERM)
    assert identity.alive()
    assert procs.signal_process(identity, signal.SIGKILL)
    assert child.wait(5) == -signal.SIGKILL


FAMILY = """
    import os, signal, subprocess, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); "
    sleeper = [sys.executable, "-S", "-c", code + "time.sleep(600)"]
    pids = []
    for more in (
        {},                                                  # in the group
        {"start_new_session": True},                         # own session, tagged
        {"env": {}},                                         # in the group, no tag
        {"env": {}, "start_new_session": True},              # own session, no tag: found by its parent
    ):
        child = subprocess.Popen(sleeper, stdout=subprocess.PIPE, **more)
        child.stdout.readline()
        pids.append(child.pid)
    # own session, tagged, orphaned: its parent ended at once
    launcher = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True, " \
        "stdout=subprocess.DEVNULL).pid)"
    done = subprocess.run([sys.executable, "-S", "-c", launcher, *sleeper], stdout=subprocess.PIPE)
    pids.append(int(done.stdout))
    open("family", "w").write(" ".join(map(str, pids)))
"""


@pytest.mark.invariant(27)
def test_kill_group_reaches_every_stray_and_nobody_else(yard: Yard, facts: Any) -> None:
    child, identity = yard.worker(FAMILY)
    other, other_identity = yard.worker(worker="echo-1.1")
    strays = [procs.identity_of(int(pid)) for pid in (yard.folder / "family").read_text().split()]
    assert len(strays) == 5
    assert all(stray is not None and stray.alive() for stray in strays)
    tag = {"spool_id": yard.spool_id, "worker": "echo-0.1"}
    assert {m.identity for m in procs.family(identity, **tag)} == {identity, *strays}
    assert procs.sample(identity, children=True).children_bytes > 2**22  # type: ignore[operator]
    hit = procs.kill_group(identity, signal.SIGKILL, **tag)
    assert sorted(each.pid for each in hit) == sorted([child.pid, *(s.pid for s in strays if s)])
    until(lambda: all(s is not None and not s.alive() for s in strays))
    until(lambda: not identity.alive())
    assert other.poll() is None
    assert other_identity.alive()
    assert [m.worker for m in procs.members(yard.spool_id)] == ["echo-1.1"]


def test_a_process_that_is_about_to_begin_is_found_by_its_tag(yard: Yard) -> None:
    """Between exec and its first instruction it has no environment to show."""
    env = {ENV_SPOOL: yard.spool_id, ENV_WORKER: "echo-0.1"}
    for _ in range(100):
        child = subprocess.Popen(["sleep", "600"], env=env, start_new_session=True)
        yard.children.append(child)
        found = procs.members(yard.spool_id, "echo-0.1")
        assert child.pid in {member.identity.pid for member in found}
        child.kill()
        child.wait()


def test_a_process_that_begins_between_two_looks_is_found_by_its_tag(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no environment to show, and when asked whether it is beginning, it has begun."""
    env = {ENV_SPOOL: yard.spool_id, ENV_WORKER: "echo-0.1"}
    child = subprocess.Popen(["sleep", "600"], env=env, start_new_session=True)
    yard.children.append(child)
    until(lambda: child.pid in {member.identity.pid for member in procs.members(yard.spool_id)})
    real, early = procfs._environment, {child.pid}

    def look(pid: int, user: int) -> bytes:
        if pid in early:
            early.remove(pid)
            return b""
        return real(pid, user)

    monkeypatch.setattr(procfs, "_environment", look)
    assert child.pid in {member.identity.pid for member in procs.members(yard.spool_id, "echo-0.1")}
    assert not early


def test_a_process_without_an_environment_has_begun() -> None:
    """It is not waited for."""
    code = "print(1, flush=True); import time; time.sleep(600)"
    with subprocess.Popen([PYTHON, "-S", "-c", code], env={}, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert not procfs.is_beginning(child.pid)
        child.kill()
        until(lambda: procfs.read_stat(child.pid).status is Status.ZOMBIE)
        assert not procfs.is_beginning(child.pid)
    assert not procfs.is_beginning(child.pid)


def test_strays_of_a_reaped_worker_are_found_by_their_tag(yard: Yard) -> None:
    child, identity = yard.worker(FAMILY)
    child.kill()
    child.wait()
    strays = [procs.identity_of(int(pid)) for pid in (yard.folder / "family").read_text().split()]
    tagged = {strays[0], strays[1], strays[4]}
    found = procs.members(yard.spool_id, "echo-0.1")
    assert {m.identity for m in found} == tagged
    procs.kill_group(identity, signal.SIGKILL, spool_id=yard.spool_id, worker="echo-0.1")
    until(lambda: not procs.members(yard.spool_id))
    for stray in strays:
        if stray is not None:
            procs.signal_process(stray, signal.SIGKILL)


def test_kill_group_never_hits_ourselves(monkeypatch: pytest.MonkeyPatch, yard: Yard) -> None:
    """A supervisor started from inside a worker carries that worker's tag and is its descendant."""
    code = f"""
    import os, signal, sys
    sys.path.insert(0, {str(ROOT)!r})
    from pool.system import procs
    me = procs.identity_of(os.getpid())
    hit = procs.kill_group(me, signal.SIGKILL, spool_id={yard.spool_id!r}, worker="echo-0.1")
    print([each.pid for each in hit], flush=True)
    """
    child, _ = yard.worker(code)
    assert child.poll() is None
    assert (yard.folder / "log").read_text() == "[]\n"


def test_scans_are_cheap(yard: Yard) -> None:
    _, identity = yard.worker()
    count = len(list(procfs.pids()))

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(20):
            begin = time.thread_time()  # processor time: whatever else runs here
            call()
            times.append(time.thread_time() - begin)
        return min(times)

    assert best(lambda: procs.members(yard.spool_id)) * 200 / count < 0.010  # 5 ms for 200, twice that for slow hosts
    assert best(lambda: procs.sample(identity)) < 200e-6


def test_sample_counts(yard: Yard, facts: Any) -> None:
    _, identity = yard.worker("data = b'x' * (32 << 20)\nfor _ in range(300000): pass")
    until(lambda: procs.sample(identity).status is Status.SLEEPING)
    taken = procs.sample(identity)
    assert taken.rss_bytes > 32 << 20
    assert 0 < taken.cpu_s < 60
    assert taken.children_bytes is None
    assert procs.resident_bytes() > 1 << 20
    busy, busy_identity = yard.worker(worker="echo-1.1")
    busy.kill()
    busy.wait()
    assert procs.sample(busy_identity, children=True) == procs.Sample(Status.GONE, 0, 0.0, 0)


# --- parent death

MIDDLE = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pool.system import procs
if sys.argv[1] == "late":
    time.sleep(0.3)  # the parent is gone by now
parent = int(sys.argv[2])
print(procs.set_parent_death_signal(signal.SIGTERM, parent), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("when", ["in-time", "late"])
def test_parent_death_signal(yard: Yard, when: str) -> None:
    (yard.folder / "middle.py").write_text(MIDDLE)
    parent, _ = yard.worker(
        f"""
        import os, subprocess, sys
        child = subprocess.Popen([sys.executable, "-S", "middle.py", {when!r}, str(os.getpid())])
        open("pid", "w").write(str(child.pid))
        """
    )
    child = procs.identity_of(int((yard.folder / "pid").read_text()))
    assert child is not None
    if when == "in-time":
        until(lambda: (yard.folder / "log").read_text() == "True\n")
        assert child.alive()
        parent.kill()
        parent.wait()
        until(lambda: not child.alive())
    else:
        parent.kill()
        parent.wait()
        until(lambda: (yard.folder / "log").read_text() == "False\n")
        assert child.alive()  # nothing will ever be sent: it has to look


# --- words for a death

DEATHS = [
    ("import sys; sys.exit(3)", 3, None, "exit code 3 (the engine failed to load)"),
    ("import sys; sys.exit(77)", 77, None, "exit code 77"),
    ("import sys; sys.exit(137)", 137, None, "exit code 137 (a wrapper reports SIGKILL)"),
    ("import os; os.kill(os.getpid(), 11)", None, "SIGSEGV", "killed by SIGSEGV (segmentation fault)"),
    ("import os; os.kill(os.getpid(), 9)", None, "SIGKILL", "killed by SIGKILL, probably out of memory"),
    ("import os; os.abort()", None, "SIGABRT", f"killed by SIGABRT ({death.SIGNAL_MEANING['SIGABRT']})"),
]


@pytest.mark.parametrize(("code", "exit_code", "name", "sentence"), DEATHS)
def test_death_in_words(yard: Yard, code: str, exit_code: int | None, name: str | None, sentence: str) -> None:
    found = death.death_of(yard.start(code).wait(10))
    assert (found.exit_code, found.signal, str(found)) == (exit_code, name, sentence)


def test_death_by_us_by_memory_by_others_and_unknown() -> None:
    assert str(death.death_of(-9, sent=9)) == "killed by SIGKILL (by the supervisor)"
    proven = death.death_of(-9, oom_before=2, oom_now=3)
    assert proven.out_of_memory
    assert "the kernel's OOM killer" in str(proven)
    assert "another program" in str(death.death_of(-9, oom_before=2, oom_now=2))
    assert "exit status unknown" in str(death.death_of(None))
    assert death.signal_name(signal.SIGRTMIN + 3) == "SIGRTMIN+3"
    assert death.signal_name(500) == "signal 500"


# --- the machine


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_counters_and_quota_of_a_unified_group(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/app\n",
            "proc/vmstat": "nr 1\noom_kill 99\n",
            "proc/meminfo": "MemTotal:  4096 kB\nMemFree: 1 kB\n",
            "sys/fs/cgroup/user/app/memory.events": "low 0\noom 1\noom_kill 4\n",
            "sys/fs/cgroup/user/app/memory.max": "max\n",
            "sys/fs/cgroup/user/memory.max": "1048576\n",
            "sys/fs/cgroup/user/app/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user/cpu.max": "100000 100000\n",
        },
    )
    assert (host.oom_kills(root), host.memory_total(root), host.cpu_count(root)) == (4, 1048576, 1)


def test_counters_and_quota_of_old_groups_in_a_container(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n",
            "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2097152\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert (host.oom_kills(root), host.memory_total(root), host.cpu_count(root)) == (7, 2097152, 1)


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert host.oom_kills(tmp_path) is None
    assert host.memory_total(tmp_path) is None
    assert host.cpu_count(tmp_path) == len(os.sched_getaffinity(0))
    root = lay(tmp_path, {"proc/vmstat": "oom_kill 3\n"})
    assert host.oom_kills(root) == 3


# --- what a worker under an old interpreter imports


def test_worker_side_parses_on_python_3_8_and_needs_no_psutil(tmp_path: Path) -> None:
    rooms = ("work", "system", "format", "job", "policy", "spool", "runfiles")
    for path in (*(path for room in rooms for path in (ROOT / "pool" / room).glob("*.py")), ROOT / "worker_main.py"):
        ast.parse(path.read_text(), str(path), feature_version=(3, 8))
    code = "import os, sys; sys.modules['psutil'] = None; from pool.system import procs"
    code += "; procs.identity_of(os.getpid()).alive()"
    subprocess.run([PYTHON, "-c", code], check=True, cwd=ROOT)
