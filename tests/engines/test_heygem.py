"""The heygem backend against a stand-in SDK under a real Python 3.8: its interface, and every fault its users report.

The stand-in (`heygem_sdk/`) has the folders, processes, settings and faults of the published one, which needs a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("torch")

import old_python
from gateways.gateway import Gateway
from scenarios.world import World, wait_until

from inference import media
from inference.base import Cancelled, EngineError, InputError, LocalContext
from inference.foreign.host import GuestError
from inference.lipsync import LipSync, heygem
from inference.lipsync.heygem import settings
from inference.probe import probe_video
from pool.job import Failure, Record

pytestmark = pytest.mark.long

SDK = Path(__file__).with_name("heygem_sdk")
SECONDS, FRAMES = 1.2, 30


@pytest.fixture(scope="module")
def python() -> str:
    return old_python.with_packages("3.8", "numpy")


@pytest.fixture(scope="module")
def media_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording and a template, with a name that no shell may see as it is."""
    folder = tmp_path_factory.mktemp("it's a $(touch folder)")
    tone = ["-f", "lavfi", "-i", f"sine=f=220:d={SECONDS}", "-ac", "1", "-ar", "16000"]
    test = ["-f", "lavfi", "-i", "testsrc=s=96x64:r=25", "-t", str(SECONDS), "-pix_fmt", "yuv420p"]
    for source, name in ((tone, "speech.wav"), (test, "person.mp4")):
        subprocess.run([media.ffmpeg_binary(), "-y", "-loglevel", "error", *source, str(folder / name)], check=True)
    return folder


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    """A copy: a fault of ours might delete it."""
    shutil.copytree(SDK, tmp_path / "sdk")
    return tmp_path / "sdk"


def option(python: str, sdk: Path, **more: Any) -> dict[str, Any]:
    return {"backend": "heygem", "heygem": {"python": python, "sdk": str(sdk), "stall_s": 5, "child_s": 2, **more}}


@pytest.fixture
def engine(python: str, sdk: Path) -> Iterator[LipSync]:
    made = LipSync()
    made.load("cpu", option(python, sdk))
    yield made
    made.close()


def template(media_files: Path, fault: str, folder: Path) -> Path:
    """A template whose name makes the stand-in fail so."""
    path = folder / f"person.{fault}.mp4"
    if not path.exists():
        shutil.copy(media_files / "person.mp4", path)
    return path


def make(engine: LipSync, media_files: Path, fault: str, folder: Path, context: LocalContext | None = None) -> Any:
    asked = {"audio": str(media_files / "speech.wav"), "video": str(template(media_files, fault, folder))}
    if context is not None:
        return engine.run(engine.check(asked), context)
    with LocalContext(folder=folder) as own:
        return engine.run(engine.check(asked), own)


def left(pattern: str = "") -> list[str]:
    """Files of jobs in the folders that guests of this process have."""
    found = [str(path) for name in ("temp", "result") for path in _rooms(f"sdk/{name}/*")]
    return [path for path in (*found, *map(str, _rooms("in/*"))) if pattern in path]


def _rooms(inside: str) -> list[Path]:
    place = Path(os.environ.get("TMPDIR", "/tmp"))
    mine = [
        room for room in place.glob("filepool-guest-*") if (room / "host").read_text().split()[0] == str(os.getpid())
    ]
    return [path for room in mine for path in room.glob(inside)]


def test_a_video_of_the_sdk_frames(engine: LipSync, media_files: Path, tmp_path: Path) -> None:
    """Every frame in order, encoded by us, with the sound; progress for each; the paths never reach its shell."""
    with LocalContext(folder=tmp_path) as context:
        result = make(engine, media_files, "ok", tmp_path, context)
        statuses = list(dict.fromkeys(status for status, _, _ in context.updates))
        percents = [percent for _, percent, _ in context.updates]
    assert statuses == ["face_detecting", "inference", "merging_audio"]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    expected = {"width": 96, "height": 64, "fps": 25.0, "frames": FRAMES, "backend": "heygem", "warnings": []}
    assert {key: result[key] for key in expected} == expected
    assert result["sdk_seconds"] > 0
    film = tmp_path / "output.mp4"
    info = probe_video(film)
    assert (info.frames, info.fps, info.width, info.height) == (FRAMES, 25.0, 96, 64)
    assert media.probe(film).has_audio
    raw = subprocess.run(
        [media.ffmpeg_binary(), "-loglevel", "error", "-i", str(film), "-f", "rawvideo", "-pix_fmt", "gray", "-"],
        check=True,
        capture_output=True,
    ).stdout
    rows = np.frombuffer(raw, np.uint8).reshape(FRAMES, 64, 96)[:, 32].astype(int)
    bars = [int(np.flatnonzero(row > 130).mean().round()) for row in rows]
    assert bars == [pytest.approx(index + 3.5, abs=1) for index in range(FRAMES)]
    assert not left()


