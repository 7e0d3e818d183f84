"""README, docs/ and the other pages: links lead somewhere, commands are understood, examples run, names exist."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cluster.machines import Machine
from cluster.rig import Servers
from documented import RESULT
from gateways.gateway import Gateway
from gateways.redis_rig import RedisGateway, Server
from markdown_it import MarkdownIt
from markdown_it.token import Token
from scenarios.world import ENGINE, World, passing, wait_until
from typer.main import get_command

from pool import FilePool
from pool.cluster.overview import look
from pool.config.settings import load_config, parse_config

ROOT = Path(__file__).resolve().parent.parent
#: Pages that say how things are now. The changelog says how they were; of it only the links are checked.
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((ROOT / "docs").glob("*.md"))
NOTES = [path for name in ("examples", "inference", "spool") for path in sorted((ROOT / name).glob("**/*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", *NOTES]

MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A piece of code in a page. number: among those of its language, from 0."""

    page: str
    language: str
    number: int
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@functools.cache
def tokens(page: Path) -> list[Token]:
    return MARKDOWN.parse(page.read_text("utf-8"))


@functools.cache
def blocks() -> list[Block]:
    """Every block of code; one that is indented has the language ""."""
    found: list[Block] = []
    for page in PAGES:
        for token in tokens(page):
            if token.type in ("fence", "code_block"):
                assert token.map is not None
                number = sum(b.page == name_of(page) and b.language == token.info for b in found)
                found.append(Block(name_of(page), token.info, number, token.map[0] + 1, token.content))
    return found


def inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or ()


def spans(page: Path) -> Iterator[str]:
    """Code within the text."""
    return (token.content for token in inline(page) if token.type == "code_inline")


# ---- links


def anchors(page: Path) -> set[str]:
    """Of the headings, as a repository's page makes them."""
    found: dict[str, int] = {}
    for before, token in zip(tokens(page), tokens(page)[1:], strict=False):
        if before.type == "heading_open":
            text = "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found[slug] = found.get(slug, -1) + 1
    return {slug if not count else f"{slug}-{count}" for slug, last in found.items() for count in range(last + 1)}


