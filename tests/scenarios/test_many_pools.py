"""Many FilePools in one process on one spool, one per thread or per request: each gets its own results, all of them.

They share what a process has once: one watcher, one thread, one counter for the names of files.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_all

import pytest

from pool import FilePool, PoolClosed
from pool.errors import UnknownJob
from pool.spool.store import Spool
from scenarios.world import ROOT, World, wait_until


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    world = make_shared("many").configure({"echo": {"engine": "inference.fake:Echo"}, "fake": {}})
    world.serve(ready=4)
    return world


@pytest.mark.parametrize(
    ("jobs", "per_pool"), [(60, 7), pytest.param(1000, 20, marks=pytest.mark.long)], ids=["short", "whole"]
)
@pytest.mark.invariant(4)
def test_pools_are_made_and_closed_in_a_loop_by_eight_threads(shared: World, jobs: int, per_pool: int) -> None:
    def client(who: int) -> list[object]:
        values: list[object] = []
        while len(values) < jobs:
            with FilePool(shared.config, start=False) as pool:
                futures = []
                for number in range(len(values), min(len(values) + per_pool, jobs)):
                    futures.append(pool.submit("echo", who=who, number=number, durable=False))
                    if number % 2:
                        futures[-1].result(60)
                values += [future.result(60) for future in futures]
        return values

    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(client, range(8)))
    assert got == [[{"who": who, "number": number} for number in range(jobs)] for who in range(8)]
    wait_until(lambda: not shared.held(), "every claim is tidied")
    assert shared.names("tmp") == []
    assert shared.names("quarantine") == []


_THOUSAND = """
import os, sys, threading, time
from pool import FilePool

def readers():
    return sum(thread.name == "filepool-results" for thread in threading.enumerate())

def descriptors():
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
        except OSError:
            pass  # that of the listing itself
    return found

before = descriptors()
pools = [FilePool(sys.argv[1], start=False) for _ in range(1000)]
futures = [pool.submit("echo", number=number) for number, pool in enumerate(pools)]
assert [future.result(60)["number"] for future in futures] == list(range(1000))
mine = descriptors()
assert mine.count("anon_inode:inotify") == 1, mine
assert len(mine) <= len(before) + 1, mine
assert readers() == 1
for pool in pools:
    pool.close()
deadline = time.monotonic() + 40
while readers() or len(descriptors()) != len(before):
    assert time.monotonic() < deadline, "the last one has not closed all"
    time.sleep(0.01)
"""


@pytest.mark.long
def test_a_thousand_pools_need_one_watcher_and_one_thread(shared: World) -> None:
    """In a process of its own, where no other pool is open."""
    argv = [sys.executable, "-c", _THOUSAND, str(shared.config)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr


def test_closing_one_leaves_the_others_alone(shared: World) -> None:
    one, other = (FilePool(shared.config, start=False) for _ in range(2))
    ended = [one.submit("fake", do="sleep", seconds=0.3) for _ in range(2)]
    kept = [other.attach(future.id) for future in ended] + [other.submit("fake", do="sleep", seconds=0.1)]
    one.close()
    for future in ended:
        with pytest.raises(PoolClosed, match="the job goes on"):
            future.result(0)
    assert len(wait_all(kept, 60).done) == 3
    assert all(future.exception(0) is None for future in kept)
    with pytest.raises(PoolClosed):
        one.submit("fake")
    other.close()
    with FilePool(shared.config, start=False) as later:  # after the last one
        assert later.submit("fake", value=7).result(60)


def test_pools_of_two_spools_have_nothing_in_common(shared: World, world: World) -> None:
    world.configure({"echo": {"engine": "inference.fake:Echo"}})
    world.serve(ready=2)
    with FilePool(shared.config, start=False) as one, FilePool(world.config, start=False) as other:
        futures = [one.submit("echo", of="one"), other.submit("echo", of="other")]
        assert [future.result(60)["of"] for future in futures] == ["one", "other"]
        with pytest.raises(UnknownJob):
            other.attach(futures[0].id)


def test_many_threads_run_one_failed_job_again(shared: World) -> None:
    """One of them does, the others find it on its way: nobody takes the record of the new run away."""
    with FilePool(shared.config, start=False) as pool:
        for _ in range(4):
            assert pool.submit("fake").result(60)
            job_id = pool.submit("fake", do="raise", value="no", retry_times=0).id
            assert pool.attach(job_id).exception(60) is not None
            gate = threading.Barrier(4)

            def again(job_id: str = job_id, gate: threading.Barrier = gate) -> BaseException | None:
                with FilePool(shared.config, start=False) as mine:
                    gate.wait()
                    try:
                        return mine.retry(job_id).exception(60)
                    except UnknownJob:  # it runs again already
                        return mine.attach(job_id).exception(60)

            with ThreadPoolExecutor(4) as threads:
                ends = list(threads.map(lambda _: again(), range(4)))
            assert all("engine in run" in str(end) for end in ends), ends
            assert shared.record(job_id).failure is not None
            wait_until(lambda: not [name for name in shared.names("dead") if name.endswith(".record")], "no aside")


def test_names_are_of_the_process_and_not_of_the_object(spool: Spool) -> None:
    """Two Spools of eight threads, all at once: no name twice."""
    spools = [Spool(spool.root) for _ in range(16)]
    with ThreadPoolExecutor(8) as threads:
        names = [name for found in threads.map(lambda s: [s.temp() for _ in range(2000)], spools) for name in found]
    assert len(set(names)) == len(names) == 32_000
