"""An engine that misuses its process: its own job succeeds, or fails with a reason; the next one sees nothing of it."""

from __future__ import annotations

import contextlib
import glob
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pool.client.filepool import FilePool
from pool.client.future import JobFuture
from pool.errors import JobFailed
from pool.job import Failure, JobState
from pool.system import cgroup, host
from scenarios.world import World, alive, kill, wait_until

pytestmark = pytest.mark.skipif(not host.LINUX, reason="proved on Linux")

ODD = '''
import os, sys, signal, locale, gc, json


class Odd:
    """Does what its job says, and tells what its process looks like. options: code for its other methods."""

    def load(self, device, options):
        self.options = options
        os.environ["FROM_LOAD"] = "1"
        self.act("load")

    def act(self, where, **names):
        code = self.options.get(where)
        if code:
            exec(code, {"self": self, **names})

    def check(self, params):
        if params.get("check"):
            exec(params["check"], {"self": self})
        return params

    def fingerprint(self):
        self.act("fingerprint")
        return "1"

    def memory(self):
        self.act("memory")
        return {"gpu_bytes": 0}

    def close(self):
        self.act("close")

    def run(self, params, context):
        names = {"context": context, "self": self}
        exec(params.get("code", ""), names)
        return names["result"] if "result" in names else {"pid": os.getpid(), **look()}

    def run_batch(self, batch, contexts):
        return [self.run(params, context) for params, context in zip(batch, contexts)]


def look():
    words = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    return {"world": {
        "status": [words[key] for key in ("Umask", "SigBlk", "SigIgn", "SigCgt")],
        "files": [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)],
        "streams": [stream is not None and not stream.closed for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "environment": sorted(os.environ.items()), "cwd": os.getcwd(), "path": sys.path[:], "wakeup": wakeup >= 0,
        "locale": locale.setlocale(locale.LC_ALL), "limits": open("/proc/self/limits").read(), "nice": os.nice(0),
        "timers": [signal.getitimer(which)[0] > 0 for which in (0, 1, 2)], "gc": gc.isenabled(),
        "tracing": [str(sys.gettrace()), str(sys.getprofile()), sys.getrecursionlimit()],
    }}
'''


@dataclass(frozen=True)
class Reason:
    """A row: what run() raises, and what the record says of it."""

    code: str
    says: str
    exception: str
    shows: str = ""
    kind: str = "engine"