def targets(page: Path) -> Iterator[str]:
    for token in inline(page):
        if token.type in ("link_open", "image"):
            yield str(token.attrGet("href") or token.attrGet("src"))
        elif token.type == "html_inline":
            yield from re.findall(r'(?:src|href)="([^"]+)"', token.content)


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for target in targets(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or ROOT not in (file, *file.parents) or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


# ---- every block is of a kind that a test looks at

KINDS = {
    "python": "run, below",
    "sh": "read by the real parsers, below",
    "json": "loaded as what it is, below",
    "nginx": "run by a real nginx in front of a gateway: gateways/proxy.py",
    "text": "a drawing, a log: nothing to run",
}


def test_every_block_says_what_it_is() -> None:
    assert {str(block): block.language for block in blocks() if block.language not in KINDS} == {}


# ---- commands

#: Programs whose options are not ours to check, and why a test cannot run them.
FOREIGN = {
    "apt-get": "installs packages of the system; compared with the Dockerfile in test_deploy.py",
    "cd": "changes the folder of the shell",
    "cp": "copies what the line before made",
    "curl": "asks a gateway that the page starts; its address is looked up below",
    "docker": "no container engine where the tests run",
    "echo": "writes a job; the job is dropped below",
    "export": "sets a variable",
    "git": "works on the checkout",
    "head": "reads what a command of ours prints",
    "install": "needs root",
    "kubectl": "needs a cluster; the manifests are checked in cluster/test_cluster_deploy.py",
    "mypy": "checks the sources in make lint",
    "openssl": "makes a token",
    "printf": "writes secrets",
    "ruff": "checks the sources in make lint",
    "sbatch": "needs Slurm; the script is checked in cluster/test_cluster_deploy.py",
    "systemctl": "needs systemd and root",
    "useradd": "needs root",
}
#: What is run with `python -m` and is no command of ours.
FOREIGN_MODULES = {"venv", "pytest"}


class _Parsed(Exception):
    """A command line was understood; nothing is to be done about it."""


def statements(text: str) -> Iterator[list[str]]:
    """The simple commands of a piece of shell, without redirections and without variables set for one of them."""
    pending = ""
    for line in text.splitlines():
        pending += line + "\n"
        try:
            words = _words(pending.replace("\\\n", " "))
        except ValueError:  # a quoted text goes on in the next line
            continue
        if pending.endswith("\\\n"):
            continue
        pending = ""
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|()"):
                if command:
                    yield command
                command = []
            elif not (not command and re.match(r"\w+=", word)):
                command.append(word)
    assert not pending.strip(), pending


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if skip or re.fullmatch(r"\d?>>?", word):
            skip = not skip
            continue
        words.append(word)
    return words


def understand(words: list[str], *, whole: bool = True) -> None:
    """Raises for a command of ours that its own parser refuses. whole: nothing that it needs may be missing."""
    program = Path(words[0]).name
    if program in ("python", "python3") and words[1] == "-m":
        module, arguments = words[2], words[3:]
        assert module in FOREIGN_MODULES or find_spec(module), f"no module {module}"
        if module.partition(".")[0] == "pool":
            _read_by_typer(module, arguments, whole)
        elif module.partition(".")[0] in ("inference", "bench"):
            _read_by_argparse(module, arguments)
        elif module not in FOREIGN_MODULES:
            assert (ROOT / "tests" / module).exists(), module
    elif program in ("python", "python3"):
        assert (ROOT / words[1]).exists(), words[1]
    elif program == "filepool":
        _read_by_typer("pool", words[1:], whole)
    elif program == "make":
        targets_made = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets_made), words
    elif program == "pytest":
        _tests_exist(words)
    elif program == "pip":
        _extras_exist(words)
    elif program == "curl":
        _route_exists(words)
    else:
        assert program in FOREIGN, f"{program}: say in FOREIGN why it is not checked"


def _read_by_typer(module: str, arguments: list[str], whole: bool) -> None:
    homes = {"pool": "pool.cli.app", "pool.submit": "pool.cli.submit", "pool.cluster": "pool.cluster.commands"}
    home = homes.get(module, f"{module}.__main__")
    command: Any = get_command(import_module(home).app)
    rest = list(arguments)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            assert getattr(command, "invoke_without_command", False), f"{module} has no command {rest[0]!r}"
            break
        command = command.commands[rest.pop(0)]
    if whole and not (hasattr(command, "commands") and not rest):
        try:
            command.make_context(module, rest)
        except SystemExit as leave:  # --help, --version
            if leave.code:
                raise
    else:
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help", "-h"}, f"{module} {arguments}: {used - known}"


def _read_by_argparse(module: str, arguments: list[str]) -> None:
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        parse(parser, args, namespace)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of runpy: the module may be imported already
                runpy.run_module(module, run_name="__main__")
        except _Parsed:
            return
        except SystemExit as leave:
            raise AssertionError(f"python -m {module} does not understand {arguments}") from leave
    raise AssertionError(f"python -m {module} has no parser")


def _tests_exist(words: list[str]) -> None:
    for word in words[1:]:
        if word.startswith("tests"):
            path, _, test = word.partition("::")
            assert (ROOT / path).exists(), word
            assert not test or f"def {test}(" in (ROOT / path).read_text("utf-8"), word


@functools.cache
def _extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    return set(re.findall(r"^(\w+) = \[", text.partition("\n[")[0], re.MULTILINE))


def _extras_exist(words: list[str]) -> None:
    for word in words:
        wanted = re.fullmatch(r"(?:\.|filepool)\[([\w,]+)\]", word)
        assert wanted is None or set(wanted[1].split(",")) <= _extras(), word


