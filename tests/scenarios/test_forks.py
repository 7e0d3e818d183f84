"""FilePools made before a fork (gunicorn --preload, prefork, multiprocessing): parent and child both go on with them.

Every program here is a process of its own: it forks beside threads, which pytest's own process must not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pool.constants import ENV_SPOOL
from scenarios.world import PATIENCE_S, ROOT, World, alive, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

_PRELUDE = """
import json, os, sys, threading, time
from concurrent.futures import as_completed, wait
from pool import FilePool, PoolClosed, UnknownJob

config, out = sys.argv[1], sys.argv[2]

def tell(**facts):
    "One line for the test; appended whole, whichever process writes it."
    fd = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (json.dumps(facts) + "\\n").encode())
    os.close(fd)

def fork(child):
    "Run `child` in a forked child that ends as a program does; its pid."
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        child()
        code = 0
    except BaseException as error:
        tell(error=f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)

def join(*pids):
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def inotify():
    "How many inotify instances this process holds."
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            pass
    return found.count("anon_inode:inotify")
"""


@pytest.fixture(scope="module")
def served(make_shared: Callable[[str], World]) -> World:
    world = make_shared("forks").configure({"echo": {"engine": "inference.fake:Echo"}, "fake": {}})
    world.serve(ready=4)
    return world


def environment(world: World) -> dict[str, str]:
    assert ENV_SPOOL not in os.environ
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(world.folder)])}


def run(world: World, program: str, seconds: float = 100) -> list[dict[str, Any]]:
    """What a program tells. It must end by itself and say nothing on stderr."""
    out = world.folder / "told.jsonl"
    out.unlink(missing_ok=True)
    text = _PRELUDE + textwrap.dedent(program)
    argv = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text, str(world.config), str(out)]
    done = subprocess.run(argv, env=environment(world), capture_output=True, text=True, timeout=seconds)
    told = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    assert (done.returncode, done.stderr) == (0, ""), (done.stderr[-3000:], told)
    return told


# ---- what a child can do


def test_a_child_submits_and_waits_in_every_way(served: World) -> None:
    told = run(
        served,
        """
        pool = FilePool(config, start=False)
        assert pool.submit("echo", n=0).result(60) == {"n": 0}
        mine = [pool.submit("fake", do="sleep", seconds=0.5, value=n) for n in range(3)]

        def child():
            before = inotify()
            first = pool.submit("echo", n=1).result(60)
            many = pool.submit_many("echo", [{"n": n} for n in range(5)])
            called = threading.Event()
            many[0].add_done_callback(lambda _: called.set())
            called.wait(60)
            tell(
                held_before=before, held=inotify(), first=first,
                waited=len(wait(many, 60).done), completed=len(list(as_completed(many, 60))),
                mapped=list(pool.map("echo", [{"n": n} for n in range(4)], timeout=60)),
                attached=pool.attach(mine[0].id).result(60)["value"], inherited=mine[1].result(60)["value"],
                rest=len(wait(mine, 60).done), again=mine[0].done(),
            )
            pool.close()
            try:
                pool.submit("echo")
            except PoolClosed:
                tell(closed=True)

        join(fork(child))
        tell(parent=[future.result(60)["value"] for future in mine], last=pool.submit("echo", n=2).result(60))
        pool.close()
        """,
    )
    assert told == [
        {
            "held_before": 0,
            "held": 1,
            "first": {"n": 1},
            "waited": 5,
            "completed": 5,
            "mapped": [{"n": n} for n in range(4)],
            "attached": 0,
            "inherited": 1,
            "rest": 3,
            "again": True,
        },
        {"closed": True},
        {"parent": [0, 1, 2], "last": {"n": 2}},
    ]


@pytest.mark.invariant(4)
def test_children_are_forked_in_the_middle_of_everything(served: World) -> None:
    """Threads hold every lock there is at some fork; each child works all the same, and no result is another's."""
    told = run(
        served,
        """
        pool, over = FilePool(config, start=False), threading.Event()
        last = [pool.submit("echo")] * 4

        def busy(who):
            number = 0
            while not over.is_set():
                number += 1
                last[who] = future = pool.submit("echo", who=who, number=number, durable=False)
                while number % 3 == 0 and not future.done():
                    pass
                if number % 3 == 1:
                    wait([future], 60)
                assert future.result(60) == {"who": who, "number": number}
                if number % 20 == 0:
                    FilePool(config, start=False).close()

        def child():
            name = os.getpid()
            for number in range(4):
                params = {"who": name, "number": number}
                assert pool.submit("echo", params=params, durable=False).result(60) == params
            inherited = list(last)
            assert len(wait(inherited, 60).done) == len(set(inherited))
            assert [future.result(60)["who"] for future in inherited] == [0, 1, 2, 3]
            with FilePool(config, start=False) as own:
                assert own.submit("echo", who=name).result(60) == {"who": name}
            tell(child="ok")
            pool.close()

        threads = [threading.Thread(target=busy, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        while any(not future.done() or "who" not in future.result() for future in last):
            time.sleep(0.001)
        for _ in range(8):
            join(*(fork(child) for _ in range(3)))
        over.set()
        for thread in threads:
            thread.join()
        assert pool.submit("echo", n=1).result(60) == {"n": 1}
        pool.close()
        tell(parent="ok")
        """,
    )
    assert told == [{"child": "ok"}] * 24 + [{"parent": "ok"}]
    assert served.names("tmp") == []
    assert served.names("quarantine") == []


