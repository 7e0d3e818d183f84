"""A node that starts on a disk without room waits, says why, and serves once there is some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from scenarios.test_disk import Disk, disk  # noqa: F401
from scenarios.world import ROOT, wait_until

from cluster.machines import LEASE_S, Cluster, Machine, cluster
from cluster.rig import Servers

LONG_S = 60.0


def starting(joined: Cluster, disk: Disk, *, made: bool) -> Machine:  # noqa: F811
    """A node whose disk is full. made: its spool is there already."""
    machine = Machine(joined.folder / "node", "node", joined.url)
    machine.spool = disk.place / "spool"
    joined.machines.append(machine)
    settings = {"servers": [joined.url], "name": "node", "lease_s": LEASE_S, "cold_after_s": 0.0}
    machine.configure({"fake": {}}, cluster=settings, min_free_mb=0)
    if made:
        machine.start()
        wait_until(lambda: "serves the cluster" in machine.said(), "it serves")
        machine.close()
        (machine.folder / "agent.log").unlink()
    disk.fill()
    machine.start()
    wait_until(lambda: "no room" in machine.said() or machine.agent.poll() is not None, "it says so")  # type: ignore[union-attr]
    return machine


@pytest.mark.long
@pytest.mark.parametrize("made", [True, False])
def test_a_node_waits_for_room(server: Servers, tmp_path: Path, disk: Disk, made: bool) -> None:  # noqa: F811
    with cluster(tmp_path / "machines", server.url) as joined:
        try:
            machine = starting(joined, disk, made=made)
            assert machine.agent is not None
            assert machine.agent.poll() is None, machine.said()
            assert str(machine.spool) in machine.said()
            assert "Traceback" not in machine.said()
        finally:
            disk.free()
        pool = joined.pool()
        joined.wait_nodes("node")
        assert pool.submit("fake", value=1).result(LONG_S)["value"] == 1
        assert machine.said().count("no room") == 1


@pytest.mark.parametrize("when", ["as it says so", "as it tries again"])
def test_a_signal_that_comes_before_it_waits_ends_it(tmp_path: Path, when: str) -> None:
    program = """
        import errno, os, signal, sys
        from pathlib import Path
        from loguru import logger
        from pool.cluster import processes
        processes._AGAIN_S = 0.01
        tries = 0
        def end(*_):
            os.kill(os.getpid(), signal.SIGTERM)
        def serve():
            global tries
            tries += 1
            if tries > 1:
                end()
            raise OSError(errno.ENOSPC, "No space left on device")
        if sys.argv[1] == "as it says so":
            logger.add(end)
        sys.exit(processes.with_room(Path.cwd(), serve))
        """
    argv = [sys.executable, "-c", textwrap.dedent(program), when]
    done = subprocess.run(argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_node_that_waits_for_room_can_be_ended(server: Servers, tmp_path: Path, disk: Disk) -> None:  # noqa: F811
    with cluster(tmp_path / "machines", server.url) as joined:
        machine = starting(joined, disk, made=False)
        assert machine.agent is not None
        machine.agent.send_signal(signal.SIGTERM)
        assert machine.agent.wait(LONG_S) == 0, machine.said()
        disk.free()
