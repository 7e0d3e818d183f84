"""Parameters and results of a job with media in place of paths: what a client sends, and what a node gives the engine.

    at the caller   {"audio": "/data/talk.m4a", "output": "/data/talk.srt"}
    on the way      {"audio": {"$media": {"sha256", "size", "name": "talk.m4a"}}, "output": {"$output": "talk.srt"}}
    at the node     {"audio": "<cache>/<sha256>/talk.m4a", "output": "<folder of the job>/talk.srt"}

A string is taken for a path under a key that the engine's schema says so of, and elsewhere when it is absolute and a
regular file is there. Paths and URLs that begin with one of `cluster.shared` travel as they are. What comes from the
other side is untrusted: it is checked here, and paths in it lead nowhere but to media, to the folder of the job, to
`media_roots` and to what is shared.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pool.cluster.landing import Produced, land, landing, outgoing
from pool.cluster.mediacache import safe_name
from pool.cluster.shared import is_shared
from pool.cluster.wire import Blob
from pool.config.roots import Roots, looks_like_a_path
from pool.constants import MAX_DEPTH
from pool.errors import JobRefused, ProtocolError
from pool.job import references
from pool.system import limits

__all__ = [
    "Packed",
    "Produced",
    "SharedUrls",
    "blobs",
    "find",
    "is_shared",
    "land",
    "landing",
    "outgoing",
    "output_keys",
    "outputs_of",
    "pack",
    "shared_urls",
    "unpack",
]

MEDIA, OUTPUT = "$media", "$output"
OUTPUT_KEYS = frozenset({"output"})  # of an engine whose schema marks none
_RESERVED = frozenset({MEDIA, OUTPUT, references.MARK})

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Packed:
    """A job as it travels. inputs: files that it reads, by path. outputs: name in the parcel -> where the caller wants
    it. items: of a map job."""

    params: dict[str, Any]
    inputs: Mapping[Path, Blob] = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    items: tuple[dict[str, Any], ...] | None = None


# ---- at the client


def find(
    params: Params,
    *,
    path_keys: Collection[str] = (),
    output_keys: Collection[str] = OUTPUT_KEYS,
    shared: Collection[str] = (),
    items: Iterable[Params] | None = None,
) -> list[Path]:
    """The files that the job reads and that have to be sent, each once. Raises JobRefused with the key's path."""
    found: dict[Path, None] = {}

    def note(path: Path, certain: bool) -> bool | None:
        if not certain and not _is_file(path):
            return None
        found[path] = None
        return True

    walk = _Packing(path_keys, output_keys, shared, note)
    walk.all(params, items)
    return list(found)


def pack(
    params: Params,
    *,
    path_keys: Collection[str] = (),
    shared: Collection[str] = (),
    describe: Callable[[Path], Blob | None],
    output_keys: Collection[str] = OUTPUT_KEYS,
    items: Iterable[Params] | None = None,
) -> Packed:
    """The job with media and outputs in place of paths.

    describe: what each file of `find` is in the store; None for other paths, which stay. Raises JobRefused with the
    key's path.
    """
    inputs: dict[Path, Blob] = {}

    def place(path: Path, certain: bool) -> dict[str, Any] | None:
        blob = describe(path)
        if blob is None:
            return None
        inputs[path] = blob
        return {MEDIA: blob.to_map()}

    walk = _Packing(path_keys, output_keys, shared, place)
    packed, some = walk.all(params, items)
    return Packed(packed, inputs, walk.outputs, some)


def output_keys(schema: Mapping[str, Any] | None) -> frozenset[str]:
    """The parameters of an engine that name files which it writes: those that its JSON schema marks with
    `"output": true`, or `output` when it marks none."""
    about = (schema or {}).get("properties")
    properties = about.items() if isinstance(about, Mapping) else ()
    marked = {key for key, one in properties if isinstance(one, Mapping) and one.get("output") is True}
    return frozenset(marked) or OUTPUT_KEYS


def outputs_of(
    params: Params,
    *,
    schema: Mapping[str, Any] | None = None,
    shared: Collection[str] = (),
    items: Iterable[Params] | None = None,
) -> dict[str, Path]:
    """`Packed.outputs` of a job that was packed before, whatever has become of its files since."""
    names = _Outputs(output_keys(schema), shared)
    for one in (params, *(items or ())):
        for key, value in one.items():
            if key in names.keys:
                names.all(value)
    return names.found