def test_callbacks_and_records_stay_the_parents(served: World) -> None:
    """A callback runs where it was added; a record that is to be consumed is not taken away from the parent."""
    told = run(
        served,
        """
        pool = FilePool(config, start=False)
        lent = pool.submit("fake", do="sleep", seconds=0.4, value="lent", consume=True)
        called = pool.submit("fake", do="sleep", seconds=0.2)
        called.add_done_callback(lambda _: tell(callback=os.getpid() == parent))
        parent = os.getpid()

        def child():
            assert "value" in called.result(60)
            try:
                assert lent.result(60)["value"] == "lent"
            except UnknownJob:
                pass  # its parent was faster

        pids = [fork(child) for _ in range(3)]
        value = lent.result(60)["value"]
        called.result(60)
        join(*pids)
        tell(value=value)
        pool.close()
        """,
    )
    assert told == [{"callback": True}, {"value": "lent"}]


def test_a_child_leaves_a_with_block_and_a_loop(served: World) -> None:
    told = run(
        served,
        """
        with FilePool(config, start=False) as pool:
            futures = [pool.submit("fake", do="sleep", seconds=0.1 * n, value=n) for n in range(4)]
            child, seen = None, []
            for future in as_completed(futures, 60):
                seen.append(future.result()["value"])
                if child is None:
                    child = os.fork()
            if child:
                join(child)
        tell(who="parent" if child else "child", seen=sorted(seen))
        """,
    )
    assert told == [{"who": who, "seen": [0, 1, 2, 3]} for who in ("child", "parent")]


def test_a_child_cancels_what_its_parent_submitted(served: World) -> None:
    told = run(
        served,
        """
        pool = FilePool(config, start=False)
        future = pool.submit("fake", do="sleep", seconds=50)

        def child():
            tell(cancel=future.cancel(), both=len(wait([future], 60).done), cancelled=future.cancelled())

        join(fork(child))
        wait([future], 60)
        tell(cancelled=future.cancelled())
        pool.close()
        """,
    )
    assert told == [{"cancel": True, "both": 1, "cancelled": True}, {"cancelled": True}]


def test_multiprocessing_with_fork(served: World) -> None:
    told = run(
        served,
        """
        import multiprocessing
        pool = FilePool(config, start=False)
        pool.submit("echo").result(60)

        def call(number):
            return os.getpid(), pool.submit("echo", number=number).result(60)["number"]

        with multiprocessing.get_context("fork").Pool(3) as workers:
            found = workers.map(call, range(60), chunksize=5)
        tell(numbers=[number for _, number in found], others=os.getpid() not in {pid for pid, _ in found})
        pool.close()
        """,
    )
    assert told == [{"numbers": list(range(60)), "others": True}]


# ---- the supervisor that a FilePool started


