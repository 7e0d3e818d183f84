"""Interpreters older than the project's own: found, and given the packages that a test needs.

`FILEPOOL_PYTHON38` names one; else `python3.8` on PATH, else one of pyenv's. Where there is none, tests say so.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

PLACE = Path(__file__).resolve().parents[1] / ".venv" / "old"
WORKER = ("msgpack", "watchdog", "filelock")  #: what docs/OPERATIONS.md says a worker needs


def find(version: str) -> str | None:
    """The path of an interpreter of that version, such as "3.8"."""
    named = os.environ.get(f"FILEPOOL_PYTHON{version.replace('.', '')}")
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    candidates = [
        named,
        shutil.which(f"python{version}"),
        *sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python")),
    ]
    for path in candidates:
        if path and _says(path) == version:
            return path
    return None


def _says(path: str) -> str:
    """Its version; "" for a shim that leads nowhere."""
    done = subprocess.run(
        [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
    )
    return done.stdout.strip()


def bare(version: str) -> str:
    """An interpreter of that version without packages; skips the test where there is none."""
    python = find(version)
    if python is None:
        pytest.skip(f"no Python {version} here (FILEPOOL_PYTHON{version.replace('.', '')} names one)")
    return python


def with_packages(version: str, *packages: str) -> str:
    """An interpreter of that version in an environment with those packages; skips the test where there is none."""
    python = bare(version)
    PLACE.mkdir(parents=True, exist_ok=True)
    place = PLACE / "-".join((version, *packages))
    with FileLock(f"{place}.lock"):
        if not (place / "done").exists():
            subprocess.run([python, "-m", "venv", "--clear", str(place)], check=True)
            install = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*install, *packages], check=True)
            (place / "done").touch()
    return str(place / "bin" / "python")
