"""The house: which room knows which, how large rooms may be, what nobody may use, and what entering costs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pool import errors, layout, spool

PROJECT = Path(__file__).resolve().parent.parent
POOL, INFERENCE, WORKER_MAIN = PROJECT / "pool", PROJECT / "inference", PROJECT / "worker_main.py"
LINES = 500

#: Arrows lead downward only, or sideways without a circle. Modules between these are placed by what they import.
LAYERS = (
    {"errors", "clock", "constants"},
    {"names", "codec", "fsops"},
    {"job"},
    {"spool", "watch", "config", "heartbeat", "restart", "procs"},
    {"intake", "worker", "client"},
    {"supervisor"},
    {"submit", "__main__"},
)
LAYER = {f"pool.{name}": number for number, names in enumerate(LAYERS) for name in names}


def _sources(*roots: Path) -> list[Path]:
    return sorted(path for root in roots for path in (root.rglob("*.py") if root.is_dir() else [root]))


EVERYTHING = _sources(POOL, INFERENCE, WORKER_MAIN)
GATEWAYS = _sources(POOL / "gateways")  # the doors: they know the pool, the pool does not know them


def _module(path: Path) -> str:
    """Its full name: "pool.spool", "pool.gateways.http.app"; a package has that of its folder."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def _living(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _living(other)
            continue
        yield child
        yield from _living(child)


@cache
def _imports(path: Path) -> frozenset[str]:
    """Full names of what a file imports, anywhere in it: "pool.spool", "torch", "os.path" …"""
    package = path.parent.relative_to(PROJECT).parts
    found: set[str] = set()
    for node in _living(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")] if node.level else None
            module = ".".join(filter(None, base)) if base is not None else node.module or ""
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return frozenset(found)


def _tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(path)}


# ---- who knows whom


@cache
def _graph() -> dict[str, frozenset[str]]:
    modules = {_module(path): path for path in _sources(POOL) if path.parent != POOL or path.stem != "__init__"}
    return {name: _imports(path) & modules.keys() - {name} for name, path in modules.items()}


def _reach(name: str) -> dict[str, str]:
    """Every module that one leads to, with the one it is imported by."""
    reached, waiting = {}, [name]
    while waiting:
        current = waiting.pop()
        for target in _graph()[current]:
            if target not in reached:
                reached[target] = current
                waiting.append(target)
    return reached


def _way(name: str, target: str) -> str:
    reached, way = _reach(name), [target]
    while way[0] != name or len(way) == 1:
        way.insert(0, reached[way[0]])
    return " -> ".join(way)


def test_the_layers_are_there() -> None:
    missing = LAYER.keys() - _graph().keys()
    assert not missing


@pytest.mark.parametrize("name", sorted(_module(path) for path in _sources(POOL) if path.stem != "__init__"))
def test_arrows_lead_downward_and_never_in_a_circle(name: str) -> None:
    reached = _reach(name)
    assert name not in reached, _way(name, name)
    for target in reached:
        if name in LAYER and target in LAYER:
            assert LAYER[target] <= LAYER[name], _way(name, target)


def _who_imports(paths: list[Path], names: set[str]) -> dict[str, list[str]]:
    found = {str(path.relative_to(PROJECT)): sorted(_tops(path) & names) for path in paths}
    return {path: imported for path, imported in found.items() if imported}


def test_the_pool_knows_no_engine_and_no_framework() -> None:
    foreign = {"inference", "torch", "cv2", "worker_main", "tests", "bench"}
    assert _who_imports(_sources(POOL), foreign) == {}
    house = [path for path in _sources(POOL) if path not in GATEWAYS]
    assert _who_imports(house, {"fastapi", "starlette", "uvicorn", "prometheus_client", "redis"}) == {}
    assert {str(path): name for path in house for name in _imports(path) if name.startswith("pool.gateways")} == {}


def test_engines_do_not_know_the_pool() -> None:
    assert _who_imports(_sources(INFERENCE), {"pool", "worker_main", "tests", "bench"}) == {}


def test_one_place_joins_them() -> None:
    assert {"pool", "inference"} <= _tops(WORKER_MAIN)


def test_psutil_lives_in_one_place() -> None:
    assert [path.stem for path in _sources(POOL) if "psutil" in _tops(path)] == ["portable"]


# ---- rooms


def test_a_module_has_one_job_and_a_bounded_length() -> None:
    lines = {str(path.relative_to(PROJECT)): len(path.read_text("utf-8").splitlines()) for path in EVERYTHING}
    assert {path: count for path, count in lines.items() if count > LINES} == {}, "split it by what it does"
    assert [str(path) for path in EVERYTHING if path.stat().st_size and not ast.get_docstring(_tree(path))] == []


def test_the_docstring_of_the_spool_is_the_specification() -> None:
    text = spool.__doc__ or ""
    for name in (*layout.TOP, *(name.split("/")[1] for name in layout.RUN)):
        assert f"{name}/" in text, f"{name}/ is in the tree and not in the specification"
    for transition in ("submit", "claim", "release", "retry", "due", "finish", "requeue"):
        assert re.search(rf"^    {transition}\s", text, re.MULTILINE), transition


def test_every_error_is_in_the_drawing() -> None:
    drawn = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, (errors.PoolError, errors.PoolWarning))
            assert name in drawn


# ---- what nobody may use