@pytest.fixture
def tied(world: World) -> World:
    return world.configure({"echo": {"engine": "inference.fake:Echo", "max_concurrent_tasks": 1}})


@pytest.mark.long
def test_a_childs_close_leaves_its_parents_supervisor_alone(tied: World) -> None:
    told = run(
        tied,
        """
        pool = FilePool(config)
        pool.submit("echo").result(60)
        before = pool.status().supervisor.pid
        clients = os.listdir(pool.spool.root / "run" / "clients")

        def child():
            pool.close()  # never used here

        join(fork(child))
        assert os.listdir(pool.spool.root / "run" / "clients") == clients

        def user():
            pool.submit("echo").result(60)
            tell(counted=len(os.listdir(pool.spool.root / "run" / "clients")))
            pool.close()

        join(fork(user))
        time.sleep(2.5)  # a tied supervisor without clients ends after one second
        assert os.listdir(pool.spool.root / "run" / "clients") == clients
        tell(same=pool.status().supervisor.pid == before, value=pool.submit("echo", n=1).result(60))
        pool.close()
        """,
    )
    assert told == [{"counted": 2}, {"same": True, "value": {"n": 1}}]
    wait_until(lambda: tied.supervisor() is None, "the supervisor ends after its last client")


@pytest.mark.long
def test_a_child_that_uses_the_pool_keeps_the_supervisor_until_it_ends(tied: World) -> None:
    """Also when it is killed, and although its parent has gone."""
    program = _PRELUDE + textwrap.dedent(
        """
        pool = FilePool(config)
        pool.submit("echo").result(60)
        if os.fork():
            pool.close()
            os._exit(0)
        tell(pid=os.getpid())
        for number in range(30):  # far longer than a supervisor waits for a client
            assert pool.submit("echo", number=number).result(60) == {"number": number}
            time.sleep(0.1)
        tell(supervisor=pool.status().supervisor.pid)
        while True:
            time.sleep(1)
        """
    )
    out = tied.folder / "told.jsonl"
    argv = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(tied.config), str(out)]
    subprocess.run(argv, env=environment(tied), check=True, timeout=60)

    def told() -> list[dict[str, Any]]:
        return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    wait_until(told, "the child lives")
    child = told()[0]["pid"]
    try:
        serving = tied.supervisor()
        wait_until(lambda: len(told()) > 1 or not alive(child), "the child did its work")
        assert serving is not None
        assert told()[1:] == [{"supervisor": serving.pid}]
    finally:
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: tied.supervisor() is None, "the supervisor ends after its last client")


@pytest.mark.long
def test_a_daemon_that_comes_late_starts_a_supervisor_of_its_own(tied: World) -> None:
    told = run(
        tied,
        """
        pool = FilePool(config)
        before = pool.status().supervisor.pid
        waited = pool.submit("echo", of="parent")
        waited.result(60)
        reader, writer = os.pipe()

        def child():
            os.read(reader, 1)  # until there is no supervisor any more
            first = pool.submit("echo", n=1).result(60)
            now = pool.status().supervisor.pid
            tell(first=first, fresh=now != before)
            pool.close()

        pid = fork(child)
        supervisor = pool.spool.root / "run" / "supervisor.json"
        pool.close()
        while supervisor.exists():
            time.sleep(0.02)
        os.write(writer, b"!")
        join(pid)
        """,
    )
    assert told == [{"first": {"n": 1}, "fresh": True}]


# ---- servers that fork

