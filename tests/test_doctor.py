"""`python -m pool doctor`: good set-ups are all right, and each bad one is named with what mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import old_python
import pytest

ROOT = Path(__file__).resolve().parents[1]
SDK = ROOT / "tests" / "engines" / "heygem_sdk"
FAKE = {"engine": "inference.fake:Fake"}
EXTENSION = r"""
#include <Python.h>
extern int absent(void);
static struct PyModuleDef about = {PyModuleDef_HEAD_INIT, "trans_dh_service", 0, -1, 0};
PyMODINIT_FUNC PyInit_trans_dh_service(void) { absent(); return PyModule_Create(&about); }
"""


def examined(
    folder: Path, *arguments: str, environ: dict[str, str] | None = None, **engine: Any
) -> tuple[int, list[Any]]:
    """(exit code, findings) of doctor for one engine."""
    config = folder / "config.json"
    config.write_text(json.dumps({"spool": "spool", "min_free_mb": 1, "engines": {"one": {**FAKE, **engine}}}))
    command = [sys.executable, "-m", "pool", "doctor", "--json", "--config", str(config), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(environ or {})}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is (done.returncode == 0)
    return done.returncode, found["findings"]


def wrong(findings: list[Any]) -> dict[str, tuple[str, str]]:
    return {each["check"]: (each["message"], each["hint"]) for each in findings if not each["ok"]}


def heygem(python: str, sdk: Path, **more: Any) -> dict[str, Any]:
    options = {"backend": "heygem", "heygem": {"python": python, "sdk": str(sdk), **more}}
    return {"engine": "inference.lipsync:LipSync", "options": options}


def test_a_good_set_up_is_all_right_and_nothing_is_made(tmp_path: Path) -> None:
    code, findings = examined(tmp_path, "--load")
    assert code == 0, findings
    about = {each["check"]: each["message"] for each in findings}
    assert about["spool"].endswith("is made at the first start")
    assert about["python"].startswith("CPython 3.")
    assert {"import msgpack", "import inference.fake", "gpu", "load", "disk", "watching"} <= set(about)
    assert sorted(os.listdir(tmp_path)) == ["config.json"]


def test_for_people(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"spool": "spool", "engines": {"one": FAKE, "two": FAKE}}))
    command = [sys.executable, "-m", "pool", "doctor", "two", "--config", str(tmp_path / "config.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "pool"
    assert "two" in lines
    assert "one" not in lines
    assert lines[-1] == "all right"
    done = subprocess.run([*command, "three"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no engine 'three'" in done.stderr


@pytest.mark.parametrize(
    ("engine", "check", "message", "hint"),
    [
        ({"engine": "nowhere:Engine"}, "import nowhere", "No module named 'nowhere'", "-m pip install nowhere"),
        ({"engine": "inference.fake:Other"}, "engine", "has no attribute 'Other'", ""),
        ({"python": "/nowhere/python"}, "configuration", "engines.one.python: no interpreter", ""),
        ({"python": "/bin/false"}, "python", "/bin/false is no Python interpreter that works", "name another"),
        (
            {"device": "cuda:0", "env": {"CUDA_VISIBLE_DEVICES": ""}},
            "gpu",
            "none: ",
            "the engine is to run on cuda:0: fix that, or set its `device` to cpu",
        ),
        (
            {"engine": "inference.lipsync:LipSync", "options": {"backnd": 1}},
            "engine",
            "options.backnd",
            "known options",
        ),
    ],
)
def test_what_is_wrong_and_what_mends_it(
    engine: dict[str, Any], check: str, message: str, hint: str, tmp_path: Path
) -> None:
    code, findings = examined(tmp_path, **engine)
    assert code == 1
    found = wrong(findings)[check]
    assert message in found[0]
    assert hint in found[1]


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    lipsync = {"engine": "inference.lipsync:LipSync"}
    pytest.importorskip("torch")
    _, findings = examined(tmp_path, environ={"FILEPOOL_WEIGHTS": str(tmp_path / "none")}, **lipsync)
    assert wrong(findings)["face model"][1].startswith("python -m inference.weights install face-landmarker")


def test_an_engine_that_ends_the_interpreter(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import ctypes\nctypes.string_at(0)\n")
    code, findings = examined(tmp_path, engine="ends:Engine", pythonpath=[str(tmp_path)])
    assert code == 1
    assert "the interpreter ended with SIGSEGV" in wrong(findings)["import ends"][0]


def test_a_load_that_fails(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(
        "class Engine:\n    def load(self, device, options):\n        raise RuntimeError('the licence has expired')\n"
    )
    (code, findings), (quiet, _) = (
        examined(tmp_path, *more, engine="fails:Engine", pythonpath=[str(tmp_path)]) for more in (["--load"], [])
    )
    assert (code, quiet) == (1, 0)
    assert wrong(findings)["engine"][0] == "RuntimeError: the licence has expired"


@pytest.mark.long
def test_a_worker_in_an_old_python(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("class Engine: pass\n")
    more = {"engine": "old:Engine", "pythonpath": [str(tmp_path)]}
    code, findings = examined(tmp_path, python=old_python.with_packages("3.8", *old_python.WORKER), **more)
    assert code == 0, findings
    _, findings = examined(tmp_path, python=old_python.bare("3.8"), **more)
    assert set(wrong(findings)) == {"import msgpack", "import watchdog", "import filelock"}
    assert wrong(findings)["import msgpack"][1].endswith("-m pip install msgpack")
    _, findings = examined(tmp_path, python=old_python.bare("3.6"), **more)
    assert "is Python 3.6." in wrong(findings)["python"][0]
    assert "inference.foreign:Foreign" in wrong(findings)["python"][1]


@pytest.mark.long
def test_an_sdk_in_an_old_python(tmp_path: Path) -> None:
    """All right; built for another Python; a library that is absent; a module in a folder that is not searched."""
    pytest.importorskip("torch")
    python = old_python.with_packages("3.8", "numpy")
    code, findings = examined(tmp_path, "--load", **heygem(python, SDK))
    assert code == 0, wrong(findings)
    assert any(each["check"] == "sdk python" and "CPython 3.8." in each["message"] for each in findings)

    service = tmp_path / "sdk" / "service"
    service.mkdir(parents=True)
    (service / "__init__.py").touch()
    built = service / "trans_dh_service.cpython-38-x86_64-linux-gnu.so"
    built.touch()
    module = "sdk import service.trans_dh_service"
    _, findings = examined(tmp_path, **heygem(old_python.bare("3.9"), service.parent))
    assert f"{built} is built for Python 3.8, and this is 3.9." in wrong(findings)[module][1]

    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no compiler here for an extension that wants a library")
    (tmp_path / "absent.c").write_text("int absent(void) { return 1; }")
    (tmp_path / "module.c").write_text(EXTENSION)
    code_of = "import sysconfig; print(sysconfig.get_paths()['include'])"
    include = subprocess.run([python, "-c", code_of], capture_output=True, text=True, check=True).stdout.strip()
    if not (Path(include) / "Python.h").exists():
        pytest.skip("Python 3.8 without its headers")
    library = tmp_path / "libcudart.so.11.0"
    shared = [compiler, "-shared", "-fPIC", "-o"]
    subprocess.run([*shared, str(library), str(tmp_path / "absent.c"), f"-Wl,-soname,{library.name}"], check=True)
    subprocess.run([*shared, str(built), f"-I{include}", str(tmp_path / "module.c"), str(library)], check=True)
    _, findings = examined(tmp_path, **heygem(python, service.parent))
    message, hint = wrong(findings)[module]
    assert message.startswith("ImportError: libcudart.so.11.0: cannot open shared object file")
    assert "install the CUDA runtime of that version" in hint
    lib_path = {"LD_LIBRARY_PATH": str(tmp_path)}
    code, findings = examined(tmp_path, **heygem(python, service.parent, env=lib_path))
    assert code == 0, wrong(findings)


@pytest.mark.long
def test_the_hint_of_a_module_that_lies_elsewhere(tmp_path: Path) -> None:
    sdk = tmp_path / "sdk"
    (sdk / "tools").mkdir(parents=True)
    (sdk / "tools" / "helper.py").write_text("")
    (sdk / "mine.py").write_text("import helper\n")
    options = {"python": sys.executable, "sdk": str(sdk), "guest": "mine:Mine"}
    _, findings = examined(tmp_path, engine="inference.foreign:Foreign", options=options)
    assert wrong(findings)["sdk import mine"][1] == f"it lies in {sdk / 'tools'}: add that folder to `pythonpath`"