FAULTS = {
    "die_first": r"waits for a process that is dead: audio_transfer \(pid \d+\) with SIGKILL; last it was at: .*len:30",
    "die_middle": r"waits for a process that is dead: audio_transfer \(pid \d+\) with SIGKILL; .*frameId:12",
    "die_last": r"(?s)its writer has not finished.*任务执行失败.*audio_transfer \(pid \d+\) with SIGKILL ended",
    "exit_middle": r"waits for a process that is dead: audio_transfer \(pid \d+\) with exit code 1",
    "exit_writer": r"(?s)its writer has not finished.*任务执行失败.*write_video \(pid \d+\) with SIGTERM ended",
    "hang": r"hangs: no sign of life for 5 s, last it was at: .*frameId:12.*; its processes: audio_transfer",
    "grandchild": r"hangs: no sign of life for 5 s, last it was at: .*len:30",
    "reason": r"(?s)the SDK stopped after 16 frames and gave no reason; its log says:.*任务执行失败",
    "module": r"(?s)dead: audio_transfer \(pid \d+\) with exit code 1.*No module named 'trans_dh_service'",
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_is_named_and_the_next_job_is_whole(
    fault: str, engine: LipSync, media_files: Path, tmp_path: Path
) -> None:
    with pytest.raises(GuestError, match=FAULTS[fault]):
        make(engine, media_files, fault, tmp_path)
    assert not left()
    assert not psutil.Process().children(recursive=True), "nothing of it goes on"
    assert make(engine, media_files, "ok", tmp_path)["frames"] == FRAMES


def test_a_lost_answer_of_the_writer_is_a_warning(engine: LipSync, media_files: Path, tmp_path: Path) -> None:
    """All frames are there: the users' `_queue.Empty` costs them the video. The next job gets a fresh SDK."""
    result = make(engine, media_files, "no_answer", tmp_path)
    assert result["frames"] == FRAMES
    assert re.search(r"(?s)all 30 frames were made, but it did not get the answer.*任务执行失败", result["warnings"][0])
    assert not psutil.Process().children(recursive=True)
    assert make(engine, media_files, "ok", tmp_path)["warnings"] == []


def test_a_cancelled_job_leaves_no_frames_to_the_next(engine: LipSync, media_files: Path, tmp_path: Path) -> None:
    flag = threading.Event()

    def told(status: str, *_: object) -> None:
        if status == "inference":
            flag.set()

    with LocalContext(told, tmp_path, is_cancelled=flag.is_set) as context, pytest.raises(Cancelled):
        make(engine, media_files, "slow", tmp_path, context)
    assert not left()
    assert not psutil.Process().children(recursive=True)
    assert make(engine, media_files, "ok", tmp_path)["frames"] == FRAMES


def test_the_sdk_stays_as_it_was(engine: LipSync, sdk: Path, media_files: Path, tmp_path: Path) -> None:
    """Its settings tell it to delete everything in its working directory; ours do not."""
    before = {path.relative_to(SDK) for path in SDK.rglob("*") if "__pycache__" not in path.parts}
    make(engine, media_files, "ok", tmp_path)
    after = {path.relative_to(sdk) for path in sdk.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


def test_its_own_settings_would_have_deleted_it(python: str, sdk: Path, media_files: Path, tmp_path: Path) -> None:
    """As its documents say to run it: the sweep of the stand-in is real."""
    code = (
        "import multiprocessing, sys; multiprocessing.set_start_method('spawn')\n"
        "import service.trans_dh_service as s; t = s.TransDhTask()\n"
        "import filepool_heygem; s.write_video = filepool_heygem.write_video\n"
        "t.work(sys.argv[1], sys.argv[2], 'one', 0, 0, 0, 0)"
    )
    guest = Path(heygem.__file__).parents[1] / "foreign" / "guest"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (sdk, sdk / "service", guest))),
        "FILEPOOL_HEYGEM": str(tmp_path / "frames"),
        "PATH": os.pathsep.join((str(tmp_path), os.environ["PATH"])),
    }
    (tmp_path / "frames").mkdir()
    (tmp_path / "ffmpeg").symlink_to(media.ffmpeg_binary())
    (sdk / "result").mkdir()
    plain = tmp_path / "person.ok.mp4"
    shutil.copy(media_files / "person.mp4", plain)
    shutil.copy(media_files / "speech.wav", tmp_path / "speech.wav")
    command = [python, "-c", code, str(tmp_path / "speech.wav"), str(plain)]
    subprocess.run(command, cwd=sdk, env=env, capture_output=True, timeout=60)
    assert not (sdk / "service").exists()


