"""Which files a request may name: those under the allowed folders, with symbolic links resolved, and uploaded ones.

Requests are untrusted. Every string in a request that looks like a path is resolved and checked, at any depth, and is
replaced by the resolved path: `..`, links and `~` cannot lead elsewhere afterwards.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pool.errors import JobRefused

TEMPFILE = "tempfile:"  # followed by the id of an uploaded file


class OutsideRoots(JobRefused):
    """The path is outside the folders that a request may read and write."""


class Roots:
    """The allowed folders. closed: folders inside them that stay forbidden (the spool).

    tempfile: returns the path of an uploaded file by its id; raises JobRefused when there is none.
    """

    def __init__(
        self,
        roots: Collection[Path],
        *,
        closed: Collection[Path] = (),
        tempfile: Callable[[str], Path] | None = None,
    ) -> None:
        self.roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self._closed = tuple(os.path.realpath(folder) for folder in closed)
        self._tempfile = tempfile

    def resolve(self, text: str, key: str) -> Path:
        """The resolved path of `text`; a relative path starts at the first root.

        key: the key of the request that holds the path, for the error. Raises OutsideRoots, JobRefused.
        """
        if text.startswith(TEMPFILE) and self._tempfile is not None:
            return self._uploaded(text.removeprefix(TEMPFILE), key)
        if text.startswith("file:"):
            raise JobRefused(f"{text!r:.200} is a URL: give the path", key)
        if not text or "\0" in text or len(os.fsencode(_encodable(text))) > 4000:
            raise JobRefused("is not a valid path", key)
        try:
            real = os.path.realpath(self.roots[0] / os.path.expanduser(_encodable(text)))
        except (OSError, ValueError) as error:
            raise JobRefused(f"is not a valid path: {error}", key) from None
        if not any(_within(real, str(root)) for root in self.roots):
            allowed = ", ".join(map(str, self.roots))
            raise OutsideRoots(f"{text!r:.200} is outside the allowed folders ({allowed})", key)
        if any(_within(real, folder) for folder in self._closed):
            raise OutsideRoots(f"{text!r:.200} is in a folder that is reserved for the pool", key)
        return Path(real)

    def _uploaded(self, file_id: str, key: str) -> Path:
        assert self._tempfile is not None
        try:
            return self._tempfile(file_id)
        except JobRefused as error:
            raise JobRefused(str(error), key) from None

    def readable(self, text: str, key: str) -> Path:
        """The resolved path of a regular file that can be read. Raises OutsideRoots, JobRefused."""
        path = self.resolve(text, key)
        try:
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            raise JobRefused(f"there is no file {text!r:.200}", key) from None
        if not regular or not os.access(path, os.R_OK):
            raise JobRefused(f"{text!r:.200} is {'not readable' if regular else 'not a regular file'}", key)
        return path

    def writable(self, text: str, key: str) -> Path:
        """The resolved path of a file to write: its folder exists and is writable. Raises OutsideRoots, JobRefused."""
        if text.startswith(TEMPFILE):
            raise JobRefused("an uploaded file cannot be overwritten: give another path", key)
        path = self.resolve(text, key)
        if path.is_dir():
            raise JobRefused(f"{text!r:.200} is a folder: give the path of a file in it", key)
        if not path.parent.is_dir():
            raise JobRefused(f"the folder of {text!r:.200} does not exist: create it first", key)
        if not os.access(path.parent, os.W_OK):
            raise JobRefused(f"the folder of {text!r:.200} is not writable", key)
        return path

    def params(self, params: Mapping[str, Any], path_keys: Collection[str] = ()) -> dict[str, Any]:
        """The parameters with every path replaced by its resolved path. path_keys: keys whose values are always paths.

        Raises OutsideRoots, JobRefused.
        """
        return {key: self._value(value, f"params.{key}", key in path_keys) for key, value in params.items()}

    def _value(self, value: Any, at: str, certain: bool) -> Any:
        if isinstance(value, str):
            return str(self.resolve(value, at)) if certain or looks_like_a_path(value) else value
        if isinstance(value, Mapping):
            return {key: self._value(item, f"{at}.{key}", False) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._value(item, f"{at}[{number}]", certain) for number, item in enumerate(value)]
        return value


def looks_like_a_path(text: str) -> bool:
    """Whether a string is meant as a path wherever it stands: absolute, with `~` or `..`, or an uploaded file."""
    if text.startswith(("/", TEMPFILE, "file:")):
        return True
    return ".." in text.split("/") or (text.startswith("~") and os.path.expanduser(text) != text)


def _encodable(text: str) -> str:
    """The text with lone surrogates, which no file name can hold, replaced by "?"."""
    return text.encode("utf-8", "replace").decode()


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
