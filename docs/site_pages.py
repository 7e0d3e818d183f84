"""Pages of the site that are not in docs/, and links that hold in the repository as well as on the site.

A hook of mkdocs. The first page is README.md; README.zh-CN.md, CHANGELOG.md, CONTRIBUTING.md and SECURITY.md are pages;
the reference is made from docstrings and the help of the commands from the commands. A link to any other file of the
repository leads to a page with the text of that file.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PROJECT = Path(__file__).resolve().parent.parent
#: Page of the site -> the file of the repository that it shows.
SHOWN = {"index.md": "README.md"} | {
    name: name for name in ("README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
}
PAGE_OF = {path: page for page, path in SHOWN.items()}
COMMANDS = {
    "pool": "pool.cli.app",
    "pool.submit": "pool.cli.submit",
    "pool.cluster": "pool.cluster.commands",
    "pool.gateways.http": "pool.gateways.http.__main__",
    "pool.gateways.redis": "pool.gateways.redis.__main__",
}
WIDTH = "80"  # columns of the help texts; what fits a window of 1280 pixels

_FENCED = re.compile(r"^(```+).*?^\1`*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)[^`].*?\1", re.DOTALL)
_LINK = re.compile(r"(?P<before>\]\(|\bsrc=\")(?P<target>[^)\s\"#]+)(?P<after>[^)\"]*[)\"])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made. Raises OSError for a file that a link names and that does not exist."""
    from mkdocs.structure.files import File

    sys.path[:0] = [str(PROJECT)]
    pages = {page: (PROJECT / path).read_text("utf-8") for page, path in SHOWN.items()}
    pages |= {f"reference/{name}.md": text for name, text in _reference().items()}
    pages |= {f"commands/{name}.md": _help(name, module) for name, module in COMMANDS.items()}
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for page, text in (pages | written).items():
        for path in _outside(page, text):
            pages.setdefault(page_of(path), _source(path))
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page, with links as the site has them."""
    return rewritten(markdown, page.file.src_uri)


def page_of(path: str) -> str:
    """The page, or the file, of the site for a file of the repository."""
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/")
    if path in PAGE_OF:
        return PAGE_OF[path]
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def path_of(page: str) -> str:
    """The file of the repository that a page of the site shows."""
    if page in SHOWN:
        return SHOWN[page]
    if page.startswith("source/"):
        path = page.removeprefix("source/")
        return path if (PROJECT / path).is_file() else path.removesuffix(".md")
    return f"docs/{page}"


def rewritten(markdown: str, page: str) -> str:
    """Links relative to a file of the repository become links relative to its page. Code stays as it is."""

    def link(match: re.Match[str]) -> str:
        path = _target(page, match["target"])
        if path is None:
            return match[0]
        return match["before"] + posixpath.relpath(page_of(path), posixpath.dirname(page) or ".") + match["after"]

    if page.startswith(("reference/", "commands/")):
        return markdown
    return _outside_code(markdown, lambda text: _LINK.sub(link, text))


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    for pattern in (_FENCED, _CODE):
        found = pattern.search(markdown)
        if found is not None:
            before, after = markdown[: found.start()], markdown[found.end() :]
            return _outside_code(before, change) + found[0] + _outside_code(after, change)
    return change(markdown)


def _target(page: str, target: str) -> str | None:
    """The file of the repository that a link of a page leads to; None for an address."""
    if ":" in target:
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(path_of(page)), target))


def _outside(page: str, text: str) -> list[str]:
    """Files of the repository that a page names and that are no pages yet."""
    targets: list[str] = []
    if not page.startswith(("reference/", "commands/")):

        def collect(part: str) -> str:
            targets.extend(match["target"] for match in _LINK.finditer(part))
            return part

        _outside_code(text, collect)
    paths = [path for target in targets if (path := _target(page, target))]
    return [path for path in paths if page_of(path).startswith("source/")]


def _source(path: str) -> str:
    text = (PROJECT / path).read_text("utf-8")
    if path.endswith(".md"):
        return text
    kind = {".py": "python", ".json": "json", ".yaml": "yaml"}.get(Path(path).suffix, "text")
    return f"# `{path}`\n\n````{kind}\n{text}````\n"


def _reference() -> dict[str, str]:
    """Page -> its text, for the public names of the packages that people import from."""
    names = dict(import_module("pool")._HOME)
    classes = [f"{home}.{name}" for name, home in names.items() if home != "pool.errors"]
    job = ("Record", "Job", "Failure", "Progress", "JobState", "FailureKind")
    homes = {name: getattr(import_module("pool.job"), name).__module__ for name in job}
    plain = "    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
    bare = plain + "      members: false\n"
    return {
        "pool": "# `pool`\n\nPublic names: `from pool import FilePool`.\n\n"
        + _entries(classes)
        + "\nThe errors: [pool.errors](pool.errors.md).\n",
        "pool.errors": f"# `pool.errors`\n\n::: pool.errors\n{plain}",
        "pool.job": f"# `pool.job`\n\n::: pool.job\n{bare}\n" + _entries([f"{homes[name]}.{name}" for name in job]),
        "pool.spool": f"# `pool.spool`\n\n::: pool.spool\n{bare}",
        "inference.base": f"# `inference.base`\n\n::: inference.base\n{plain}",
    }


def _entries(names: list[str]) -> str:
    return "\n".join(f"::: {name}" for name in names) + "\n"


def _help(name: str, module: str) -> str:
    """What a command and its commands say with --help."""
    import typer
    from typer.main import get_command
    from typer.testing import CliRunner

    app: typer.Typer = import_module(module).app
    parts = [f"# `python -m {name}`\n"]

    def add(command: object, words: list[str]) -> None:
        with patch.dict(os.environ, {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "TERM": "dumb", "NO_COLOR": "1"}):
            result = CliRunner().invoke(app, [*words, "--help"], prog_name=f"python -m {name}")
        if result.exit_code:
            raise RuntimeError(f"python -m {name} {' '.join(words)} --help: {result.output}")
        if words:
            parts.append(f"## `{' '.join(words)}`\n")
        text = "\n".join(line.rstrip() for line in result.output.strip("\n").splitlines())
        parts.append(f"```text\n{text}\n```\n")
        for word, inner in getattr(command, "commands", {}).items():
            add(inner, [*words, word])

    add(get_command(app), [])
    return "\n".join(parts)