def test_settings_of_its_own_are_kept_and_ours_put_in(tmp_path: Path) -> None:
    folders = {"temp": "/a/temp", "result": "/a/result", "log": "/a/log"}
    text = settings(SDK / "config" / "config.ini", folders, 8)
    assert "temp_dir = /a/temp" in text
    assert text.count("clean_switch = 0") == 2
    assert "clean_switch = 1" not in text
    assert "batch_size = 8" in text
    assert "report_interval = 10" in text
    assert "temp_dir = /a/temp" in settings(tmp_path / "none.ini", folders, None)


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        ({"sdk": "/nowhere"}, r"options.sdk: /nowhere is no folder"),
        ({"sdk": str(SDK.parent)}, r"holds no service\.trans_dh_service \(no service/trans_dh_service\*\.so\)"),
        ({"python": "/nowhere/python3.8"}, r"options.python: there is no interpreter '/nowhere/python3.8'"),
        ({"warmup": ["/nowhere/a.wav", "/nowhere/v.mp4"]}, r"options.heygem.warmup: /nowhere/a.wav"),
        ({"chaofen": 2}, r"options.heygem.chaofen: "),
    ],
)
def test_a_wrong_set_up_says_what_to_change(python: str, sdk: Path, more: dict[str, Any], pattern: str) -> None:
    def start(engine: LipSync) -> None:
        engine.load("cpu", {"backend": "heygem", "heygem": {**option(python, sdk)["heygem"], **more}})
        engine.warmup()

    with closing(LipSync()) as engine, pytest.raises(EngineError, match=pattern):
        start(engine)
    with pytest.raises(EngineError, match="backend heygem needs the option `heygem`"):
        LipSync().load("cpu", {"backend": "heygem"})


def test_what_only_other_backends_can_do_is_refused(engine: LipSync, media_files: Path, tmp_path: Path) -> None:
    asked = {"audio": str(media_files / "speech.wav"), "video": str(template(media_files, "ok", tmp_path)), "face": 1}
    with pytest.raises(InputError, match="face: the SDK of heygem chooses the face by itself"):
        engine.check(asked)


def test_it_is_warmed_up_with_a_real_clip(python: str, sdk: Path, media_files: Path, tmp_path: Path) -> None:
    clip = [str(media_files / "speech.wav"), str(template(media_files, "ok", tmp_path))]
    engine = LipSync()
    with closing(engine):
        engine.load("cpu", option(python, sdk, warmup=clip))
        engine.warmup()
        assert not left()
        assert make(engine, media_files, "ok", tmp_path)["frames"] == FRAMES


# ---- under the pool


def failures_of(record: Record | None) -> list[Failure]:
    """Of every attempt, the last one included."""
    assert record is not None
    return [*record.attempts, *([record.failure] if record.failure else [])]


