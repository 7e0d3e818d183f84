"""What clients on other machines read, without the paths of this one.

Inside the first allowed folder a path is given relative to it, which is how a request may name it, too. A path in a
further allowed folder stays, because requests can name it in no other way. An uploaded file becomes `tempfile:<id>`. Of
every other path the last part remains: `…/model.onnx`.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pool.config.roots import TEMPFILE

_END = r"\s'\"`,;<>|()\[\]{}\\"
_PATH = re.compile(
    rf"(?P<quote>['\"`])(?:file:/*(?=/))?(?P<quoted>/[^'\"`\n]+)(?P=quote)"  # may hold spaces
    rf"|(?<![\w/#.%+~*)\]}}<-])(?:file:/*(?=/))?(?P<bare>/(?!/)[^{_END}]+)"
)
_UPLOAD = re.compile(r"(?P<id>[0-9a-f-]{36})(?:\.\w+)?(?P<rest>[^/]*)")
#: Where addresses of the gateway begin, which messages and hints name.
_ROUTES = frozenset(
    {
        "api",
        "bulk",
        "docs",
        "engines",
        "examples",
        "health",
        "human",
        "jobs",
        "live",
        "logs",
        "metrics",
        "static",
        "status",
        "v1",
    }
)
#: What engines return, transcripts among it: no text of ours.
_VALUES = frozenset(
    {
        "value",
        "record",
        "params",
        "schema",
        "doc",
        "result",
        "text",
        "delta",
        "segments",
        "words",
        "names",
        "log_context",
    }
)
_AS_WRITTEN = frozenset({"url", "next", "save_path", "note", "tags"})  # addresses, and what clients wrote
_CUT = "…/"


class PathFilter:
    """Replaces the paths of this machine in texts. roots: the allowed folders. uploads: the folder of uploaded files.
    spool: never named, wherever it is. home: of the configuration."""

    def __init__(self, roots: Collection[Path], uploads: Path, spool: Path, home: Path) -> None:
        self._roots = tuple(dict.fromkeys(name for root in roots for name in _names(root)))
        self._first = frozenset(_names(next(iter(roots)))) if roots else frozenset()
        self._uploads = _names(uploads)
        self._spool = _names(spool)
        known = {*self._uploads, *self._spool, *self._roots, *_names(home), str(Path.home()), sys.prefix}
        spelled = "|".join(re.escape(name) for name in sorted(known, key=len, reverse=True) if name != "/")
        # folders that are known may hold spaces, and a text may go on after them in any way
        self._known = re.compile(rf"(?<![\w/])(?:{spelled})(?:/[^{_END}]*)?(?![\w-])")

    def text(self, text: str, said: str = "", *, meant: bool = True) -> str:
        """A text for people. said: what the client has written; paths that stand in it stay. meant: an absolute path is
        one of this machine; else only where its first folder exists here."""
        if "/" not in text:
            return text

        def known(found: re.Match[str]) -> str:
            return found[0] if _has(said, found[0]) else self._shown(found[0])

        def other(found: re.Match[str]) -> str:
            path = found["quoted"] or found["bare"]
            quote = found["quote"] or ""
            if _has(said, path) or not _is_path(path, meant=meant):
                return found[0]
            return f"{quote}{self._shown(path)}{quote}"

        return _PATH.sub(other, self._known.sub(known, text))

    def document(self, value: Any, said: str = "", *, meant: bool = True) -> Any:
        """The same of a JSON document, at any depth. What an engine returned is no text of ours: see `text`, meant."""
        if isinstance(value, str):
            return self.text(value, said, meant=meant)
        if isinstance(value, Mapping):
            return {
                self.text(key, said, meant=False): item
                if meant and key in _AS_WRITTEN
                else self.document(item, said, meant=meant and key not in _VALUES)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.document(item, said, meant=meant) for item in value]
        return value

    def _shown(self, path: str) -> str:
        last = path.rstrip("/").rpartition("/")[2]
        if path.endswith("/"):
            last += "/"
        for folder in self._uploads:
            if path.startswith(f"{folder}/"):
                upload = _UPLOAD.fullmatch(path, len(folder) + 1)
                return f"{TEMPFILE}{upload['id']}{upload['rest']}" if upload else _CUT + last
        if any(_within(path, folder) for folder in self._spool):
            return _CUT + last
        for folder in self._roots:
            if _within(path, folder):
                return path if folder not in self._first else path[len(folder) :].lstrip("/") or _CUT + last
        return _CUT + last


def _has(said: str, path: str) -> bool:
    return path in said and re.search(rf"{re.escape(path)}(?![\w./-])", said) is not None


def _names(folder: Path) -> tuple[str, ...]:
    """A folder as it is written and with its links resolved."""
    return tuple(dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))))


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_path(path: str, *, meant: bool) -> bool:
    top, _, rest = path[1:].partition("/")
    if not rest or top in _ROUTES:
        return False
    return meant or _exists(top)


@functools.lru_cache(maxsize=1024)
def _exists(top: str) -> bool:
    try:
        return os.path.lexists(f"/{top}")
    except (OSError, ValueError):
        return False
