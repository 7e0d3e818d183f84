"""The house: which room knows which, what nobody may use, and what entering costs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pool import errors, spool
from pool.spool import layout

PROJECT = Path(__file__).resolve().parent.parent
GUESTS = PROJECT / "inference" / "foreign" / "guest"  # what runs in the interpreters of SDKs
POOL, INFERENCE, WORKER_MAIN = PROJECT / "pool", PROJECT / "inference", PROJECT / "worker_main.py"

#: The floors of pool/: a package imports from its own floor's package and from floors below, never from a neighbour.
FLOORS = (
    {"constants", "failure", "errors", "stages"},
    {"system"},
    {"format"},
    {"policy"},
    {"job"},
    {"tracing"},
    {"config"},
    {"spool"},
    {"runfiles"},
    {"client", "work", "supervise"},
    {"cli"},
    {"gateways", "cluster"},
    {"submit", "__main__"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def _sources(*roots: Path) -> list[Path]:
    return sorted(path for root in roots for path in (root.rglob("*.py") if root.is_dir() else [root]))


EVERYTHING = _sources(POOL, INFERENCE, WORKER_MAIN)
GATEWAYS = _sources(POOL / "gateways")  # the doors: they know the pool, the pool does not know them


def _module(path: Path) -> str:
    """Its full name: "pool.spool.store", "pool.gateways.http.app"; a package has that of its folder."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in _sources(POOL) if path != POOL / "__init__.py"}


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
def _imports(path: Path, *, types: bool = False) -> frozenset[str]:
    """Full names of what a file imports, anywhere in it: "pool.spool.store", "torch", "os.path" …

    types: also what only a type checker sees."""
    package = path.parent.relative_to(PROJECT).parts
    found: set[str] = set()
    for node in ast.walk(_tree(path)) if types else _living(_tree(path)):
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
    """Module of pool/ -> the modules of pool/ that it names, type annotations included. `pool` itself is left out: its
    public names are imported on first use."""
    return {name: _imports(path, types=True) & MODULES.keys() - {name} for name, path in MODULES.items()}


def _room(name: str) -> str:
    """The package of a module, or a module at the top of pool/: "spool" of "pool.spool.store"."""
    return name.split(".")[1]


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


def test_every_room_is_on_a_floor() -> None:
    rooms = {_room(name) for name in _graph()}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows_lead_downward_and_never_in_a_circle(name: str) -> None:
    assert name not in _reach(name), _way(name, name)
    here = _room(name)
    for target in _graph()[name]:
        there = _room(target)
        assert here == there or FLOOR[there] < FLOOR[here] or FLOOR[here] == 0, f"{name} -> {target}"


def test_client_work_and_supervise_are_siblings() -> None:
    """None reaches another, whatever lies between."""
    siblings = {"client", "work", "supervise"}
    for name in _graph():
        if _room(name) in siblings:
            others = {target for target in _reach(name) if _room(target) in siblings - {_room(name)}}
            assert not others, _way(name, min(others))


def test_no_two_modules_have_the_same_name() -> None:
    """Outside the gateways, which are programs of their own; as is the cluster's command line."""
    names = Counter(path.stem for path in _sources(POOL) if path not in GATEWAYS and path.stem != "__init__")
    assert {name for name, count in names.items() if count > 1} == {"__main__", "submit"}  # and its short address


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


def test_no_class_is_a_thread_or_a_process() -> None:
    """Private names of these change with Python: the thread of 3.13 keeps its handle in `_handle`."""
    wrong = [
        f"{_module(path)}.{node.name}"
        for path in EVERYTHING
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if ast.unparse(base).rpartition(".")[2] in ("Thread", "Timer", "Process", "Popen")
    ]
    assert wrong == []


# ---- rooms


def test_every_module_says_what_it_is_for() -> None:
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
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "shelve",
    "marshal",
    "multiprocessing",
    "multiprocess",
    "billiard",
    "joblib",
}
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
    assert _who_imports([path for path in EVERYTHING if path.parent != GUESTS], FORBIDDEN) == {}
    # Guests set up, and watch, the processes that SDKs start.
    assert _who_imports(GUESTS.glob("*.py"), FORBIDDEN - {"multiprocessing"}) == {}
    offences = []
    for path in EVERYTHING:
        bad = [name for name in _imports(path) if name.endswith(("shared_memory", "ProcessPoolExecutor"))]
        offences += [f"{path}: {name}" for name in bad]
        for call, name in _calls(path):
            offences += [f"{path}:{call.lineno}: {what}: {ast.unparse(call)[:80]}" for what in _offences(call, name)]
    assert offences == []


def test_guests_need_nothing_but_an_old_python() -> None:
    """The standard library and each other, in the syntax of 3.6."""
    own = {path.stem for path in GUESTS.glob("*.py")}
    assert own
    for path in GUESTS.glob("*.py"):
        ast.parse(path.read_text("utf-8"), feature_version=(3, 6))
        numpy = {"numpy"} if path.stem == "filepool_codec" else set()  # the SDK's own, for arrays
        assert _tops(path) - own - numpy <= sys.stdlib_module_names - {"__future__"}, path


