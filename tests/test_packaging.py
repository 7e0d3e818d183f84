"""The wheel in a plain environment elsewhere: what it brings, what it can do there, what it says is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from scenarios.world import PATIENCE_S, wait_until

from inference import extras, weights
from pool.runfiles.server import running

ROOT = Path(__file__).resolve().parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "worker_main.py", "pool", "inference")
HEAVY = ("torch", "cv2", "numpy", "ffmpeg", "imageio_ffmpeg", "faster_whisper", "onnxruntime", "fastapi", "redis")
INSTALL_S = 600
WHERE = '''
import sys
class Where:
    """Tells what its interpreter found where."""
    def load(self, device, options): pass
    def check(self, params): return params
    def run(self, params, context):
        import numpy, pool, inference
        files = {module.__name__: module.__file__ for module in (numpy, pool, inference)}
        return {**files, "python": sys.prefix, "first": sys.path[0]}
    def close(self): pass
'''


def packages_of(extra: str) -> set[str]:
    """Names of the packages that an extra of pyproject.toml lists; of the bare package for ""."""
    pattern = rf"^{extra} = \[(.*?)\]$" if extra else r"^dependencies = \[(.*?)\]$"
    found = re.search(pattern, PROJECT, re.MULTILINE | re.DOTALL)
    assert found is not None, extra
    return set(re.findall(r'"([A-Za-z0-9-]+)', found[1]))


# ---- what pyproject.toml says


def test_engines_weight_comes_with_extras_only() -> None:
    assert packages_of("") == {
        "filelock",
        "jsonschema",
        "loguru",
        "msgpack",
        "platformdirs",
        "psutil",
        "pydantic",
        "rich",
        "typer",
        "watchdog",
    }
    assert '"filepool[transcribe,chinese,lipsync,portrait,http,docx,redis,otel,cluster]"' in PROJECT
    assert packages_of("lipsync") == packages_of("portrait")


@pytest.mark.parametrize("extra", extras.PACKAGES)
def test_an_engine_asks_for_the_packages_of_its_extra(extra: str) -> None:
    assert {*extras.PACKAGES[extra].values(), "imageio-ffmpeg"} == packages_of(extra)
    extras.require(extra)  # the modules have the names by which they are asked for


@pytest.mark.parametrize("extra", extras.PACKAGES)
def test_all_missing_packages_are_named_at_once(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module in ("numpy", "torch") else find_spec(module))
    with pytest.raises(extras.MissingPackage, match=f"{extra} needs numpy, torch, which are not installed") as caught:
        extras.require(extra)
    assert caught.value.hint == f"pip install 'filepool[{extra}]'"


@pytest.mark.parametrize(
    ("library", "cure"),
    [
        ("libGL.so.99", "apt-get install libgl1, or pip uninstall opencv-python && pip install opencv-python-headless"),
        ("libgthread-99.so.0", "apt-get install libglib2.0-0"),
        ("libstrange.so.1", "install the package of the system that holds libstrange.so.1"),
    ],
)
def test_a_missing_library_of_the_system_is_named(tmp_path: Path, library: str, cure: str) -> None:
    """A cv2 that is linked against what is not there, as opencv-python on many servers."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    (tmp_path / "there.c").write_text("int there(void) { return 1; }")
    (tmp_path / "cv2.c").write_text("int there(void); void *PyInit_cv2(void) { return there() ? 0 : 0; }")
    module = f"cv2{sysconfig.get_config_var('EXT_SUFFIX')}"
    build = [compiler, "-shared", "-fPIC"]
    subprocess.run([*build, f"-Wl,-soname,{library}", "there.c", "-o", "libthere.so"], cwd=tmp_path, check=True)
    subprocess.run([*build, "cv2.c", "-L.", "-lthere", "-o", module], cwd=tmp_path, check=True)
    program = (
        "from inference import extras\n"
        "try:\n    from inference.lipsync import LipSync\n"
        "except extras.MissingPackage as error:\n    print(error, error.hint, sep='\\n')"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"lipsync cannot start: the library {library} is missing" in done.stdout
    assert cure in done.stdout


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what is in it: a build leaves folders behind."""
    (file,) = _once(tmp_path_factory, "wheel", _build).glob("*.whl")
    return file


def _build(folder: Path) -> None:
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "copy").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "copy")
    _pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(folder / "copy"))


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process of a parallel run makes for all."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock", timeout=INSTALL_S):
        if not (folder / ".made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / ".made").touch()
    return folder


def _pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=_plain_env(), capture_output=True, text=True, timeout=INSTALL_S)
    assert done.returncode == 0, done.stdout + done.stderr


def _plain_env(**more: str) -> dict[str, str]:
    """Without a way to the checkout, and with a width at which no line is broken."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "FILEPOOL_"))}
    return {**env, "COLUMNS": "500", **more}


class Elsewhere:
    """A folder with a configuration, and an environment in which the wheel is installed."""

    def __init__(self, folder: Path, environment: Path, engines: Mapping[str, Any], **env: str) -> None:
        self.folder, self.env = folder, _plain_env(**env)
        self.program, self.python = environment / "bin" / "filepool", environment / "bin" / "python"
        document = {"spool": "spool", "min_free_mb": 0, "rescan_s": 0.5, "engines": engines}
        (folder / "config.json").write_text(json.dumps(document))

    def call(self, *words: str, code: int = 0) -> str:
        """What a command says on both streams; AssertionError when it ends with another code."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.env,
            timeout=3 * PATIENCE_S,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def filepool(self, *words: str, code: int = 0) -> str:
        return self.call(str(self.program), *words, code=code)

    def json(self, *words: str) -> Any:
        """The object that a command of `filepool` prints."""
        command = [str(self.program), *words, "--json"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, timeout=3 * PATIENCE_S, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def slots(self) -> dict[str, Any]:
        return {slot["slot"]: slot for slot in self.json("status")["slots"]}

    def serve(self) -> Iterator[Elsewhere]:
        """While `filepool serve` runs; it drains at the end."""
        with (self.folder / "serve.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self.program), "serve"],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until((self.folder / "spool/run/status.json").exists, "a supervisor that serves")
            yield self
            assert "drained" in self.filepool("drain")
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with `pip install filepool`, without an extra."""

    def install(folder: Path) -> None:
        venv.create(folder, with_pip=True)
        _pip(str(folder / "bin" / "python"), "install", "-c", str(ROOT / "constraints.txt"), str(wheel))

    return _once(tmp_path_factory, "bare", install)


@pytest.fixture(scope="module")
def elsewhere(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "where.py").write_text(WHERE)
    engines = {
        "echo": {"engine": "inference.fake:Echo"},
        "fake": {"engine": "inference.fake:Fake", "backoff_s": 0.05},
        "other": {"engine": "where:Where", "pythonpath": ["."], "python": sys.executable},
        "arrays": {"engine": "inference.fake:Echo", "python": sys.executable},
        "transcribe": {"engine": "inference.transcribe:Transcribe"},
        "lipsync": {"engine": "inference.lipsync:LipSync"},
        "portrait": {"engine": "inference.portrait:Portrait"},
    }
    yield from Elsewhere(folder, bare, engines).serve()


def installed(test: Callable[..., None]) -> Callable[..., None]:
    """A test that may have to build and to install first."""
    marked: Callable[..., None] = pytest.mark.long(pytest.mark.timeout(2 * INSTALL_S)(test))
    return marked


@installed
def test_a_client_and_a_supervisor_need_nothing_of_the_engines(elsewhere: Elsewhere) -> None:
    program = (
        "import importlib, importlib.util, json, pkgutil, sys, pool, worker_main, inference.fake\n"
        "for module in pkgutil.walk_packages(pool.__path__, 'pool.'):\n"
        "    if not module.name.startswith(('pool.gateways.', 'pool.cluster.')) and module.name != 'pool.__main__':\n"
        "        importlib.import_module(module.name)\n"
        f"found = [name for name in {HEAVY!r} if importlib.util.find_spec(name)]\n"
        "print(json.dumps({'home': pool.__file__, 'found': found}))"
    )
    told = json.loads(elsewhere.call(str(elsewhere.python), "-c", program))
    assert told["found"] == []
    assert Path(told["home"]).is_relative_to(elsewhere.python.parents[1])


@installed
def test_jobs_run_from_any_folder_through_a_killed_worker(elsewhere: Elsewhere) -> None:
    assert json.loads(elsewhere.call(str(elsewhere.python), "-m", "pool.submit", "echo", "text=one", "--quiet"))
    before = elsewhere.slots()["echo-0"]
    os.kill(before["pid"], signal.SIGKILL)
    told = elsewhere.json("submit", "echo", "text=two")
    assert told["value"] == {"text": "two"}
    assert elsewhere.slots()["echo-0"]["pid"] != before["pid"]


@installed
def test_a_command_starts_a_supervisor_for_itself(bare: Path, tmp_path: Path) -> None:
    alone = Elsewhere(tmp_path, bare, {"echo": {"engine": "inference.fake:Echo"}})
    assert alone.json("submit", "echo", "text=alone")["value"] == {"text": "alone"}
    wait_until(lambda: running(tmp_path / "spool") is None, "the end of that supervisor")


@installed
def test_a_job_outlives_the_worker_that_is_killed_with_it(elsewhere: Elsewhere) -> None:
    job = elsewhere.json("submit", "fake", "do=hang", "until_attempt=1", "--no-wait")["id"]
    busy = wait_until(lambda: next((s for s in elsewhere.slots().values() if s["job"] == job), None), "a busy worker")
    os.kill(busy["pid"], signal.SIGKILL)
    record = elsewhere.json("result", job, "--wait")
    assert (record["state"], record["attempt"]) == ("completed", 2)


@installed
@pytest.mark.parametrize("engine", [extra for extra in extras.PACKAGES if extra != "musetalk"])  # that is a backend
def test_an_engine_without_its_extra_names_it(elsewhere: Elsewhere, engine: str) -> None:
    install = f"pip install 'filepool[{engine}]'"
    wait_until(lambda: elsewhere.slots()[f"{engine}-0"]["seat"] == "benched", "a slot that gave up")
    files = ("audio=a.wav",) if engine == "transcribe" else ("audio=a.wav", "video=b.mp4")
    said = {
        "submit": elsewhere.filepool("submit", engine, *files, "--patience", "0.5", code=1),
        "engines": elsewhere.filepool("engines", engine),
        "status": elsewhere.filepool("status"),
        "serve": (elsewhere.folder / "serve.log").read_text("utf-8"),
    }
    for place, text in said.items():
        assert f"{engine} needs" in text, place
        assert install in text, place
        assert all(package in text for package in extras.PACKAGES[engine].values()), place
    assert install in elsewhere.json("engines", engine)["engines"][0]["problem"]


@installed
def test_an_array_where_numpy_is_not_installed_names_it(elsewhere: Elsewhere) -> None:
    job = elsewhere.json("submit", "arrays", "array_mb=1", "--no-wait")["id"]
    wait_until(lambda: (elsewhere.folder / f"spool/out/{job}.msgpack").exists(), "a result")
    for words in (["result", job], ["submit", "--attach", job]):
        said = elsewhere.filepool(*words, code=2)
        assert "it holds an array, and numpy is not installed here: pip install numpy" in said


@installed
def test_another_interpreter_has_its_own_packages_and_our_pool(elsewhere: Elsewhere) -> None:
    told = elsewhere.json("submit", "other")["value"]
    own = Path(sysconfig.get_path("purelib"))
    ours = elsewhere.python.parents[1]
    assert Path(told["python"]) == Path(sys.prefix)
    assert Path(told["numpy"]).is_relative_to(own)
    assert Path(told["pool"]).is_relative_to(ours)
    assert Path(told["inference"]).is_relative_to(ours)
    assert not Path(told["first"]).is_relative_to(ours)


@installed
@pytest.mark.model
def test_a_picture_talks_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """The wheel, with the packages of this environment: what it draws with must be in it."""
    try:
        weights.find("face-landmarker/face_landmarker.task")
        weights.find_model("whisper-base")
    except weights.WeightError as error:
        pytest.skip(f"{error} ({error.hint})")
    environment, folder = tmp_path / "venv", tmp_path / "folder"
    venv.create(environment, with_pip=False)
    folder.mkdir()
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    _pip(sys.executable, "install", "--no-deps", "--no-index", "--target", str(packages), str(wheel))
    (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    (environment / "bin" / "filepool").write_text(
        f"#!{environment / 'bin' / 'python'}\nfrom pool.__main__ import main\nmain()\n"
    )
    (environment / "bin" / "filepool").chmod(0o755)
    engines = {"portrait": {"engine": "inference.portrait:Portrait"}}
    place = Elsewhere(folder, environment, engines, FILEPOOL_WEIGHTS=str(weights.folder()))
    example = ROOT / "examples"
    for _ in place.serve():
        result = place.json(
            "submit",
            "portrait",
            f"image={example / 'portrait/mona_lisa.jpg'}",
            "digital_auth=1",
            "frames_num=8",
            f"audio={example / 'speech/address.flac'}",
            "output=talking.mp4",
            "keep=crop",
            "size=256",
        )["value"]
        home = place.call(str(place.python), "-c", "import inference; print(inference.__file__)")
    assert (folder / "talking.mp4").stat().st_size > 1000
    assert result["output"] == str(folder / "talking.mp4")
    assert Path(home.strip()).is_relative_to(environment)