RAISED = {
    "CancelledError": Reason(
        "import asyncio\nasync def f(): raise asyncio.CancelledError('inner timeout')\nasyncio.run(f())",
        "inner timeout" if sys.version_info >= (3, 11) else "",  # asyncio.run() drops the text before that
        "asyncio.exceptions.CancelledError",
        "in f",
    ),
    "KeyboardInterrupt": Reason("raise KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
    "GeneratorExit": Reason("raise GeneratorExit", "GeneratorExit", "GeneratorExit"),
    "SystemExit": Reason("raise SystemExit(7)", "sys.exit(7)", "SystemExit"),
    "BaseException": Reason("class X(BaseException): pass\nraise X('odd')", "odd", "X", "X: odd"),
    "str raises": Reason(
        "class E(Exception):\n def __str__(self): raise ValueError\nraise E(5)", "E(5); its str() raises", "E"
    ),
    "str, repr, kind and hint interrupt": Reason(
        "class E(Exception):\n def __str__(self): raise KeyboardInterrupt\n __repr__ = __str__\n"
        " kind = hint = property(__str__)\nraise E",
        "its str() raises",
        "E",
    ),
    "huge": Reason("raise ValueError('x' * 10_000_000)", "10,000,000 characters", "ValueError"),
    "surrogate": Reason("raise ValueError('bad \\ud800')", "bad ?", "ValueError"),
    "recursion": Reason("def f(): f()\nf()", "recursion depth", "RecursionError", "in f"),
    "group": Reason(
        "class G(Exception): pass\ng = G('two')\ng.message = 'two'\n"
        "g.exceptions = (KeyError('a'), OSError('b'))\nraise g",
        "two: KeyError: 'a'; OSError: b",
        "G",
    ),
    "generator": Reason("result = (n for n in [])", "a `yield` in it", "TypeError"),
    "coroutine": Reason("async def f(): pass\nresult = f()", "`async def`", "TypeError"),
    "cancelled by nobody": Reason(
        "from inference.base import Cancelled\nraise Cancelled", "the job was not cancelled", "RuntimeError"
    ),
    "alarm that raises": Reason(
        "import signal, time\ndef late(*_): raise TimeoutError('too late')\n"
        "signal.signal(signal.SIGALRM, late)\nsignal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)\ntime.sleep(60)",
        "too late",
        "TimeoutError",
        "in late",
    ),
    "closed stderr, then": Reason(
        "import sys, os\nsys.stderr.close()\nos.close(2)\nsys.stdout = None\nraise ValueError('dark')",
        "dark",
        "ValueError",
    ),
}

CHANGED = {
    "close 0 to 2": "import os; [os.close(fd) for fd in (0, 1, 2)]",
    "streams": "import sys; sys.stderr.close(); sys.stdout = None",
    "onto": "import os; fd = os.open('/dev/null', 2); os.dup2(fd, 1); os.dup2(fd, 2); os.close(fd)",
    "cwd, umask": "import os; os.chdir('/'); os.umask(0)",
    "environment": "import os; os.environ['ODD'] = '1'; del os.environ['FROM_LOAD']",
    "signals": "import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 10, 15)]; signal.set_wakeup_fd(-1)",
    "mask": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [15, 10])",
    "alarm": "import signal; signal.alarm(1); signal.signal(14, lambda *_: 1 / 0)",
    "locale, path": "import locale, sys; locale.setlocale(locale.LC_ALL, 'C.UTF-8'); sys.path = ['/nowhere']",
    "tracing": "import sys, gc; sys.setprofile(print); sys.setprofile(None); sys.setrecursionlimit(9999); gc.disable()",
    "limits": "import resource; resource.setrlimit(7, (50, resource.getrlimit(7)[1]))",
    "loop": "import asyncio, signal\nasync def f():\n loop = asyncio.get_running_loop()\n"
    " loop.add_signal_handler(10, print)\n loop.remove_signal_handler = print\nasyncio.run(f())",
    "exit in a thread": "import sys, threading; t = threading.Thread(target=sys.exit); t.start(); t.join()",
    "lists kept": "import sys, os; sys.path.append('/x'); os.environ.clear()",
}


@pytest.fixture(scope="module")
def misused(make_shared: Callable[[str], World]) -> World:
    """One worker, so that the next job is the next one in the same process."""
    world = odd_world(make_shared("misuse"), {"odd": {}})
    world.wait_ready(1)
    return world


def odd_world(world: World, engines: dict[str, dict[str, Any]], **top: Any) -> World:
    (world.folder / "odd.py").write_text(ODD)
    base = {"engine": "odd:Odd", "pythonpath": [str(world.folder)], "max_concurrent_tasks": 1, "retry_times": 0}
    world.configure({name: {**base, **changes} for name, changes in engines.items()}, **top)
    world.serve()
    return world


def failure_of(future: JobFuture) -> Failure:
    with pytest.raises(JobFailed) as caught:
        future.result(60)
    return caught.value.failure


def log_of(world: World, slot: str = "odd-0") -> str:
    return (world.spool / "run" / "logs" / f"{slot}.log").read_text(errors="replace")


@pytest.mark.invariant(15)
def test_whatever_comes_out_of_run_is_a_reason_and_the_worker_stays(misused: World) -> None:
    pool = misused.pool()
    pid = pool.submit("odd").result(60)["pid"]
    wrong = []
    for name, row in RAISED.items():
        last = failure_of(pool.submit("odd", code=row.code))
        told = (last.kind, last.stage, last.exception, row.says in last.message, row.shows in last.traceback)
        if told != (row.kind, "run", row.exception, True, True) or len(last.attempts) != 1:
            wrong.append(f"{name}: {told} {last.message[:200]}")
        elif pool.submit("odd").result(60)["pid"] != pid:
            wrong.append(f"{name}: the worker did not stay")
    assert not wrong, "\n".join(wrong)


