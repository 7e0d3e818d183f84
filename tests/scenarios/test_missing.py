"""What an engine needs and the machine does not have is named, with what brings it; no configuration is blamed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pool import EngineUnavailable, JobFailed
from scenarios.world import ROOT, World, wait_until

LIMIT_S = 60
ENGINES = """
import ctypes, subprocess
from inference.fake import Fake


class Canvas(Fake):
    def load(self, device, options):
        import canvas


class Sound(Fake):
    def load(self, device, options):
        ctypes.CDLL(options["library"])
        super().load(device, options)


class Program(Fake):
    def load(self, device, options):
        subprocess.run(["ffmpeg", "-version"], env={"PATH": "/nowhere"})


class Late(Fake):
    def run(self, params, context):
        import canvas
"""


def build(folder: Path, soname: str, target: str) -> Path:
    """A shared library `target` that is linked against the library `soname`; both lie in the folder."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    (folder / "needed.c").write_text("int needed(void) { return 1; }")
    (folder / "needing.c").write_text("int needed(void); void *PyInit_canvas(void) { return needed() ? 0 : 0; }")
    shared = [compiler, "-shared", "-fPIC", "-o"]
    subprocess.run([*shared, soname, "needed.c", f"-Wl,-soname,{soname}"], cwd=folder, check=True)
    subprocess.run([*shared, target, "needing.c", soname, f"-Wl,-rpath,{folder}"], cwd=folder, check=True)
    return folder / soname


@pytest.mark.long
def test_a_missing_library_is_named_with_what_brings_it(world: World) -> None:
    (world.folder / "needy.py").write_text(ENGINES)
    build(world.folder, "libGL.so.99", f"canvas{sysconfig.get_config_var('EXT_SUFFIX')}").unlink()
    sound = build(world.folder, "libsndfile.so.99", "libreader.so")
    removed = sound.rename(sound.with_suffix(".removed"))
    common = {"pythonpath": [str(world.folder)], "max_concurrent_tasks": 1, "retry_times": 0}
    options = {"library": str(world.folder / "libreader.so")}
    world.configure(
        {
            "canvas": {**common, "engine": "needy:Canvas"},
            "sound": {**common, "engine": "needy:Sound", "options": options},
            "program": {**common, "engine": "needy:Program"},
            "late": {**common, "engine": "needy:Late"},
        }
    ).serve(ready=1)
    pool = world.pool()
    for engine, named, brings in (
        ("canvas", "library libGL.so.99", "apt-get install libgl1"),
        ("sound", "library libsndfile.so.99", "apt-get install libsndfile1"),
        ("program", "program ffmpeg", "apt-get install ffmpeg"),
    ):
        wait_until(lambda engine=engine: world.slot(f"{engine}-0")["seat"] == "benched", f"the bench of {engine}-0")
        slot = world.slot(f"{engine}-0")
        assert slot["starts"] == 1
        assert slot["why"].endswith("(something that it needs is not installed): see the slot's log, install it")
        future = pool.submit(engine)
        future.patience = 0
        with pytest.raises(EngineUnavailable) as caught:
            future.result(LIMIT_S)
        assert f"the {named} is missing on this machine: {brings}" in str(caught.value)
        assert "config.json" not in str(caught.value)
    with pytest.raises(JobFailed) as failed:
        pool.submit("late").result(LIMIT_S)
    assert "the library libGL.so.99 is missing on this machine: apt-get install libgl1" in failed.value.failure.hint
    waits = pool.submit("sound", value=7)
    removed.rename(sound)
    argv = [sys.executable, "-m", "pool", "recover", "sound-0", "--config", str(world.config)]
    subprocess.run(argv, cwd=ROOT, check=True, timeout=LIMIT_S)
    assert waits.result(LIMIT_S)["value"] == 7