FORBIDDEN = {
    "pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "multiprocessing", "multiprocess", "billiard",
    "joblib",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {"os.system", "os.popen", "os.fork", "os.forkpty", "subprocess.getoutput"}


def _calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def _keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def _offences(call: ast.Call, name: str) -> Iterator[str]:
    if name in FORBIDDEN_NAMES | FORBIDDEN_CALLS:
        yield name
    if _keyword(call, "shell") not in (None, "False"):
        yield "a shell"
    if _keyword(call, "allow_pickle") not in (None, "False"):
        yield "a pickle"
    if name.endswith("torch.load") and _keyword(call, "weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and _keyword(call, "allow_pickle") != "False":
        yield "numpy.load without allow_pickle=False"


def test_no_pickle_no_shell_no_code_from_text_no_shared_memory() -> None:
    assert _who_imports(EVERYTHING, FORBIDDEN) == {}
    offences = []
    for path in EVERYTHING:
        bad = [name for name in _imports(path) if name.endswith(("shared_memory", "ProcessPoolExecutor"))]
        offences += [f"{path}: {name}" for name in bad]
        for call, name in _calls(path):
            offences += [f"{path}:{call.lineno}: {what}: {ast.unparse(call)[:80]}" for what in _offences(call, name)]
    assert offences == []


def test_no_place_of_anybodys_machine() -> None:
    place = re.compile(r"(?<![\w/.{}])/(?:home|root|Users|mnt)/\w*")
    assert {str(path): found for path in EVERYTHING if (found := place.findall(path.read_text("utf-8")))} == {}


OF_OS = {
    "rename", "renames", "link", "symlink", "unlink", "remove", "replace", "mkdir", "makedirs", "rmdir", "fsync",
    "chmod", "truncate", "ftruncate", "rmtree", "move",
}  # fmt: skip
OF_PATH = {
    "rename", "unlink", "replace", "mkdir", "rmdir", "touch", "write_text", "write_bytes", "chmod", "symlink_to",
    "hardlink_to",
}  # fmt: skip
#: What changes files outside fsops, and why it may.
EXCEPTIONS = {
    "logs": OF_PATH,  # turns over logs; nothing is decided by them
    "context": {"ftruncate"},  # of the file it appends to
    "submit": {"write_text", "replace", "unlink"},  # a result that the user wants in a file of the user's
    "layout": {"mkdir"},  # the parents of the spool
    "cgroup": {"mkdir", "rmdir", "write_text"},  # orders to the kernel: no files, and not in the spool
}


def _changes(call: ast.Call, name: str) -> bool:
    owner, _, verb = name.rpartition(".")
    if owner in ("os", "shutil"):
        return verb in OF_OS
    text = verb == "replace" and len(call.args) != 1  # of a str, or of a dataclass
    return verb in OF_PATH and owner not in ("", "fsops") and not text


def test_only_fsops_changes_files() -> None:
    """The crash-point loops see what goes through its seam, and nothing else."""
    behind = [
        f"{path.stem}:{call.lineno}: {ast.unparse(call)[:80]}"
        for path in _sources(POOL) if path.stem != "fsops"
        for call, name in _calls(path)
        if _changes(call, name) and name.rpartition(".")[2] not in EXCEPTIONS.get(path.stem, set())
    ]  # fmt: skip
    assert behind == []


def test_nothing_is_decided_by_the_wall_clock() -> None:
    wall = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow", "date.today"}
    asked = {(path.stem, name) for path in _sources(POOL) for _, name in _calls(path) if name in wall}
    assert asked <= {("clock", "time.time"), ("layout", "time.time_ns")}  # for eyes; where the spool clock begins


# ---- what entering costs


def _loaded(program: str, env: dict[str, str]) -> set[str]:
    """Modules that a program loads beyond those of a bare interpreter."""
    text = f"import json, sys; was = set(sys.modules); {program}; print(json.dumps(sorted(set(sys.modules) - was)))"
    argv = [sys.executable, "-c", text]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


HEAVY = {
    "torch", "cv2", "numpy", "fastapi", "uvicorn", "psutil", "pydantic", "jsonschema", "typer", "rich", "click",
    "loguru", "watchdog", "filelock", "asyncio", "multiprocessing", "http", "email", "ssl", "socketserver", "unittest",
    "inference", "opentelemetry",
}  # fmt: skip


def test_the_name_of_the_pool_costs_nothing(child_env: dict[str, str]) -> None:
    loaded = _loaded("import pool", child_env)
    assert {name for name in loaded if name.startswith("pool")} == {"pool"}
    assert len(loaded) < 25, sorted(loaded)


def test_a_client_is_light(child_env: dict[str, str]) -> None:
    """A count of modules, because a wall clock on a busy machine tells nothing."""
    loaded = _loaded("from pool import FilePool", child_env)
    assert not {name.split(".")[0] for name in loaded} & HEAVY
    assert len(loaded) < 170, sorted(loaded)


def test_a_worker_loads_what_it_needs(child_env: dict[str, str]) -> None:
    loaded = _loaded("import pool.worker", child_env)
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & (HEAVY - {"loguru"}), tops & HEAVY
    assert "pool.client" not in loaded
    assert "pool.supervisor" not in loaded
    assert "pool.config" not in loaded  # its launch file says all


def test_the_supervisor_needs_no_numpy(child_env: dict[str, str]) -> None:
    loaded = {name.split(".")[0] for name in _loaded("import pool.supervisor", child_env)}
    assert not loaded & {"torch", "cv2", "numpy", "fastapi", "pydantic", "psutil", "inference", "typer"}


def test_an_engines_interface_needs_no_framework(child_env: dict[str, str]) -> None:
    loaded = {name.split(".")[0] for name in _loaded("import inference.base, inference.fake", child_env)}
    assert not loaded & {"torch", "cv2", "numpy", "pool", "onnxruntime"}