def test_what_a_job_changes_never_reaches_the_next_one(misused: World) -> None:
    pool = misused.pool()
    before = pool.submit("odd").result(60)
    wrong = []
    for name, code in CHANGED.items():
        pool.submit("odd", code=f"{code}\nresult = {{}}").result(60)
        after = pool.submit("odd").result(60)
        changed = {key for key, value in before["world"].items() if after["world"][key] != value}
        if changed or after["pid"] != before["pid"]:
            wrong.append(f"{name}: {changed or 'another process'}")
        with contextlib.suppress(JobFailed):
            pool.submit("odd", code=f"{code}\nraise KeyboardInterrupt").result(60)
        after = pool.submit("odd").result(60)
        if after != before:
            wrong.append(f"{name}, and then raised: the next job sees it")
    assert not wrong, "\n".join(wrong)
    log = log_of(misused)
    assert log.count("changed the working directory (/): put back") == 1, "said once"
    assert "changed environment (FROM_LOAD, ODD): put back" in log
    assert "changed signal handlers (" in log


def test_check_may_raise_anything_too(misused: World) -> None:
    pool = misused.pool()
    pid = pool.submit("odd").result(60)["pid"]
    last = failure_of(pool.submit("odd", check="raise GeneratorExit('in check')"))
    assert (last.kind, last.stage, last.message) == ("engine", "check", "in check")
    items = pool.map("odd", [{"code": ""}, {"code": "raise KeyboardInterrupt('one')"}, {"code": ""}], chunksize=3)
    assert next(items)["pid"] == pid
    with pytest.raises(JobFailed) as caught:
        next(items)
    assert (caught.value.failure.message, caught.value.failure.stage) == ("one", "run")