@functools.cache
def _routes() -> list[str]:
    """Paths of the HTTP gateway, as its sources declare them."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "pool/gateways/http").glob("*.py"))
    return re.findall(r'(?:@router\.\w+|add_api_route)\(\s*"(/[^"]*)"', sources)


def _route_exists(words: list[str]) -> None:
    for word in words[1:]:
        if found := re.match(r"(?:http://)?localhost:8308(/[^?]*)", word):
            assert any(re.fullmatch(re.sub(r"{\w+}", "[^/]+", route), found[1]) for route in _routes()), word


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "sh"], ids=str)
def test_commands_are_understood(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    commands = list(statements(block.text))
    assert commands
    for words in commands:
        understand(words)


OURS = re.compile(r"(?:python3? (?:-m )?[\w./]+|make \w+$|filepool (?!\[))")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_the_text_are_understood(page: Path) -> None:
    for span in spans(page):
        if not OURS.match(span) or re.search(r"\w\|\w", span):
            continue
        for words in statements(span.replace("…", "")):
            understand(words, whole=False)


# ---- JSON


def _is_config(document: Mapping[str, Any]) -> bool:
    return "engines" in document or "cluster" in document


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "json"], ids=str)
def test_json_is_what_it_says(block: Block, tmp_path: Path, examples: Examples) -> None:
    """A config.json loads; anything else is a job, which the pool takes from in/ and completes."""
    document = json.loads(block.text)
    if _is_config(document):
        config = parse_config(document, tmp_path / "config.json")
        assert config.engines or config.is_branch
        return
    examples.drop(f"documented-{block.line}", block.text)


# ---- Python

PORT = "8308"


class Examples:
    """A pool with the engines that the pages name, in whose folder the files lie that they name."""

    def __init__(self, world: World) -> None:
        own = {**ENGINE, "engine": "documented:Answers", "pythonpath": [str(ROOT / "tests")], "max_concurrent_tasks": 1}
        films = {**own, "engine": "documented:Films"}
        world.configure({"transcribe": own, "lipsync": own, "tts": own, "portrait": films})
        for name in ("talk.m4a", "speech.wav"):
            shutil.copy(ROOT / "examples/speech/address.flac", world.folder / name)
        shutil.copy(ROOT / "examples/portrait/mona_lisa.jpg", world.folder / "face.jpg")
        (world.folder / "person.mp4").touch()
        world.serve(ready=4)
        self.world = world
        self._gateway = Gateway(world, "--no-start")

    @functools.cached_property
    def gateway(self) -> Gateway:
        """In front of this pool, on a free port."""
        return self._gateway.start()

    def close(self) -> None:
        self._gateway.kill()

    def run(self, block: Block, **given: Any) -> dict[str, Any]:
        """Its names after it has run in the folder of the pool."""
        names: dict[str, Any] = {"__name__": str(block), **given}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.world.folder)
            exec(compile(block.text, str(block), "exec"), names)
        return names

    def drop(self, name: str, text: str) -> None:
        temp = self.world.spool / f"{name}.part"
        temp.write_text(text)
        temp.rename(self.world.spool / "in" / f"{name}.json")
        record = self.world.spool / "out" / f"{name}.json"
        wait_until(lambda: record.exists() or any((self.world.spool / "quarantine").iterdir()), name)
        assert record.exists(), [path.read_text() for path in (self.world.spool / "quarantine").glob("*.txt")]
        assert json.loads(record.read_text())["state"] == "completed"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Examples]:
    with passing(tmp_path_factory.mktemp("docs")) as world:
        found = Examples(world)
        yield found
        found.close()


def _the_first_pool(examples: Examples, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    examples.run(block)
    assert capsys.readouterr().out.splitlines()[-1] == RESULT["text"]


def _jobs_of_an_open_pool(examples: Examples, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    with FilePool(examples.world.config, start=False) as pool:
        names = examples.run(block, pool=pool)
        assert names["film"].result(60)["given"] == {"audio": "speech.wav", "video": "person.mp4"}


def _a_job_with_log_context(examples: Examples, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    with FilePool(examples.world.config, start=False) as pool:
        examples.run(block, pool=pool)
        (future,) = pool.pending()
        future.result(60)
        assert pool.origin(future.id).terms.log_context == {"request": "r-17", "user": 5}


def _a_client_of_openai(examples: Examples, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    port = examples.gateway.base.rpartition(":")[2]
    examples.run(replace(block, text=block.text.replace(PORT, port)))
    assert "00:00:00,000 --> 00:00:00,500" in capsys.readouterr().out


def _a_client_of_redis(examples: Examples, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    gate, server = examples.gateway, Server(examples.world.folder / "redis")
    broker = RedisGateway(examples.world, server.start(), BASE_PATH=str(gate.media), BASE_URL=gate.base)
    try:
        broker.start()
        text = block.text.replace(PORT, gate.base.rpartition(":")[2])
        text = text.replace("redis.Redis()", f"redis.Redis(port={server.port})")
        names = examples.run(replace(block, text=text))
    finally:
        broker.kill()
        server.kill()
    assert names["message"]["status"] == "completed"
    assert names["video"][4:8] == b"ftyp"


def _a_client_of_a_cluster(examples: Examples, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    folder = examples.world.folder / "cluster"
    folder.mkdir()
    with Servers(folder) as servers, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FILEPOOL_BRANCHES", str(folder / "branches"))
        (node,) = (Machine(folder / "node", "node", servers.url),)
        own = {**ENGINE, "engine": "documented:Answers", "pythonpath": [str(ROOT / "tests")], "max_concurrent_tasks": 1}
        node.configure({"transcribe": own}, cluster={"servers": [servers.url], "name": "node"})
        try:
            node.start()
            settings = load_config(node.config).cluster
            wait_until(lambda: asyncio.run(look(settings, patience_s=20.0)).nodes, "a node")
            examples.run(replace(block, text=block.text.replace("nats://127.0.0.1:4222", servers.url)))
        finally:
            node.close()
    assert capsys.readouterr().out.splitlines()[-1] == RESULT["text"]


#: Every Python block, and how it is run. The engines are those of `documented`, because models take minutes to load;
#: ports are free ones, because 8308 and 6379 may be taken. All else is real.
PYTHON = {
    ("README.md", 0): _the_first_pool,
    ("README.md", 1): _jobs_of_an_open_pool,
    ("docs/CLUSTER.md", 0): _a_client_of_a_cluster,
    ("docs/HTTP.md", 0): _a_client_of_openai,
    ("docs/REDIS.md", 0): _a_client_of_redis,
    ("docs/TRACING.md", 0): _a_job_with_log_context,
}


def test_every_python_block_is_run() -> None:
    assert {(b.page, b.number) for b in blocks() if b.language == "python"} == PYTHON.keys()


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "python"], ids=str)
def test_python_runs(block: Block, examples: Examples, capsys: pytest.CaptureFixture[str]) -> None:
    PYTHON[block.page, block.number](examples, block, capsys)


# ---- files and names

FOLDERS = ("pool", "inference", "bench", "tests", "docs", "examples", "deploy")
FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*")
OF_TESTS = re.compile(r"(?:\w+/)*test_\w+\.py(?:::\w+)?")
NAME = re.compile(r"((?:pool|inference|bench)(?:\.\w+)+)(?:\(.*\))?")  # a call, too


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    missing = [span for span in spans(page) if FILE.fullmatch(span) and not (ROOT / span).exists()]
    for span in filter(OF_TESTS.fullmatch, spans(page)):
        path, _, test = span.partition("::")
        file = ROOT / path if path.startswith("tests/") else ROOT / "tests" / path
        if not file.is_file() or (test and f"def {test}(" not in file.read_text("utf-8")):
            missing.append(span)
    assert missing == []


def _exists(name: str) -> bool:
    """Whether a dotted name is a module, what is in one, or a member of the FilePool that pages call `pool`."""
    module, *rest = name.split(".")
    if module == "pool" and len(rest) == 1 and hasattr(FilePool, rest[0]):
        return True
    found: Any = import_module(module)
    for part in rest:
        if not hasattr(found, part):
            try:
                import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_that_are_named_exist(page: Path) -> None:
    named = {found[1] for span in spans(page) if (found := NAME.fullmatch(span))}
    assert {name for name in named if not _exists(name)} == set()