@pytest.fixture
def world(tmp_path: Path, python: str, sdk: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        engine = {
            "engine": "inference.lipsync:LipSync",
            "max_concurrent_tasks": 1,
            "options": option(python, sdk),
            "load_timeout_s": 60,
        }
        made.configure({"lipsync": engine}).serve(ready=1)
        yield made


def submit(world: World, media_files: Path, fault: str, tmp_path: Path, **more: Any) -> Any:
    asked = {"audio": str(media_files / "speech.wav"), "video": str(template(media_files, fault, tmp_path))}
    return world.pool().submit("lipsync", **asked, **more)


def test_a_killed_worker_costs_an_attempt_and_leaves_nothing(world: World, media_files: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: its SDK and all its processes are gone before the job runs again."""
    future = submit(world, media_files, "slow", tmp_path, retry_times=1)
    _, pid = world.worker_of(future.id)
    wait_until(lambda: len(psutil.Process(pid).children(recursive=True)) >= 4, "the SDK's processes run")
    family = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    result = future.result(60)
    assert result["frames"] == FRAMES
    assert future.record.attempt == 2
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    (failed,) = failures_of(future.record)
    assert failed.signal == "SIGKILL"
    places = [room / "sdk" / name for room in Path("/tmp").glob("filepool-guest-*") for name in ("temp", "result")]
    assert not [path for place in places for path in place.glob(f"{future.id}*")]


@pytest.mark.parametrize("fault", ["die_middle", "module", "reason"])
def test_a_fault_is_a_record_with_all_that_is_known(
    fault: str, world: World, media_files: Path, tmp_path: Path
) -> None:
    future = submit(world, media_files, fault, tmp_path, retry_times=1)
    assert future.exception(60) is not None
    failures = failures_of(future.record)
    assert len(failures) == 2
    for number, failure in enumerate(failures, 1):
        assert failure.kind == "engine"
        assert failure.attempt == number
        assert failure.stage
        assert re.search(
            FAULTS[fault].replace("30", r"\d+").replace("16", r"\d+").replace("12", r"\d+"), failure.message
        )
    assert submit(world, media_files, "ok", tmp_path).result(60)["frames"] == FRAMES


def test_a_cancel_reaches_it(world: World, media_files: Path, tmp_path: Path) -> None:
    future = submit(world, media_files, "slow", tmp_path)
    worker, pid = world.worker_of(future.id)
    wait_until(lambda: len(psutil.Process(pid).children(recursive=True)) >= 4, "the SDK's processes run")
    assert future.cancel()
    wait_until(future.done, "the job ends")
    wait_until(lambda: not psutil.Process(pid).children(recursive=True), "its processes end")
    assert submit(world, media_files, "ok", tmp_path).result(60)["frames"] == FRAMES
    assert worker in world.loaded(), "the worker itself goes on"


def test_the_whole_service_of_the_first_documents(world: World, media_files: Path) -> None:
    """`POST /human/generate` in front: one after the other, a fault with its reason, two at once, none lost."""
    with Gateway(world) as gate:
        gate.start()

        def ask(fault: str) -> tuple[int, Any, Path]:
            body = {
                "audio_path": gate.file("speech.wav", (media_files / "speech.wav").read_bytes()),
                "video_path": gate.file(f"person.{fault}.mp4", (media_files / "person.mp4").read_bytes()),
                "save_path": str(gate.media / f"{fault}-{time.monotonic_ns()}.mp4"),
            }
            answer = gate.post("/human/generate", json=body)
            return answer.status_code, answer.json(), Path(body["save_path"])

        code, found, film = ask("ok")
        assert (code, found["code"], found["message"]) == (200, 200, "success")
        assert probe_video(film).frames == FRAMES
        code, found, film = ask("reason")
        assert code == 502
        assert "the SDK stopped after 16 frames and gave no reason" in found["message"]
        assert not film.exists()
        with ThreadPoolExecutor(3) as clients:
            answers = list(clients.map(ask, ["ok"] * 3))
        assert [code for code, _, _ in answers] == [200] * 3
        assert [probe_video(film).frames for _, _, film in answers] == [FRAMES] * 3


def test_a_small_shared_memory_is_enough(python: str, sdk: Path, media_files: Path, tmp_path: Path) -> None:
    """64 KiB of /dev/shm, in a namespace of its own: frames are files."""
    code = (
        "import sys\n"
        "from inference.base import LocalContext\n"
        "from inference.lipsync import LipSync\n"
        f"engine = LipSync(); engine.load('cpu', {option(python, sdk)!r})\n"
        f"with LocalContext(folder={str(tmp_path)!r}) as context:\n"
        "    asked = engine.check({'audio': sys.argv[1], 'video': sys.argv[2]})\n"
        "    print(engine.run(asked, context)['frames'])\n"
        "engine.close()\n"
    )
    inside = f'mount -t tmpfs -o size=64k none /dev/shm && exec {sys.executable} -c "$1" "$2" "$3"'
    files = [str(media_files / "speech.wav"), str(template(media_files, "ok", tmp_path))]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, "sh", code, *files]
    if shutil.which("unshare") is None or subprocess.run([*command[:4], "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    env = {**os.environ, "PYTHONPATH": str(Path(heygem.__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    if "permission denied" in done.stderr.lower() and "mount" in done.stderr:
        pytest.skip("no mounts here")
    assert done.stdout.strip() == str(FRAMES), done.stderr[-2000:]
