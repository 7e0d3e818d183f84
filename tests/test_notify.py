"""What a service manager hears: a real datagram socket in the place of systemd's, and a real supervisor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.world import ROOT, World, wait_until

from pool.system.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The manager's end, bound to a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(40)
        yield listening


def heard(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def silence(manager: socket.socket) -> bool:
    manager.setblocking(False)
    try:
        manager.recv(4096)
    except BlockingIOError:
        return True
    return False


def test_each_word_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000000"})
    for word in (notifier.ready, notifier.alive, notifier.stopping):
        word()
    assert [heard(manager) for _ in range(3)] == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_an_abstract_address(tmp_path: Path) -> None:
    name = f"filepool-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert heard(manager) == "READY=1"


def test_the_variables_are_not_inherited(manager: socket.socket) -> None:
    told = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "OTHER": "stays"}
    Notifier(told)
    assert told == {"OTHER": "stays"}


@pytest.mark.parametrize("told", [{}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}])
def test_no_watchdog_or_another_ones(manager: socket.socket, told: dict[str, str]) -> None:
    Notifier({"NOTIFY_SOCKET": manager.getsockname(), **told}).alive()
    assert silence(manager)


def test_nobody_listens(tmp_path: Path) -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for _ in range(2000):  # more than the kernel queues
        notifier.ready()


def _serve(world: World, manager: socket.socket, *options: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "30000000"}
    argv = [sys.executable, "-m", "pool", "serve", "--config", str(world.config), *options]
    with open(world.folder / "serve.log", "ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    world.serving.append(process)
    return process


def test_the_supervisor_tells(tmp_path: Path, manager: socket.socket) -> None:
    world = World(tmp_path)
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    try:
        process = _serve(world, manager)
        assert heard(manager) == "READY=1"
        assert world.supervisor() is not None
        assert heard(manager) == "WATCHDOG=1"
        world.wait_ready(1)
        for pid in world.processes():
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
        process.terminate()
        wait_until(lambda: heard(manager) == "STOPPING=1", "the word that it drains")
        assert process.wait(40) == 0
    finally:
        world.close()


def test_a_supervisor_that_belongs_to_a_client_is_silent(tmp_path: Path, manager: socket.socket) -> None:
    """The service that started it would be taken for ready by its word."""
    world = World(tmp_path)
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    try:
        process = _serve(world, manager, "--tied")
        assert process.wait(40) == 0  # it has no client
        assert silence(manager)
    finally:
        world.close()
