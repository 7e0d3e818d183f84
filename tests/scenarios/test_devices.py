"""Which GPU a worker is told of, and which it can see: in the real processes, on any machine."""

from __future__ import annotations

import os

import pytest

from scenarios.world import World, wait_until

ENGINE = '''
import os


class Where:
    """Says what device it was given, and holds as much memory of it as a job tells."""

    held = 0

    def load(self, device, options):
        self.device = device

    def check(self, params):
        return params

    def run(self, params, context):
        self.held = params.get("hold", 0)
        return {"device": self.device, "sees": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid()}

    def memory(self):
        return {"gpu_bytes": self.held}

    def close(self):
        pass
'''


def configure(world: World, **spec: object) -> World:
    (world.folder / "where_engine.py").write_text(ENGINE)
    engine = {"engine": "where_engine:Where", "pythonpath": [str(world.folder)], **spec}
    return world.configure({"where": engine})


def test_each_worker_sees_its_own_gpu(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers, two GPUs, of those that the pool itself was given."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc,7")
    configure(world, max_concurrent_tasks=3, devices=["cuda:0", "cuda:2"]).serve(ready=3)
    pool = world.pool()
    seen: dict[int, tuple[str, str]] = {}
    while len(seen) < 3:
        found = [future.result(60) for future in [pool.submit("where") for _ in range(6)]]
        seen.update({each["pid"]: (each["device"], each["sees"]) for each in found})
    assert sorted(seen.values()) == [("cuda:0", "4"), ("cuda:0", "4"), ("cuda:0", "7")]


def test_a_gpu_without_number_is_left_to_the_libraries(world: World) -> None:
    configure(world, max_concurrent_tasks=1, device="cuda").serve(ready=1)
    found = world.pool().submit("where").result(60)
    assert (found["device"], found["sees"]) == ("cuda", os.environ.get("CUDA_VISIBLE_DEVICES"))


def test_a_worker_that_holds_too_much_of_its_gpu_is_replaced(world: World) -> None:
    configure(world, max_concurrent_tasks=1, device="cuda:0", recycle={"gpu_memory_mb": 100}).serve(ready=1)
    pool = world.pool()
    first = pool.submit("where", hold=100 << 20).result(60)["pid"]
    wait_until(lambda: pool.submit("where", hold=101 << 20).result(60)["pid"] != first, "replaced")
    assert "recycled: 101 MB of GPU memory (limit 100)" in world.log()