_APP = """
import json, os
from urllib.parse import parse_qs
from concurrent.futures import wait
from pool import FilePool

pool = FilePool(os.environ["APP_CONFIG"], start=os.environ["APP_START"] == "1")
assert pool.submit("echo", of="preload").result(60) == {"of": "preload"}


def answer(query):
    number = int(parse_qs(query)["n"][0])
    future = pool.submit("echo", n=number, durable=False)
    if number % 2:
        wait([future], 60)
    return json.dumps({"pid": os.getpid(), **future.result(60)}).encode()


def app(environ, start_response):
    body = answer(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def aapp(scope, receive, send):
    if scope["type"] != "http":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    import asyncio
    body = await asyncio.to_thread(answer, scope["query_string"].decode())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


@contextmanager
def server(world: World, *words: str) -> Iterator[int]:
    """A web server with the application above on a free port, until the end of the block; its port."""
    (world.folder / "forkapp.py").write_text(_APP)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    env = {**environment(world), "APP_CONFIG": str(world.config), "APP_START": "1"}
    argv = [sys.executable, "-m", *(word.format(port=port) for word in words)]
    with open(world.folder / "serve.log", "ab") as log:
        process = subprocess.Popen(argv, cwd=world.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: ask(port, 0) or process.poll() is not None, "the server answers")
        assert process.poll() is None, world.log()
        yield port
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()


def ask(port: int, number: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/?n={number}", timeout=60) as reply:
            found: dict[str, Any] = json.loads(reply.read())
            return found
    except ConnectionError:
        return {}
    except OSError as error:
        if isinstance(getattr(error, "reason", None), ConnectionError):
            return {}
        raise


_SERVERS = {
    "gunicorn": ["gunicorn", "--preload", "-w", "3", "-b", "127.0.0.1:{port}", "forkapp:app"],
    "gunicorn, threads": [
        "gunicorn",
        "--preload",
        "-w",
        "2",
        "-k",
        "gthread",
        "--threads",
        "4",
        "-b",
        "127.0.0.1:{port}",
        "forkapp:app",
    ],
    "uvicorn": ["uvicorn", "--workers", "2", "--port", "{port}", "--log-level", "warning", "forkapp:aapp"],
}


@pytest.mark.parametrize(
    "name", [name if "threads" in name else pytest.param(name, marks=pytest.mark.long) for name in _SERVERS]
)
def test_servers_that_fork(tied: World, name: str) -> None:
    words = _SERVERS[name]
    if importlib.util.find_spec(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    with server(tied, *words) as port:
        serving = tied.supervisor()
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda number: ask(port, number), range(200)))
        assert [answer["n"] for answer in answers] == list(range(200)), tied.log()
        assert len({answer["pid"] for answer in answers}) > 1
        assert tied.supervisor() == serving
    wait_until(lambda: tied.supervisor() is None, "the supervisor ends after its last client")
    assert tied.names("tmp") == []
    assert "Error" not in tied.log(), tied.log()


_TASKS = """
import os, sys
from concurrent.futures import wait
from celery import Celery
from pool import FilePool

folder = os.environ["APP_FOLDER"]
queue = f"{folder}/queue"
places = {"data_folder_in": queue, "data_folder_out": queue, "control_folder": f"{folder}/control"}
for place in (*places.values(), f"{folder}/results"):
    os.makedirs(place, exist_ok=True)
app = Celery("forktasks", broker="filesystem://", backend=f"file://{folder}/results", broker_transport_options=places)
pool = FilePool(os.environ["APP_CONFIG"], start=False)
if "worker" in sys.argv:  # in the process that forks the others
    pool.submit("echo").result(60)


@app.task
def answer(number):
    future = pool.submit("echo", n=number, durable=False)
    if number % 2:
        wait([future], 60)
    return [os.getpid(), future.result(60)["n"]]
"""

_ASK = """
import json, forktasks
replies = [forktasks.answer.delay(number) for number in range(40)]
print(json.dumps([reply.get(timeout=60) for reply in replies]))
"""


@pytest.mark.long
def test_celery_with_prefork(served: World, tmp_path: Path) -> None:
    if importlib.util.find_spec("celery") is None:
        pytest.skip("celery is not installed (extra: peers)")
    (tmp_path / "forktasks.py").write_text(_TASKS)
    env = {**environment(served), "APP_CONFIG": str(served.config), "APP_FOLDER": str(tmp_path)}
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(tmp_path), os.environ.get("PYTHONPATH", "")])
    argv = [sys.executable, "-m", "celery", "-A", "forktasks", "worker", "--pool", "prefork", "-c", "3", "-l", "ERROR"]
    with open(served.folder / "serve.log", "ab") as log:
        worker = subprocess.Popen(argv, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100
        )
    finally:
        worker.terminate()
        worker.wait(PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [number for _, number in found] == list(range(40))
    assert worker.pid not in {pid for pid, _ in found}