def test_no_live_folder_is_walked_by_what_raises() -> None:
    """``rglob`` raises when a folder goes while it is walked (Python 3.11): where processes run, ``world.below``."""
    names = ("scenarios", "cluster", "cluster_storm", "gateways", "console", "crash", "chaos", "hostile")
    files = [*EVERYTHING, *_sources(*(PROJECT / "tests" / name for name in names))]
    walks = [path for path in files if ".rglob(" in path.read_text("utf-8")]
    assert [path.name for path in walks] == ["dialogues.py"]  # reads a folder of recordings


def test_no_place_of_anybodys_machine() -> None:
    place = re.compile(r"(?<![\w/.{}])/(?:home|root|Users|mnt)/\w*")
    assert {str(path): found for path in EVERYTHING if (found := place.findall(path.read_text("utf-8")))} == {}


OF_OS = {
    "rename",
    "renames",
    "link",
    "symlink",
    "unlink",
    "remove",
    "replace",
    "mkdir",
    "makedirs",
    "rmdir",
    "fsync",
    "chmod",
    "truncate",
    "ftruncate",
    "rmtree",
    "move",
}
OF_PATH = {
    "rename",
    "unlink",
    "replace",
    "mkdir",
    "rmdir",
    "touch",
    "write_text",
    "write_bytes",
    "chmod",
    "symlink_to",
    "hardlink_to",
}
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
        for path in _sources(POOL)
        if path.stem != "fsops"
        for call, name in _calls(path)
        if _changes(call, name) and name.rpartition(".")[2] not in EXCEPTIONS.get(path.stem, set())
    ]
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
    "torch",
    "cv2",
    "numpy",
    "fastapi",
    "uvicorn",
    "psutil",
    "pydantic",
    "jsonschema",
    "typer",
    "rich",
    "click",
    "loguru",
    "watchdog",
    "filelock",
    "asyncio",
    "multiprocessing",
    "http",
    "email",
    "ssl",
    "socketserver",
    "unittest",
    "inference",
    "opentelemetry",
}


def test_the_name_of_the_pool_costs_nothing(child_env: dict[str, str]) -> None:
    loaded = _loaded("import pool", child_env)
    assert {name for name in loaded if name.startswith("pool")} == {"pool"}
    assert len(loaded) < 25, sorted(loaded)


def test_a_client_is_light(child_env: dict[str, str]) -> None:
    """A count of modules, because a wall clock on a busy machine tells nothing."""
    loaded = _loaded("from pool import FilePool", child_env)
    assert not {name.split(".")[0] for name in loaded} & HEAVY
    assert len(loaded) < 175, sorted(loaded)  # Python 3.13 has six more of its own than 3.11


def test_a_worker_loads_what_it_needs(child_env: dict[str, str]) -> None:
    loaded = _loaded("import pool.work.worker", child_env)
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & (HEAVY - {"loguru"}), tops & HEAVY
    assert "pool.client.filepool" not in loaded
    assert "pool.supervise.supervisor" not in loaded
    assert "pool.config.settings" not in loaded  # its launch file says all


@pytest.mark.parametrize(
    "program",
    ["pool.__main__, pool.supervise.supervisor", "pool.cluster.__main__, pool.cluster.port, pool.cluster.processes"],
    ids=["supervisor", "port"],
)
def test_what_lives_as_long_as_the_pool_holds_no_command_line(program: str, child_env: dict[str, str]) -> None:
    loaded = {name.split(".")[0] for name in _loaded(f"import {program}", child_env)}
    assert not loaded & {"torch", "cv2", "numpy", "fastapi", "pydantic", "psutil", "inference", "rich", "typer"}


def test_an_engines_interface_needs_no_framework(child_env: dict[str, str]) -> None:
    loaded = {name.split(".")[0] for name in _loaded("import inference.base, inference.fake", child_env)}
    assert not loaded & {"torch", "cv2", "numpy", "pool", "onnxruntime"}


# ---- what stands twice


def test_the_chinese_readme_is_in_step() -> None:
    """The same headings and code blocks in the same order, and every page that the English one links; words differ."""

    def shape(name: str) -> tuple[list[str], list[str], set[str]]:
        text = (PROJECT / name).read_text("utf-8")
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        links = set(re.findall(r"\]\(([^)#]+)[^)]*\)", prose)) - {"README.md", "README.zh-CN.md"}
        return re.findall(r"^#+(?= )", prose, re.M), re.findall(r"^```.*?^```$", text, re.M | re.S), links

    english, chinese = shape("README.md"), shape("README.zh-CN.md")
    for part, here, there in zip(("headings", "code blocks", "links"), english, chinese, strict=True):
        assert there == here, f"README.zh-CN.md: its {part} differ from those of README.md"