FORKS = {
    "returns": "",
    "raises": "if child == 0: raise RuntimeError('child')",
    "exits": "if child == 0: raise SystemExit(3)",
    "beats": "if child == 0:\n for n in range(100): context.progress('merging_audio', n)",
}
FORK = """
import os
child = os.fork()
{}
result = {{"child": child, "pid": os.getpid()}}
if child:
    result["status"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.mark.invariant(15)
@pytest.mark.parametrize("how", FORKS)
def test_a_forked_child_that_comes_back_ends_at_once(misused: World, how: str) -> None:
    """One record, by the parent; the child neither publishes nor beats nor claims."""
    pool = misused.pool()
    pid = pool.submit("odd").result(60)["pid"]
    futures = [pool.submit("odd", code=FORK.format(FORKS[how]))]
    futures += pool.submit_many("odd", [{"code": ""}] * 20)
    done = futures[0].result(60)
    assert (done["pid"], done["status"]) == (pid, 9)
    assert {future.result(60)["pid"] for future in futures[1:]} == {pid}
    assert f"pid {done['child']} is a fork of this worker that came back from run(): ended" in log_of(misused)
    assert misused.record(futures[0].id).attempt == 1
    (beat,) = misused.loaded().values()
    assert (beat.pid, beat.stage != "merging_audio") == (pid, True)


def test_children_of_a_forked_pool_obey(misused: World) -> None:
    """multiprocessing ends its forked children by SIGTERM, which the worker itself answers by draining."""
    code = (
        "import multiprocessing\nwith multiprocessing.get_context('fork').Pool(2) as pool:\n"
        " result = {'v': pool.map(abs, [-1, -2])}"
    )
    pool = misused.pool()
    pid = pool.submit("odd").result(60)["pid"]
    assert pool.submit("odd", code=code).result(60) == {"v": [1, 2]}
    assert pool.submit("odd").result(60)["pid"] == pid


def test_a_child_hears_what_it_is_told_while_it_is_forked(misused: World) -> None:
    """SIGTERM reaches a child before its first line: it ends all the same, and its parent need not wait for ever."""
    code = """if True:
        import os, signal, time
        ends = []
        for _ in range(40):
            pid = os.fork()
            if not pid:
                time.sleep(5)
                os._exit(3)
            os.kill(pid, signal.SIGTERM)
            ends.append(os.waitpid(pid, 0)[1])
        result = {"ends": sorted(set(ends))}
    """
    assert misused.pool().submit("odd", code=code).result(100) == {"ends": [signal.SIGTERM]}


def test_a_worker_that_cannot_be_mended_is_replaced(misused: World) -> None:
    """Its own descriptors are closed: the job has its result or its reason, the next one another process, and the slot
    no blame, however often (start_limit is 5)."""
    pool = misused.pool()
    before = misused.slot("odd-0")["starts"]
    close = "import os; os.closerange(3, 64); result = {'pid': os.getpid()}"
    for number in range(6):
        pid = pool.submit("odd").result(60)["pid"]
        if number:
            last = failure_of(pool.submit("odd", code=f"{close}; raise ValueError('closed')"))
            assert (last.message, last.stage) == ("closed", "run")
        else:
            assert pool.submit("odd", code=close).result(60) == {"pid": pid}
        wait_until(lambda gone=pid: not alive(gone), "end of the worker")
    assert pool.submit("odd").result(60)["pid"] != pid
    slot = wait_until(lambda: (s := misused.slot("odd-0"))["starts"] >= before + 6 and s)
    assert (slot["seat"], slot["ended"]["cause"], slot["ended"]["exit_code"]) == ("running", "recycle", 5)
    assert "the worker's own descriptors, which cannot be put back: this worker is replaced" in log_of(misused)


def test_the_other_methods_of_an_engine(world: World) -> None:
    """memory(), close() and load() that raise what they like; a fork that comes back from load(); fingerprint()."""
    interrupt = "raise KeyboardInterrupt('in {}')"
    forked = "import os\nif os.fork() == 0: raise RuntimeError('child')"
    odd_world(
        world,
        {
            "memory": {"options": {"memory": interrupt.format("memory")}},
            "close": {"options": {"close": interrupt.format("close"), "load": forked}},
            "load": {
                "options": {"load": "class E(BaseException):\n def __str__(self): 1 / 0\nraise E"},
                "start_limit": 1,
            },
            "print": {
                "options": {"fingerprint": interrupt.format("fingerprint")},
                "cache_enabled": True,
                "start_limit": 1,
            },
        },
    )
    pool = world.pool()
    pids = {name: [pool.submit(name).result(60)["pid"] for _ in range(3)] for name in ("memory", "close")}
    assert all(len(set(each)) == 1 for each in pids.values())
    assert "memory() of the engine failed: KeyboardInterrupt: in memory" in log_of(world, "memory-0")
    assert "is a fork of this worker that came back from load(): ended" in log_of(world, "close-0")
    errors = wait_until(
        lambda: (
            [e for name in ("load-0", "print-0") if (e := world.slot(name).get("error"))][1:]
            and [world.slot(name)["error"] for name in ("load-0", "print-0")]
        )
    )
    assert "E(); its str() raises" in errors[0]["message"]
    assert errors[1]["message"] == "KeyboardInterrupt: in fingerprint"
    assert world.drain() == 0
    assert "close() of the engine failed" in log_of(world, "close-0")
    assert "in close" in log_of(world, "close-0")


def test_a_batch_whose_call_raises_anything_runs_one_by_one(world: World) -> None:
    odd_world(world, {"odd": {"max_batch": 4, "batch_wait_ms": 300}})
    pool = world.pool()
    pool.submit("odd").result(60)
    bad = "import asyncio; raise asyncio.CancelledError('me')"
    futures = pool.submit_many("odd", [{"code": ""}, {"code": bad}, {"code": ""}])
    pids = {futures[0].result(60)["pid"], futures[2].result(60)["pid"]}
    last = failure_of(futures[1])
    assert (last.message, last.stage, last.exception) == ("me", "run", "asyncio.exceptions.CancelledError")
    assert len(pids) == 1


def test_a_cancellation_inside_a_group_is_a_cancellation(misused: World) -> None:
    """As a TaskGroup hands on what one of its tasks raised."""
    code = (
        "import time\nfrom inference.base import Cancelled\nclass G(BaseException): pass\n"
        "context.progress('inference', 1)\n"
        "try:\n while True: context.check(); time.sleep(0.01)\n"
        "except Cancelled as error:\n g = G('group'); g.exceptions = (ValueError('other'), error)\n raise g"
    )
    pool = misused.pool()
    future = pool.submit("odd", code=code)
    misused.worker_of(future.id)
    future.cancel()
    assert misused.record(future.id).state is JobState.CANCELLED


def test_leftovers_are_told_and_end_with_the_worker(world: World) -> None:
    """What a job leaves running is told; drained or killed, the worker's end is theirs: also of those that left its
    session with an empty environment. Helpers that load() started are not told."""
    daemon = (
        "import os, subprocess, sys, time\n"
        "note = os.path.join(self.options['notes'], str(time.monotonic_ns()))\n"
        "subprocess.run(['setsid', '-f', 'env', '-i', '/bin/sh', '-c', f'echo $$ > {note}; exec sleep 600'])\n"
    )
    notes = world.folder / "notes"
    notes.mkdir()
    options = {"notes": str(notes), "load": daemon}
    odd_world(world, {"odd": {"options": options}})
    pool = world.pool()

    def pids() -> set[int]:
        return {int(text) for path in notes.iterdir() if (text := path.read_text().strip())}

    first = pool.submit("odd").result(60)["pid"]
    helpers = wait_until(pids)
    wait = "\nwhile not (os.path.exists(note) and open(note).read().strip()): time.sleep(0.01)"
    pool.submit("odd", code=daemon + wait).result(60)
    left = pids() - helpers
    assert len(helpers) == len(left) == 1
    (pid,) = left
    assert f"left pid {pid} (sleep 600) running" in log_of(world)
    assert f"left pid {next(iter(helpers))} " not in log_of(world)
    assert alive(pid)
    with contextlib.suppress(JobFailed):
        pool.submit("odd", code="import os; os.kill(os.getpid(), 9)").result(60)
    second = pool.submit("odd").result(60)["pid"]
    assert second != first
    assert not [each for each in helpers | left if alive(each)], "ended before the next process started"
    pool.submit("odd", code=daemon + wait).result(60)
    assert world.drain() == 0
    assert not [each for each in pids() if alive(each)]


def test_dead_children_that_nobody_waits_for_do_not_pile_up(world: World) -> None:
    odd_world(world, {"odd": {}})
    pool: FilePool = world.pool()
    pid = pool.submit("odd").result(60)["pid"]
    code = (
        "import os\nfor n in range(101):\n child = os.fork()\n if child == 0: os._exit(0)\n"
        " os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)"
    )
    pool.submit("odd", code=code).result(60)
    wait_until(lambda: not alive(pid), "the worker is replaced")
    assert pool.submit("odd").result(60)["pid"] != pid
    assert "zombie children" in log_of(world)
    status = json.loads((world.spool / "run" / "status.json").read_bytes())
    assert status["slots"][0]["seat"] == "running"


def test_a_group_holds_what_an_adopted_worker_left(world: World) -> None:
    """No supervisor descends from another: only a control group tells whose this daemon was."""
    if not cgroup.home():
        pytest.skip("no control group here that we may divide")
    notes = world.folder / "note"
    code = (
        "import os, subprocess, time\n"
        f"subprocess.run(['setsid', '-f', 'env', '-i', '/bin/sh', '-c', 'echo $$ > {notes}; exec sleep 600'])\n"
        f"while not (os.path.exists('{notes}') and open('{notes}').read().strip()): time.sleep(0.01)\n"
    )
    odd_world(world, {"odd": {}})
    pool = world.pool()
    pid = pool.submit("odd").result(60)["pid"]
    pool.submit("odd", code=code).result(60)
    stray = int(notes.read_text())
    world.kill_supervisor()
    world.serve()
    wait_until(lambda: world.slot("odd-0")["pid"] == pid and world.supervisor(), "adoption")
    assert pool.status().supervisor.containment == "cgroup"
    kill(pid)
    wait_until(lambda: (new := world.slot("odd-0")["pid"]) and new != pid, "another process")
    assert not alive(stray)
    assert world.drain() == 0
    assert glob.glob(f"{cgroup.home()}/filepool-{world.spool_id()}-*") == []
