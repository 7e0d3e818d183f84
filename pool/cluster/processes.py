"""The two processes of a cluster that are ours: the port of a branch, and the agent of a node.

The port's process is the supervisor of the branch, which has no workers, with the port on a thread beside it: intake,
jobs that wait for others or for their time, expiry, retention and drain are what they are in every spool. When the port
ends by a fault of its own, so does the process; whoever waits for a job starts another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from loguru import logger

from pool.client.filepool import FilePool
from pool.cluster.agent import Agent
from pool.cluster.complaints import Complaints
from pool.cluster.port import Port
from pool.cluster.tasks import ended_all
from pool.config.settings import Config
from pool.constants import EXIT_DRAINED
from pool.errors import PoolError, SpoolError, SupervisorFailed, SupervisorRunning
from pool.runfiles import clients
from pool.spool import elsewhere, fsops, layout
from pool.spool.store import Spool
from pool.supervise import supervisor
from pool.system import procs
from pool.system.procs import Identity

_STOP_S = 10.0
_AGAIN_S = 1.0
_ROOM_BYTES = 1 << 20  # with less, a supervisor that does not start lacks room
_FAULT = 70  # exit code: a fault of ours


# ---- the port


def serve_port(config: Config, *, tied: bool, on_reload: Callable[[Config], None] = lambda config: None) -> int:
    """Serve a branch until its last client has gone (tied) or a signal comes; the exit code.

    Raises SupervisorRunning, ConfigError, SpoolError."""
    layout.prepare(config.spool)
    return supervisor.serve(config, tied=tied, on_reload=on_reload, beside=_Runner(config))


class _Runner(contextlib.AbstractContextManager[None]):
    """The port on its thread; only while the spool is ours, since two of them would move each other's jobs."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._spool = Spool(config.spool, durable=config.durable)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._port: Port | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="filepool-port", daemon=True)

    def __enter__(self) -> None:
        elsewhere.open_port(self._spool)  # before any client may think that this branch is served
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """Stop; what is on its way is done again by the next port."""
        self._ending.set()
        loop, port = self._loop, self._port
        if loop is not None and port is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(port.stop.set)
        elsewhere.close_port(self._spool)
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception:
            if not self._ending.is_set():
                logger.exception("the port has failed; its process ends, and the next one goes on")
                os._exit(_FAULT)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._port = Port(self._config, self._spool)
        if self._ending.is_set():
            return
        await self._port.run()


# ---- the agent


class _AskedToEnd(BaseException):
    """A signal came while no loop minds them."""


def with_room(spool: Path, serve: Callable[[], int]) -> int:
    """What `serve` returns; as long as the disk has no room for it, it waits and is called again. 0 when it is asked to
    end before it serves, or meanwhile."""
    complain = Complaints()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            try:
                _end_on_signals()
                return serve()  # minds them itself once its loop runs
            except (OSError, PoolError) as error:
                _end_on_signals()  # its loop took ours away
                if not _lacks_room(error, spool):
                    raise
                complain("room", f"the disk of {spool} has no room: this node waits until it has some ({error})")
            time.sleep(_AGAIN_S)
    except _AskedToEnd:
        return EXIT_DRAINED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_on_signals() -> None:
    def end(*_: object) -> None:
        raise _AskedToEnd

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _lacks_room(error: BaseException, spool: Path) -> bool:
    """Whether an error comes from a full disk: it says so, or what it comes from, or the disk is full."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in fsops.NO_SPACE:
            return True
        cause = cause.__cause__ or cause.__context__
    if not isinstance(error, SupervisorFailed):
        return False
    try:
        about = os.statvfs(spool)
    except OSError:
        return False
    return about.f_bavail * about.f_frsize < _ROOM_BYTES


def serve_node(config: Config, *, start: bool = True) -> int:
    """Serve the cluster with the workers of this machine until a signal comes; the exit code.

    start: start a supervisor when none serves the spool. Raises SupervisorRunning, ConfigError, NameTaken; SpoolError
    when the spool is gone, whatever else it was about to do.
    """
    layout.prepare(config.spool)
    lock = FileLock(f"{config.spool}/run/node.lock", mode=0o600)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        raise SupervisorRunning(f"another agent serves the cluster from {config.spool}") from None
    with held, FilePool(config, start=False) as pool, _counted(pool.spool):
        return asyncio.run(_serve(config, pool, start=start))


async def _serve(config: Config, pool: FilePool, *, start: bool) -> int:
    agent = Agent(config, pool)
    loop = asyncio.get_running_loop()
    asked = 0
    started: FilePool | None = None
    running = asyncio.create_task(agent.run())

    def on_signal() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            logger.info("draining: no more jobs are taken; once more ends at once")
            tasks.append(asyncio.create_task(agent.drain(config.drain_grace_s)))
        else:
            running.cancel()

    tasks: list[asyncio.Task[Any]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    with contextlib.ExitStack() as stack:
        try:
            # only now: who reads it may send a signal
            stack.enter_context(_announced(pool.spool))
            gone = asyncio.create_task(_until_gone(pool.spool))
            opened = asyncio.create_task(agent.opened.wait())
            tasks += [gone, opened]
            await asyncio.wait([opened, running, gone], return_when=asyncio.FIRST_COMPLETED)
            if start and not (running.done() or gone.done()):
                # only now: what is no longer ours was cancelled before a worker took it
                started = await asyncio.to_thread(FilePool, config)
                tasks.append(asyncio.create_task(_attend(started)))
            await asyncio.wait([running, gone], return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                agent.end()
                await asyncio.wait([running], timeout=_STOP_S)
            await (gone if gone.done() else running)
        except asyncio.CancelledError:
            return EXIT_DRAINED
        except (OSError, PoolError):
            if reason := pool.spool.lost():
                raise SpoolError(reason) from None
            raise
        finally:
            await ended_all([running, *tasks])
            if started is not None:
                await asyncio.to_thread(started.close)
    return EXIT_DRAINED


async def _until_gone(spool: Spool) -> None:
    """Wait until the spool is not there any more, then raise SpoolError."""
    while not (reason := spool.lost()):
        await asyncio.sleep(_AGAIN_S)
    raise SpoolError(reason)


async def _attend(pool: FilePool) -> None:
    """Keep the pool of this machine served: one that another agent had started ends when that is gone."""
    said = ""
    while True:
        await asyncio.sleep(_AGAIN_S)
        problem = await asyncio.to_thread(pool.attend)
        if problem and problem != said:
            logger.error("no supervisor serves the workers of this node: {}", problem)
        said = problem


@contextlib.contextmanager
def _counted(spool: Spool) -> Iterator[None]:
    """Be a client of the pool here from the first moment: one that an agent before us has started goes on."""
    presence = clients.enter(spool)
    try:
        yield
    finally:
        fsops.unlink(presence, missing_ok=True)


@contextlib.contextmanager
def _announced(spool: Spool) -> Iterator[None]:
    """Say on disk which process the agent is, for `drain`."""
    path = spool.root / "run" / "node.json"
    me = procs.identity_of(os.getpid())
    assert me is not None
    temp = f"{path}.{os.getpid()}"
    fsops.write_new(temp, [json.dumps({"identity": me.to_map()}).encode()], sync=False)
    fsops.replace(temp, str(path))
    try:
        yield
    finally:
        if not spool.lost():  # else it is that of another agent
            fsops.unlink(str(path), missing_ok=True)


def agent_of(spool: Path) -> Identity | None:
    """The process that serves the cluster from a spool, None when there is none."""
    try:
        told = json.loads((spool / "run" / "node.json").read_bytes())
        identity = Identity.from_map(told["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if identity.alive() else None
