"""Power loss at every operation: what was acknowledged survives, nothing is visible in half, nothing is doubled."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from scenarios.world import history

from pool.supervise import intake as module

from .checker import check
from .power import Disk, Recorder
from .rig import Client, Rig, told_of
from .test_points import (
    LONG,
    Scene,
    begin_dependent,
    cancel_held,
    consume,
    expire,
    expire_at_claim,
    fail,
    fail_dependent,
    intake,
    let_go,
    publish,
    publish_array,
    recover,
    retry,
    send,
    submit_batch,
    submit_dependent,
    submit_later,
    submit_named,
    submit_plain,
    wake,
)

SCENES: list[Scene] = [
    submit_plain,
    submit_named,
    submit_batch,
    intake,
    publish,
    publish_array,
    fail,
    recover,
    wake,
    retry,
    consume,
    cancel_held,
    submit_later,
    submit_dependent,
    expire,
    expire_at_claim,
    let_go,
    begin_dependent,
    fail_dependent,
    send,
]


MARK = (1, 1, 1)


def record(rig: Rig, scene: Scene) -> Disk:
    act: Callable[..., bool] = scene(rig)
    recorder = Recorder(rig.folder)
    assert act(recorder)
    return recorder.close()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize(
    ("states", "per_moment"),
    [pytest.param(8, 3, marks=pytest.mark.long, id="some"), pytest.param(80, 8, marks=LONG, id="many")],
)
@pytest.mark.invariant(2, 12)
def test_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene, states: int, per_moment: int
) -> None:
    # a drop is known by inode, time and size; the disk keeps them, we cannot
    monkeypatch.setattr(module, "_read", lambda path: (Path(path).read_bytes(), MARK))
    monkeypatch.setattr(module, "_mark_at", lambda path: MARK)
    rig = Rig(tmp_path, durable=True)
    disk = record(rig, scene)
    rng = random.Random(scene.__name__)
    found = list(disk.states(rng, per_moment))
    assert len(found) > 3
    for state in sorted(rng.sample(found, min(states, len(found))), key=found.index):
        disk.lay(state)
        shutil.rmtree(rig.witness)
        rig.witness.mkdir()
        told = told_of(state.moment.said)
        before = check(rig.root, told, drained=False, forgetful=True)
        assert before.faults() == {}, state.told
        rig.finish()
        after = check(rig.root, told, rig.witness)
        assert after.faults() == {}, state.told


@pytest.mark.invariant(14)
def test_what_is_decided_and_waits_again_is_not_run_again(tmp_path: Path) -> None:
    """A claim is not synced: after power loss the job file may be back in ready/ beside its record."""
    rig = Rig(tmp_path, durable=True)
    with Client(rig) as client:
        client.submit("mine", do="write", output=str(rig.media / "out.bin"))
        client.submit("bad", do="input")
    waiting = [
        (rig.root / "ready/fake" / name, (rig.root / "ready/fake" / name).read_bytes())
        for name in rig.spool.list_ready("fake")
    ]
    assert rig.work()
    for job_id in ("mine", "bad"):
        client.read(job_id)
    for path, data in waiting:
        path.write_bytes(data)
    rig.finish()
    rig.verify()
    starts = Counter(job for _, _, what, job, _, _ in history(rig.witness) if what == "start")
    assert starts == {"mine": 1, "bad": 1}