class _Outputs:
    """The files that a job writes, and their names in the parcel."""

    def __init__(self, keys: Collection[str], shared: Collection[str]) -> None:
        self.keys, self._shared, self.found = keys, shared, dict[str, Path]()

    def all(self, value: Any) -> None:
        """Name all paths of one parameter."""
        if isinstance(value, (list, tuple)):
            for item in value:
                self.all(item)
        elif self.is_one(value):
            self.name(Path(os.path.normpath(os.fspath(value))))

    def is_one(self, value: Any) -> bool:
        """Whether the value of such a parameter is the path of a file that has to come back."""
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        return isinstance(text, str) and bool(text) and not is_shared(text, self._shared)

    def name(self, path: Path) -> str:
        """Its name in the parcel, with the suffix that the caller chose."""
        name = _fresh(safe_name(path.name), self.found)
        self.found[name] = path
        return name


class _Packing:
    """One walk through parameters. media: what becomes of a path, None: it stays."""

    def __init__(
        self,
        path_keys: Collection[str],
        output_keys: Collection[str],
        shared: Collection[str],
        media: Callable[[Path, bool], Any],
    ) -> None:
        self._path_keys, self._shared, self._media = path_keys, shared, media
        self._outputs = _Outputs(output_keys, shared)
        self._read: dict[Path, str] = {}  # path -> key

    @property
    def outputs(self) -> dict[str, Path]:
        return self._outputs.found

    def all(
        self, params: Params, items: Iterable[Params] | None
    ) -> tuple[dict[str, Any], tuple[dict[str, Any], ...] | None]:
        packed = self._top(params, "params")
        some = None
        if items is not None:
            some = tuple(self._top(item, f"items[{number}]") for number, item in enumerate(items))
        for path in self.outputs.values():
            if path in self._read:
                raise JobRefused(f"{path} is written by the same job: name another file", self._read[path])
        return packed, some

    def _top(self, params: Params, at: str) -> dict[str, Any]:
        self._check(params, at)
        packed = {}
        for key, value in params.items():
            if key in self._outputs.keys:
                packed[key] = self._output(value, f"{at}.{key}")
            else:
                packed[key] = self._value(value, f"{at}.{key}", key in self._path_keys, 1)
        return packed

    def _value(self, value: Any, at: str, certain: bool, depth: int) -> Any:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, str):
            return self._text(value, at, certain)
        if isinstance(value, (Mapping, list, tuple)) and depth >= MAX_DEPTH:
            raise JobRefused("is nested too deeply", at)
        if isinstance(value, Mapping):
            self._check(value, at)
            return {key: self._value(item, f"{at}.{key}", False, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._value(item, f"{at}[{place}]", certain, depth + 1) for place, item in enumerate(value)]
        return value

    def _text(self, text: str, at: str, certain: bool) -> Any:
        if not text or is_shared(text, self._shared) or not (certain or os.path.isabs(text)) or "\0" in text:
            if certain and "\0" in text:
                raise JobRefused("holds a NUL: no file can have this path", at)
            return text
        if certain:
            check_input(text, at)
        path = Path(os.path.normpath(text))
        packed = self._media(path, certain)
        if packed is None:
            return text
        self._read.setdefault(path, at)
        return packed

    def _output(self, value: Any, at: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._output(item, f"{at}[{place}]") for place, item in enumerate(value)]
        if not self._outputs.is_one(value):
            return self._value(value, at, False, 1)
        path = check_output(os.fspath(value), at)
        if path in self.outputs.values():
            raise JobRefused(f"{path} is written twice by the same job: name another file", at)
        return {OUTPUT: self._outputs.name(path)}

    @staticmethod
    def _check(value: Mapping[Any, Any], at: str) -> None:
        for key in _RESERVED & value.keys():
            raise JobRefused(f"{key} is a word of the cluster: use another key", at)


def check_input(text: str, at: str) -> None:
    """Raise JobRefused with the key `at` unless there is a regular file that can be read."""
    if "://" in text:
        raise JobRefused(f"{text!r:.200} is a URL that is not in cluster.shared: give the path of a file", at)
    if not os.path.isabs(text):
        raise JobRefused(f"{text!r:.200} is a relative path: give an absolute one", at)
    try:
        mode = os.stat(text).st_mode
    except (OSError, ValueError) as error:
        why = limits.sentence(error) if isinstance(error, OSError) else str(error)
        raise JobRefused(f"{text!r:.200} cannot be read: {why}", at) from None
    if stat.S_ISDIR(mode):
        raise JobRefused(f"{text!r:.200} is a folder: only files travel to another machine", at)
    if not stat.S_ISREG(mode):
        raise JobRefused(f"{text!r:.200} is not a regular file", at)
    if not os.access(text, os.R_OK):
        raise JobRefused(f"{text!r:.200} cannot be read: permission denied", at)


def check_output(text: str, at: str) -> Path:
    """The absolute path of a file to write. Raises JobRefused with the key `at` when it cannot be written there."""
    if "\0" in text:
        raise JobRefused("holds a NUL: no file can have this path", at)
    if "://" in text:
        raise JobRefused(f"{text!r:.200} is a URL that is not in cluster.shared: give a path", at)
    if not os.path.isabs(text):
        raise JobRefused(f"{text!r:.200} is a relative path: give an absolute one", at)
    path = Path(os.path.normpath(text))
    try:
        if path.is_dir():
            raise JobRefused(f"{path} is a folder: name a file in it", at)
        if not path.parent.is_dir():
            raise JobRefused(f"the folder {path.parent} does not exist: create it first", at)
    except OSError as error:
        raise JobRefused(f"no file can have this path: {limits.sentence(error)}", at) from None
    if not os.access(path.parent, os.W_OK):
        raise JobRefused(f"the folder {path.parent} is not writable", at)
    return path


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _fresh(name: str, taken: Collection[str]) -> str:
    stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
    number, chosen = 2, name
    while chosen in taken:
        chosen = f"{stem}-{number}{dot}{suffix}"
        number += 1
    return chosen


# ---- at the node


def blobs(params: Any) -> tuple[Blob, ...]:
    """The media in parameters, or in a list of them, each once. Raises ProtocolError."""
    return tuple(dict.fromkeys(inner for inner in _marks(params) if isinstance(inner, Blob)))


@dataclass(frozen=True)
class SharedUrls:
    """Shared URLs where an engine wants paths. inputs: what it reads. outputs: what it writes, and the name of the file
    in `outputs_dir` that has to be sent there."""

    inputs: tuple[str, ...]
    outputs: Mapping[str, str]


def names_outputs(calls: Any) -> bool:
    """Whether the parameters of a job, or of each call, name a file that the client wants."""
    return any(isinstance(inner, str) for inner in _marks(calls))


def shared_urls(
    calls: Sequence[Params],
    *,
    path_keys: Collection[str] = (),
    output_keys: Collection[str] = OUTPUT_KEYS,
    shared: Collection[str] = (),
) -> SharedUrls:
    """The shared URLs in the parameters of a job (of each call, in a map job). Raises JobRefused."""
    inputs: dict[str, None] = {}
    outputs: dict[str, str] = {}
    taken = {inner for inner in _marks(calls) if isinstance(inner, str)}
    for params in calls:
        for key, value in params.items():
            wanted = key in output_keys
            for text in value if isinstance(value, (list, tuple)) else (value,):
                if not isinstance(text, str) or "://" not in text or not is_shared(text, shared):
                    continue
                if wanted and text in outputs:
                    raise JobRefused(f"{text!r:.200} is written twice by the same job", f"params.{key}")
                if wanted:
                    name = _fresh(safe_name(text), taken)
                    taken.add(name)
                    outputs[text] = name
                elif key in path_keys:
                    inputs[text] = None
    for text in outputs:
        if text in inputs:
            raise JobRefused(f"{text!r:.200} is read and written by the same job: name another file", "params")
    return SharedUrls(tuple(inputs), outputs)


def unpack(
    params: Params,
    have: Mapping[Blob, Path],
    outputs_dir: Path,
    *,
    roots: Roots | None = None,
    shared: Collection[str] = (),
    path_keys: Collection[str] = (),
    urls: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """The parameters as the engine gets them. Its files are then `outputs_dir/<name in the parcel>`.

    have: of every one of `blobs`. outputs_dir: a folder of this job alone, which exists when the job runs. roots: where
    other paths may lead, None: nowhere. urls: shared URLs that have a file here, see `shared_urls`. Raises
    ProtocolError when the parcel is none, OutsideRoots, JobRefused.
    """
    walk = _Unpacking(have, outputs_dir, roots, shared, urls or {})
    unpacked = walk.value(params, "params", path_keys, False, 0)
    if not isinstance(unpacked, dict):
        raise ProtocolError("parameters that are no map")
    return unpacked


class _Unpacking:
    """One walk through parameters that come from elsewhere."""

    def __init__(
        self,
        have: Mapping[Blob, Path],
        outputs_dir: Path,
        roots: Roots | None,
        shared: Collection[str],
        urls: Mapping[str, Path],
    ) -> None:
        self._have, self._outputs_dir, self._roots, self._shared = have, outputs_dir, roots, shared
        self._urls = urls
        self._names: set[str] = set()

    def value(self, value: Any, at: str, path_keys: Collection[str], certain: bool, depth: int) -> Any:
        inner = _inside(value, depth)
        if isinstance(inner, Blob):
            if inner not in self._have:
                raise ProtocolError("a file that was not fetched", at)
            return str(self._have[inner])
        if isinstance(inner, str):
            if inner in self._names:
                raise ProtocolError("two outputs of one name", at)
            self._names.add(inner)
            return str(self._outputs_dir / inner)
        if isinstance(value, str):
            return self._text(value, at, certain)
        if isinstance(value, Mapping):
            return {
                key: self.value(item, f"{at}.{key}", (), key in path_keys, depth + 1) for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.value(item, f"{at}[{place}]", (), certain, depth + 1) for place, item in enumerate(value)]
        return value

    def _text(self, text: str, at: str, certain: bool) -> str:
        if text in self._urls:
            return str(self._urls[text])
        if not text or not (certain or looks_like_a_path(text)):
            return text
        if is_shared(text, self._shared):
            return text if "://" in text else str(Roots(_folders(self._shared)).resolve(text, at))
        if self._roots is None or not self._roots.roots:
            raise JobRefused(
                f"{text!r:.200} is no path of this machine: only files of the client travel; for others name a folder "
                "in media_roots of the nodes, or in cluster.shared of all machines",
                at,
            )
        return str(self._roots.resolve(text, at))


def _folders(shared: Collection[str]) -> list[Path]:
    return [Path(one) for one in shared if os.path.isabs(one)]


def _inside(value: Any, depth: int) -> Blob | str | list[Any] | None:
    """A file, the name of an output, what a list or a map holds, None for a leaf. Raises ProtocolError."""
    if isinstance(value, (list, tuple)):
        inner = list(value)
    elif isinstance(value, Mapping):
        if MEDIA in value:
            return _media(value)
        if OUTPUT in value:
            return _output_name(value)
        if references.MARK in value:
            raise ProtocolError("the result of another job, which the client should have put in place")
        inner = list(value.values())
    else:
        return None
    if depth >= MAX_DEPTH:
        raise ProtocolError("parameters nested too deeply")
    return inner


def _marks(value: Any, depth: int = 0) -> Iterator[Blob | str]:
    """All files and names of outputs."""
    inner = _inside(value, depth)
    if isinstance(inner, (Blob, str)):
        yield inner
    else:
        for item in inner or ():
            yield from _marks(item, depth + 1)


def _media(value: Mapping[str, Any]) -> Blob:
    about = value[MEDIA]
    if value.keys() != {MEDIA} or not isinstance(about, Mapping) or about.keys() != {"sha256", "size", "name"}:
        raise ProtocolError("not a file in the media store")
    blob = Blob.from_map(about)
    if blob.name != about["name"] or safe_name(blob.name) != blob.name:
        raise ProtocolError(f"{ascii(about['name'])[:120]} is not the name of a file in the media store")
    return blob


def _output_name(value: Mapping[str, Any]) -> str:
    name = value[OUTPUT]
    if value.keys() != {OUTPUT} or not isinstance(name, str) or not name or safe_name(name) != name:
        raise ProtocolError(f"{ascii(name)[:120]} is not the name of an output")
    return name
